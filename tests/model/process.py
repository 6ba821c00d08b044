"""What one process holds of L1 and of the chain, as a value: the engine's own objects, put away and taken out again."""

from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from mlserve.cache.chain import Chain
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.tiers.bus_tail import BusTail
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.wire import Command
from tests.fixtures.clock import ManualClock
from tests.model.engine import CLOCK, KEY, OTHER, POLICIES, parts_of, thawed
from tests.model.source import Source, writes_before

_LONG_S = 10.0
_NOT_STATE = {"_memory", "_partition_of", "_clock", "_lock", "_chain", "_wire", "_seal", "_answer", "gaps", "refused"}
"""Attributes that are handed in, or only count."""


class Process(NamedTuple):
    """`chain` and `tail`: what their attributes hold, in a form that can be compared."""

    chain: Any
    tail: Any
    copies: tuple[tuple[Key, Entry], ...] = ()


class _Awake(NamedTuple):
    chain: Chain
    tail: BusTail
    l1: L1Tier
    clock: ManualClock


class Processes:
    """Runs a process that has been put away."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, Any], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._held: dict[Process, list[tuple[Key, Entry]]] = {}

    def begin(self) -> Process:
        return self._put_away(self._new())

    def __call__(self, process: Process, asked: tuple[Any, ...]) -> Sequence[tuple[Any, Process]]:
        awake, (what, *arguments) = self._wake(process), asked
        answer = getattr(self, f"_{what}")(awake, *arguments)
        return [(answer, self._put_away(awake))]

    def held(self, process: Process) -> list[tuple[Key, Entry]]:
        """What a reader finds in L1, with the moment that it is vouched for."""
        held = self._held.get(process)
        if held is None:
            found = self._wake(process).l1.get_many([KEY, OTHER], POLICIES)
            held = self._held[process] = [(key, entry) for key, entry in found.items() if isinstance(entry, Entry)]
        return held

    # --- what is asked of it ---

    def _begin(self, awake: _Awake) -> int:
        return awake.l1.begin()

    def _heads(self, awake: _Awake) -> Any:
        return awake.chain.heads

    def _put(self, awake: _Awake, key: Key, entry: Entry, since: int) -> None:
        awake.l1.put_many({key: entry}, POLICIES, since=since)

    def _next_question(self, awake: _Awake) -> tuple[bytes, ...]:
        command: Command = awake.tail._question(0)
        return parts_of(command.packed)

    def _take(self, awake: _Awake, reply: Any) -> None:
        awake.tail._take(0, thawed(reply))

    def _silence(self, awake: _Awake) -> None:
        awake.clock.advance(_LONG_S)
        awake.chain.note_silence()

    # --- putting away ---

    def _new(self) -> _Awake:
        clock, store = ManualClock(CLOCK), BoundedStore(10, 10_000)
        chain = Chain(store, partitions=1, partition_of=lambda _key: 0, clock=clock)
        tail = BusTail(chain=chain, wire=None, partitions=1)  # type: ignore[arg-type]
        return _Awake(chain, tail, L1Tier(store, chain), clock)

    def _wake(self, process: Process) -> _Awake:
        awake = self._new()
        chain, tail = deepcopy(self._kept[process.chain, process.tail])
        vars(awake.chain).update(chain)
        vars(awake.tail).update(tail)
        for key, entry in process.copies:
            awake.l1.store.put_newer(key, entry)
        return awake

    def _put_away(self, awake: _Awake) -> Process:
        chain, tail = _state_of(awake.chain), _state_of(awake.tail)
        frozen = _freeze(chain), _freeze(tail)
        self._kept.setdefault(frozen, (chain, tail))
        held = ((key, awake.l1.store.peek(key)) for key in (KEY, OTHER))
        return Process(*frozen, tuple((key, entry) for key, entry in held if isinstance(entry, Entry)))


def _state_of(thing: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(thing).items() if name not in _NOT_STATE}


def _freeze(value: Any) -> Any:
    match value:
        case dict():
            return tuple(sorted(((_freeze(key), _freeze(each)) for key, each in value.items()), key=repr))
        case list() | tuple() | deque():
            return tuple(map(_freeze, value))
        case set():
            return tuple(sorted(value))
    return _freeze(vars(value)) if hasattr(value, "__dict__") else value


def contradiction(held: Sequence[tuple[Key, Entry]], at: Source) -> str:
    """Whether a copy is older than a write that was acknowledged before the moment that it is vouched for."""
    for key, entry in held:
        if entry.vouched_at == 0.0:
            continue
        known = Source(at.writes[: writes_before(entry.vouched_at)]).newest(key)
        if entry.version < known:
            return (
                f"{key.id}: version {entry.version} in L1 is vouched for up to a moment when {known} was acknowledged"
            )
    return ""
