"""A transaction that met another one is done again, within bounds."""

import threading

import psycopg
import pytest
from django.db import DatabaseError, OperationalError, connection, transaction

from mlserve.postgres.retries import FIRST_PAUSE_S, MAX_ATTEMPTS, retry_contention
from tests.features.sessions import conninfo, somebody_waits
from tests.fixtures.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


class Work:
    """Raises with this SQLSTATE, the first so many times."""

    def __init__(self, sqlstate: str, fails: int) -> None:
        self.sqlstate, self.fails, self.calls = sqlstate, fails, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.fails:
            with connection.cursor() as cursor:
                cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{self.sqlstate}'; END $$")
        return self.calls


def test_contention_is_tried_again_after_growing_pauses() -> None:
    """Drawn at random, so that two that met do not meet again."""
    for sqlstate in ("40P01", "40001", "55P03"):
        pauses: list[float] = []
        assert retry_contention(Work(sqlstate, 3), what="test", sleep=pauses.append) == 4
        most = [FIRST_PAUSE_S * 2**number for number in range(3)]
        assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, most, strict=True))


def test_attempts_are_bounded() -> None:
    """The last error is the caller's."""
    work = Work("40P01", 100)
    with pytest.raises(OperationalError, match="as asked"):
        retry_contention(work, what="test", sleep=lambda _: None)
    assert work.calls == MAX_ATTEMPTS


def test_what_is_no_contention_is_not_tried_again() -> None:
    """Read-only, a refused value, a timeout, an outage: the same again changes nothing."""
    for sqlstate in ("25006", "23505", "57014", "53300"):
        work = Work(sqlstate, 1)
        with pytest.raises(DatabaseError):
            retry_contention(work, what="test", sleep=lambda _: None)
        assert work.calls == 1


def test_a_part_of_a_transaction_is_not_tried_again() -> None:
    """What came before it is gone as well, and only its owner knows that."""
    work = Work("40P01", 1)
    with pytest.raises(OperationalError), transaction.atomic():
        retry_contention(work, what="test", sleep=lambda _: None)
    assert work.calls == 1


def test_a_real_deadlock_ends_with_both_done() -> None:
    """Two sessions that wait for each other: PostgreSQL ends one, which is done again."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS two_rows")
        cursor.execute("CREATE TABLE two_rows AS SELECT id, 0 AS number FROM generate_series(1, 2) AS id")
    try:
        with psycopg.connect(conninfo()) as other:
            other.execute("SET deadlock_timeout = '1min'")  # so that it is ours that is ended
            other.execute("UPDATE two_rows SET number = number + 1 WHERE id = 2")
            done: list[int] = []

            def ours() -> int:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute("SET LOCAL deadlock_timeout = '50ms'")
                    for row in (1, 2):
                        cursor.execute("UPDATE two_rows SET number = number + 1 WHERE id = %s", (row,))
                return 1

            def work() -> None:
                try:
                    done.append(retry_contention(ours, what="test"))
                finally:
                    connection.close()

            thread = threading.Thread(target=work)
            thread.start()
            until(somebody_waits)
            other.execute("UPDATE two_rows SET number = number + 1 WHERE id = 1")
            other.commit()
            thread.join()
        assert done == [1]
        with connection.cursor() as cursor:
            cursor.execute("SELECT array_agg(number) FROM two_rows")
            assert cursor.fetchone() == ([2, 2],)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE two_rows")
