"""The model of L2: writers, readers that fill, relays and one partition that loses keys and history (FRESHNESS, I1)."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.batches import Change
from tests.model import engine, redis_node, source
from tests.model.actors import Actor, Ask
from tests.model.engine import KEY, OTHER, Node, NodeAnswers
from tests.model.search import Search, Searched, World
from tests.model.source import Source, Write


class Bounds(NamedTuple):
    """How much happens. `writers` by the keys that they write through to; `builds` drop copies instead.

    `commits`: of writers that tell the cache nothing; `overlapping` ones take time, others a moment.
    `evicted`: keys whose records and leases may go at any moment, as by their expiry. `may_roll_back`: writers do not
    always commit. `lost_watermarks`: how often the watermark alone goes. `new`: no relay has been there before.
    """

    writers: tuple[Key, ...] = ()
    builds: tuple[Key, ...] = ()
    commits: tuple[Key, ...] = ()
    overlapping: tuple[Key, ...] = ()
    fillers: tuple[Key, ...] = ()
    relays: int = 1
    failovers: int = 0
    evicted: tuple[Key, ...] = (KEY,)
    may_roll_back: bool = False
    lost_watermarks: int = 0
    new: bool = False


class _Outside(NamedTuple):
    """What may still happen. `replicas`: contents that the node had and another node may have stayed at."""

    replicas: tuple[Node, ...]
    failovers: int
    lost_watermarks: int


def search(bounds: Bounds, *removed: str, most: int = 5_000_000) -> Searched:
    """Every order of events within these bounds, without the guards that are `removed`. Raises `Violation`.

    Looks as well whether the first relay, left alone, mends whatever has happened: then a record that the watermark
    vouches for is the newest.
    """
    with engine.quiet_relays():
        search = Search(_world(bounds, frozenset(removed)))
        searched = search.run(most=most)
        if searched.complete:
            search.settle(0, _is_settled)
        return searched


def _world(bounds: Bounds, removed: frozenset[str]) -> World:
    answers = NodeAnswers(removed, forget_streams=True)
    actors = list(_actors(bounds, removed))
    # Nobody raises an epoch then, so when it is read makes no difference.
    fixed_epoch = not bounds.new and not bounds.lost_watermarks
    node, begun = Node(redis_node.EMPTY), Source((Write(KEY, "C"),))
    if not bounds.new:
        node, begun = relayed(answers, node, begun)
    return World(
        actors=actors,
        node=node,
        outside=_Outside((), bounds.failovers, bounds.lost_watermarks),
        source=begun,
        process=None,
        answer=partial(answer, answers),
        happenings=partial(_happenings, bounds),
        wrong={"node": wrong},
        describe=describe,
        name_question=name_question,
        is_joined=lambda question: fixed_epoch and question.asked[0] is source.kept,
    )


def relayed(answers: NodeAnswers, node: Node, at: Source) -> tuple[Node, Source]:
    """After one tick that nothing disturbed, of a relay that is gone."""
    return _after(answers, node, at, partial(engine.relay_tick, held=None, name="r0"))


def filled(answers: NodeAnswers, node: Node, at: Source) -> Node:
    """After a reader that nothing disturbed."""
    return _after(answers, node, at, partial(engine.fill, token="f0", key=KEY, reads=source.read))[0]


def _after(answers: NodeAnswers, node: Node, at: Source, program: Callable[..., Any]) -> tuple[Node, Source]:
    parts: dict[str, Any] = {"node": node, "source": at}

    def ask(part: str, *question: Any) -> Any:
        ((told, parts[part]),) = answer(answers, part, parts[part], question)
        return told

    program(ask)
    return parts["node"], parts["source"]


def _actors(bounds: Bounds, removed: frozenset[str]) -> Iterator[Actor]:
    wire = engine.TornWire if "atomic batch" in removed else engine.AskingWire
    reads = source.read_replica if "primary reads" in removed else source.read
    for number in range(1, bounds.relays + 1):
        name = f"relay {number}"
        program = partial(engine.relay_tick, name=f"r{number}", wire=wire)
        yield Actor(name, program, None, repeats=True)
    for number, key in enumerate(bounds.writers, 1):
        name = f"writer {number} of {key.id}"
        yield Actor(
            name,
            _once(
                partial(
                    engine.write_through,
                    token=f"w{number}",
                    key=key,
                    lease_after_commit="write lease before commit" in removed,
                    may_roll_back=bounds.may_roll_back,
                )
            ),
        )
    for number, key in enumerate(bounds.builds, 1):
        yield Actor(f"build {number} of {key.id}", _once(partial(engine.write_around, token=f"b{number}", key=key)))
    for key, commits in Counter(bounds.commits).items():
        yield Actor(f"commits of {key.id}", partial(commit_at_once, key=key), commits, repeats=True)
    for key in bounds.overlapping:
        yield Actor(f"a commit of {key.id}", _once(partial(_commit, key=key)))
    for number, key in enumerate(bounds.fillers, 1):
        name = f"reader {number} of {key.id}"
        yield Actor(name, _once(partial(engine.fill, token=f"f{number}", key=key, reads=reads)))


def commit_at_once(ask: Ask, left: int, *, key: Key) -> int:
    ask("source", source.write if left else source.nothing, key)
    return left - 1


def _commit(ask: Ask, *, key: Key) -> None:
    ask("source", source.commit, ask("source", source.update, key))


def _once(program: Any) -> Any:
    return lambda ask, _state: program(ask)


def answer(node: NodeAnswers, part: str, value: Any, asked: tuple[Any, ...]) -> Sequence[tuple[Any, Any]]:
    if part == "node":
        return node(value, asked)
    question, *arguments = asked
    told: Sequence[tuple[Any, Any]] = question(value, *arguments)
    return told


def _happenings(bounds: Bounds, node: Node, outside: _Outside) -> Iterator[tuple[str, Node, _Outside]]:
    present = {held.name for held in node.contents}
    for key in bounds.evicted:
        names = engine.names(key)
        for name, what in ((names.record, "record"), (names.lease, "lease")):
            if name in present:
                yield (
                    f"the {what} of {key.id} expires",
                    node._replace(contents=engine.without(node.contents, name)),
                    outside,
                )
    if outside.lost_watermarks and engine.WATERMARK in present:
        after = node._replace(contents=engine.without(node.contents, engine.WATERMARK))
        yield "the watermark is lost", after, outside._replace(lost_watermarks=outside.lost_watermarks - 1)
    yield from failovers(node, outside)


def failovers(node: Node, outside: Any) -> Iterator[tuple[str, Node, Any]]:
    """To any state that the node has been in: a replica had got so far."""
    if len(outside.replicas) < outside.failovers and (not outside.replicas or outside.replicas[-1] != node):
        yield "a replica stays behind here", node, outside._replace(replicas=(*outside.replicas, node))
    for place, replica in enumerate(outside.replicas):
        left = outside._replace(replicas=outside.replicas[:place], failovers=outside.failovers - 1)
        yield "failover", Node(replica.contents, node.failovers + 1), left


def _is_settled(node: Node, at: Source) -> bool:
    """The watermark covers all that is committed: then no record that it vouches for is older than the newest."""
    mark = engine.watermark_in(node.contents)
    return mark is not None and mark.epoch == at.epoch and mark.snapshot == at.snapshot()


def wrong(node: Node, at: Source) -> str:
    return engine.contradiction(node.contents, at, KEY) or engine.contradiction(node.contents, at, OTHER)


# --- for people ---


def describe(node: Node, at: Source, _process: None) -> str:
    mark = engine.watermark_in(node.contents)
    told = [f"wm {mark.epoch}|{mark.snapshot}" if mark else "wm none"]
    for key in (KEY, OTHER):
        record, lease = _record_of(node, key), engine.lease_in(node.contents, key)
        if record or lease:
            told.append(" ".join(filter(None, (key.id, record, lease and f"leased to {lease}"))))
    told.append("committed " + ",".join(f"{w.key.id}:{n}" for n, w in enumerate(at.writes, 1) if w.state == "C"))
    return "; ".join(told)


@lru_cache(None)
def _record_of(node: Node, key: Key) -> str:
    held = engine.record_in(node.contents, key)
    if held is MissReason.COLD:
        return ""
    return str(held) if isinstance(held, MissReason) else f"version {held.version}"


def name_question(part: str, asked: tuple[Any, ...], told: Any) -> str:
    if part != "node":
        question, *arguments = asked
        about = ", ".join(each.id if isinstance(each, Key) else str(each) for each in arguments)
        return f"{question.__name__}({about}) -> {_short(told)}"
    parts = asked[0]
    script = redis_node.name_of(parts[1]) if parts[0] == b"EVALSHA" else parts[0].decode()
    return f"{script} -> {_short(told)}"


def _short(answer: Any) -> str:
    if isinstance(answer, bytes):
        is_text = all(32 <= byte < 127 for byte in answer)
        return answer.decode() if is_text else f"record of version {int.from_bytes(answer[:8], 'big')}"
    if isinstance(answer, tuple):
        return "(" + ", ".join(map(_short, answer)) + ")"
    return f"{answer.id}:{answer.version}" if isinstance(answer, Change) else str(answer)
