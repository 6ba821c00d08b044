"""Fills L2 after the answer, off the request's path: a miss costs the request one round trip less."""

import queue
import threading
from collections.abc import Mapping

import msgspec

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.cache.stats import Stats
from mlserve.cache.tiers.base import Entity, LeaseToken, SharedTier

QUEUE_LENGTH = 1_000
"""Fills that may wait. More than that means L2 cannot keep up; a dropped fill is one more miss later, counted."""
_ENTRIES_PER_TRIP = 200


class Fill(msgspec.Struct, frozen=True):
    """`leases` None: of entries that need none."""

    entries: Mapping[Key, Entry]
    policies: Mapping[str, Policy]
    leases: Mapping[Entity, LeaseToken] | None


class Filler:
    """One thread per process, started with the first fill."""

    def __init__(self, tier: SharedTier, stats: Stats) -> None:
        self._tier = tier
        self._stats = stats
        self._queue: queue.Queue[Fill] = queue.Queue(QUEUE_LENGTH)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> None:
        """Returns at once. For entries that cannot become wrong."""
        self._enqueue(Fill(entries, policies, None))

    def fill(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], leases: Mapping[Entity, LeaseToken]
    ) -> None:
        """Returns at once. For entries that were read from the source under these leases."""
        self._enqueue(Fill(entries, policies, leases))

    def flush(self) -> None:
        """Returns when all that was queued before has been tried."""
        if self._thread is not None:
            self._queue.join()

    def _enqueue(self, fill: Fill) -> None:
        if self._thread is None:
            self._start()
        try:
            self._queue.put_nowait(fill)
        except queue.Full:  # its leases end by themselves
            self._stats.fill_refused(Tier.L2, "queue_full", len(fill.entries))

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="l2-filler", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            while sum(len(fill.entries) for fill in taken) < _ENTRIES_PER_TRIP:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            try:
                self._write(taken)
            except Exception:  # a fill that cannot be encoded must not end all later ones
                self._stats.fill_refused(Tier.L2, "error", sum(len(fill.entries) for fill in taken))
            finally:
                for _ in taken:
                    self._queue.task_done()

    def _write(self, fills: list[Fill]) -> None:
        """In two trips, but for entities that were leased again: of their leases one was lost, and L2 knows which."""
        policies = fills[-1].policies
        leased: dict[Key, Entry] = {}
        leases: dict[Entity, LeaseToken] = {}
        free: dict[Key, Entry] = {}
        for fill in fills:
            if fill.leases is not None:
                if leases.keys() & fill.leases.keys():
                    self._fill(leased, policies, leases)
                    leased, leases = {}, {}
                leased.update(fill.entries)
                leases.update(fill.leases)
                continue
            for key, entry in fill.entries.items():
                held = free.get(key)
                if held is None or held.version <= entry.version:
                    free[key] = entry
        if leases:
            self._fill(leased, policies, leases)
        if free:
            self._tier.put_many(free, policies)

    def _fill(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], leases: Mapping[Entity, LeaseToken]
    ) -> None:
        self._tier.fill_many(entries, policies, leases)
        self._tier.release({entity: lease for entity, lease in leases.items() if not _covers(entries, entity)})


def _covers(entries: Mapping[Key, Entry], entity: Entity) -> bool:
    return any(key.entity == entity for key in entries)
