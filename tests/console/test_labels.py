"""Labels in the admin: who said what of a transaction, and what holds now."""

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from features.models import LabelReport, Transaction

pytestmark = pytest.mark.django_db
_REPORTS = "/admin/features/labelreport/"
_AT = datetime(2026, 11, 3, 15, 4, 5, tzinfo=UTC)


def _report(*, is_fraud: bool, minutes: int, was: bool | None = None, applied: bool = True) -> LabelReport:
    at = _AT + timedelta(minutes=minutes)
    return LabelReport.objects.create(
        transaction_id="T/1",
        is_fraud=is_fraud,
        was=was,
        applied=applied,
        reported_at=at,
        recorded_at=at,
        client="mls_chargebk",
    )


@pytest.fixture
def reports() -> list[LabelReport]:
    """Fraud, taken back, and an older report that came too late."""
    Transaction.objects.create(
        id="T/1", occurred_at=_AT, customer_id="C1", merchant_id="M1", amount="1234.5", is_fraud=False
    )
    return [
        _report(is_fraud=True, minutes=1),
        _report(is_fraud=False, minutes=3, was=True),
        _report(is_fraud=True, minutes=2, was=False, applied=False),
    ]


def test_a_label_is_a_word(as_operator: Client, reports: list[LabelReport]) -> None:
    """In the list too: a green tick for fraud, a red cross for its absence would say the opposite."""
    html = as_operator.get(_REPORTS).content.decode()
    assert html.count('<td class="field-label">fraud</td>') == 2
    assert html.count('<td class="field-label">genuine</td>') == 1
    assert '<td class="field-label_before">not known</td>' in html
    assert '<td class="field-effect">older than the one in force</td>' in html
    assert "icon-yes" not in html


def test_a_report_shows_all_of_its_transaction(as_operator: Client, reports: list[LabelReport]) -> None:
    """Newest first, each with its moment, client and effect; a link leads to the transaction."""
    html = as_operator.get(f"{_REPORTS}{reports[0].pk}/change/").content.decode()
    assert '<a href="/admin/features/transaction/T_2F1/change/">T/1</a>' in html
    places = [html.index(f"2026-11-03 15:{minute}:05 UTC</td><td>mls_") for minute in ("06", "07", "05")]
    assert places == sorted(places)


def test_a_transaction_shows_how_its_label_came_about(as_operator: Client, reports: list[LabelReport]) -> None:
    """With the amount as people write it."""
    html = as_operator.get("/admin/features/transaction/T_2F1/change/").content.decode()
    assert html.count("<td>mls_chargebk</td>") == 3
    assert '<div class="readonly">genuine</div>' in html
    assert '<div class="readonly">1,234.50</div>' in html


def test_many_reports_are_cut_short_and_say_so(as_operator: Client, reports: list[LabelReport]) -> None:
    """A client that reports the same thing for ever makes no endless page."""
    for minute in range(4, 24):
        _report(is_fraud=True, minutes=minute)
    html = as_operator.get(f"{_REPORTS}{reports[0].pk}/change/").content.decode()
    assert html.count("<td>mls_chargebk</td>") == 20
    assert "the newest 20 are shown" in html


def test_whoever_may_not_view_reports_does_not_see_them_at_the_transaction(
    client: Client, reports: list[LabelReport]
) -> None:
    """The right to view transactions alone does not show who reported what."""
    user = User.objects.create_user("vera", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_transaction"))
    client.force_login(user)
    assert "mls_chargebk" not in client.get("/admin/features/transaction/T_2F1/change/").content.decode()


@pytest.mark.parametrize("page", ["featurerecord", "featuregrouprecord"])
def test_what_describes_features_is_sorted_by_name(as_operator: Client, page: str) -> None:
    """From a to z."""
    names = [row.name for row in as_operator.get(f"/admin/features/{page}/").context["cl"].result_list]
    assert len(names) > 1 and names == sorted(names)
