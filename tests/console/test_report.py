"""The figures that operators look at, out of counters."""

from datetime import UTC, datetime

from mlserve.cache.pays import Pays
from mlserve.console.attention import notices
from mlserve.console.figures import Figures, L2Figures
from mlserve.console.inforce import InForce, ServingModel
from mlserve.console.report import Report, report_on
from mlserve.console.samples import BreakerState, CounterKey, Unconfirmed
from mlserve.console.window import Span, Window

_MODEL = ServingModel(id=1, name="fraud", version=1, estimator="boosted_trees", since=datetime(2026, 1, 1, tzinfo=UTC))
_IN_FORCE = InForce(fresh_for_s={"merchant_risk": 3600.0}, model=_MODEL)


def _report(
    counters: dict[CounterKey, float],
    *,
    breakers: tuple[BreakerState, ...] = (),
    unconfirmed: tuple[Unconfirmed, ...] = (),
    l2: L2Figures | None = None,
    in_force: InForce = _IN_FORCE,
) -> Report:
    l2 = l2 or L2Figures(reachable=True, server="Valkey 9")
    figures = Figures(
        at=1000.0, counters=counters, breakers=breakers, l1_entries=0, l1_bytes=0, l2=l2, unconfirmed=unconfirmed
    )
    return report_on(Window(seconds=10.0, counters=counters), figures, in_force)


def _tier(report: Report, name: str) -> tuple[float | None, float | None]:
    tier = next(tier for tier in report.tiers if tier.tier == name)
    return tier.hit_share, tier.answered_share


def test_a_hit_share_is_of_the_keys_that_the_tier_was_asked_for() -> None:
    """What was bypassed is no miss, and predictions do not count among features."""
    report = _report(
        {
            ("mlserve_cache_hits_total", "l1", "merchant_risk"): 6,
            ("mlserve_cache_misses_total", "l1", "merchant_risk", "cold"): 2,
            ("mlserve_cache_misses_total", "l1", "merchant_risk", "bypass"): 90,
            ("mlserve_cache_misses_total", "l1", "prediction", "cold"): 100,
            ("mlserve_cache_hits_total", "l2", "merchant_risk"): 1,
            ("mlserve_cache_misses_total", "l2", "merchant_risk", "expired"): 1,
            ("mlserve_source_loads_total", "merchant_risk"): 1,
            ("mlserve_source_loads_total", "prediction"): 100,
        }
    )
    assert _tier(report, "l1") == (0.75, 0.75)
    assert _tier(report, "l2") == (0.5, 0.125)
    assert (report.source.loads, report.source.loads_per_s, report.source.saved_share) == (1, 0.1, 0.875)
    assert [row.namespace for row in report.namespaces] == ["merchant_risk", "prediction"]


def test_misses_keep_their_reasons_and_the_reasons_add_up() -> None:
    """Bypassed keys stand among them, under their own name."""
    report = _report(
        {
            ("mlserve_cache_misses_total", "l2", "merchant_risk", "expired"): 2,
            ("mlserve_cache_misses_total", "l2", "customer_profile", "expired"): 3,
            ("mlserve_cache_misses_total", "l2", "customer_profile", "timeout"): 1,
        }
    )
    l2 = next(tier for tier in report.tiers if tier.tier == "l2")
    assert l2.misses == {"expired": 5, "timeout": 1}
    assert sum(l2.misses.values()) == l2.asked_keys


def test_ages_are_set_against_the_policy_in_force() -> None:
    """A quarter of the reads of merchant_risk was older than its hour; a group without a policy has no limit."""
    report = _report(
        {
            ("mlserve_feature_age_seconds_bucket", "merchant_risk", "900.0"): 1,
            ("mlserve_feature_age_seconds_bucket", "merchant_risk", "3600.0"): 3,
            ("mlserve_feature_age_seconds_bucket", "merchant_risk", "10800.0"): 4,
            ("mlserve_feature_age_seconds_bucket", "merchant_risk", "+Inf"): 4,
            ("mlserve_feature_age_seconds_bucket", "unheard_of", "+Inf"): 1,
        }
    )
    risk, unheard = report.ages
    assert (risk.group, risk.limit_s, risk.share_past_limit, risk.count) == ("merchant_risk", 3600.0, 0.25, 4)
    assert (risk.p50, risk.p99) == (Span(900.0, 3600.0), Span(3600.0, 10800.0))
    assert (unheard.limit_s, unheard.share_past_limit) == (None, None)


def test_degraded_scores_are_counted_over_all_decisions() -> None:
    """The label is `true` or `false`."""
    scores = _report(
        {
            ("mlserve_scores_total", "approve", "false"): 6,
            ("mlserve_scores_total", "approve", "true"): 1,
            ("mlserve_scores_total", "decline", "true"): 1,
        }
    ).scores
    assert (scores.count, scores.per_s, scores.degraded, scores.degraded_share) == (8, 0.8, 2, 0.25)
    assert scores.by_decision == {"approve": 7, "review": 0, "decline": 1}


def test_without_traffic_nothing_is_claimed() -> None:
    """Shares and quantiles are None, not zero."""
    report = _report({})
    assert not report.has_traffic
    assert _tier(report, "l1") == (None, None)
    assert (report.scores.degraded_share, report.scores.p99_s, report.journal.mean_batch) == (None, None, None)


def test_all_well_needs_no_attention() -> None:
    """No notice."""
    assert notices(_report({}), history_error="") == []


def test_what_is_broken_comes_with_its_name() -> None:
    """L2, the breakers, the model, the journal, the memory, the history: each has its words."""
    report = _report(
        {
            ("mlserve_journal_spooled_total",): 3,
            ("mlserve_source_errors_total", "timeout"): 2,
            ("mlserve_scores_total", "approve", "true"): 1,
        },
        breakers=(BreakerState("l2", 11, 1.0), BreakerState("l2", 12, 0.0), BreakerState("l2", 13, 0.5)),
        unconfirmed=(Unconfirmed("model", 14), Unconfirmed("model", 15), Unconfirmed("policies", 16)),
        l2=L2Figures(reachable=False, error="refused"),
        in_force=InForce(fresh_for_s={}, model=None),
    )
    text = "\n".join(notice.text for notice in notices(report, history_error="gone"))
    for part in (
        "No model",
        "L2 is not reachable",
        "refused",
        "processes 11, 13",
        "another model than the one that is active, or with a copy that Postgres has not confirmed: 14, 15",
        "a copy of the policies that Postgres has not confirmed: 16",
        "100",
        "timeout 2",
        "3 decisions",
        "gone",
    ):
        assert part in text
    full = _report({}, l2=L2Figures(reachable=True, used_bytes=95, max_bytes=100, eviction_policy="volatile-lfu"))
    assert "95.0" in notices(full, history_error="")[0].text


def test_the_prediction_cache_is_judged_by_predictions_alone() -> None:
    """L1 is quicker than the model and hits often enough, L2 is slower than the model; features are not in it."""
    report = _report(
        {
            ("mlserve_cache_tier_seconds_count", "l1", "prediction"): 200,
            ("mlserve_cache_tier_seconds_sum", "l1", "prediction"): 200 * 2e-6,
            ("mlserve_cache_tier_seconds_count", "l1", "merchant_risk"): 200,
            ("mlserve_cache_tier_seconds_sum", "l1", "merchant_risk"): 200 * 1.0,
            ("mlserve_cache_tier_seconds_count", "l2", "prediction"): 200,
            ("mlserve_cache_tier_seconds_sum", "l2", "prediction"): 200 * 1e-4,
            ("mlserve_cache_tier_seconds_count", "computed", "prediction"): 200,
            ("mlserve_cache_tier_seconds_sum", "computed", "prediction"): 200 * 1e-5,
            ("mlserve_cache_hits_total", "l1", "prediction"): 100,
            ("mlserve_cache_misses_total", "l1", "prediction", "cold"): 100,
            ("mlserve_cache_misses_total", "l1", "prediction", "bypass"): 900,
        }
    )
    l1, l2 = report.prediction_cache
    assert (l1.tier, l1.pays, l1.hit_share, l2.tier, l2.pays) == ("l1", Pays.YES, 0.5, "l2", Pays.NO)
    assert l1.needed_share is not None and abs(l1.needed_share - 0.2) < 1e-9


def test_without_predictions_nothing_is_known_of_their_cache() -> None:
    assert {tier.pays for tier in _report({}).prediction_cache} == {Pays.UNKNOWN}
