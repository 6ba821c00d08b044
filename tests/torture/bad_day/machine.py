"""Whether the machine is ours while the day lasts: what a time is worth that was measured on it."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psutil

CROWDED: Final = 0.25
"""Share of the processors that others may take before times say more about them than about us."""
_EVERY_S: Final = 2.0


class Machine:
    """Looks every two seconds. `ours` names the processes that belong to the day, this one excepted."""

    def __init__(self, ours: Callable[[], list[psutil.Process]]) -> None:
        self._ours = ours
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="machine", daemon=True)
        self._shares: list[tuple[float, float]] = []
        """Moment (monotonic) and share of others since the moment before."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def others_share(self, *, last_s: float) -> float:
        """The largest of the last seconds, 0 to 1."""
        since = time.monotonic() - last_s - _EVERY_S
        return max((share for at, share in list(self._shares) if at >= since), default=0.0)

    def _watch(self) -> None:
        busy_s, own, at = _busy_s(), self._own_s(), time.monotonic()
        while not self._stop.wait(_EVERY_S):
            busy_now_s, own_now, now = _busy_s(), self._own_s(), time.monotonic()
            # What was started meanwhile has done all of it since; of what has ended the last seconds are nobody's.
            ours_s = sum(used_s - own.get(process, 0.0) for process, used_s in own_now.items())
            capacity_s = (now - at) * (psutil.cpu_count() or 1)
            self._shares.append((now, max(0.0, busy_now_s - busy_s - ours_s) / capacity_s))
            busy_s, own, at = busy_now_s, own_now, now

    def _own_s(self) -> dict[tuple[int, float], float]:
        found = {}
        for process in [psutil.Process(), *self._ours()]:
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid, process.create_time()] = times.user + times.system
        return found


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)
