"""The model of L1 over L2: a process that follows a stream which loses messages, over a node that loses history.

What is checked is what the process says of its copies: whatever was acknowledged before the moment that a copy is
vouched for is in it (FRESHNESS, section 7).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest

from mlserve.cache import bus
from mlserve.cache.chain import NEVER_BEGUN, Chain, Head
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.tiers import bus_tail
from mlserve.cache.tiers.l2_redis import L2Tier
from tests.model import engine, l2, process, redis_node, source
from tests.model.actors import Actor, Ask
from tests.model.engine import KEY, OTHER, AskingWire, Node, NodeAnswers
from tests.model.process import Process, Processes
from tests.model.redis_node import Contents
from tests.model.search import Search, Searched, World
from tests.model.source import Source, Write


class Bounds(NamedTuple):
    """How much happens. `commits` by key. `readers` that read once, into L1.

    `evicted`: the record in L2 may go. `trims`: how often the stream loses any number of messages, the oldest first.
    `silences`: how often the process finds that it has heard nothing for long.
    """

    commits: tuple[Key, ...] = (KEY, KEY, OTHER)
    readers: int = 1
    failovers: int = 0
    trims: int = 0
    silences: int = 0
    evicted: bool = False


class _Outside(NamedTuple):
    replicas: tuple[Node, ...]
    failovers: int
    trims: int


def search(bounds: Bounds, *removed: str, most: int = 5_000_000) -> Searched:
    """Every order of events within these bounds, without the guards that are `removed`. Raises `Violation`."""
    with engine.quiet_relays(), _without(*removed):
        return Search(_world(bounds, frozenset(removed))).run(most=most)


def _world(bounds: Bounds, removed: frozenset[str]) -> World:
    answers = NodeAnswers(removed, forget_streams=False)
    processes = Processes()
    begin = processes.begin()
    ((first, _),) = processes(begin, ("next_question",))
    node, begun = l2.relayed(answers, Node(redis_node.EMPTY), Source((Write(KEY, "C"),)))
    node = l2.filled(answers, node, begun)
    return World(
        actors=list(_actors(bounds, removed, engine.watermark_bytes(node.contents), first)),
        node=node,
        outside=_Outside((), bounds.failovers, bounds.trims),
        source=begun,
        process=begin,
        answer=partial(_answer, answers, processes),
        happenings=partial(_happenings, bounds),
        wrong={"node": l2.wrong, "process": partial(_wrong, processes)},
        describe=partial(_describe, processes),
        name_question=_name_question,
        # Nobody raises an epoch, and nobody but the tail changes what it asks next.
        is_joined=lambda question: question.asked[0] in (source.kept, "next_question"),
    )


def _actors(bounds: Bounds, removed: frozenset[str], held: bytes, first_question: Any) -> Iterator[Actor]:
    wire = engine.TornWire if "atomic batch" in removed else AskingWire
    # Idle ticks add nothing but messages without a change.
    tick = partial(engine.relay_tick, name="r1", wire=wire, since=source.since_if_changed)
    yield Actor("relay", tick, held, repeats=True)
    yield Actor("tail", _tail, first_question, repeats=True)
    for number in range(1, bounds.readers + 1):
        yield Actor(f"reader {number}", partial(_read, token=f"f{number}", wire=_wire_of_readers(removed)))
    for key in dict.fromkeys(bounds.commits):
        commits = bounds.commits.count(key)
        yield Actor(f"commits of {key.id}", partial(l2.commit_at_once, key=key), commits, repeats=True)
    if bounds.silences:
        yield Actor("silence", _silence, bounds.silences, repeats=True)


def _wire_of_readers(removed: frozenset[str]) -> type[AskingWire]:
    if "watermark first" in removed:
        return engine.BackwardsWire
    return engine.ReconnectingWire if "one node" in removed else AskingWire


def _tail(ask: Ask, question: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """As `BusTail.poll`, a message at a time."""
    ask("process", "take", ask("node", question))
    following: tuple[bytes, ...] = ask("process", "next_question")
    return following


def _read(ask: Ask, _state: None, *, token: str, wire: type[AskingWire]) -> None:
    """As the cascade below L1: L2, and then the source under a lease; what was found goes into L1."""
    since = ask("process", "begin")
    l2_tier = engine.l2_over(wire(ask), heads=lambda: ask("process", "heads"))
    found = l2_tier.get_many([KEY], engine.POLICIES)
    held = found[KEY]
    if isinstance(held, Entry) and held.vouched_at:
        ask("process", "put", KEY, held, since)
        return
    with engine.tokens(token):
        granted = l2_tier.lease_many([KEY], found, engine.POLICIES).granted
    version, moment = ask("source", source.read_with_moment, KEY)
    entry = engine.entry_of(version, moment)
    ask("process", "put", KEY, entry, since)
    if granted:
        l2_tier.fill_many({KEY: entry}, engine.POLICIES, granted)


def _silence(ask: Ask, left: int) -> int:
    if not left:
        ask("source", source.nothing, KEY)
    ask("process", "silence")
    return left - 1


def _answer(
    node: NodeAnswers, processes: Processes, part: str, value: Any, asked: tuple[Any, ...]
) -> Sequence[tuple[Any, Any]]:
    return processes(value, asked) if part == "process" else l2.answer(node, part, value, asked)


def _happenings(bounds: Bounds, node: Node, outside: _Outside) -> Iterator[tuple[str, Node, _Outside]]:
    if bounds.evicted and any(held.name == engine.names(KEY).record for held in node.contents):
        yield (
            "the record in L2 expires",
            node._replace(contents=engine.without(node.contents, engine.names(KEY).record)),
            outside,
        )
    if outside.trims:
        left = outside._replace(trims=outside.trims - 1)
        for lost, contents in _trimmed(node.contents):
            yield f"the oldest {lost} messages are lost", node._replace(contents=contents), left
    yield from l2.failovers(node, outside)


def _trimmed(contents: Contents) -> Iterator[tuple[int, Contents]]:
    for held in contents:
        if isinstance(held.value, redis_node.Stream):
            for lost in range(1, len(held.value.messages) + 1):
                shorter = held._replace(value=held.value._replace(messages=held.value.messages[lost:]))
                yield lost, tuple(shorter if each is held else each for each in contents)


def _wrong(processes: Processes, value: Process, at: Source) -> str:
    return process.contradiction(processes.held(value), at)


def _describe(processes: Processes, node: Node, at: Source, value: Process) -> str:
    awake = processes.held(value)
    told = ", ".join(
        f"{key.id} version {entry.version} of {source.writes_before(entry.vouched_at)}" for key, entry in awake
    )
    return f"{l2.describe(node, at, None)}; L1 {told or 'empty'}"


def _name_question(part: str, asked: tuple[Any, ...], told: Any) -> str:
    if part == "node" and asked[0][0] in (b"XRANGE", b"XREVRANGE"):
        return f"{asked[0][0].decode()} -> {_of_messages(told)}"
    if part != "process":
        return l2.name_question(part, asked, told)
    what, *arguments = asked
    if what == "put":
        _, entry, since = arguments
        return f"put version {entry.version} of {source.writes_before(entry.vouched_at)}, begun at {since}"
    if what == "take":
        return f"hear {_of_messages(arguments[0])}"
    return f"{what} -> {_of_heads(told) if what == 'heads' else told}"


def _of_messages(read: Sequence[tuple[bytes, tuple[bytes, ...]]]) -> str:
    messages = [bus.read(fields, watermark_name=engine.WATERMARK) for _, fields in read]
    return ", ".join(map(_of_message, messages)) or "nothing"


def _of_message(message: Any) -> str:
    changed = ",".join(f"{key.id}:{version}" for key, version in message.changes)
    return f"{_snapshot(message.held)} to {_snapshot(message.following)} with {changed or 'no change'}"


def _snapshot(watermark: bytes) -> str:
    if not watermark:
        return "no watermark"
    return "a marker" if watermark.startswith(b"!") else watermark.decode().split("|")[1]


def _of_heads(heads: Sequence[Head]) -> str:
    return heads[0].promised.snapshot if heads[0].promised else "nothing heard"


# --- without a guard ---


def _forget_without_flush(self: Chain, partition: int) -> None:
    followed = self._followed[partition]
    followed.gap_at = self._position
    followed.named.clear()
    followed.ring.clear()


_forget = Chain._forget


def _forget_without_gap(self: Chain, partition: int) -> None:
    _forget(self, partition)
    self._followed[partition].gap_at = NEVER_BEGUN


_INSTEAD: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "gap flush": (Chain, "_forget", _forget_without_flush),
    "pending drop": (Chain, "_forget", _forget_without_gap),
    "ring": (Chain, "_name", lambda *_: None),
    "watermark check": (L2Tier, "_if_it_covers", lambda _self, watermark, *_: watermark),
}


@contextmanager
def _without(*removed: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bus_tail, "MOST_AT_ONCE", 1)
        for name in removed:
            if name in _INSTEAD:
                of, attribute, instead = _INSTEAD[name]
                assert hasattr(of, attribute), attribute
                patched.setattr(of, attribute, instead)
        yield
