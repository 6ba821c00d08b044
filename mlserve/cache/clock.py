"""Where the engine gets the time from. Only `SystemClock` reads the real one."""

import time
from functools import partial
from typing import Protocol

# Of Linux. Durations go on while the machine sleeps, which those of time.monotonic do not.
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970, for what is compared across processes: `as_of`, `written_at`."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment, for durations inside this process."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Returns after so long; only for waiting on what another process does."""
        ...


class SystemClock:
    """The clock of this host."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME))
    sleep = staticmethod(time.sleep)
