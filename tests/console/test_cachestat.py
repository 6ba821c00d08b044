"""`manage.py cachestat`."""

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.console.metric_files import MetricFiles, predictions
from tests.fixtures.servers import ServerHandle

pytestmark = pytest.mark.django_db


def _run(*arguments: str) -> str:
    out = StringIO()
    call_command("cachestat", *arguments, stdout=out)
    return out.getvalue()


def test_the_json_holds_the_figures_of_the_page(files: MetricFiles) -> None:
    """One object, numbers with their units in the names."""
    files.counter("mlserve_cache_hits_total", 3.0, tier="l1", namespace="merchant_risk")
    files.counter("mlserve_cache_misses_total", 1.0, tier="l1", namespace="merchant_risk", reason="cold")
    document = json.loads(_run("--json", "--window", "0"))
    tiers = {tier["tier"]: tier for tier in document["tiers"]}
    assert tiers["l1"]["hit_share"] == 0.75
    assert tiers["l1"]["misses"] == {"cold": 1}
    assert document["l2"]["reachable"] is True
    assert document["window_s"] is None
    assert {"hot_keys", "notices", "source", "scores", "journal", "breakers"} <= document.keys()


def test_the_tables_hold_them_too(files: MetricFiles) -> None:
    """Without a terminal no column is cut."""
    files.counter("mlserve_cache_hits_total", 1234.0, tier="l1", namespace="customer_embedding")
    files.gauge("mlserve_breaker_open", 0.5, mode="liveall", tier="l2")
    text = _run("--window", "0")
    for part in ("customer_embedding", "1,234", "half-open", "Valkey"):
        assert part in text


def test_without_traffic_it_says_so(metrics_dir: Path) -> None:
    """And does not print tables of zeros."""
    text = _run()
    assert "No traffic yet" in text
    assert "Feature groups" not in text


def test_with_l2_away_it_says_so(metrics_dir: Path, valkey_cache: ServerHandle) -> None:
    """The command still works."""
    valkey_cache.kill()
    assert "L2 not reachable" in _run()


@pytest.mark.parametrize("window", ["-1", "3601", "nan"])
def test_a_span_that_is_not_kept_is_a_usage_error(window: str) -> None:
    """Exit code 2, with the range."""
    with pytest.raises(CommandError, match="3600") as caught:
        _run("--window", window)
    assert caught.value.returncode == 2


def test_it_says_whether_the_prediction_cache_pays(files: MetricFiles) -> None:
    """In both forms, with the numbers that say why."""
    predictions(files)
    text = _run("--window", "0")
    title, table = text.partition("Prediction cache")[1:]
    assert title
    l1, l2 = (next(line for line in table.splitlines() if line.startswith(tier)) for tier in ("l1 ", "l2 "))
    assert " pays" in l1 and "75.0" in l1 and "10.0" in l1
    assert "does not pay" in l2
    document = json.loads(_run("--json", "--window", "0"))["prediction_cache"]
    assert [(tier["tier"], tier["pays"]) for tier in document] == [("l1", "pays"), ("l2", "does not pay")]
    assert document[0]["computed_s"] == pytest.approx(1e-5)
