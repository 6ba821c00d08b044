"""The metric files of all processes of this host, added up: `PROMETHEUS_MULTIPROC_DIR`, Prometheus' own format.

Counters of dead processes stay, what they counted happened. Live gauges of dead processes are left out, whoever
should have tidied them up (a process killed with -9 tidies nothing). So are files that hold nothing yet: a process that
is just starting makes its file before it writes to it, and one that is killed in between leaves it so for ever.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import structlog
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

_log = structlog.get_logger(__name__)
_DAMAGED = (struct.error, ValueError, RuntimeError, IndexError, KeyError, TypeError)
"""What prometheus-client raises for bytes that it did not write."""


def merged(directory: Path) -> Iterable[Metric]:
    """The sums; none where nothing has been counted yet. A file that is damaged is left out, and logged.

    A file may vanish between listing and reading; then the list is out of date and a new one is taken.
    """
    for _attempt in range(3):
        try:
            files = [str(path) for path in _files(directory)]
            try:
                return MultiProcessCollector.merge(files, accumulate=True)
            except _DAMAGED:
                return MultiProcessCollector.merge([file for file in files if _is_sound(file)], accumulate=True)
        except FileNotFoundError:
            continue
    return ()


class MetricFiles:
    """A collector for prometheus-client's registries."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        return merged(self._directory)


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.glob("*.db")):
        kind, _, rest = path.stem.partition("_")
        mode, _, pid = rest.rpartition("_")
        if kind == "gauge" and not (mode.startswith("live") and pid.isdecimal() and psutil.pid_exists(int(pid))):
            continue
        if path.stat().st_size:
            yield path


def _is_sound(file: str) -> bool:
    try:
        MultiProcessCollector.merge([file], accumulate=True)
    except _DAMAGED as error:
        _log.warning("metric_file_damaged", file=file, error=f"{type(error).__name__}: {error}")
        return False
    return True
