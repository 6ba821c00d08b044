"""The page `/admin/cache/`."""

import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from redis import Redis

from features.models import TtlPolicy
from mlserve.cache.hotkeys import HotKeyCounter
from mlserve.console.figures import collect_figures, record_figures
from tests.console.metric_files import MetricFiles, predictions
from tests.console.watermarks import put_watermark
from tests.fixtures.servers import ServerHandle

pytestmark = pytest.mark.django_db
_PAGE = "/admin/cache/"


def _traffic(files: MetricFiles, keys: float) -> None:
    files.counter("mlserve_cache_hits_total", 0.75 * keys, tier="l1", namespace="merchant_risk")
    files.counter("mlserve_cache_misses_total", 0.25 * keys, tier="l1", namespace="merchant_risk", reason="expired")
    files.counter("mlserve_cache_hits_total", 0.125 * keys, tier="l2", namespace="merchant_risk")
    files.counter("mlserve_cache_misses_total", 0.125 * keys, tier="l2", namespace="merchant_risk", reason="cold")
    files.counter("mlserve_source_loads_total", 0.125 * keys, namespace="merchant_risk")
    files.counter("mlserve_scores_total", keys, decision="approve", degraded="false")
    files.histogram(
        "mlserve_cache_tier_seconds", {0.00001: keys, float("inf"): 0.0}, tier="l1", namespace="merchant_risk"
    )
    files.histogram("mlserve_feature_age_seconds", {60.0: keys, 3600.0: 0.0, 10800.0: keys}, namespace="merchant_risk")
    files.gauge("mlserve_breaker_open", 0.0, mode="liveall", tier="l2")


def _text(client: Client, query: str = "") -> str:
    response = client.get(_PAGE + query)
    assert response.status_code == 200
    return str(response.content.decode()).replace("\N{NARROW NO-BREAK SPACE}", " ")


@pytest.mark.usefixtures("metrics_dir", "series", "redis_client")
def test_without_traffic_the_page_says_what_to_do(as_operator: Client) -> None:
    """No zeros that look like figures, no empty pictures."""
    html = _text(as_operator)
    assert "No traffic yet" in html
    assert "POST /v1/scores" in html
    assert "Nothing to draw yet" in html
    assert ">0 %<" not in html
    assert "<path" not in html.partition('id="content-main"')[2].partition("</main>")[0]


@pytest.mark.quiet
def test_figures_are_of_the_chosen_span(as_operator: Client, files: MetricFiles, series: Redis) -> None:
    """Differences to the snapshot at its beginning; `all` counts everything."""
    now = time.time()
    _traffic(files, 8000)
    record_figures(series, collect_figures(now - 200))
    _traffic(files, 8800)
    record_figures(series, collect_figures(now - 100))
    html = _text(as_operator, "?window=300")
    assert "figures of the last 3 min 20 s" in html
    assert "75.0 %" in html  # L1
    assert "87.5 %" in html  # without Postgres
    assert "4.00/s" in html  # 800 scores in 200 s
    assert "100 keys read from Postgres" in html
    assert html.count("<path") >= 4
    assert "1,100 keys read from Postgres" in _text(as_operator, "?window=all")


def test_a_group_older_than_its_policy_allows_stands_out(
    as_operator: Client, files: MetricFiles, metrics_dir: Path
) -> None:
    """Half the reads of merchant_risk were older than its hour."""
    _traffic(files, 100)
    html = _text(as_operator, "?window=all")
    assert '<td class="n bad">50.0 %</td>' in html
    assert "chart-limit" in html


def test_hot_keys_come_with_their_rate(as_operator: Client, files: MetricFiles, redis_client: Redis) -> None:
    """The hottest first; an id is text, whatever it holds."""
    counter = HotKeyCounter()
    for entity_id, times in (("M7", 30), ("<i>", 10)):
        for _time in range(times):
            counter.count("merchant", entity_id)
    counter.publish(redis_client, now=time.time())
    html = _text(as_operator)
    assert html.index("<code>M7</code>") < html.index("<code>&lt;i&gt;</code>")
    assert "/min" in html


def test_an_open_breaker_is_named_with_its_process(as_operator: Client, files: MetricFiles) -> None:
    """Tier, process, state, and a notice above everything."""
    files.gauge("mlserve_breaker_open", 1.0, mode="liveall", tier="l2")
    html = _text(as_operator)
    assert '<span class="state open">open</span>' in html
    assert "The breaker of L2 is not closed in process" in html


def test_a_cache_that_is_away_does_not_take_the_page_with_it(
    as_operator: Client, files: MetricFiles, valkey_cache: ServerHandle
) -> None:
    """What is known is shown, what is not says so."""
    _traffic(files, 100)
    valkey_cache.kill()
    html = _text(as_operator, "?window=all")
    assert "L2 is not reachable" in html
    assert "75.0 %" in html
    assert "Not reachable: hot keys are counted in L2." in html
    assert as_operator.get("/admin/").status_code == 200


def test_a_broker_that_is_frozen_costs_the_charts(
    as_operator: Client, files: MetricFiles, valkey_broker: ServerHandle
) -> None:
    """And at most a second."""
    _traffic(files, 100)
    valkey_broker.freeze()
    began = time.monotonic()
    html = _text(as_operator)
    assert time.monotonic() - began < 3.0
    assert "No charts: the broker" in html
    assert "75.0 %" in html


@pytest.mark.usefixtures("metrics_dir", "series")
def test_refresh_is_a_link_away(as_operator: Client) -> None:
    """Without script: a header of the page, on and off by a link that keeps the span."""
    assert 'http-equiv="refresh"' not in _text(as_operator, "?window=60")
    assert 'href="?window=60&amp;refresh=10"' in _text(as_operator, "?window=60")
    refreshing = _text(as_operator, "?window=60&refresh=10")
    assert '<meta http-equiv="refresh" content="10">' in refreshing
    assert 'href="?window=60"' in refreshing


@pytest.mark.usefixtures("metrics_dir", "series")
@pytest.mark.parametrize("query", ["?window=nonsense", "?window=-1&refresh=0", "?refresh=%3Cscript%3E"])
def test_nonsense_means_the_defaults(query: str, as_operator: Client) -> None:
    """And is not repeated on the page."""
    html = _text(as_operator, query)
    assert "nonsense" not in html
    assert 'http-equiv="refresh"' not in html


@pytest.mark.usefixtures("metrics_dir", "series")
def test_a_proven_group_without_a_relay_is_warned_of(as_operator: Client, redis_client: Redis) -> None:
    """On the page and in `cachestat`, by name; not where the watermark is young, nor where nothing has to be proven."""
    assert "cannot be proven" not in _text(as_operator)
    TtlPolicy.objects.filter(name__in=["merchant_risk", "prediction"]).update(freshness="proven")
    html = _text(as_operator)
    assert '<li class="warning">Freshness of merchant_risk cannot be proven' in html
    assert "1 of 1 watermarks are missing" in html and "manage.py relay" in html
    put_watermark(redis_client, age_s=0.0)
    assert "cannot be proven" not in _text(as_operator)
    put_watermark(redis_client, age_s=90.0)
    assert "no relay has moved the watermark for 90." in _text(as_operator)
    out = StringIO()
    call_command("cachestat", "--json", stdout=out)
    assert "Freshness of merchant_risk cannot be proven" in out.getvalue()


@pytest.mark.usefixtures("metrics_dir", "series")
def test_the_bound_is_the_one_in_force(as_operator: Client, redis_client: Redis, settings: Any) -> None:
    """A watermark that is too old for one bound is young enough for another."""
    TtlPolicy.objects.filter(name="merchant_risk").update(freshness="proven")
    put_watermark(redis_client, age_s=30.0)
    settings.FRESHNESS_BOUND_S = 60.0
    assert "cannot be proven" not in _text(as_operator)
    settings.FRESHNESS_BOUND_S = 20.0
    assert "cannot be proven" in _text(as_operator)


@pytest.mark.usefixtures("series", "redis_client")
def test_the_page_says_whether_the_prediction_cache_pays(as_operator: Client, files: MetricFiles) -> None:
    """A row for each tier; without predictions a sentence and no row."""
    assert "No predictions in this span" in _text(as_operator, "?window=all")
    predictions(files)
    html = _text(as_operator, "?window=all").partition("<h2>Prediction cache")[2].partition("</section>")[0]
    assert "<td>pays</td>" in html and "<td>does not pay</td>" in html
    assert "No predictions" not in html
