"""How many scores a process works on at once, how many may wait, and for how long; the rest is refused at once.

A process that takes in all that it is asked for answers nobody in time once it is asked for more than it can do: what
it then finishes was given up by its caller long ago. A request that is refused early costs next to nothing; what is
admitted keeps its latency, and throughput stays what it was.

As many requests as have a place are under way; the next ones wait for one in the order of their arrival. What tells a
burst from overload is whether the queue has been empty lately, not its length: in a burst each may wait up to
`INTERVAL_S`; a queue that has not been empty for so long is standing, and nobody waits longer than `TARGET_S`. That is
CoDel (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012; RFC 8289) as servers use it, with
patience in the place of dropping at intervals (Maurer, "Fail at Scale", ACM Queue 13(8), 2015).

A score that waits for its commit does nothing meanwhile: it steps aside, the next one takes its place, and the commit
that follows takes in all that have stepped aside until then. A request that waits, here or there, keeps a thread of the
server, so there must be more threads than places in both: those that are left refuse, and answer what is not gated.

Other kinds of requests have admissions of their own (`gate.py`). Who waits there is a person, or a caller without a
millisecond to keep: a wait of a fixed time is right for them.
"""

import threading
from collections import deque
from enum import StrEnum
from typing import Final

from mlserve.cache.clock import Clock

INTERVAL_S: Final = 0.1
TARGET_S: Final = 0.03
"""As long as a score takes on a slow disk: a few clients that ask without a pause are no overload."""


class Refusal(StrEnum):
    """Why a request was not admitted."""

    FULL = "full"
    """As many wait, for a place or for a commit, as may."""
    LATE = "late"
    """It had waited for as long as anybody may."""


class Admission:
    """Thread-safe. Whoever is admitted leaves."""

    def __init__(self, *, at_once: int, most_waiting: int, clock: Clock, max_wait_s: float | None = None) -> None:
        """`max_wait_s`: each waits so long, however the queue stands; for people, who would rather wait than ask again.

        None: as the module says.
        """
        self._at_once = at_once
        self._most_waiting = most_waiting
        self._max_wait_s = max_wait_s
        self._monotonic = clock.monotonic
        self._lock = threading.Lock()
        self._under_way = 0
        self._aside = 0
        self._waiting: deque[threading.Lock] = deque()
        self._last_empty = self._monotonic()

    @property
    def under_way(self) -> int:
        return self._under_way

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def aside(self) -> int:
        return self._aside

    def enter(self) -> Refusal | None:
        """None when the caller has a place, perhaps after a wait of at most `INTERVAL_S`, or `max_wait_s`."""
        with self._lock:
            if len(self._waiting) + self._aside + self._under_way >= self._at_once + self._most_waiting:
                return Refusal.FULL
            if self._under_way < self._at_once:
                self._under_way += 1
                return None
            now = self._monotonic()
            if not self._waiting:
                self._last_empty = now
            timeout_s = TARGET_S if now - self._last_empty > INTERVAL_S else INTERVAL_S
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout_s if self._max_wait_s is None else self._max_wait_s):
            return None
        with self._lock:
            try:
                self._waiting.remove(turn)
            except ValueError:  # its turn came at the last moment
                return None
        return Refusal.LATE

    def leave(self) -> None:
        """Hands the place to whoever has waited longest."""
        with self._lock:
            self._hand_over()

    def step_aside(self) -> None:
        """As `leave`, but the request is not over: `leave_from_aside` ends it."""
        with self._lock:
            self._aside += 1
            self._hand_over()

    def leave_from_aside(self) -> None:
        with self._lock:
            self._aside -= 1

    def _hand_over(self) -> None:
        if self._waiting:
            self._waiting.popleft().release()
        else:
            self._under_way -= 1


class Visit:
    """Of one request, on its thread: the places that it has taken."""

    __slots__ = ("_aside", "_entered")

    def __init__(self) -> None:
        self._entered: list[Admission] = []
        self._aside = False
        _visit.now = self

    def enter(self, admission: Admission) -> Refusal | None:
        """None when it has a place there as well."""
        refusal = admission.enter()
        if refusal is None:
            self._entered.append(admission)
        return refusal

    def step_aside(self) -> None:
        """Everywhere."""
        if not self._aside:
            self._aside = True
            for admission in self._entered:
                admission.step_aside()

    def leave(self) -> None:
        """Everywhere, whether it stepped aside or not."""
        _visit.now = None
        for admission in self._entered:
            if self._aside:
                admission.leave_from_aside()
            else:
                admission.leave()


_visit = threading.local()


def step_aside() -> None:
    """Gives the place of this thread's request to the next one: from now on it only waits. Nothing if it has none."""
    visit: Visit | None = getattr(_visit, "now", None)
    if visit is not None:
        visit.step_aside()
