"""A cap on how many reads of the source this process has under way, whatever the hit rate.

Without it a cold or lost cache turns every request into a read of Postgres, at the moment at which Postgres has never
seen such a load. With it the load on Postgres is known beforehand (processes times the cap), and who finds no place
within a short wait serves what it has, flagged.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Saturated(Exception):
    """No place became free in time."""


class ConcurrencyLimiter:
    """Thread-safe. `in_use` and `refused` are for the metrics."""

    def __init__(self, limit: int, *, wait_s: float) -> None:
        self.limit = limit
        self.refused = 0
        self.most_in_use = 0
        self._wait_s = wait_s
        self._places = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._in_use = 0

    @property
    def in_use(self) -> int:
        return self._in_use

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places. Raises Saturated."""
        if not self._places.acquire(timeout=self._wait_s):
            with self._lock:
                self.refused += 1
            raise Saturated
        try:
            with self._lock:
                self._in_use += 1
                self.most_in_use = max(self.most_in_use, self._in_use)
            yield
        finally:
            with self._lock:
                self._in_use -= 1
            self._places.release()
