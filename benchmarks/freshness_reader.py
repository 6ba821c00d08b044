"""`python -m benchmarks.freshness_reader`: reads the same few hundred keys again and again through the real cascade.

A child of `freshness.py`, with an engine as every process that serves has one. Writes down when it was first given
each version, and, in a second thread, when its L1 let go of one.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import django
import msgspec

from benchmarks.child import say, told
from benchmarks.freshness_lag import NOTHING, Stay

KEYS = 300
KEYS_A_REQUEST = 6
_THREADS = 5
"""As in a web process; each reads its share of the keys, so that one that waits for PostgreSQL holds up no other."""
ENTITY, GROUP = "customer", "customer_activity"
"""A group whose values count as new at the moment at which they are read, so that a TTL is one since then."""
TTL_S = 2.0
"""Of the sides that have nothing else: short, so that copies expire within each round. A longer one is later."""
_PROVEN_TTL_S = 3_600.0
_SWEEP_S = 0.02
"""From one look at all keys to the next: 15,000 keys a second in each process."""
_LOOK_S = 0.002
"""From one look into L1 to the next."""
_SWITCH_S = 0.0005
"""So that neither thread waits for the other longer than it takes to look."""
_WARM_SWEEPS = 3
_VOUCHED_S = 0.3
"""The relay has caught up if somebody vouches for what was there so long ago."""
_PATIENCE_S = 20.0


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Read the keys of `side`, until told to end."""

    side: str
    proven: bool


class End(msgspec.Struct, frozen=True, tag="end"):
    """Stop when of each of these keys at least this version has been read, or after `patience_s`."""

    versions: Mapping[int, int]
    patience_s: float


class Seen(msgspec.Struct, frozen=True):
    """By key, see `freshness_lag.History`: what was read, and what L1 held. `tiers`: who answered, until the end was
    called for."""

    read: dict[int, list[Stay]]
    held: dict[int, list[Stay]]
    tiers: dict[str, int]


def id_of(side: str, key: int) -> str:
    """No side finds what another one left."""
    return f"{side}-{key}"


def policies_of(*, proven: bool, bound_s: float) -> Mapping[str, Any]:
    """In force for the group on a side."""
    from features.definitions import GROUPS
    from mlserve.cache.policy import Policy

    return {
        GROUP: Policy(
            namespace=GROUP,
            schema=GROUPS[GROUP].schema,
            fresh_for_s=_PROVEN_TTL_S if proven else TTL_S,
            grace_s=0,
            negative_ttl_s=0,
            proven=proven,
            bound_s=bound_s,
        )
    }


class _Stays:
    """Of one way of looking, by key. Each key is looked at by one thread."""

    def __init__(self) -> None:
        self.by_key: dict[int, list[Stay]] = {key: [] for key in range(KEYS)}

    def note(self, key: int, version: int, at: float) -> None:
        stays = self.by_key[key]
        if stays and stays[-1].version == version:
            stays[-1].last = at
        else:
            stays.append(Stay(version, at, at))

    def newest(self, key: int) -> int:
        """The one that was seen last; 0 if there was none."""
        stays = self.by_key[key]
        return stays[-1].version if stays else 0


class Reader:
    """Of one side. Its threads work from the making of it to `end`."""

    def __init__(self, begin: Begin) -> None:
        from django.conf import settings

        from features import source
        from mlserve.cache.keys import Key
        from mlserve.cache.outcome import Tier
        from mlserve.cache.wiring import engine

        self._engine = engine()
        self._nobody = Tier.DEFAULT
        self._clock = self._engine.clock
        self._proven = begin.proven
        self._policies = policies_of(proven=begin.proven, bound_s=settings.FRESHNESS_BOUND_S)
        self._keys = [Key(ENTITY, id_of(begin.side, key), GROUP) for key in range(KEYS)]
        self._load = source.loader(self._engine.l3_breaker, self._engine.l3_limiter)
        self._read, self._held = _Stays(), _Stays()
        self._tiers: list[Counter[str]] = [Counter() for _ in range(_THREADS)]
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._wait_for_a_voucher()
        sweeps = [partial(self._sweep, thread) for thread in range(_THREADS)]
        for _ in range(_WARM_SWEEPS):
            for sweep in sweeps:
                sweep()
        self._engine.filler.flush()
        for tiers in self._tiers:
            tiers.clear()
        self._look()
        self._threads = [
            threading.Thread(target=self._again_and_again, args=(work, pause_s))
            for work, pause_s in (*((sweep, _SWEEP_S) for sweep in sweeps), (self._look, _LOOK_S))
        ]
        for thread in self._threads:
            thread.start()

    def end(self, end: End) -> Seen:
        """Raises whatever a thread raised."""
        tiers = sum((tiers.copy() for tiers in self._tiers), Counter())
        ends_at = self._clock.monotonic() + end.patience_s
        while self._clock.monotonic() < ends_at and self._failure is None and not self._is_past(end.versions):
            self._clock.sleep(_SWEEP_S)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return Seen(self._read.by_key, self._held.by_key, tiers)

    def _is_past(self, versions: Mapping[int, int]) -> bool:
        return all(
            changes.newest(key) >= version for key, version in versions.items() for changes in (self._read, self._held)
        )

    def _wait_for_a_voucher(self) -> None:
        ends_at = self._clock.monotonic() + _PATIENCE_S
        while self._proven and self._clock.now() - self._engine.l1.vouched_at > _VOUCHED_S:
            if self._clock.monotonic() > ends_at:
                raise SystemExit("freshness: no relay vouches for anything")
            self._clock.sleep(_SWEEP_S)

    def _again_and_again(self, work: Callable[[], None], pause_s: float) -> None:
        due = self._clock.monotonic()
        try:
            while not self._stop.is_set():
                work()
                due = max(due + pause_s, self._clock.monotonic() - pause_s)
                self._stop.wait(max(0.0, due - self._clock.monotonic()))
        except BaseException as error:
            self._failure = error

    def _sweep(self, thread: int) -> None:
        """One request after the other, until the thread's share of the keys is read."""
        from mlserve.cache.tiers.request import RequestTier

        for start in range(thread * KEYS_A_REQUEST, KEYS, _THREADS * KEYS_A_REQUEST):
            reading = self._engine.features.read_many(
                self._keys[start : start + KEYS_A_REQUEST],
                policies=self._policies,
                loader=self._load,
                request=RequestTier(),
                budget=self._engine.budget(),
            )
            self._note(thread, start, list(reading.outcomes.values()), self._clock.monotonic())

    def _note(self, thread: int, start: int, outcomes: Sequence[Any], at: float) -> None:
        for place, outcome in enumerate(outcomes):
            self._tiers[thread][outcome.tier] += 1
            if outcome.tier is not self._nobody:  # so busy a machine that PostgreSQL could not be asked
                self._read.note(start + place, outcome.entry.version, at)

    def _look(self) -> None:
        held = [self._engine.l1.store.peek(key) for key in self._keys]
        at = self._clock.monotonic()
        for number, entry in enumerate(held):
            self._held.note(number, NOTHING if entry is None else entry.version, at)


def main() -> None:
    sys.setswitchinterval(_SWITCH_S)
    django.setup()
    say("ready")
    reader: Reader | None = None
    for message in told():
        task = msgspec.convert(message, Begin | End, str_keys=True)
        if isinstance(task, Begin):
            reader = Reader(task)
            say("reading")
        else:
            assert reader is not None
            say(reader.end(task))


if __name__ == "__main__":
    main()
