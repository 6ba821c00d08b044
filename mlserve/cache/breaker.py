"""Stops asking what does not answer.

Without it a frozen Redis costs every request a timeout. With it, the first failures open the breaker: look-ups are
refused at once, and a prober asks in the background, one probe at a time, at jittered and growing intervals, until
the dependency answers. Requests are used as probes only if the prober itself has died. One breaker stands for one
dependency in one process: processes that see different networks must be able to judge differently.

It sheds reads and copies, never invalidations: those wait (see `invalidation.py`).
Nygard, "Release It!" (2nd ed. 2018), chapter 5.
"""

import random
import threading
from enum import Enum

from mlserve.cache.clock import Clock

FAILURES_TO_OPEN = 2
TIMEOUT_WEIGHT = 2
"""A timeout has cost a request its whole budget already, so one is enough; refused connections are cheap."""
FIRST_INTERVAL_S = 0.2
LONGEST_INTERVAL_S = 5.0
ABANDONED_AFTER_S = 5.0
"""A probe that is overdue by this much means that nobody probes: then a request may. More than the time-outs of
connecting to Redis and to Postgres, since a probe that is under way is none that is overdue."""


class State(Enum):
    CLOSED = 0.0
    HALF_OPEN = 0.5
    OPEN = 1.0


class Breaker:
    """Thread-safe. `allow` costs one attribute read while closed."""

    def __init__(self, name: str, clock: Clock, *, random_source: random.Random | None = None) -> None:
        self.name = name
        self.opened_count = 0
        self._clock = clock
        self._random = random_source or random.Random()
        self._lock = threading.Lock()
        self._state = State.CLOSED
        self._failures = 0
        self._interval_s = FIRST_INTERVAL_S
        self._probe_at = 0.0

    @property
    def state(self) -> State:
        return self._state

    def allow(self) -> bool:
        """Whether a request may use the dependency now."""
        if self._state is State.CLOSED:
            return True
        return self._start_probe(self._probe_at + ABANDONED_AFTER_S)

    def allow_probe(self) -> bool:
        """For the prober: True once per interval while open. Whoever gets True reports success or failure."""
        if self._state is State.CLOSED:
            return False
        return self._start_probe(self._probe_at)

    def success(self) -> None:
        """The dependency answered."""
        if self._failures or self._state is not State.CLOSED:
            with self._lock:
                self._state = State.CLOSED
                self._failures = 0
                self._interval_s = FIRST_INTERVAL_S

    def failure(self, *, timed_out: bool) -> None:
        """The dependency did not answer."""
        with self._lock:
            self._failures += TIMEOUT_WEIGHT if timed_out else 1
            if self._state is State.CLOSED and self._failures >= FAILURES_TO_OPEN:
                self.opened_count += 1
                self._open()
            elif self._state is State.HALF_OPEN:
                self._interval_s = min(2 * self._interval_s, LONGEST_INTERVAL_S)
                self._open()

    def _open(self) -> None:
        self._state = State.OPEN
        # Jitter keeps processes that opened together from probing together.
        self._probe_at = self._clock.monotonic() + self._interval_s * self._random.uniform(0.8, 1.2)

    def _start_probe(self, not_before: float) -> bool:
        with self._lock:
            now = self._clock.monotonic()
            if self._state is State.CLOSED:
                return True
            if now < not_before:
                return False
            if self._state is State.HALF_OPEN and now < self._probe_at + ABANDONED_AFTER_S:
                return False
            self._state = State.HALF_OPEN
            self._probe_at = now
            return True
