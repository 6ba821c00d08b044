"""Adding up what the processes of a host counted."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from mlserve.console.samples import BreakerState, Unconfirmed, read_samples
from tests.console.metric_files import MetricFiles

_COUNT_ONE_HIT = """
from mlserve.observability import metrics
metrics.CACHE_HITS.labels("l1", "merchant_risk").inc()
metrics.CACHE_LATENCY.labels("l1", "merchant_risk").observe(0.0003)
metrics.L1_ENTRIES.set(5)
"""


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_counters_of_all_processes_add_up(metrics_dir: Path) -> None:
    """Also of those that are gone: what they counted has happened."""
    for pid, hits in ((os.getpid(), 3.0), (_dead_pid(), 4.0)):
        MetricFiles(metrics_dir, pid).counter("mlserve_cache_hits_total", hits, tier="l1", namespace="merchant_risk")
    assert read_samples(metrics_dir).counters == {("mlserve_cache_hits_total", "l1", "merchant_risk"): 7.0}


def test_live_gauges_of_the_dead_do_not_count(metrics_dir: Path) -> None:
    """A process that was killed with its breaker open does not leave an open breaker behind."""
    for pid in (os.getpid(), _dead_pid()):
        files = MetricFiles(metrics_dir, pid)
        files.gauge("mlserve_breaker_open", 1.0, mode="liveall", tier="l2")
        files.gauge("mlserve_unconfirmed", 1.0, mode="liveall", what="model")
        files.gauge("mlserve_unconfirmed", 0.0, mode="liveall", what="policies")
        files.gauge("mlserve_l1_bytes", 100.0, mode="livesum")
    samples = read_samples(metrics_dir)
    assert samples.breakers == (BreakerState("l2", os.getpid(), 1.0),)
    assert samples.unconfirmed == (Unconfirmed("model", os.getpid()),)
    assert samples.l1_bytes == 100


def test_buckets_are_cumulative(files: MetricFiles, metrics_dir: Path) -> None:
    """Each bound counts everything at or below it, as in Prometheus."""
    files.histogram("mlserve_score_seconds", {0.001: 2.0, 0.01: 3.0, float("inf"): 1.0})
    assert read_samples(metrics_dir).counters == {
        ("mlserve_score_seconds_bucket", "0.001"): 2.0,
        ("mlserve_score_seconds_bucket", "0.01"): 5.0,
        ("mlserve_score_seconds_bucket", "+Inf"): 6.0,
    }


def test_look_ups_of_a_tier_add_up_over_feature_groups(files: MetricFiles, metrics_dir: Path) -> None:
    """The console shows a tier's latency, whatever groups were looked up; their number it keeps apart."""
    for namespace, count in (("merchant_risk", 2.0), ("customer_profile", 3.0)):
        files.histogram("mlserve_cache_tier_seconds", {0.001: count}, tier="l2", namespace=namespace)
    assert read_samples(metrics_dir).counters == {
        ("mlserve_cache_tier_seconds_bucket", "l2", "0.001"): 5.0,
        ("mlserve_cache_tier_seconds_count", "l2", "merchant_risk"): 2.0,
        ("mlserve_cache_tier_seconds_count", "l2", "customer_profile"): 3.0,
    }


def test_a_file_that_was_only_just_made_is_no_obstacle(files: MetricFiles, metrics_dir: Path) -> None:
    """A process that starts has created its file and written nothing yet."""
    (metrics_dir / "counter_1.db").touch()
    files.counter("mlserve_source_loads_total", 2.0, namespace="merchant_risk")
    assert read_samples(metrics_dir).counters == {("mlserve_source_loads_total", "merchant_risk"): 2.0}


@pytest.mark.parametrize(
    "content", [b"x", b"\xff" * 64, (64).to_bytes(4, "little") + b"\x08\0\0\0" * 40], ids=["short", "huge", "no JSON"]
)
def test_a_damaged_file_is_left_out(files: MetricFiles, metrics_dir: Path, content: bytes) -> None:
    """One bad block on the disk does not take away the figures of all processes."""
    (metrics_dir / "counter_1.db").write_bytes(content)
    files.counter("mlserve_source_loads_total", 2.0, namespace="merchant_risk")
    assert read_samples(metrics_dir).counters == {("mlserve_source_loads_total", "merchant_risk"): 2.0}


@pytest.mark.parametrize("name", ["gauge.db", "gauge_livesum_x.db", "gauge_livesum.db", "other_1.db", "_.db", ".db"])
def test_a_file_with_another_name_is_left_out(files: MetricFiles, metrics_dir: Path, name: str) -> None:
    """Somebody has put it there."""
    (metrics_dir / name).write_bytes((64).to_bytes(4, "little") + b"\1" * 60)
    files.counter("mlserve_source_loads_total", 2.0, namespace="merchant_risk")
    assert read_samples(metrics_dir).counters == {("mlserve_source_loads_total", "merchant_risk"): 2.0}


def test_metrics_are_exposed_while_a_process_starts_or_has_died(metrics_dir: Path, settings: Any) -> None:
    """What was counted is there; what was true of the dead is not."""
    settings.METRICS_DIR = metrics_dir
    (metrics_dir / "counter_1.db").touch()
    for pid in (os.getpid(), _dead_pid()):
        files = MetricFiles(metrics_dir, pid)
        files.counter("mlserve_cache_hits_total", 3.0, tier="l1", namespace="merchant_risk")
        files.gauge("mlserve_breaker_open", 1.0, mode="liveall", tier="l2")
    response = Client().get("/metrics")
    lines = response.content.decode().splitlines()
    assert response.status_code == 200
    assert 'mlserve_cache_hits_total{namespace="merchant_risk",tier="l1"} 6.0' in lines
    assert [line for line in lines if line.startswith("mlserve_breaker_open{")] == [
        f'mlserve_breaker_open{{pid="{os.getpid()}",tier="l2"}} 1.0'
    ]


def test_without_files_there_is_nothing(tmp_path: Path) -> None:
    """A folder that is not there yet reads like an empty one."""
    samples = read_samples(tmp_path / "missing")
    assert (samples.counters, samples.breakers, samples.l1_entries) == ({}, (), 0)


def test_the_declared_metrics_are_found_under_the_names_read_here(tmp_path: Path) -> None:
    """Two real processes count with the project's metrics; names and labels are those that the console knows."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _process in range(2):
        subprocess.run([sys.executable, "-c", _COUNT_ONE_HIT], env=environment, check=True)
    counters = read_samples(tmp_path).counters
    assert counters["mlserve_cache_hits_total", "l1", "merchant_risk"] == 2.0
    assert counters["mlserve_cache_tier_seconds_bucket", "l1", "0.00025"] == 0.0
    assert counters["mlserve_cache_tier_seconds_bucket", "l1", "0.0005"] == 2.0
