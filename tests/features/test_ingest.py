"""A list that is continued is the list that would be derived."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction

from features import ingest
from features.activity import update_activity
from features.ingest import NewTransaction
from features.models import FeatureRow, Transaction
from mlserve.cache.keys import Key
from tests.fixtures.waiting import until

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
START = datetime(2026, 3, 2, tzinfo=UTC)
DAYS = timedelta(days=1)


def new(name: str, at: datetime, *, customer: str = "c1", amount: float = 10.0) -> NewTransaction:
    return NewTransaction(name, at, customer, "m1", amount, "EUR")


def record(*transactions: NewTransaction) -> dict[str, tuple[float, ...]]:
    """The activity of each customer, as it comes back; the same is in the table."""
    with transaction.atomic():
        recorded = ingest.record(connection.connection, transactions, now=NOW)
    values = {key.id: tuple(entry.values or ()) for key, entry in recorded.activity.items()}
    for customer, written in values.items():
        row = FeatureRow.objects.get(group="customer_activity", entity_id=customer)
        assert (tuple(row.values), row.as_of, row.deleted_at) == (written, NOW, None)
        entry = recorded.activity[Key("customer", customer, "customer_activity")]
        assert (entry.version, entry.as_of) == (row.version, NOW.timestamp())
    return values


def derived(*customers: str) -> dict[str, tuple[float, ...]]:
    """Anew from the ledger."""
    with transaction.atomic(), connection.cursor() as cursor:
        return {row.entity_id: row.values for row in update_activity(cursor, customers, NOW)}


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The customers whose list was derived anew, for each time."""
    seen: list[set[str]] = []

    def noting(cursor: Any, customers: set[str], now: datetime) -> Any:
        seen.append(set(customers))
        return update_activity(cursor, customers, now)

    monkeypatch.setattr(ingest, "update_activity", noting)
    return seen


def test_the_next_transaction_continues_the_list(derivations: list[set[str]]) -> None:
    """Only a customer's first is derived. What leaves the window goes, and the list says since when it is complete."""
    record(new("1", START), new("2", START + DAYS, amount=0.1234))
    assert derivations == [{"c1"}]
    for number, days in enumerate((2, 30.5, 31, 32, 32.5, 64)):
        values = record(new(f"n{number}", START + days * DAYS, amount=7.1))
        assert values == derived("c1")
    assert derivations == [{"c1"}]
    assert values["c1"][1::3] == ((START + 64 * DAYS).timestamp(),)
    assert values["c1"][0] == (START + 33 * DAYS).timestamp()


def test_several_at_once_are_told_apart_by_customer(derivations: list[set[str]]) -> None:
    """Each list is continued or derived for itself; equal moments stand in the order of ids."""
    record(new("a", START), new("b", START, customer="c2"))
    derivations.clear()
    values = record(
        new("10", START + DAYS),
        new("9", START + DAYS),
        new("é", START + 2 * DAYS),
        new("early", START - DAYS, customer="c2"),
        new("first", START, customer="c3"),
    )
    assert derivations == [{"c2", "c3"}]
    assert values == derived("c1", "c2", "c3")


@pytest.mark.parametrize("at", [START + DAYS, START + timedelta(hours=1), START - 40 * DAYS])
def test_what_is_not_the_newest_is_put_in_its_place(derivations: list[set[str]], at: datetime) -> None:
    """At the very moment of the newest one as well, where the ids decide."""
    record(new("1", START), new("2", START + DAYS))
    derivations.clear()
    assert record(new("0", at)) == derived("c1")
    assert derivations == [{"c1"}]


def test_a_list_that_misses_something_of_the_ledger_is_not_continued(derivations: list[set[str]]) -> None:
    """An import that was not built yet, or rows that are gone: whether earlier, at the edge, or later than the list."""
    for number, change in enumerate(
        (
            lambda at: _import("i", at - timedelta(hours=1)),
            lambda at: _import("i", at - 31 * DAYS),
            lambda at: _import("i", at + timedelta(hours=1)),
            lambda at: Transaction.objects.filter(id="1-3").delete(),
        )
    ):
        Transaction.objects.all().delete()
        FeatureRow.objects.all().delete()
        record(*(new(f"{day}-{number}", START + day * DAYS) for day in range(4)))
        change(START + 3 * DAYS)
        derivations.clear()
        assert record(new("next", START + 4 * DAYS)) == derived("c1")
        assert derivations == [{"c1"}]


def _import(name: str, at: datetime) -> None:
    Transaction.objects.create(id=name, occurred_at=at, customer_id="c1", merchant_id="m1", amount=5)


def test_a_list_that_is_full_is_derived(monkeypatch: pytest.MonkeyPatch, derivations: list[set[str]]) -> None:
    """What it leaves out is for the derivation to say."""
    monkeypatch.setattr(ingest, "_RECORD", ingest._RECORD.replace("3 * 2000", "3 * 4"))
    for number in range(6):
        values = record(new(str(number), START + number * DAYS))
        assert values == derived("c1")
    assert derivations == [{"c1"}] * 4


def test_a_deleted_list_comes_back_and_a_broken_one_is_replaced(derivations: list[set[str]]) -> None:
    """Derived, whatever stands there."""
    record(new("1", START))
    changes: tuple[dict[str, Any], ...] = (
        {"deleted_at": NOW},
        {"values": [0.0]},
        {"values": []},
        {"values": [0.0, 1.0]},
        {"values": [float("nan")] * 4},
    )
    for number, change in enumerate(changes):
        FeatureRow.objects.update(**change)
        derivations.clear()
        assert record(new(f"n{number}", START + (1 + number) * DAYS)) == derived("c1")
        assert derivations == [{"c1"}]


def test_a_repetition_changes_nothing(derivations: list[set[str]]) -> None:
    """Neither ledger nor list; other contents under a known id are named."""
    record(new("1", START))
    version = FeatureRow.objects.get().version
    derivations.clear()
    assert record(new("1", START)) == {}
    with transaction.atomic():
        recorded = ingest.record(connection.connection, [new("1", START, amount=11.0)], now=NOW)
    assert recorded == ingest.Recorded(frozenset({"1"}), {})
    assert (derivations, FeatureRow.objects.get().version) == ([], version)


def _adds_a_payment() -> None:
    _import("i", START + DAYS)
    FeatureRow.objects.update(as_of=NOW)


def _takes_a_payment_back() -> None:
    Transaction.objects.filter(id="2").delete()
    FeatureRow.objects.update(values=[0.0])


def _deletes_the_list() -> None:
    Transaction.objects.filter(id="2").delete()
    FeatureRow.objects.update(deleted_at=NOW)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("edit", [_adds_a_payment, _takes_a_payment_back, _deletes_the_list])
def test_a_list_that_somebody_changes_meanwhile_is_derived(
    derivations: list[set[str]], edit: Callable[[], None]
) -> None:
    """By hand and without the customer's lock: committed after the statement has read the list, before it writes.

    What it has read is of the past then, the ledger as well: a list that continues it would lose the edit.
    """
    record(new("1", START), new("2", START + 2 * DAYS))
    derivations.clear()

    def record_the_next() -> dict[str, tuple[float, ...]]:
        try:
            return record(new("3", START + 3 * DAYS))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as other:
        with transaction.atomic():
            edit()
            recording = other.submit(record_the_next)
            until(lambda: recording.done() or _a_statement_waits_for_a_row())
            assert not recording.done()
        values = recording.result(30)
    assert values == derived("c1")
    assert derivations == [{"c1"}]


def _a_statement_waits_for_a_row() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid')")
        return bool(cursor.fetchone()[0])


@pytest.mark.parametrize("seed", range(3))
def test_continued_and_derived_are_the_same_whatever_comes(seed: int) -> None:
    """Times near each other and far apart, early and late ones, one or several at a time, of several customers."""
    chance = random.Random(seed)
    at = START
    for number in range(60):
        at += timedelta(seconds=chance.choice((0, 0.000001, 1, 3600.123456, 86_400, 5 * 86_400, 40 * 86_400)))
        batch = [
            new(
                f"{chance.choice('ab')}{number}-{place}",
                at - timedelta(seconds=chance.choice((0, 0, 0, 0, 5, 90_000))),
                customer=chance.choice(("c1", "c2", "c3")),
                amount=chance.randrange(10**7) / 10**4,
            )
            for place in range(chance.choice((1, 1, 2, 5)))
        ]
        values = record(*batch)
        assert values == derived(*values)
