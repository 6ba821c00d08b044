"""What the console takes from the figures of all processes of this host."""

from pathlib import Path

import msgspec

from mlserve.observability.metric_files import merged

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
    "mlserve_scores_cold_start_total": ("decision",),
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


class Unconfirmed(msgspec.Struct, frozen=True, order=True):
    """A process serves a `what` (`model`, `policies`) that PostgreSQL does not say to be in force."""

    what: str
    pid: int


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    counters: dict[CounterKey, float]
    breakers: tuple[BreakerState, ...]
    unconfirmed: tuple[Unconfirmed, ...]
    l1_entries: int
    l1_bytes: int


def read_samples(directory: Path) -> Samples:
    """The sums over all processes; zeros where nothing has been counted yet."""
    counters: dict[CounterKey, float] = {}
    breakers: list[BreakerState] = []
    unconfirmed: list[Unconfirmed] = []
    gauges: dict[str, float] = {}
    for metric in merged(directory):
        for sample in metric.samples:
            if sample.name in _LABELS:
                key = (sample.name, *(sample.labels[label] for label in _LABELS[sample.name]))
                counters[key] = counters.get(key, 0.0) + sample.value
            elif sample.name == "mlserve_breaker_open":
                breakers.append(BreakerState(sample.labels["tier"], int(sample.labels["pid"]), sample.value))
            elif sample.name == "mlserve_unconfirmed":
                if sample.value:
                    unconfirmed.append(Unconfirmed(sample.labels["what"], int(sample.labels["pid"])))
            else:
                gauges[sample.name] = sample.value
    return Samples(
        counters=counters,
        breakers=tuple(sorted(breakers)),
        unconfirmed=tuple(sorted(unconfirmed)),
        l1_entries=int(gauges.get("mlserve_l1_entries", 0)),
        l1_bytes=int(gauges.get("mlserve_l1_bytes", 0)),
    )
