"""Our own processes, killed with -9 or frozen, one after the other. Whoever is killed is started again."""

import signal
from functools import partial

import psutil

from tests.torture.bad_day.conduct import Allowed
from tests.torture.bad_day.fault import Day, Fault


def faults() -> list[Fault]:
    """The first web process is killed with its supervisor, the second one below it, which granian replaces."""
    first, second = (Allowed(broken_webs=frozenset({web}), answered=0.2) for web in (0, 1))
    return [
        Fault(name="web-0 killed", play=partial(_kill, name="web-0"), allowed=first, extra_s=3.0),
        Fault(name="web-1's worker killed", play=partial(_kill, name="web-1/"), allowed=second, extra_s=3.0),
        Fault(name="web-1 frozen", play=partial(_freeze, name="web-1"), allowed=second, least_s=3.0),
        Fault(name="relay killed", play=partial(_kill, name="relay")),
        Fault(name="relay frozen", play=partial(_freeze, name="relay"), least_s=3.0),
        Fault(name="worker-refresh killed", play=partial(_kill, name="worker-refresh")),
        Fault(name="worker-refresh's pool killed", play=partial(_kill, name="worker-refresh/")),
        Fault(name="worker-build killed", play=partial(_kill, name="worker-build")),
        Fault(name="worker-build frozen", play=partial(_freeze, name="worker-build")),
        Fault(name="beat killed", play=partial(_kill, name="beat")),
    ]


def _kill(day: Day, lasts_s: float, *, name: str) -> None:
    """A name with a slash at its end means what the process has started."""
    for process in _named(day, name):
        process.kill()
    day.bed.pause(lasts_s)


def _freeze(day: Day, lasts_s: float, *, name: str) -> None:
    frozen = [process for called, process in day.bed.processes().items() if called.partition("/")[0] == name]
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    try:
        day.bed.pause(lasts_s)
    finally:
        for process in frozen:
            if process.is_running():
                process.send_signal(signal.SIGCONT)


def _named(day: Day, name: str) -> list[psutil.Process]:
    """Raises LookupError if there is none: a fault that strikes nobody would prove nothing."""
    below = name.endswith("/")
    found = [
        process
        for called, process in day.bed.processes().items()
        if called == name or (below and called.startswith(name))
    ]
    if not found:
        raise LookupError(f"no process {name}")
    return found
