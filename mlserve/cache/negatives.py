"""How many "the source knows nothing" may lie in the cache at a time.

Each answer for an unknown id is worth keeping for a moment; a million of them, asked for by somebody who makes ids up,
would push out what the cache is for. So a process may have only so many negative entries alive, and what is over that
is answered but not kept.
"""

import threading
from collections import deque

from mlserve.cache.clock import Clock


class NegativeQuota:
    """Thread-safe. At most `limit` grants whose time is not over."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._lock = threading.Lock()
        self._ends: deque[float] = deque()

    def grant(self, ttl_s: float) -> bool:
        """Whether one more negative entry may be kept, for `ttl_s` seconds."""
        now = self._clock.monotonic()
        with self._lock:
            # Groups have different lives: an entry in front may hold others back a little, never let too many in.
            while self._ends and self._ends[0] <= now:
                self._ends.popleft()
            if len(self._ends) >= self._limit:
                return False
            self._ends.append(now + ttl_s)
            return True
