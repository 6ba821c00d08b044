"""Model versions, which operators activate, and decisions, which they look at."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from features.models import LabelReport, Transaction
from predictions.models import Activation, Decision
from predictions.registry import active
from tests.console.records import make_decision, make_model

pytestmark = pytest.mark.django_db
_LIST = "/admin/predictions/modelversion/"


@pytest.fixture(autouse=True)
def _no_model_left_behind() -> Iterator[None]:
    yield
    active.forget()


def _activate(client: Client, *ids: int, **more: str) -> Any:
    data = {"action": "activate_version", "_selected_action": [str(one) for one in ids], **more}
    return client.post(_LIST, data, follow=True)


def test_activation_asks_first(as_operator: Client) -> None:
    """The page compares with what serves now, and nothing has happened yet."""
    first, second = make_model(1), make_model(2)
    Activation.objects.create(model_version=first)
    html = _activate(as_operator, second.pk).content.decode()
    assert "Activate fraud 2?" in html
    assert "instead of <b>fraud 1</b>" in html
    assert Activation.objects.count() == 1


def test_a_confirmed_activation_serves_and_is_on_record(as_operator: Client) -> None:
    """With the reason and the name of who did it."""
    version = make_model(1)
    html = _activate(as_operator, version.pk, confirmed="yes", reason="better").content.decode()
    assert "fraud 1 serves in every process within a second" in html
    assert '<span class="badge">active</span>' in html
    activation = Activation.objects.get()
    assert (activation.model_version_id, activation.reason) == (version.pk, "olga: better")
    assert "better" in LogEntry.objects.get().change_message


def test_a_model_that_may_not_serve_is_refused_with_the_reason(as_operator: Client) -> None:
    """The registry's refusal is shown, not an error page."""
    version = make_model(1, passed=False)
    html = _activate(as_operator, version.pk, confirmed="yes").content.decode()
    assert "was not activated" in html
    assert "as said" in html
    assert not Activation.objects.exists()


def test_a_version_that_does_not_serve_says_so(as_operator: Client) -> None:
    """In the list and on its own page; nothing is left blank."""
    version = make_model(1)
    for page in (_LIST, f"{_LIST}{version.pk}/change/"):
        assert "not active" in as_operator.get(page).content.decode()


def test_a_version_shows_what_became_of_its_decisions(as_operator: Client) -> None:
    """By day, newest first, with what is still to come; without decisions or labels it says that."""
    version = make_model(1)
    page = f"{_LIST}{version.pk}/change/"
    assert "No decisions in the last 30 days." in as_operator.get(page).content.decode()
    decision = make_decision(version)
    Decision.objects.filter(pk=decision.pk).update(decided_at=timezone.now())
    assert "Decisions in the last 30 days: 1, none of them labelled." in as_operator.get(page).content.decode()
    Transaction.objects.create(
        id="T1", occurred_at=timezone.now(), customer_id="C1", merchant_id="M1", amount="9.99", is_fraud=True
    )
    html = as_operator.get(page).content.decode()
    assert f"<td>{timezone.now():%Y-%m-%d}</td>" in html
    assert '<td class="n">1.0000</td>' in html and "labels still to come" in html


def test_reports_of_labels_are_shown_and_not_edited(as_operator: Client) -> None:
    """Who said what when, and what held before."""
    LabelReport.objects.create(
        transaction_id="T1",
        is_fraud=True,
        reported_at=timezone.now(),
        recorded_at=timezone.now(),
        client="mls_chargebk",
        applied=True,
    )
    html = as_operator.get("/admin/features/labelreport/").content.decode()
    assert "T1" in html and "mls_chargebk" in html
    assert as_operator.post("/admin/features/labelreport/add/").status_code == 403


def test_exactly_one_is_activated(as_operator: Client) -> None:
    """Two at once make no sense."""
    html = _activate(as_operator, make_model(1).pk, make_model(2).pk, confirmed="yes").content.decode()
    assert "Choose exactly one" in html
    assert not Activation.objects.exists()


def test_looking_is_not_activating(client: Client) -> None:
    """Whoever may only view has no such action, whatever they post."""
    user = User.objects.create_user("vera", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_modelversion"))
    client.force_login(user)
    version = make_model(1)
    assert "activate_version" not in client.get(_LIST).content.decode()
    _activate(client, version.pk, confirmed="yes")
    assert not Activation.objects.exists()


def test_a_decision_shows_what_it_was_given_with(as_operator: Client) -> None:
    """Each feature with tier, age and limit; text from outside stays text."""
    make_decision(make_model(1))
    html = as_operator.get("/admin/predictions/decision/T1/change/").content.decode()
    html = html.replace("\N{NARROW NO-BREAK SPACE}", " ")
    for part in (
        "customer_count_1d",
        "1 min 30 s",
        "l2",
        "stale",
        "&lt;usually 43&gt;",
    ):
        assert part in html


@pytest.mark.parametrize("response", [b"", b"\xff\xfe", b"[]", b'{"score": "x"}'])
def test_a_response_that_cannot_be_read_does_not_hide_the_decision(response: bytes, as_operator: Client) -> None:
    """The columns are still there."""
    make_decision(make_model(1), response=response)
    answer = as_operator.get("/admin/predictions/decision/T1/change/")
    assert answer.status_code == 200
    assert b"mls_abc" in answer.content


@pytest.mark.parametrize(
    ("query", "found"),
    [("q=T1", True), ("q=t1", False), ("q=T", False), ("decision=review", True), ("degraded__exact=0", False)],
)
def test_decisions_are_found_by_id_and_filtered(query: str, found: bool, as_operator: Client) -> None:
    """The whole id, exactly: a part of one would read the whole journal."""
    make_decision(make_model(1))
    html = as_operator.get(f"/admin/predictions/decision/?{query}").content.decode()
    assert ("/admin/predictions/decision/T1/change/" in html) is found
