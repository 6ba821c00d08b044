"""What clients of the API are told of an error of PostgreSQL, and how long a request may wait for it altogether."""

import time
from typing import Any

import psycopg
import psycopg_pool
import pytest
from django import db
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from mlserve.api.api_view import ApiView
from mlserve.api.database_time import database_within
from mlserve.api.problems import exception_handler
from mlserve.api.source_errors import retry_after, source_error_of
from mlserve.errors import ErrorCode
from mlserve.postgres.failures import AnswerTimeout, Failure, failure_of
from mlserve.postgres.sessions import Kind
from predictions.spool import SpoolFailed


def _answer(error: Exception) -> Any:
    return exception_handler(error, {"request": Request(APIRequestFactory().post("/v1/labels"))})


def _from_django(cause: psycopg.Error) -> Exception:
    try:
        with db.connection.wrap_database_errors:
            raise cause
    except db.Error as error:
        return error


@pytest.mark.parametrize(
    ("sqlstate", "code", "says"),
    [
        ("57P01", "source_unavailable", "does not answer"),
        ("53300", "source_unavailable", "does not answer"),
        ("57014", "source_unavailable", "in time"),
        ("25006", "source_read_only", "nothing was stored"),
        ("53100", "source_read_only", "nothing was stored"),
        ("55P03", "source_contention", "Somebody else"),
        ("40P01", "source_contention", "Somebody else"),
        ("40001", "source_contention", "Somebody else"),
        ("26000", "source_unavailable", "connection"),
    ],
)
@pytest.mark.parametrize("wrap", [_from_django, lambda cause: cause])
def test_what_another_try_may_mend_is_a_503(sqlstate: str, code: str, says: str, wrap: Any) -> None:
    """With `Retry-After`, and a code by which a client knows what to do; by psycopg's error or Django's."""
    response = _answer(wrap(psycopg.errors.lookup(sqlstate)("a host, a user")))
    problem = response.content.decode()
    assert response.status_code == 503
    assert f'"code":"{code}"' in problem and says in problem and "a host" not in problem
    assert 2 <= int(response.headers["Retry-After"]) <= 5


@pytest.mark.parametrize("error", [psycopg_pool.PoolTimeout("x"), AnswerTimeout("x"), psycopg.OperationalError("x")])
def test_errors_without_a_code_are_an_outage(error: psycopg.Error) -> None:
    """No connection, no answer."""
    assert _answer(_from_django(error)).status_code == 503


@pytest.mark.parametrize("sqlstate", ["22003", "23505", "42P01", "42501"])
def test_what_another_try_would_not_mend_is_none(sqlstate: str) -> None:
    """Django logs it, and answers 500."""
    assert _answer(_from_django(psycopg.errors.lookup(sqlstate)("x"))) is None
    assert source_error_of(ValueError("x")) is None


def test_who_was_refused_at_one_moment_comes_back_at_several() -> None:
    """Never sooner than is said."""
    assert {retry_after() for _ in range(300)} == {"2", "3", "4", "5"}
    assert {_answer(SpoolFailed("x")).headers["Retry-After"] for _ in range(300)} == {"5", "6", "7", "8"}


@pytest.mark.django_db(transaction=True)
def test_statements_that_each_end_in_time_end_together_too() -> None:
    """A page of many slow statements is cut off as one that hangs in one of them."""
    began = time.monotonic()
    with pytest.raises(db.OperationalError) as ended, database_within(0.5, kind=Kind.PAGE):
        for _ in range(100):
            with db.connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.05)")
    assert failure_of(ended.value) is Failure.TIMEOUT
    assert source_error_of(ended.value).code is ErrorCode.SOURCE_UNAVAILABLE  # type: ignore[union-attr]
    assert 0.4 < time.monotonic() - began < 4
    db.connection.close()  # cut off in the middle of a statement it is of no more use
    with db.connection.cursor() as cursor:  # outside of it nothing is cut off
        cursor.execute("SELECT 1")


@pytest.mark.django_db(transaction=True)
def test_a_call_of_many_slow_statements_is_refused_in_time() -> None:
    """Each of them is quick enough by itself."""

    class Slow(ApiView):
        authentication_classes = permission_classes = ()
        database_s = 0.5

        def get(self, _request: Request) -> None:
            for _ in range(100):
                with db.connection.cursor() as cursor:
                    cursor.execute("SELECT pg_sleep(0.05)")

    began = time.monotonic()
    response = Slow.as_view()(APIRequestFactory().get("/v1/slow"))
    assert response.status_code == 503 and "Retry-After" in response.headers
    assert time.monotonic() - began < 4
    db.connection.close()


@pytest.mark.django_db(transaction=True)
def test_no_statement_begins_when_the_time_is_over() -> None:
    """Also one that would be answered at once."""
    with (
        database_within(0.0, kind=Kind.PAGE),
        db.connection.cursor() as cursor,
        pytest.raises(db.OperationalError, match="no time is left"),
    ):
        cursor.execute("SELECT 1")
