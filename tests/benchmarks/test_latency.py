"""The benchmark of latency, with a tiny budget."""

import io
import json

import pytest
from django.core.management import call_command


@pytest.mark.torture
def test_the_benchmark_of_latency_runs() -> None:
    """Half of a capacity that the same run has measured; percentiles in order, for both sides of each line."""
    out = io.StringIO()
    call_command("bench", "latency", "--seconds", "0.5", "--json", stdout=out)
    results = json.loads(out.getvalue())["results"]
    assert [result["name"] for result in results] == ["latency-dry-run", "latency-journal"]
    for result in results:
        for side in result["figures"].values():
            assert 0 < side["p50_ms"] <= side["p99_ms"] <= side["p99.9_ms"] <= side["max_ms"]
            assert 0 < side["asked_per_s"] < side["capacity_per_s"]
