"""Operators at work, in a real browser: watching the cache, setting a policy."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.utils import timezone
from playwright.sync_api import expect

from features.models import PolicyRevision, TtlPolicy
from mlserve.api.keys import issue_key, revoke_key
from mlserve.api.models import ApiKey
from mlserve.console.figures import STREAM, broker_client, collect_figures, record_figures
from mlserve.console.operators import GROUP_NAME
from predictions.models import Decision
from tests.console.metric_files import MetricFiles
from tests.console.records import make_decision, make_model
from tests.fixtures.browser import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
_PASSWORD = "a-long-password"


@pytest.fixture
def operator(visitor: Visitor, live_server: Any) -> Visitor:
    """Somebody of the group `operators`, logged in through the form."""
    user = User.objects.create_user("olga", password=_PASSWORD, is_staff=True)
    user.groups.add(Group.objects.get(name=GROUP_NAME))
    page = visitor.page
    page.goto(f"{live_server.url}/admin/")
    page.get_by_label("Username").fill("olga")
    page.get_by_label("Password").fill(_PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Operations")).to_be_visible()
    return visitor


@pytest.fixture
def _traffic(tmp_path: Path, settings: Any) -> Any:
    """Three snapshots of growing counters."""
    settings.METRICS_DIR = tmp_path
    files = MetricFiles(tmp_path, os.getpid())
    client = broker_client()
    client.delete(STREAM)
    now = time.time()
    for step, at in enumerate((now - 90, now - 60, now - 30), start=1):
        keys = 1000.0 * step
        files.counter("mlserve_cache_hits_total", 0.8 * keys, tier="l1", namespace="merchant_risk")
        files.counter("mlserve_cache_misses_total", 0.2 * keys, tier="l1", namespace="merchant_risk", reason="cold")
        files.counter("mlserve_source_loads_total", 0.2 * keys, namespace="merchant_risk")
        files.counter("mlserve_scores_total", keys, decision="approve", degraded="false")
        files.histogram("mlserve_feature_age_seconds", {60.0: keys, float("inf"): 0.0}, namespace="merchant_risk")
        record_figures(client, collect_figures(at))
    yield
    client.delete(STREAM)
    client.close()


@pytest.mark.usefixtures("_traffic")
def test_an_operator_watches_the_cache(operator: Visitor) -> None:
    """From the first page to the charts, in both themes and in a narrow window, without a breach of the policy."""
    page = operator.page
    page.get_by_role("link", name="Cache overview").click()
    expect(page.get_by_role("heading", name="Cache overview")).to_be_visible()
    expect(page.locator(".tile", has_text="L1 hit rate").locator(".value")).to_contain_text("80.0")
    chart = page.get_by_role("img", name="Hit rate per tier")
    expect(chart).to_be_visible()
    light = chart.locator(".chart-line").evaluate("line => getComputedStyle(line).stroke")
    page.get_by_text("Numbers").first.click()
    expect(page.locator("details[open] table")).to_contain_text("80.0")
    page.emulate_media(color_scheme="dark")
    dark = chart.locator(".chart-line").evaluate("line => getComputedStyle(line).stroke")
    assert "none" not in (light, dark)
    assert light != dark
    page.set_viewport_size({"width": 800, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    assert operator.complaints == []


@pytest.mark.usefixtures("_traffic")
def test_the_span_and_the_refresh_are_chosen_by_links(operator: Visitor) -> None:
    """Both stay as they are when the other one changes."""
    page = operator.page
    page.get_by_role("link", name="Cache overview").click()
    page.get_by_role("link", name="every 10 s").click()
    page.get_by_role("link", name="since start").click()
    assert page.url.endswith("?window=all&refresh=10")
    expect(page.locator(".tile").first.locator(".value")).to_have_text("3,000")
    assert page.locator('meta[http-equiv="refresh"]').get_attribute("content") == "10"
    page.get_by_role("link", name="every 10 s").click()
    assert page.locator('meta[http-equiv="refresh"]').count() == 0
    assert operator.complaints == []


def test_an_operator_sets_a_policy(operator: Visitor) -> None:
    """A wrong value is refused with a reason, a right one is in force and on record."""
    page = operator.page
    page.get_by_role("link", name="TTL policies").first.click()
    page.get_by_role("link", name="merchant_risk").click()
    fresh_for = page.get_by_label("Fresh for (s)")
    fresh_for.fill("99999999")
    page.locator("form#ttlpolicy_form").evaluate("form => form.noValidate = true")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("At most 31,536,000 s")).to_be_visible()
    fresh_for.fill("120")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("in force in every process within a second")).to_be_visible()
    expect(page.get_by_role("row", name="merchant_risk")).to_contain_text("2\N{NARROW NO-BREAK SPACE}min")
    assert TtlPolicy.objects.get(name="merchant_risk").fresh_for_s == 120
    page.get_by_role("link", name="Policy revisions").first.click()
    expect(page.locator("#result_list tbody tr").first).to_contain_text("olga")
    newest = PolicyRevision.objects.first()
    assert newest is not None
    assert newest.after["fresh_for_s"] == 120
    assert operator.complaints == []


def test_every_column_of_the_decisions_is_seen(operator: Visitor, live_server: Any) -> None:
    """In a window of 1300 pixels, with the longest id that there can be."""
    make_decision(make_model(1))
    Decision.objects.update(transaction_id="live-" + "0123456789abcdef" * 3 + "0123456789a", client="mls_abcdefgh")
    page = operator.page
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(f"{live_server.url}/admin/predictions/decision/")
    expect(page.get_by_role("cell", name="mls_abcdefgh")).to_be_visible()
    assert page.locator(".results").evaluate("list => list.scrollWidth - list.clientWidth") == 0
    assert operator.complaints == []


def test_every_table_of_a_decision_is_read_on_a_telephone(operator: Visitor, live_server: Any) -> None:
    """What is wider than the window scrolls inside its row; the page does not, and nothing is cut off."""
    make_decision(make_model(1))
    page = operator.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{live_server.url}/admin/predictions/decision/T1/change/")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    features = page.locator(".field-served_features .readonly")
    assert features.evaluate("box => box.getBoundingClientRect().right") <= 390
    assert features.evaluate("box => getComputedStyle(box).overflowX") == "auto"
    features.evaluate("box => box.scrollLeft = box.scrollWidth")
    last = features.get_by_role("cell", name="stale")
    assert last.evaluate("cell => cell.getBoundingClientRect().right") <= 390
    assert operator.complaints == []


def test_every_column_of_the_keys_is_seen(visitor: Visitor, live_server: Any) -> None:
    """In a window of 1440 pixels, also of a key with all scopes that is revoked."""
    User.objects.create_superuser("root", password=_PASSWORD)
    key = issue_key(name="payment_gateway_of_the_shop", scopes=list(ApiKey.Scope.values)).record
    revoke_key(key, now=timezone.now())
    page = visitor.page
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{live_server.url}/admin/api/apikey/")
    page.get_by_label("Username").fill("root")
    page.get_by_label("Password").fill(_PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".field-revoked_at")).to_be_visible()
    assert page.locator(".results").evaluate("list => list.scrollWidth - list.clientWidth") == 0
    assert visitor.complaints == []
