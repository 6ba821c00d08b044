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

    def histogram(self, name: str, counts: dict[float, float], *, total: float | None = None, **labels: str) -> None:
        """`counts`: observations by the upper bound of their bucket, and of no lower one. `total`: their sum."""
        if total is not None:
            self._write("histogram", name, f"{name}_sum", total, labels)
        for bound, count in counts.items():
            self._write("histogram", name, f"{name}_bucket", count, {**labels, "le": floatToGoString(bound)})

    def _write(self, kind: str, metric: str, sample: str, value: float, labels: dict[str, str]) -> None:
        file = MmapedDict(str(self._directory / f"{kind}_{self._pid}.db"))
        file.write_value(mmap_key(metric, sample, list(labels), list(labels.values()), "help"), value, 0.0)
        file.close()


def predictions(files: MetricFiles) -> None:
    """What a process leaves behind whose model is ten times slower than L1 and ten times quicker than L2."""
    for tier, mean_s in (("l1", 1e-6), ("l2", 1e-4), ("computed", 1e-5)):
        files.histogram(
            "mlserve_cache_tier_seconds",
            {0.00025: 200.0, float("inf"): 0.0},
            total=200 * mean_s,
            tier=tier,
            namespace="prediction",
        )
    files.counter("mlserve_cache_hits_total", 150.0, tier="l1", namespace="prediction")
    files.counter("mlserve_cache_misses_total", 50.0, tier="l1", namespace="prediction", reason="cold")
