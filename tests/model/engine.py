"""The engine's own functions as programs of actors: what they ask Redis and Postgres goes through `ask`."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from features import writes
from features.relay import Relay
from mlserve.cache.entry import Entry
from mlserve.cache.invalidation import PendingInvalidations
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason
from mlserve.cache.policy import Policy
from mlserve.cache.stats import NullStats
from mlserve.cache.tiers import l2_redis
from mlserve.cache.tiers.batches import TOMBSTONE_MS, Batches
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.cache.tiers.wire import Command
from mlserve.cache.watermark import Watermark, name_of, parse
from tests.cache.doubles import policy
from tests.fixtures.clock import ManualClock
from tests.model import redis_node, source
from tests.model.actors import Ask
from tests.model.guards import scripts_without
from tests.model.redis_node import Contents, Interpreter
from tests.model.source import ModelJournal, Source

KEY = Key("customer", "c1", "customer_activity")
OTHER = Key("customer", "c2", "customer_activity")
NOW_US = int(source.NOW) * 1_000_000
CLOCK = source.NOW + 0.05
"""Of this host: a little later than whatever Postgres says."""
# Records live as long as tombstones do, so that the lives of hashes do not tell states apart.
POLICIES: Mapping[str, Policy] = {
    KEY.group: policy(KEY.group, fresh_for_s=TOMBSTONE_MS / 2000, grace_s=TOMBSTONE_MS / 2000, proven=True)
}
WATERMARK = name_of(0)


class Node(NamedTuple):
    """`failovers`: how many there were. A connection ends with one, and what was under way on it has no answer."""

    contents: Contents
    failovers: int = 0


class AskingWire:
    """To the model's node. Commands of one round trip are separate steps; a failover in between ends the trip."""

    breakers: Mapping[str, Any] = {}

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        if len(commands) == 1:
            return [thawed(self._ask("node", parts_of(commands[0].packed)))]
        replies: list[Any] = []
        failovers: int | None = None
        for command in commands:
            reply, failovers = self._ask("node", parts_of(command.packed), failovers)
            if reply is MissReason.TIMEOUT:
                return [reply] * len(commands)
            replies.append(thawed(reply))
        return replies

    def probe(self) -> None: ...


class ReconnectingWire(AskingWire):
    """Goes on with a round trip on another node."""

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        return [reply for command in commands for reply in super(ReconnectingWire, self).ask([command])]


class BackwardsWire(AskingWire):
    """Sends the last command first."""

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        return super().ask(commands[::-1])[::-1]


class TornWire(AskingWire):
    """Tells a batch in two calls: what changed, and then the watermark."""

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        (command,) = commands
        parts = parts_of(command.packed)
        keys = int(parts[2])
        shared, wm = parts[3 + keys :][:6], parts[3 : 3 + keys][:2]
        if keys > len(wm):
            reply = self._ask("node", (b"EVAL", _WITHOUT_WATERMARK, *parts[2:]))
            if reply[0] != 1:
                return [thawed(reply)]
        return [thawed(self._ask("node", (*parts[:2], b"%d" % len(wm), *wm, *shared)))]


_WITHOUT_WATERMARK = scripts_without("atomic batch")["batch.lua"]


class NodeAnswers:
    """What a node answers, without the guards that are `removed` from its scripts."""

    def __init__(self, removed: AbstractSet[str], *, forget_streams: bool) -> None:
        # A batch is torn by whoever sends it (`TornWire`).
        self._interpreter = Interpreter(redis_node.scripts(scripts_without(*removed - {"atomic batch"})))
        self._forget_streams = forget_streams

    def __call__(self, node: Node, asked: tuple[Any, ...]) -> Sequence[tuple[Any, Node]]:
        if len(asked) == 1:
            reply, after = self._run(node, asked[0])
            return [(reply, after)]
        parts, failovers = asked
        if failovers not in (None, node.failovers):
            return [((MissReason.TIMEOUT, node.failovers), node)]
        reply, after = self._run(node, parts)
        return [((reply, node.failovers), after)]

    def _run(self, node: Node, parts: Sequence[bytes]) -> tuple[Any, Node]:
        reply, contents = self._interpreter.run(node.contents, parts, now_us=NOW_US)
        if isinstance(reply, Exception):
            raise AssertionError(f"{parts}: {reply}")
        if self._forget_streams:
            contents = tuple(held for held in contents if not isinstance(held.value, redis_node.Stream))
        return _frozen(reply), node._replace(contents=contents)


def _frozen(reply: Any) -> Any:
    return tuple(_frozen(each) for each in reply) if isinstance(reply, list) else reply


def thawed(reply: Any) -> Any:
    return [thawed(each) for each in reply] if isinstance(reply, tuple) else reply


@lru_cache(None)
def parts_of(packed: bytes) -> tuple[bytes, ...]:
    """The parts of a command in the Redis protocol."""
    parts, place = [], packed.index(b"\r\n") + 2
    while place < len(packed):
        end = packed.index(b"\r\n", place)
        length = int(packed[place + 1 : end])
        parts.append(packed[end + 2 : end + 2 + length])
        place = end + 2 + length + 2
    return tuple(parts)


# --- programs ---


@contextmanager
def quiet_relays() -> Iterator[None]:
    """They would tell of each new epoch in each order of events."""
    logger = logging.getLogger("features.relay")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def l2_over(wire: AskingWire, **options: Any) -> L2Tier:
    return L2Tier(wire, NullStats(), clock=ManualClock(CLOCK), **options)


def write_through(ask: Ask, token: str, key: Key, *, lease_after_commit: bool, may_roll_back: bool) -> None:
    """As a request that changes a row: update, lease, commit, fill. It may end anywhere."""
    l2 = l2_over(AskingWire(ask))
    version = ask("source", source.update, key)
    with _engine(l2, token):
        taken = None if lease_after_commit else writes.write_leases([key])
        if ask("source", source.commit_or_roll_back if may_roll_back else source.commit, version):
            writes.write_through({key: entry_of(version)}, taken or writes.write_leases([key]))


def write_around(ask: Ask, token: str, key: Key) -> None:
    """As a build: commit, and then drop the copies, which may be lost."""
    version = ask("source", source.update, key)
    ask("source", source.commit, version)
    with _engine(l2_over(AskingWire(ask)), token):
        writes.drop_copies([key])


def fill(ask: Ask, token: str, key: Key, *, reads: Callable[..., Any]) -> None:
    """As a reader that misses: lease, read, fill. Whatever it saw, so that it is granted what any reader may be."""
    l2 = l2_over(AskingWire(ask))
    with tokens(token):
        granted = l2.lease_many([key], {key: MissReason.BYPASS}, POLICIES).granted
    if granted:
        version = ask("source", reads, key)
        l2.fill_many({key: entry_of(version)}, POLICIES, granted)


def relay_tick(
    ask: Ask,
    held: bytes | None,
    *,
    name: str,
    wire: type[AskingWire] = AskingWire,
    since: Callable[..., Any] = source.since,
) -> bytes | None:
    """One tick of the relay. What it keeps from one to the next is the watermark that it saw last."""
    clock = ManualClock(CLOCK)
    journal = ModelJournal(partial(ask, "source"), since)
    relay = Relay(journal=journal, batches=Batches(wire(ask)), partitions=1, clock=clock)  # type: ignore[arg-type]
    relay.name = name
    relay._remembered_at = clock.monotonic()
    relay._held = {} if held is None else {0: held}
    relay.tick()
    return relay._held.get(0)


def entry_of(version: int, vouched_at: float = source.NOW) -> Entry:
    values = None if version == source.NEVER else (float(version),)
    return Entry(version, source.NOW, source.NOW, values, 0.0, vouched_at)


@contextmanager
def tokens(token: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(l2_redis, "token_bytes", lambda _: token.encode())
        yield


@contextmanager
def _engine(l2: L2Tier, token: str) -> Iterator[None]:
    """What `features.writes` takes from the process's wiring: these tiers, and nothing in L1."""
    l1 = L1Tier(BoundedStore(10, 10_000))
    pending, clock = PendingInvalidations(l2), ManualClock(CLOCK)
    engine = SimpleNamespace(l1=l1, l2=l2, chain=l1.chain, pending=pending, clock=clock)
    with pytest.MonkeyPatch.context() as patched, tokens(token):
        patched.setattr(writes, "engine", lambda: engine)
        patched.setattr(writes, "policies_in_force", lambda: SimpleNamespace(policies=POLICIES))
        yield


# --- what lies in a node ---


class _OneNodeWire(AskingWire):
    """Looks at contents that do not change."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        run = _looking.run
        return [run(self._contents, parts_of(command.packed), now_us=NOW_US)[0] for command in commands]


_looking = Interpreter({})


def watermark_bytes(contents: Contents) -> bytes:
    held = _looking.run(contents, (b"GET", WATERMARK), now_us=NOW_US)[0]
    return bytes(held or b"")


def watermark_in(contents: Contents) -> Watermark | None:
    return parse(watermark_bytes(contents))


def record_in(contents: Contents, key: Key) -> Entry | MissReason:
    """As a reader gets it; `vouched_at` says whether the watermark speaks for it."""
    return l2_over(_OneNodeWire(contents)).get_many([key], POLICIES)[key]


def lease_in(contents: Contents, key: Key) -> str:
    """The token of whoever has it, or ''."""
    held = _looking.run(contents, (b"GET", names(key).lease), now_us=NOW_US)[0]
    return bytes.fromhex(held.decode()).decode() if held else ""


def contradiction(contents: Contents, at: Source, key: Key) -> str:
    """Whether a record is older than what the watermark says has been applied here (FRESHNESS, I1), or of no commit."""
    held, mark = record_in(contents, key), watermark_in(contents)
    if isinstance(held, MissReason):
        return ""
    if held.version not in (source.NEVER, *at.versions(key)):
        return f"{key.id}: version {held.version} lies in L2 and was never committed"
    if not held.vouched_at or mark is None:
        return ""
    covered = at.newest(key, mark.snapshot)
    if held.version < covered:
        return f"{key.id}: version {held.version} is vouched for by a watermark that covers version {covered}"
    return ""


def without(contents: Contents, *names: bytes) -> Contents:
    return tuple(held for held in contents if held.name not in names)


def names(key: Key) -> Any:
    return names_of(*key.entity, 1)
