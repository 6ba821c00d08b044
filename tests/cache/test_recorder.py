import threading

import pytest
from prometheus_client import REGISTRY

from mlserve.cache.outcome import MissReason, Tier
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
            recorder.hit(Tier.L1, "exact")
            recorder.miss(Tier.L2, "exact", MissReason.COLD)
            recorder.load("exact", 3)

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


@pytest.mark.parametrize("seconds", [0.0, 0.000001, 0.0000011, 0.003, 2.5, 2.6, 1_000.0])
def test_a_published_histogram_equals_one_that_observed(seconds: float) -> None:
    """Bucket by bucket, on the edges and beyond the last, and in its sum."""
    recorder, name = Recorder(), "mlserve_cache_tier_seconds"
    before = _buckets(name, tier="request")
    sum_before = _sample(f"{name}_sum", tier="request")
    recorder.latency(Tier.REQUEST, seconds)
    recorder.publish()
    published = {le: count - before.get(le, 0) for le, count in _buckets(name, tier="request").items()}
    between = _buckets(name, tier="request")
    metrics.CACHE_LATENCY.labels(Tier.REQUEST).observe(seconds)
    observed = {le: count - between[le] for le, count in _buckets(name, tier="request").items()}
    assert published == observed
    assert _sample(f"{name}_sum", tier="request") - sum_before == pytest.approx(2 * seconds)


def test_what_was_served_is_told_by_age() -> None:
    """A default has no age; a stale value has one and is counted as stale as well."""
    recorder = Recorder()
    recorder.served("told", 7.0, stale=False)
    recorder.served("told", 70.0, stale=True)
    recorder.served("told", None, stale=False)
    recorder.publish()
    assert _sample("mlserve_feature_age_seconds_count", namespace="told") == 2
    assert _sample("mlserve_feature_age_seconds_sum", namespace="told") == 77
    assert _sample("mlserve_features_stale_total", namespace="told") == 1
    assert _sample("mlserve_features_defaulted_total", namespace="told") == 1


def test_every_publication_adds_what_came_since_the_last() -> None:
    recorder = Recorder()
    for _ in range(4):
        recorder.hit(Tier.L1, "grown")
        recorder.hit(Tier.L1, "grown")
        recorder.publish()
    assert _sample("mlserve_cache_hits_total", tier="l1", namespace="grown") == 8


def test_everything_that_can_be_counted_can_be_published() -> None:
    recorder = Recorder()
    recorder.source_error("database")
    recorder.fill_refused(Tier.L2, "newer", 2)
    recorder.score("approve", degraded=True, seconds=0.01)
    before = _sample("mlserve_scores_total", decision="approve", degraded="true")
    recorder.publish()
    assert _sample("mlserve_scores_total", decision="approve", degraded="true") == before + 1


def test_the_counts_of_a_thread_outlive_it_and_its_dictionary_does_not() -> None:
    """Servers start and end threads all the time."""
    recorder = Recorder()
    for _ in range(3):
        thread = threading.Thread(target=recorder.hit, args=(Tier.L1, "short-lived"))
        thread.start()
        thread.join()
        recorder.publish()
    assert _sample("mlserve_cache_hits_total", tier="l1", namespace="short-lived") == 3
    assert recorder._of_threads == []
