"""The table of SQLSTATE codes."""

import django.db
import psycopg
import psycopg_pool
import pytest
from django.db import connection
from psycopg import errors

from mlserve.postgres.failures import AnswerTimeout, Failure, failure_of, stops_reads, stops_writes

_KNOWN = [getattr(error, "sqlstate", None) for error in vars(errors).values() if isinstance(error, type)]
_CODES = sorted({code for code in _KNOWN if isinstance(code, str)})


@pytest.mark.parametrize(
    ("sqlstate", "failure"),
    [
        ("08006", Failure.UNAVAILABLE),
        ("25006", Failure.READ_ONLY),
        ("25P02", Failure.SESSION),
        ("25P03", Failure.SESSION),
        ("26000", Failure.SESSION),
        ("22003", Failure.REJECTED),
        ("22P02", Failure.REJECTED),
        ("23503", Failure.REJECTED),
        ("23505", Failure.REJECTED),
        ("40001", Failure.CONTENTION),
        ("40P01", Failure.CONTENTION),
        ("42501", Failure.INCOMPATIBLE),
        ("42P01", Failure.INCOMPATIBLE),
        ("53100", Failure.READ_ONLY),
        ("53200", Failure.UNAVAILABLE),
        ("53300", Failure.UNAVAILABLE),
        ("55P03", Failure.CONTENTION),
        ("57014", Failure.TIMEOUT),
        ("57P01", Failure.UNAVAILABLE),
        ("57P02", Failure.UNAVAILABLE),
        ("57P03", Failure.UNAVAILABLE),
    ],
)
def test_the_code_decides(sqlstate: str, failure: Failure) -> None:
    """Also below Django's error, whose class says little."""
    cause = errors.lookup(sqlstate)("said by PostgreSQL")
    assert failure_of(cause) is failure
    try:
        with connection.wrap_database_errors:
            raise cause
    except django.db.DatabaseError as wrapped:
        assert failure_of(wrapped) is failure


def test_every_code_that_psycopg_knows_has_a_row() -> None:
    """None is an exception that nobody foresaw; values are blamed by the classes that are about values alone."""
    assert len(_CODES) > 200
    rejected = {code for code in _CODES if failure_of(errors.lookup(code)("x")) is Failure.REJECTED}
    assert {code[:2] for code in rejected} == {"21", "22", "23", "54", "P0"}


def test_errors_without_a_code() -> None:
    """A connection that breaks is an outage, a wait in vain says so, a value that cannot be sent is to blame."""
    assert failure_of(psycopg.OperationalError("the connection is closed")) is Failure.UNAVAILABLE
    assert failure_of(django.db.InterfaceError("connection already closed")) is Failure.UNAVAILABLE
    assert failure_of(psycopg_pool.PoolTimeout("no connection after 2 s")) is Failure.TIMEOUT
    assert failure_of(AnswerTimeout("no answer")) is Failure.TIMEOUT
    assert failure_of(psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")) is Failure.REJECTED
    assert failure_of(ValueError("not PostgreSQL's")) is Failure.INCOMPATIBLE


def test_what_stops_reads_stops_writes_and_not_the_other_way_round() -> None:
    """A lock, a broken session and a refused value stop neither."""
    assert {failure for failure in Failure if stops_writes(failure) and not stops_reads(failure)} == {Failure.READ_ONLY}
    assert not any(stops_reads(failure) and not stops_writes(failure) for failure in Failure)
    assert not any(stops_writes(each) for each in (Failure.CONTENTION, Failure.SESSION, Failure.REJECTED))
