import threading

import pytest
from prometheus_client import REGISTRY

from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.stats import EVENTS
from mlserve.observability import metrics
from mlserve.observability.recorder import Recorder


def _sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def _buckets(name: str, **labels: str) -> dict[str, float]:
    return {
        sample.labels["le"]: sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == f"{name}_bucket" and {**sample.labels, **labels} == sample.labels
    }


def test_totals_are_exact_over_threads() -> None:
    """Nothing is lost or counted twice, though publications run between the counts and threads end before the last."""
    recorder, barrier = Recorder(), threading.Barrier(5)

    def count() -> None:
        barrier.wait()
        for _ in range(500):
            recorder.hits(Tier.L1)["exact"].append(0.5)
            recorder.miss(Tier.L2, "exact", MissReason.COLD)
            recorder.hits(Tier.L3)["exact"].extend((0.0, 1.0, 2.0))
            recorder.late()["exact"].append(3.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    while any(thread.is_alive() for thread in threads):
        recorder.publish()
    for thread in threads:
        thread.join()
    recorder.publish()
    recorder.publish()
    assert _sample("mlserve_cache_hits_total", tier="l1", namespace="exact") == 2_000
    assert _sample("mlserve_cache_misses_total", tier="l2", namespace="exact", reason="cold") == 2_000
    assert _sample("mlserve_source_loads_total", namespace="exact") == 6_000
    assert _sample("mlserve_cache_late_total", namespace="exact") == 2_000
    assert _sample("mlserve_feature_age_seconds_count", namespace="exact") == 10_000
    assert _sample("mlserve_feature_age_seconds_sum", namespace="exact") == 2_000 * 6.5


@pytest.mark.parametrize("seconds", [0.0, 0.000001, 0.0000011, 0.003, 2.5, 2.6, 1_000.0])
def test_a_published_histogram_equals_one_that_observed(seconds: float) -> None:
    """Bucket by bucket, on the edges and beyond the last, and in its sum."""
    recorder, name = Recorder(), "mlserve_cache_tier_seconds"
    labels = {"tier": "request", "namespace": "observed"}
    before = _buckets(name, **labels)
    sum_before = _sample(f"{name}_sum", **labels)
    recorder.latency(Tier.REQUEST, ["observed"], seconds)
    recorder.publish()
    published = {le: count - before.get(le, 0) for le, count in _buckets(name, **labels).items()}
    between = _buckets(name, **labels)
    metrics.CACHE_LATENCY.labels(**labels).observe(seconds)
    observed = {le: count - between[le] for le, count in _buckets(name, **labels).items()}
    assert published == observed
    assert _sample(f"{name}_sum", **labels) - sum_before == pytest.approx(2 * seconds)


@pytest.mark.parametrize("age_s", [0.0, 1.0, 59.999, 60.0, 60.001, 1e9])
def test_ages_that_were_appended_equal_ages_that_were_observed(age_s: float) -> None:
    """Bucket by bucket, on the edges and beyond the last, and in their sum."""
    recorder, name = Recorder(), "mlserve_feature_age_seconds"
    before, sum_before = _buckets(name, namespace="aged"), _sample(f"{name}_sum", namespace="aged")
    recorder.hits(Tier.L2)["aged"].append(age_s)
    recorder.publish()
    published = {le: count - before.get(le, 0) for le, count in _buckets(name, namespace="aged").items()}
    between = _buckets(name, namespace="aged")
    metrics.FEATURE_AGE.labels("aged").observe(age_s)
    observed = {le: count - between[le] for le, count in _buckets(name, namespace="aged").items()}
    assert published == observed
    assert _sample(f"{name}_sum", namespace="aged") - sum_before == pytest.approx(2 * age_s)


def test_a_look_up_of_several_groups_is_timed_once_for_each() -> None:
    recorder = Recorder()
    recorder.latency(Tier.L2, ["first", "second"], 0.25)
    recorder.publish()
    for namespace in ("first", "second"):
        assert _sample("mlserve_cache_tier_seconds_count", tier="l2", namespace=namespace) == 1
        assert _sample("mlserve_cache_tier_seconds_sum", tier="l2", namespace=namespace) == 0.25


def test_what_was_served_is_told_by_age() -> None:
    """Whoever answered; a default has no age, and what was stale is counted as that as well."""
    recorder = Recorder()
    recorder.hits(Tier.L1)["told"].append(7.0)
    recorder.hits(Tier.L3)["told"].append(0.0)
    recorder.late()["told"].append(70.0)
    recorder.stale("told")
    recorder.defaulted("told")
    recorder.publish()
    assert _sample("mlserve_feature_age_seconds_count", namespace="told") == 3
    assert _sample("mlserve_feature_age_seconds_sum", namespace="told") == 77
    assert _sample("mlserve_features_stale_total", namespace="told") == 1
    assert _sample("mlserve_features_defaulted_total", namespace="told") == 1


def test_every_publication_adds_what_came_since_the_last() -> None:
    recorder = Recorder()
    for _ in range(4):
        recorder.hits(Tier.L1)["grown"].extend((0.0, 0.0))
        recorder.publish()
    assert _sample("mlserve_cache_hits_total", tier="l1", namespace="grown") == 8


def test_everything_that_can_be_counted_can_be_published() -> None:
    recorder = Recorder()
    recorder.source_error("database")
    recorder.fill_refused(Tier.L2, "newer", 2)
    for event in EVENTS:
        recorder.event(event, 3)
    recorder.score("approve", degraded=True, seconds=0.01)
    before = _sample("mlserve_scores_total", decision="approve", degraded="true")
    events_before = {event: _sample("mlserve_cache_events_total", event=event) for event in EVENTS}
    recorder.publish()
    assert _sample("mlserve_scores_total", decision="approve", degraded="true") == before + 1
    for event in EVENTS:
        assert _sample("mlserve_cache_events_total", event=event) == events_before[event] + 3


def test_the_counts_of_a_thread_outlive_it_and_its_ledger_does_not() -> None:
    """Servers start and end threads all the time."""
    recorder = Recorder()

    def count() -> None:
        recorder.hits(Tier.L1)["short-lived"].append(1.0)
        recorder.defaulted("short-lived")

    own = list(recorder._of_threads)
    for _ in range(3):
        thread = threading.Thread(target=count)
        thread.start()
        thread.join()
        recorder.publish()
    assert _sample("mlserve_cache_hits_total", tier="l1", namespace="short-lived") == 3
    assert _sample("mlserve_features_defaulted_total", namespace="short-lived") == 3
    assert recorder._of_threads == own


def test_totals_are_what_was_counted_published_or_not() -> None:
    """They need no publication and change none."""
    recorder = Recorder()
    recorder.hits(Tier.L1)["totalled"].extend((1.0, 2.0))
    recorder.miss(Tier.L1, "totalled", MissReason.COLD)
    for _ in range(2):
        totals = recorder.totals()
        assert totals["hit", "l1", "totalled"] == 2
        assert totals["age_sum", "totalled"] == 3
        assert totals["miss", Tier.L1, "totalled", MissReason.COLD] == 1
    recorder.publish()
    assert _sample("mlserve_cache_hits_total", tier="l1", namespace="totalled") == 2
    assert recorder.totals()["hit", "l1", "totalled"] == 2
