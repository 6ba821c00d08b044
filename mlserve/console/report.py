"""The figures that operators look at, out of a window of counters. The overview page and `cachestat` show these.

A tier's hit share is taken over the keys that it was asked for: what policy told it to skip (`bypass`) is no miss
of its making. Predictions are kept apart from features, they have their own row.
"""

import msgspec

from mlserve.cache.pays import TierPays, Timed, tier_pays
from mlserve.console.figures import Figures, L2Figures
from mlserve.console.inforce import InForce, ServingModel
from mlserve.console.samples import BreakerState, Unconfirmed
from mlserve.console.window import Buckets, Span, Window

CACHE_TIERS = ("request", "l1", "l2")
ANSWERING_TIERS = (*CACHE_TIERS, "l3")
SOURCE_TIER = "l3"
PREDICTION = "prediction"
_COMPUTED = "computed"
_BYPASS = "bypass"
DECISIONS = ("approve", "review", "decline")


class TierReport(msgspec.Struct, frozen=True, kw_only=True):
    """One tier over all feature groups. `answered_share` is its share of all keys that any tier answered."""

    tier: str
    asked_keys: int
    hit_keys: int
    hit_share: float | None
    answered_share: float | None
    bypassed_keys: int
    asked_keys_per_s: float | None
    p50_s: float | None
    p99_s: float | None
    misses: dict[str, int]


class NamespaceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One feature group, or `prediction`, whose loads are computations of the model.

    Hit shares are None where a tier was never asked.
    """

    namespace: str
    keys: int
    hit_shares: dict[str, float | None]
    loads: int
    loads_per_s: float | None
    stale: int
    defaulted: int


class AgeReport(msgspec.Struct, frozen=True, kw_only=True):
    """How old the values of a group were when scores used them. `limit_s` is the policy's now, None if unknown.

    Ages are spans, in seconds, not numbers: all values of a group are built at once, so that they lie anywhere in a
    bucket, but not evenly. `share_past_limit` is what certainly was past it.
    """

    group: str
    count: int
    p50: Span | None
    p99: Span | None
    limit_s: float | None
    share_past_limit: float | None
    buckets: Buckets


class ScoreReport(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    per_s: float | None
    by_decision: dict[str, int]
    degraded: int
    degraded_share: float | None
    cold_start: int
    p50_s: float | None
    p99_s: float | None


class JournalReport(msgspec.Struct, frozen=True, kw_only=True):
    commits: int
    p50_s: float | None
    p99_s: float | None
    mean_batch: float | None
    """Decisions per commit."""
    spooled: int


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """`saved_share`: keys that did not need Postgres, of all that were answered."""

    loads: int
    loads_per_s: float | None
    saved_share: float | None
    errors: dict[str, int]


class L1Report(msgspec.Struct, frozen=True, kw_only=True):
    entries: int
    bytes: int
    evictions: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`window_s` is None if everything since the start of counting is meant; then there are no rates."""

    at: float
    window_s: float | None
    tiers: tuple[TierReport, ...]
    namespaces: tuple[NamespaceReport, ...]
    prediction_cache: tuple[TierPays, ...]
    """Of the model that served in the window, for L1 and L2."""
    source: SourceReport
    scores: ScoreReport
    ages: tuple[AgeReport, ...]
    journal: JournalReport
    breakers: tuple[BreakerState, ...]
    breaker_openings: dict[str, int]
    l1: L1Report
    l2: L2Figures
    model: ServingModel | None
    in_force_error: str
    unconfirmed: tuple[Unconfirmed, ...] = ()

    @property
    def has_traffic(self) -> bool:
        return bool(self.namespaces or self.scores.count)


def report_on(window: Window, figures: Figures, in_force: InForce) -> Report:
    """What happened in `window`, and what holds at its end."""
    return Report(
        at=figures.at,
        window_s=window.seconds,
        tiers=tuple(_tier(window, tier) for tier in ANSWERING_TIERS),
        namespaces=tuple(_namespace(window, namespace) for namespace in _namespaces(window)),
        prediction_cache=tuple(_prediction_cache(window, tier) for tier in ("l1", "l2")),
        source=_source(window),
        scores=_scores(window),
        ages=tuple(
            _age(window, group, in_force) for group in sorted(window.by_label("mlserve_feature_age_seconds_bucket"))
        ),
        journal=_journal(window),
        breakers=figures.breakers,
        unconfirmed=figures.unconfirmed,
        breaker_openings=_whole(window.by_label("mlserve_breaker_opened_total")),
        l1=L1Report(
            entries=figures.l1_entries,
            bytes=figures.l1_bytes,
            evictions=int(window.total("mlserve_cache_evictions_total", "l1")),
        ),
        l2=figures.l2,
        model=in_force.model,
        in_force_error=in_force.error,
    )


def hit_share(window: Window, tier: str) -> float | None:
    """Of the feature keys that the tier was asked for. None if it was asked for none."""
    hits, misses = _hits(window, tier), _asked_misses(window, tier)
    return hits / (hits + misses) if hits + misses else None


def _hits(window: Window, tier: str) -> float:
    """Feature keys that the tier answered. The source answers whatever it is asked, if only that it knows nothing."""
    if tier == SOURCE_TIER:
        return source_loads(window)
    by_namespace = window.by_label("mlserve_cache_hits_total", tier)
    return sum(value for namespace, value in by_namespace.items() if namespace != PREDICTION)


def source_loads(window: Window) -> float:
    """Feature keys read from Postgres. (What is counted under `prediction` was computed by the model.)"""
    loads = window.by_label("mlserve_source_loads_total")
    return sum(value for namespace, value in loads.items() if namespace != PREDICTION)


def _misses(window: Window, tier: str) -> dict[str, float]:
    reasons: dict[str, float] = {}
    for namespace in window.by_label("mlserve_cache_misses_total", tier):
        if namespace != PREDICTION:
            for reason, value in window.by_label("mlserve_cache_misses_total", tier, namespace).items():
                reasons[reason] = reasons.get(reason, 0.0) + value
    return reasons


def _asked_misses(window: Window, tier: str) -> float:
    return sum(value for reason, value in _misses(window, tier).items() if reason != _BYPASS)


def _tier(window: Window, tier: str) -> TierReport:
    misses = _misses(window, tier)
    hits = _hits(window, tier)
    answered = sum(_hits(window, one) for one in ANSWERING_TIERS)
    times = window.buckets("mlserve_cache_tier_seconds", tier)
    asked = hits + _asked_misses(window, tier)
    return TierReport(
        tier=tier,
        asked_keys=int(asked),
        hit_keys=int(hits),
        hit_share=hit_share(window, tier),
        answered_share=hits / answered if answered else None,
        bypassed_keys=int(misses.get(_BYPASS, 0)),
        asked_keys_per_s=window.per_second(asked),
        p50_s=times.quantile(0.5),
        p99_s=times.quantile(0.99),
        misses={reason: int(value) for reason, value in sorted(misses.items()) if value},
    )


def _namespaces(window: Window) -> list[str]:
    """Feature groups by name, predictions last; only those that saw traffic."""
    seen = {
        key[2]
        for key, value in window.counters.items()
        if value and key[0] in ("mlserve_cache_hits_total", "mlserve_cache_misses_total")
    } | {namespace for namespace, value in window.by_label("mlserve_source_loads_total").items() if value}
    return sorted(seen, key=lambda namespace: (namespace == PREDICTION, namespace))


def _namespace(window: Window, namespace: str) -> NamespaceReport:
    shares: dict[str, float | None] = {}
    loads = window.total("mlserve_source_loads_total", namespace)
    answered = loads
    for tier in CACHE_TIERS:
        hits = window.total("mlserve_cache_hits_total", tier, namespace)
        reasons = window.by_label("mlserve_cache_misses_total", tier, namespace)
        asked = hits + sum(value for reason, value in reasons.items() if reason != _BYPASS)
        shares[tier] = hits / asked if asked else None
        answered += hits
    return NamespaceReport(
        namespace=namespace,
        keys=int(answered),
        hit_shares=shares,
        loads=int(loads),
        loads_per_s=window.per_second(loads),
        stale=int(window.total("mlserve_features_stale_total", namespace)),
        defaulted=int(window.total("mlserve_features_defaulted_total", namespace)),
    )


def _prediction_cache(window: Window, tier: str) -> TierPays:
    reasons = window.by_label("mlserve_cache_misses_total", tier, PREDICTION)
    return tier_pays(
        tier=tier,
        look_ups=_timed(window, tier),
        computed=_timed(window, _COMPUTED),
        hits=int(window.total("mlserve_cache_hits_total", tier, PREDICTION)),
        misses=int(sum(value for reason, value in reasons.items() if reason != _BYPASS)),
    )


def _timed(window: Window, tier: str) -> Timed:
    """Look-ups of predictions in one tier."""
    return Timed(
        int(window.total("mlserve_cache_tier_seconds_count", tier, PREDICTION)),
        window.total("mlserve_cache_tier_seconds_sum", tier, PREDICTION),
    )


def _source(window: Window) -> SourceReport:
    loads = source_loads(window)
    answered = sum(_hits(window, tier) for tier in ANSWERING_TIERS)
    return SourceReport(
        loads=int(loads),
        loads_per_s=window.per_second(loads),
        saved_share=(answered - loads) / answered if answered else None,
        errors=_whole(window.by_label("mlserve_source_errors_total")),
    )


def _scores(window: Window) -> ScoreReport:
    count = window.total("mlserve_scores_total")
    by_decision = window.by_label("mlserve_scores_total")
    degraded = sum(
        value for key, value in window.counters.items() if key[0] == "mlserve_scores_total" and key[2] == "true"
    )
    times = window.buckets("mlserve_score_seconds")
    return ScoreReport(
        count=int(count),
        per_s=window.per_second(count),
        by_decision={decision: int(by_decision.get(decision, 0)) for decision in DECISIONS},
        degraded=int(degraded),
        degraded_share=degraded / count if count else None,
        cold_start=int(window.total("mlserve_scores_cold_start_total")),
        p50_s=times.quantile(0.5),
        p99_s=times.quantile(0.99),
    )


def _age(window: Window, group: str, in_force: InForce) -> AgeReport:
    ages = window.buckets("mlserve_feature_age_seconds", group)
    limit_s = in_force.fresh_for_s.get(group)
    return AgeReport(
        group=group,
        count=int(ages.count),
        p50=ages.quantile_span(0.5),
        p99=ages.quantile_span(0.99),
        limit_s=limit_s,
        share_past_limit=None if limit_s is None else ages.share_certainly_above(limit_s),
        buckets=ages,
    )


def _journal(window: Window) -> JournalReport:
    times = window.buckets("mlserve_journal_commit_seconds")
    batches = window.buckets("mlserve_journal_batch_decisions").count
    return JournalReport(
        commits=int(times.count),
        p50_s=times.quantile(0.5),
        p99_s=times.quantile(0.99),
        mean_batch=window.total("mlserve_journal_batch_decisions_sum") / batches if batches else None,
        spooled=int(window.total("mlserve_journal_spooled_total")),
    )


def _whole(counts: dict[str, float]) -> dict[str, int]:
    return {name: int(value) for name, value in sorted(counts.items()) if value}
