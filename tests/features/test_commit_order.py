"""Polls that ask for the newest number miss nothing, whichever of two writers drew its number first."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection

from features import policies
from features.models import PolicyRevision, TtlPolicy
from features.policies import policies_in_force
from tests.features.sessions import conninfo

pytestmark = pytest.mark.django_db(transaction=True)
EDIT = "UPDATE features_ttlpolicy SET fresh_for_s = %s WHERE name = %s"


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    """No poller that would look by itself, and the policies as they were."""
    before = list(TtlPolicy.objects.all())
    policies.forget()
    yield
    policies.forget()
    TtlPolicy.objects.all().delete()
    TtlPolicy.objects.bulk_create(before)


def _in_force() -> Any:
    policies._book.poller.poll_now()
    return policies._book.current


def _newest() -> int:
    return PolicyRevision.objects.values_list("id", flat=True)[0]


def test_an_edit_that_commits_after_a_later_one_is_in_force_with_the_next_poll() -> None:
    """The first session draws its number, the second draws, commits and is seen, the first commits."""
    with psycopg.connect(conninfo()) as first, psycopg.connect(conninfo()) as second:
        first.execute(EDIT, (11, "merchant_risk"))
        second.execute(EDIT, (12, "merchant_profile"))
        second.commit()
        seen = _in_force()
        assert (seen["merchant_risk"].fresh_for_s, seen["merchant_profile"].fresh_for_s) == (3600, 12)
        first.commit()
    now = _in_force()
    assert (now["merchant_risk"].fresh_for_s, now["merchant_profile"].fresh_for_s) == (11, 12)
    assert now.version == _newest() > seen.version, "two books never have one number"


def test_revisions_are_numbered_in_the_order_of_their_commits() -> None:
    """Also several of one database transaction, and whatever its isolation."""
    with psycopg.connect(conninfo()) as first, psycopg.connect(conninfo()) as second:
        first.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        first.execute(EDIT, (21, "merchant_risk"))
        first.execute(EDIT, (22, "merchant_risk"))
        second.execute(EDIT, (23, "merchant_profile"))
        second.commit()
        first.commit()
    newest = [revision.after["fresh_for_s"] for revision in PolicyRevision.objects.all()[:3]]
    assert newest == [22, 21, 23]


def test_a_sequence_that_was_restored_behind_its_rows_does_not_hide_an_edit() -> None:
    """The edit gets a number above all others."""
    TtlPolicy.objects.filter(name="merchant_risk").update(fresh_for_s=31)
    before = _newest()
    with connection.cursor() as cursor:
        cursor.execute("SELECT setval(pg_get_serial_sequence('features_policyrevision', 'id'), %s)", (before + 1000,))
        cursor.execute(EDIT, (32, "merchant_risk"))
        cursor.execute("SELECT setval(pg_get_serial_sequence('features_policyrevision', 'id'), %s)", (before + 10,))
        cursor.execute(EDIT, (33, "merchant_risk"))
    first, second = PolicyRevision.objects.all()[:2]
    assert (first.after["fresh_for_s"], second.after["fresh_for_s"]) == (33, 32)
    assert _in_force()["merchant_risk"].fresh_for_s == 33


def test_a_policy_that_somebody_removes_falls_back_to_its_default() -> None:
    """A row that goes leaves no revision; the poll compares the policies themselves."""
    TtlPolicy.objects.filter(name="merchant_risk").update(fresh_for_s=41)
    assert _in_force()["merchant_risk"].fresh_for_s == 41
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM features_ttlpolicy WHERE name = 'merchant_risk'")
    assert _in_force()["merchant_risk"].fresh_for_s == 3600
    assert policies_in_force()["merchant_risk"].fresh_for_s == 3600


def test_policies_that_were_restored_under_the_same_number_are_noticed() -> None:
    """A dump whose newest revision has the number that this process knows."""
    TtlPolicy.objects.filter(name="merchant_risk").update(fresh_for_s=51)
    seen = _in_force()
    with connection.cursor() as cursor:
        # As a dump is loaded: before there are triggers.
        cursor.execute("ALTER TABLE features_ttlpolicy DISABLE TRIGGER features_record_policy")
        cursor.execute(EDIT, (52, "merchant_risk"))
        cursor.execute("ALTER TABLE features_ttlpolicy ENABLE ALWAYS TRIGGER features_record_policy")
    assert _in_force()["merchant_risk"].fresh_for_s == 52
    assert _in_force().version == seen.version
