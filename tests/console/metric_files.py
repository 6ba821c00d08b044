"""Metric files as processes leave them behind, written with prometheus-client's own code."""

from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.utils import floatToGoString


class MetricFiles:
    """The files of one process. Values are set, not added."""

    def __init__(self, directory: Path, pid: int) -> None:
        self._directory = directory
        self._pid = pid

    def counter(self, name: str, value: float, **labels: str) -> None:
        self._write("counter", name, name, value, labels)

    def gauge(self, name: str, value: float, *, mode: str, **labels: str) -> None:
        self._write(f"gauge_{mode}", name, name, value, labels)

    def histogram(self, name: str, counts: dict[float, float], **labels: str) -> None:
        """`counts`: observations by the upper bound of their bucket, and of no lower one."""
        for bound, count in counts.items():
            self._write("histogram", name, f"{name}_bucket", count, {**labels, "le": floatToGoString(bound)})

    def _write(self, kind: str, metric: str, sample: str, value: float, labels: dict[str, str]) -> None:
        file = MmapedDict(str(self._directory / f"{kind}_{self._pid}.db"))
        file.write_value(mmap_key(metric, sample, list(labels), list(labels.values()), "help"), value, 0.0)
        file.close()
