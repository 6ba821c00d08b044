"""Which policies are in force in a process: as the table says, as the disk says, or the defaults; and which it is."""

import math
from collections.abc import Iterator

import pytest
from django.db import connections

from features import policies
from features.definitions import MERCHANT_RISK
from features.models import TtlPolicy
from features.policies import MAX_DURATION_S, PoliciesUnconfirmed, nonsense, policies_in_force, rows_of
from features.synchronise import synchronise_definitions
from mlserve.cache.policy import PolicyBook
from tests.fixtures.population import forget_copies
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)
NAME = MERCHANT_RISK.name


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    policies.forget()
    forget_copies()
    synchronise_definitions()
    yield
    policies.forget()
    forget_copies()


def _edit(**changes: object) -> None:
    TtlPolicy.objects.filter(name=NAME).update(**changes)


def _kept() -> None:
    """Returns when what is in force is on the disk."""
    version = policies_in_force().version
    until(lambda: (kept := policies.policies_copy().load()) is not None and kept.content.version == version)


def _start_without(postgres: ServerHandle) -> PolicyBook:
    """What a process has that starts meanwhile."""
    policies.forget()
    postgres.kill()
    return policies_in_force()


def _mend(postgres: ServerHandle) -> None:
    postgres.start()
    connections.close_all()
    for one in connections.all():
        one.close_pool()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("said", "obeyed"),
    [
        (math.nan, 0.0),
        (-5.0, 0.0),
        (-math.inf, 0.0),
        (math.inf, MAX_DURATION_S),
        (1e300, MAX_DURATION_S),
        (7.0, 7.0),
    ],
)
@pytest.mark.parametrize("field", ["fresh_for_s", "grace_s", "negative_ttl_s"])
def test_a_number_that_makes_no_sense_lets_no_copy_count(field: str, said: float, obeyed: float) -> None:
    """And a limit that no clock can count is the longest that one can; the other policies are obeyed."""
    _edit(**{field: said})
    book = policies_in_force()
    assert getattr(book[NAME], field) == obeyed
    assert book.is_confirmed
    assert len(nonsense(rows_of(TtlPolicy.objects.all()))) == (said != obeyed)


def test_a_row_that_is_missing_or_of_nothing_changes_nothing() -> None:
    """A group without a policy has its default, as when the table was made."""
    TtlPolicy.objects.filter(name=NAME).delete()
    TtlPolicy.objects.create(name="of_an_older_release", fresh_for_s=1, grace_s=1, negative_ttl_s=1)
    book = policies_in_force()
    assert book[NAME].fresh_for_s == MERCHANT_RISK.policy.fresh_for_s
    assert "of_an_older_release" not in book.policies
    assert len(nonsense(rows_of(TtlPolicy.objects.all()))) == 2


def test_a_process_that_starts_without_postgres_obeys_what_was_in_force(postgres: ServerHandle) -> None:
    """Also that a group was switched off; unconfirmed until PostgreSQL answers, whether or not anything changed."""
    _edit(use_l1=False, use_l2=False, fresh_for_s=77.0, on_missing="fail", freshness="proven")
    before = policies_in_force()
    _kept()
    started = _start_without(postgres)
    try:
        assert started.policies == before.policies
        assert (started.version, started.is_confirmed) == (before.version, False)
        with pytest.raises(PoliciesUnconfirmed, match=f"version {before.version} .* copy of 20"):
            policies.policies_are_confirmed()
    finally:
        _mend(postgres)
    until(lambda: policies_in_force().is_confirmed)
    assert policies_in_force() == before
    assert str(before.version) in policies.policies_are_confirmed()


def test_without_a_copy_the_defaults_are_in_force_and_say_so(postgres: ServerHandle) -> None:
    """They may be wrong: nobody knows which groups were switched off."""
    _edit(fresh_for_s=77.0)
    policies_in_force()
    _kept()
    policies.forget()
    forget_copies()
    try:
        started = _start_without(postgres)
        assert started[NAME].fresh_for_s == MERCHANT_RISK.policy.fresh_for_s
        assert (started.version, started.is_confirmed) == (0, False)
        with pytest.raises(PoliciesUnconfirmed, match="no copy"):
            policies.policies_are_confirmed()
    finally:
        _mend(postgres)
    until(lambda: policies_in_force()[NAME].fresh_for_s == 77.0)


def test_a_process_that_knew_goes_on_confirmed(postgres: ServerHandle) -> None:
    """An outage afterwards takes nothing back."""
    before = policies_in_force()
    postgres.kill()
    try:
        until(lambda: policies._book.poller.error is not None)
        assert policies_in_force() is before and before.is_confirmed
    finally:
        _mend(postgres)
