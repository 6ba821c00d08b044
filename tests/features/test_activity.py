from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import pytest
from django.db import connection, transaction

from features import activity
from features.activity import StoredRow, load_rows, lock_customers, update_activity
from features.compute import transaction_tag
from features.models import FeatureRow, Transaction
from tests.features.ledgers import START, payment, record
from tests.features.sessions import somebody_waits
from tests.fixtures.waiting import until

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def _update(*customers: str, until: datetime | None = None) -> list[StoredRow]:
    with transaction.atomic(), connection.cursor() as cursor:
        return update_activity(cursor, customers, NOW, until=until)


@pytest.mark.django_db
def test_the_list_holds_time_amount_and_tag_in_ledger_order() -> None:
    """Equal seconds by id, shorter ids first; the tag is the one that Python computes."""
    ids = ["10", "9", "é", 'a,"b']
    record([payment(name, START, amount=f"{place}.2500") for place, name in enumerate(ids)])
    record([payment("1", START + timedelta(microseconds=1), amount="7.0001")])
    (row,) = _update("c1")
    at = START.timestamp()
    listed = [(at, 1.25, "9"), (at, 0.25, "10"), (at, 2.25, "é"), (at, 3.25, 'a,"b'), (at + 1e-6, 7.0001, "1")]
    assert row.values == (0.0, *(part for t, amount, name in listed for part in (t, amount, transaction_tag(name))))
    assert (row.group, row.entity_id, row.as_of) == ("customer_activity", "c1", NOW.timestamp())
    assert row.version == FeatureRow.objects.get().version


@pytest.mark.django_db
def test_the_list_says_from_when_on_it_is_complete() -> None:
    """What is older than 31 days before the newest is dropped; nothing dropped means complete from the beginning."""
    newest = START + timedelta(days=31)
    record([payment("1", START), payment("2", newest)])
    assert _update("c1")[0].values[::3][0] == 0.0
    record([payment("0", START - timedelta(seconds=1))])
    (row,) = _update("c1")
    assert row.values[0] == START.timestamp()
    assert row.values[1::3] == (START.timestamp(), newest.timestamp())


@pytest.mark.django_db
def test_a_busy_customers_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest are kept, and the list no longer claims what was dropped."""
    sql = activity._UPDATE.replace(str(activity.ACTIVITY_MOST_KEPT), "3")
    monkeypatch.setattr(activity, "_UPDATE", sql)
    record([payment(str(n), START + timedelta(seconds=n)) for n in range(5)])
    (row,) = _update("c1")
    assert row.values[1::3] == tuple(START.timestamp() + n for n in (2, 3, 4))
    assert START.timestamp() + 2 < row.values[0] < START.timestamp() + 3


@pytest.mark.django_db
def test_customers_without_transactions_get_no_row_and_deleted_ones_come_back() -> None:
    """One statement for all; each customer gets their own."""
    record([payment("1", START, customer="c1"), payment("2", START, customer="c2", amount="5")])
    FeatureRow.objects.create(group="customer_activity", entity_id="c2", values=[0.0], as_of=NOW, deleted_at=NOW)
    rows = _update("c2", "nobody", "c1", "c1")
    assert [(row.entity_id, row.values[2]) for row in rows] == [("c1", 10.0), ("c2", 5.0)]
    assert FeatureRow.objects.get(entity_id="c2").deleted_at is None
    assert _update() == []


@pytest.mark.django_db
def test_a_view_of_the_past_leaves_out_what_came_later() -> None:
    """`until` is included."""
    record([payment(str(n), START + timedelta(seconds=n)) for n in range(3)])
    (row,) = _update("c1", until=START + timedelta(seconds=1))
    assert row.values[1::3] == (START.timestamp(), START.timestamp() + 1)


@pytest.mark.django_db
def test_rows_are_loaded_in_one_statement_with_the_moment_of_reading() -> None:
    """Unknown keys are left out, soft-deleted rows say so, and the moment comes even if nothing was found."""
    begun = datetime.now(UTC).timestamp()
    FeatureRow.objects.create(group="merchant_risk", entity_id="m1", values=[0.1, 1e300], as_of=NOW)
    FeatureRow.objects.create(group="merchant_profile", entity_id="m1", values=[], as_of=NOW, deleted_at=NOW)
    with connection.cursor() as cursor:
        loaded = load_rows(cursor, [("merchant_profile", "m1"), ("merchant_risk", "m2"), ("merchant_risk", "m1")])
        nothing = [load_rows(cursor, [("merchant_risk", "m2")]), load_rows(cursor, [])]
    rows = {row.group: row for row in loaded.rows}
    assert rows["merchant_risk"].values == (0.1, 1e300)
    assert rows["merchant_risk"].as_of == NOW.timestamp()
    assert rows["merchant_risk"].version == FeatureRow.objects.get(group="merchant_risk").version
    assert (rows["merchant_profile"].deleted, rows["merchant_risk"].deleted) == (True, False)
    assert loaded.read_at >= begun
    assert all(found.rows == () and found.read_at >= loaded.read_at for found in nothing)


@pytest.fixture
def emptied(transactional_db: None) -> Iterator[None]:
    record([payment("0", START)])
    _update("c1")
    yield


def _record_and_update(name: str) -> None:
    record([payment(name, START + timedelta(seconds=int(name)))])
    with connection.cursor() as cursor:
        update_activity(cursor, ["c1"], NOW)


@pytest.mark.usefixtures("emptied")
def test_two_sessions_that_record_for_one_customer_lose_no_transaction() -> None:
    """The second waits before it reads the ledger, so its list has what the first recorded."""
    first_has_written = Event()

    def second() -> None:
        try:
            assert first_has_written.wait(30)
            with transaction.atomic():
                _record_and_update("2")
        finally:
            connection.close()

    other = Thread(target=second)
    other.start()
    with transaction.atomic():
        _record_and_update("1")
        first_has_written.set()
        until(somebody_waits)
    other.join(30)
    assert Transaction.objects.count() == 3
    values = FeatureRow.objects.get(group="customer_activity").values
    assert values[1::3] == [START.timestamp() + n for n in range(3)]


@pytest.mark.usefixtures("emptied")
def test_sessions_that_lock_many_customers_in_any_order_do_not_deadlock() -> None:
    """Locks are taken in one order for all."""
    customers = [f"c{n}" for n in range(200)]
    failures: list[BaseException] = []

    def lock(ids: list[str]) -> None:
        try:
            for _ in range(10):
                with transaction.atomic(), connection.cursor() as cursor:
                    lock_customers(cursor, ids)
        except BaseException as failure:
            failures.append(failure)
        finally:
            connection.close()

    threads = [Thread(target=lock, args=(ids,)) for ids in (customers, customers[::-1], customers[100:] + customers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
