"""Reloads copies that are still fresh, in the background, and the same for whoever warms the cache.

A refresh has no privilege: it takes the lease, reads the source, fills. If somebody else holds the lease the value is
being loaded already, and there is nothing to do.
"""

import queue
import threading
from collections.abc import Mapping, Sequence

import msgspec

from mlserve.cache.clock import Clock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.loading import Loader, measured
from mlserve.cache.outcome import MissReason
from mlserve.cache.policy import Policy
from mlserve.cache.stats import Stats
from mlserve.cache.tiers.base import LocalTier, SharedTier

QUEUE_LENGTH = 1_000
"""Refreshes that may wait. One that is left out is a miss later, nothing worse."""


class Renewed(msgspec.Struct):
    """`entries`: read from the source, without what it says itself is out of date. `arrived`: L2 took them all.

    `held_elsewhere`: keys that others load.
    """

    entries: dict[Key, Entry]
    arrived: bool = True
    held_elsewhere: int = 0


def renew(
    keys: Sequence[Key],
    *,
    l2: SharedTier,
    policies: Mapping[str, Policy],
    loader: Loader,
    clock: Clock,
    seen: Mapping[Key, Entry | MissReason],
) -> Renewed:
    """Lease, read, fill; now. `seen`: what the caller found in L2. Raises SourceUnavailable.

    What L2 gives no lease for is not read: neither what others load nor what it does not answer for.
    """
    answer = l2.lease_many(keys, seen, policies)
    mine = [key for key in keys if key.entity in answer.granted]
    renewed = Renewed({}, arrived=not answer.unavailable)
    renewed.held_elsewhere = sum(key.entity in answer.elsewhere or key in answer.changed for key in keys)
    if not mine:
        return renewed
    started = clock.monotonic()
    try:
        read = loader(mine)
    except BaseException:  # a worker's time limit as well: the lease must not outlive its holder
        l2.release(answer.granted)
        raise
    cost_s = (clock.monotonic() - started) / max(1, len({key.entity for key in mine}))
    renewed.entries = {key: measured(entry, cost_s) for key, entry in read.items() if not entry.outdated}
    unfilled = answer.granted.keys() - {key.entity for key in renewed.entries}
    if unfilled:
        l2.release({entity: answer.granted[entity] for entity in unfilled})
    if renewed.entries:
        renewed.arrived = l2.fill_many(renewed.entries, policies, answer.granted) and renewed.arrived
    return renewed


class NullRefresher:
    """Refreshes nothing."""

    def refresh(self, keys: Sequence[Key], policies: Mapping[str, Policy], loader: Loader) -> None: ...


class Refresher:
    """One thread per process, started with the first refresh. Thread-safe."""

    def __init__(self, *, l1: LocalTier, l2: SharedTier, stats: Stats, clock: Clock) -> None:
        self._l1 = l1
        self._l2 = l2
        self._stats = stats
        self._clock = clock
        self._queue: queue.Queue[tuple[Key, Mapping[str, Policy], Loader]] = queue.Queue(QUEUE_LENGTH)
        self._lock = threading.Lock()
        self._under_way: set[Key] = set()
        self._thread: threading.Thread | None = None

    def refresh(self, keys: Sequence[Key], policies: Mapping[str, Policy], loader: Loader) -> None:
        """Returns at once. A key that is waiting or under way already is not taken twice."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="refresher", daemon=True)
                self._thread.start()
            for key in keys:
                if key not in self._under_way and not self._queue.full():
                    self._under_way.add(key)
                    self._queue.put_nowait((key, policies, loader))

    def flush(self) -> None:
        """Returns when all that was asked for before has been tried."""
        if self._thread is not None:
            self._queue.join()

    def _run(self) -> None:
        while True:
            key, policies, loader = self._queue.get()
            try:
                self._refresh(key, policies, loader)
            except Exception:  # one bad refresh must not end all later ones
                self._stats.source_error("refresh")
            finally:
                with self._lock:
                    self._under_way.discard(key)
                self._queue.task_done()

    def _refresh(self, key: Key, policies: Mapping[str, Policy], loader: Loader) -> None:
        policy, since = policies[key.group], self._l1.begin()
        if policy.use_l2:
            # Whatever lies there is what is to be renewed: it does not count as somebody else's fill.
            seen: dict[Key, Entry | MissReason] = {key: MissReason.BYPASS}
            read: Mapping[Key, Entry] = renew(
                [key], l2=self._l2, policies=policies, loader=loader, clock=self._clock, seen=seen
            ).entries
        else:
            started = self._clock.monotonic()
            loaded = loader([key]).items()
            cost_s = self._clock.monotonic() - started
            read = {each: measured(entry, cost_s) for each, entry in loaded if not entry.outdated}
        if read:
            self._stats.event("refreshed_early")
            if policy.use_l1:
                self._l1.put_many(read, policies, since=since)
