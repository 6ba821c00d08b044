"""Adds up the metric files of all processes of this host: `PROMETHEUS_MULTIPROC_DIR`, Prometheus' own format.

Counters of dead processes stay, what they counted happened. Live gauges of dead processes are left out, whoever
should have tidied them up (a process killed with -9 tidies nothing).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import psutil
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

CounterKey = tuple[str, ...]
"""The metric's sample name, then the values of its labels in the order of `_LABELS`; a bucket's bound comes last.

What differs in other labels only is added up."""

_LABELS: dict[str, tuple[str, ...]] = {
    "mlserve_cache_hits_total": ("tier", "namespace"),
    "mlserve_cache_misses_total": ("tier", "namespace", "reason"),
    "mlserve_cache_evictions_total": ("tier",),
    "mlserve_cache_fill_refused_total": ("tier", "reason"),
    "mlserve_breaker_opened_total": ("tier",),
    "mlserve_source_loads_total": ("namespace",),
    "mlserve_source_errors_total": ("reason",),
    "mlserve_features_stale_total": ("namespace",),
    "mlserve_features_defaulted_total": ("namespace",),
    "mlserve_scores_total": ("decision", "degraded"),
    "mlserve_journal_spooled_total": (),
    "mlserve_cache_tier_seconds_bucket": ("tier", "le"),  # all namespaces together
    "mlserve_cache_tier_seconds_count": ("tier", "namespace"),
    "mlserve_cache_tier_seconds_sum": ("tier", "namespace"),
    "mlserve_feature_age_seconds_bucket": ("namespace", "le"),
    "mlserve_score_seconds_bucket": ("le",),
    "mlserve_journal_commit_seconds_bucket": ("le",),
    "mlserve_journal_batch_decisions_bucket": ("le",),
    "mlserve_journal_batch_decisions_sum": (),
}


class BreakerState(msgspec.Struct, frozen=True, order=True):
    """`openness`: 0 closed, 0.5 half-open (one probe at a time), 1 open."""

    tier: str
    pid: int
    openness: float


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    counters: dict[CounterKey, float]
    breakers: tuple[BreakerState, ...]
    l1_entries: int
    l1_bytes: int


def read_samples(directory: Path) -> Samples:
    """The sums over all processes; zeros where nothing has been counted yet."""
    counters: dict[CounterKey, float] = {}
    breakers: list[BreakerState] = []
    gauges: dict[str, float] = {}
    for metric in _merged(directory):
        for sample in metric.samples:
            if sample.name in _LABELS:
                key = (sample.name, *(sample.labels[label] for label in _LABELS[sample.name]))
                counters[key] = counters.get(key, 0.0) + sample.value
            elif sample.name == "mlserve_breaker_open":
                breakers.append(BreakerState(sample.labels["tier"], int(sample.labels["pid"]), sample.value))
            else:
                gauges[sample.name] = sample.value
    return Samples(
        counters=counters,
        breakers=tuple(sorted(breakers)),
        l1_entries=int(gauges.get("mlserve_l1_entries", 0)),
        l1_bytes=int(gauges.get("mlserve_l1_bytes", 0)),
    )


def _merged(directory: Path) -> Iterable[Metric]:
    """A file may vanish between listing and reading; then the list is out of date and a new one is taken."""
    for _attempt in range(3):
        try:
            return MultiProcessCollector.merge([str(path) for path in _files(directory)], accumulate=True)
        except FileNotFoundError:
            continue
    return ()


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.glob("*.db")):
        kind, *rest = path.stem.split("_")
        if kind == "gauge" and not (rest[0].startswith("live") and psutil.pid_exists(int(rest[-1]))):
            continue
        if path.stat().st_size:  # a process that is just starting has made its file and written nothing yet
            yield path
