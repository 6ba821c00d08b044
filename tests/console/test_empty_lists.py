"""Lists of records that nobody edits, while there are none, and pages of single ones."""

import pytest
from django.test import Client

from predictions.models import Activation
from tests.console.records import make_decision, make_model

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("page", "title", "hint"),
    [
        ("features/labelreport", "Label reports", "POST /v1/labels"),
        ("features/transaction", "Transactions", "manage.py import_transactions"),
        ("features/inspectionfinding", "Inspection findings", "No wrong copy has been found"),
        ("predictions/decision", "Decisions", "POST /v1/scores"),
        ("predictions/modelversion", "Model versions", "manage.py train"),
        ("predictions/activation", "Activations", "manage.py train"),
    ],
)
def test_an_empty_list_says_where_its_records_come_from(as_operator: Client, page: str, title: str, hint: str) -> None:
    """And is called by its name."""
    html = as_operator.get(f"/admin/{page}/").content.decode()
    assert f"<h1>{title}</h1>" in html
    assert hint in html


@pytest.mark.parametrize("query", ["q=nobody", "decision=approve"])
def test_a_search_that_finds_nothing_is_not_an_empty_list(as_operator: Client, query: str) -> None:
    """Nor is a filter: there may be other records."""
    html = as_operator.get(f"/admin/predictions/decision/?{query}").content.decode()
    assert "empty-list" not in html


def test_a_list_with_records_shows_them(as_operator: Client) -> None:
    """Without the hint."""
    version = make_model(1)
    Activation.objects.create(model_version=version)
    make_decision(version)
    for page in ("decision", "modelversion", "activation"):
        html = as_operator.get(f"/admin/predictions/{page}/").content.decode()
        assert "empty-list" not in html and 'id="result_list"' in html


def test_a_history_is_offered_only_where_there_can_be_one(as_operator: Client) -> None:
    """A model version has one, a decision never: the button would lead to an empty page."""
    version = make_model(1)
    make_decision(version)
    assert "historylink" not in as_operator.get("/admin/predictions/decision/T1/change/").content.decode()
    assert "historylink" in as_operator.get(f"/admin/predictions/modelversion/{version.pk}/change/").content.decode()
