"""Fills L2 after the answer, off the request's path: a miss costs the request one round trip, as a hit does."""

import queue
import threading
from collections.abc import Mapping

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.cache.stats import Stats
from mlserve.cache.tiers.base import CacheTier

_Fill = tuple[Mapping[Key, Entry], Mapping[str, Policy]]
QUEUE_LENGTH = 1_000
"""Fills that may wait. More than that means L2 cannot keep up; a dropped fill is one more miss later, counted."""
_ENTRIES_PER_TRIP = 200


class Filler:
    """One thread per process, started with the first fill."""

    def __init__(self, tier: CacheTier, stats: Stats) -> None:
        self._tier = tier
        self._stats = stats
        self._queue: queue.Queue[_Fill] = queue.Queue(QUEUE_LENGTH)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def fill(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> None:
        """Returns at once."""
        if self._thread is None:
            self._start()
        try:
            self._queue.put_nowait((entries, policies))
        except queue.Full:
            self._stats.fill_refused(Tier.L2, "queue_full", len(entries))

    def flush(self) -> None:
        """Returns when all that was queued before has been tried."""
        if self._thread is not None:
            self._queue.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="l2-filler", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            entries = dict(taken[0][0])
            while len(entries) < _ENTRIES_PER_TRIP:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
                for key, entry in taken[-1][0].items():
                    held = entries.get(key)
                    if held is None or held.version <= entry.version:
                        entries[key] = entry
            try:
                self._tier.put_many(entries, taken[-1][1])
            except Exception:  # a fill that cannot be encoded must not end all later ones
                self._stats.fill_refused(Tier.L2, "error", len(entries))
            finally:
                for _ in taken:
                    self._queue.task_done()
