"""Moments in the admin."""

from datetime import UTC, datetime

import pytest
from django.test import Client

from features.models import LabelReport, Transaction

pytestmark = pytest.mark.django_db
AT = datetime(2026, 11, 3, 15, 4, 5, tzinfo=UTC)


def test_a_page_of_a_record_says_its_moments_to_the_second_in_utc(as_superuser: Client) -> None:
    """Also where nobody wrote a column for it: Django's own format has neither seconds nor a zone."""
    Transaction.objects.create(id="T1", occurred_at=AT, customer_id="C1", merchant_id="M1", amount="9.99")
    report = LabelReport.objects.create(
        transaction_id="T1", is_fraud=True, reported_at=AT, recorded_at=AT, client="mls_chargebk", applied=True
    )
    for page in ("transaction/T1", f"labelreport/{report.pk}"):
        html = as_superuser.get(f"/admin/features/{page}/change/").content.decode()
        assert "2026-11-03 15:04:05 UTC" in html
        assert "p.m." not in html
