"""Writers of the ledger take its rows in one order, so that none waits for another in a circle."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any

import numpy as np
import psycopg
import pytest
from django.db import connection, transaction

from features import ingest
from features.ingest import NewTransaction
from features.labels import NewLabel, report_labels
from features.models import Transaction
from features.transactions.ledger_batch import LedgerBatch
from features.transactions.load import copy_transactions
from tests.features.sessions import conninfo, somebody_waits
from tests.fixtures.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)
MOMENT = np.datetime64("2026-03-02T10:00:00", "us")
AT = MOMENT.item().replace(tzinfo=UTC)


def _batch(*ids: str, label: int = -1) -> LedgerBatch:
    count = len(ids)
    return LedgerBatch(
        transaction_ids=list(ids),
        occurred_at=np.full(count, MOMENT),
        customer_ids=["c1"] * count,
        merchant_ids=["m1"] * count,
        amounts=np.ones(count),
        currencies=["EUR"] * count,
        labels=np.full(count, label, np.int8),
    )


INSERT = """
INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount)
VALUES (%s, '2026-03-02T10:00:00Z', 'c1', 'm1', 1)
"""


@pytest.fixture
def other() -> Iterator[psycopg.Connection[Any]]:
    """Another writer, which shall never have to wait."""
    with psycopg.connect(conninfo()) as session:
        session.execute("SET lock_timeout = '2s'")
        session.commit()
        yield session


def _beside(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    until(somebody_waits)
    return thread, outcome


def test_an_import_inserts_in_the_order_of_ids_whatever_its_file_says(other: psycopg.Connection[Any]) -> None:
    """A score has inserted the first id and goes on to the second, while the import has both the other way round."""
    other.execute(INSERT, ("t-a",))
    thread, outcome = _beside(lambda: copy_transactions(connection, _batch("t-b", "t-a")))
    other.execute(INSERT, ("t-b",))
    other.commit()
    thread.join()
    assert outcome[0].already_known == 2


def test_of_a_row_that_stands_twice_in_a_file_the_first_counts() -> None:
    """Whatever the order in which rows are inserted."""
    batch = _batch("t-b", "t-a", "t-b")
    batch.amounts[:] = [1.0, 1.0, 2.0]
    loaded = copy_transactions(connection, batch)
    assert (loaded.imported, [conflict.position for conflict in loaded.conflicts]) == (2, [2])


def test_an_import_labels_in_the_order_of_ids(other: psycopg.Connection[Any]) -> None:
    """A report holds the first of two rows and goes on to the second; the plan of the update would begin with that."""

    def load() -> Any:
        with connection.cursor() as cursor:
            for kind in ("nestloop", "mergejoin", "indexscan", "bitmapscan"):
                cursor.execute(f"SET enable_{kind} = off")
        return copy_transactions(connection, _batch("t-b", "t-a", label=1))

    copy_transactions(connection, _batch("t-b"))  # first in the table
    copy_transactions(connection, _batch("t-a"))
    lock = "SELECT FROM features_transaction WHERE id = %s FOR NO KEY UPDATE"
    other.execute(lock, ("t-a",))
    thread, outcome = _beside(load)
    other.execute(lock, ("t-b",))
    other.commit()
    thread.join()
    assert outcome[0].labelled == 2


def test_scores_record_in_the_order_of_ids(other: psycopg.Connection[Any]) -> None:
    """Whatever the order in which they came into one commit."""
    other.execute(INSERT, ("t-B",))

    def record() -> Any:
        with transaction.atomic():
            connection.ensure_connection()
            transactions = [NewTransaction(name, AT, "c2", "m1", 1.0, "EUR") for name in ("t-a", "t-B")]
            return ingest.record(connection.connection, transactions, now=AT)

    thread, outcome = _beside(record)
    other.execute(INSERT, ("t-a",))
    other.commit()
    thread.join()
    assert not isinstance(outcome[0], Exception)


def test_reports_and_an_import_of_the_same_rows_both_go_through() -> None:
    """Many at once, in opposite orders; no deadlock among them."""
    names = [f"t-{number:03}" for number in range(200)]
    copy_transactions(connection, _batch(*names[::-1]))
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(sum(deadlocks), 0) FROM pg_stat_database")
        before = cursor.fetchone()[0]
    barrier, failures = threading.Barrier(3), []

    def work(label: Callable[[], Any]) -> None:
        try:
            for _ in range(5):
                barrier.wait()
                label()
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    works = [
        lambda: copy_transactions(connection, _batch(*names[::-1], label=1)),
        lambda: copy_transactions(connection, _batch(*names, label=1)),
        lambda: report_labels([NewLabel(name, True) for name in names[::-1]], client="c", now=AT),
    ]
    threads = [threading.Thread(target=work, args=(each,)) for each in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush(), coalesce(sum(deadlocks), 0) FROM pg_stat_database")
        assert cursor.fetchone()[1] == before
    assert not Transaction.objects.filter(is_fraud=None).exists()
