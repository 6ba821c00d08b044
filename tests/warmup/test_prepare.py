from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from features.models import Transaction, TtlPolicy
from warmup.demo.place import DemoPlace
from warmup.demo.prepare import ensure_data, ensure_policies


@pytest.mark.django_db
def test_a_transaction_of_the_future_does_not_make_the_data_newer(tmp_path: Path) -> None:
    """A score may lie a day ahead of the clock."""
    now = timezone.now()
    for name, moment in (("T1", now - timedelta(days=3)), ("T2", now + timedelta(days=1))):
        Transaction.objects.create(id=name, occurred_at=moment, customer_id="C1", merchant_id="M1", amount=1)
    note = ensure_data(DemoPlace(tmp_path), file=None, customers=1, merchants=2, days=21, now=now)
    assert note == f"2 transactions up to {now - timedelta(days=3):%Y-%m-%d %H:%M} UTC, as before"


@pytest.mark.django_db
def test_only_a_new_installation_is_given_proven_groups() -> None:
    """What an operator has chosen since stays."""
    assert ensure_policies() == "freshness proven for customer_activity, merchant_risk"
    assert TtlPolicy.objects.get(pk="customer_activity").use_l1
    TtlPolicy.objects.filter(pk="merchant_risk").update(freshness="ttl")
    Transaction.objects.create(id="T1", occurred_at=timezone.now(), customer_id="C1", merchant_id="M1", amount=1)
    assert ensure_policies() == "freshness proven for customer_activity"
