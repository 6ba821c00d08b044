from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from features.models import Transaction, TtlPolicy
from mlserve.api.keys import KeyRefused, issue_key, revoke_key
from mlserve.api.models import ApiKey
from warmup.demo.place import DemoPlace
from warmup.demo.prepare import ensure_api_key, ensure_data, ensure_policies


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


@pytest.mark.django_db
@pytest.mark.parametrize("by_hand", [True, False])
def test_the_demos_key_gets_the_scopes_it_lacks(tmp_path: Path, by_hand: bool) -> None:
    """One of an earlier version, given again or remembered; the second time there is nothing to say."""
    place, key = DemoPlace(tmp_path), "a-key-of-the-demo-1234"
    place.folder.mkdir()
    place.remember_secret("api_key", key)
    issue_key(name="demo", scopes=["score", "debug"], key=key)
    found, note = ensure_api_key(place, wanted=key if by_hand else "")
    assert found == key and note.endswith("may now also label, operate")
    assert ApiKey.objects.get().scopes == ApiKey.Scope.values
    assert ensure_api_key(place, wanted=key if by_hand else "") == (key, "")


@pytest.mark.django_db
def test_nobody_elses_key_is_widened(tmp_path: Path) -> None:
    """Neither one with another name nor one that was revoked: it is refused as before."""
    place = DemoPlace(tmp_path)
    place.folder.mkdir()
    issue_key(name="billing", scopes=["score"], key="a-key-of-billing-1234")
    revoked = issue_key(name="demo", scopes=["score"], key="a-key-that-ended-1234").record
    revoke_key(revoked, now=timezone.now())
    for key in ("a-key-of-billing-1234", "a-key-that-ended-1234"):
        with pytest.raises(KeyRefused):
            ensure_api_key(place, wanted=key)
    assert [record.scopes for record in ApiKey.objects.all()] == [["score"]] * 2
