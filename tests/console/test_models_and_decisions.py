"""Model versions, which operators activate, and decisions, which they look at."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import IntegrityError
from django.test import Client
from django.utils import timezone

from features.models import LabelReport, Transaction
from predictions.models import Activation, Comparison, Decision, ModelArtifact, ModelVersion
from predictions.registry import active
from tests.console.records import comparison_report, make_decision, make_model

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


def test_a_version_that_should_not_serve_is_asked_about(as_operator: Client) -> None:
    """The page says what speaks against it; forcing needs a reason; both are kept, with the name of who did it."""
    version = make_model(1)
    version.metrics |= {"flagged": 4900, "flagged_share": 0.98}
    version.save()
    said = "it flags 4900 of 5000 held-out transactions (98.0%)"
    assert said in _activate(as_operator, version.pk).content.decode()
    html = _activate(as_operator, version.pk, confirmed="yes", reason="why not").content.decode()
    assert "Model fraud 1 was not activated." in html and said in html and 'value="why not"' in html
    assert "give a reason" in _activate(as_operator, version.pk, confirmed="yes", force="yes").content.decode()
    assert not Activation.objects.exists()
    _activate(as_operator, version.pk, confirmed="yes", force="yes", reason="a drill")
    activation = Activation.objects.get()
    assert activation.reason == "olga: a drill" and said in activation.overruled
    assert said in as_operator.get("/admin/predictions/activation/").content.decode()


def test_versions_are_shown_side_by_side(as_operator: Client) -> None:
    """On the page that asks, and on that of the version; without a comparison it says how to make one."""
    first, second = make_model(1), make_model(2)
    Activation.objects.create(model_version=first)
    page = f"{_LIST}{second.pk}/change/"
    assert "manage.py model compare 2 --name fraud" in as_operator.get(page).content.decode()
    assert "not compared with fraud 1, which serves" in _activate(as_operator, second.pk).content.decode()
    Comparison.objects.create(candidate=second, champion=first, report=comparison_report())
    for html in (as_operator.get(page).content.decode(), _activate(as_operator, second.pk).content.decode()):
        assert "5,000 transactions, 50 frauds, 2024-03-29 to 2024-04-04" in html
        assert "-0.0200 to +0.0200" in html
    assert "fraud 2 serves in every process" in _activate(as_operator, second.pk, confirmed="yes").content.decode()


def test_what_a_version_flags_is_listed(as_operator: Client) -> None:
    """With the precision of what it declines; a dash where nothing was measured."""
    version = make_model(1)
    assert "\N{EN DASH}, \N{EN DASH}" in as_operator.get(_LIST).content.decode()
    version.metrics |= {"flagged_share": 0.0123, "decline_precision": 0.8}
    version.save()
    assert "1.23%, 0.8000" in as_operator.get(_LIST).content.decode()


def test_a_changed_artifact_shows_where_it_is_active(as_operator: Client) -> None:
    """In the list; what serves goes on, so nobody else would tell."""
    version = make_model(1)
    Activation.objects.create(model_version=version)
    assert "refused" not in as_operator.get(_LIST).content.decode()
    ModelArtifact.objects.filter(pk=version.pk).update(onnx=b"changed")
    assert "active, but its artifact was changed: refused" in as_operator.get(_LIST).content.decode()
    ModelArtifact.objects.filter(pk=version.pk).delete()
    assert "refused" in as_operator.get(_LIST).content.decode()


def test_a_version_that_this_release_does_not_understand_shows_where_it_is_active(as_operator: Client) -> None:
    """With the reason; it would not tell by its scores, for the one before goes on."""
    version = make_model(1)
    Activation.objects.create(model_version=version)
    ModelVersion.objects.update(feature_names=["of_another_release", *version.feature_names[1:]])
    html = as_operator.get(_LIST).content.decode()
    assert "active, but refused" in html and "no model features: of_another_release" in html


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


def test_what_is_known_of_a_version_is_written_for_people(as_operator: Client) -> None:
    """Whatever its training has left: no Python literals, thousands apart, a dash for nothing."""
    version = make_model(1)
    version.metrics = {"test_rows": 21348, "auc_roc": 0.9457301}
    version.parity = {"passed": True, "rows": 46136}
    version.training = {"libraries": {"onnx": "1.23", "numpy": "2.4"}, "until": None, "name": "<b>"}
    version.save()
    html = as_operator.get(f"{_LIST}{version.pk}/change/").content.decode()
    for row in (
        '<th scope="row">test_rows</th><td class="n">21,348</td>',
        '<th scope="row">auc_roc</th><td class="n">0.94573</td>',
        '<th scope="row">passed</th><td class="">yes</td>',
        '<th scope="row">libraries</th><td class="">numpy 2.4, onnx 1.23</td>',
        '<th scope="row">until</th><td class="">\N{EN DASH}</td>',
        '<th scope="row">name</th><td class="">&lt;b&gt;</td>',
    ):
        assert row in html
    assert html.index(">auc_roc<") < html.index(">test_rows<")


def test_exactly_one_is_activated(as_operator: Client) -> None:
    """Two at once make no sense."""
    html = _activate(as_operator, make_model(1).pk, make_model(2).pk, confirmed="yes").content.decode()
    assert "Choose exactly one" in html
    assert not Activation.objects.exists()


def test_an_operator_says_what_a_model_does_without_a_source(as_operator: Client) -> None:
    """Of a version the one thing that can be changed; what else is posted changes nothing."""
    version = make_model(1)
    page = f"{_LIST}{version.pk}/change/"
    posted = {"on_missing_source": "fail", "review_from": "0.9", "digest": "0" * 64}
    html = as_operator.post(page, posted, follow=True).content.decode()
    assert "in force in every process within a second" in html
    changed = ModelVersion.objects.get(pk=version.pk)
    assert changed.on_missing_source == "fail"
    assert (changed.review_from, changed.digest) == (version.review_from, version.digest)
    assert "On a missing source" in LogEntry.objects.get().change_message


def test_a_rule_that_nobody_knows_is_refused(as_operator: Client) -> None:
    """In words, by the form; by the table, whoever else writes it."""
    version = make_model(1)
    response = as_operator.post(f"{_LIST}{version.pk}/change/", {"on_missing_source": "explode"})
    assert response.context["adminform"].form.errors.keys() == {"on_missing_source"}
    with pytest.raises(IntegrityError):
        ModelVersion.objects.update(on_missing_source="explode")


def test_looking_is_not_deciding(client: Client) -> None:
    """Whoever may only view a version sees its rule and cannot set it."""
    user = User.objects.create_user("vera", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_modelversion"))
    client.force_login(user)
    version = make_model(1)
    page = f"{_LIST}{version.pk}/change/"
    assert "as the policy of each feature group says" in client.get(page).content.decode()
    assert client.post(page, {"on_missing_source": "fail"}).status_code == 403
    assert ModelVersion.objects.get(pk=version.pk).on_missing_source == "follow"


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
