"""What an error of PostgreSQL means for whoever asked: the one table of SQLSTATE codes.

The code decides, never the class of the exception: psycopg raises OperationalError for a server that is gone, for one
that is read-only and for a lock that somebody else holds, and these three need three different answers.
Codes: PostgreSQL 18 documentation, appendix A.
"""

from enum import StrEnum
from typing import Final

import django.db
import psycopg
import psycopg_pool


class AnswerTimeout(psycopg.OperationalError):
    """PostgreSQL did not answer within the limit; whether it carried the statement out is unknown."""


class Failure(StrEnum):
    """What kind of failure it is. Every code of PostgreSQL is one of these."""

    UNAVAILABLE = "unavailable"
    """Nobody is there, or whoever is there takes no work: an outage of reads and of writes."""
    TIMEOUT = "timeout"
    """No answer within the limit, on this side or on the server's. An outage as well, found out at the price of a
    wait."""
    READ_ONLY = "read_only"
    """It reads and does not write: a standby, a role or a server that is set to read only, a full disk. An outage of
    writes alone."""
    CONTENTION = "contention"
    """Somebody else holds what was wanted. No outage: the same again may go well, and what others want does now."""
    SESSION = "session"
    """Of this session alone: the same on a new one goes well."""
    INCOMPATIBLE = "incompatible"
    """Schema, rights or configuration are not what this version needs: nothing of the kind goes well until somebody
    repairs that. An outage for as long, and none of the values is to blame."""
    REJECTED = "rejected"
    """These values will never be taken."""


def failure_of(error: BaseException) -> Failure:
    """What `error`, of Django, psycopg or its pool, means. Errors that are none of these are INCOMPATIBLE."""
    cause = _cause(error)
    if isinstance(cause, psycopg_pool.PoolTimeout | psycopg_pool.TooManyRequests | AnswerTimeout):
        return Failure.TIMEOUT
    if isinstance(cause, psycopg.Error):
        if cause.sqlstate:
            return _of_code(cause.sqlstate)
        if isinstance(cause, psycopg.DataError | psycopg.ProgrammingError | psycopg.NotSupportedError):
            return Failure.REJECTED  # found out by psycopg itself: a value that cannot be sent
        return Failure.UNAVAILABLE
    if isinstance(cause, django.db.OperationalError | django.db.InterfaceError | psycopg_pool.PoolClosed):
        return Failure.UNAVAILABLE
    return Failure.INCOMPATIBLE


def waited_in_vain(error: BaseException) -> bool:
    """Whether the error came after a wait of seconds, and is not a quick refusal."""
    return failure_of(error) is Failure.TIMEOUT


def stops_reads(failure: Failure) -> bool:
    """Whether reads fail for as long as this lasts, whoever asks for what."""
    return failure in _STOPS_READS


def stops_writes(failure: Failure) -> bool:
    """Whether writes fail for as long as this lasts, whoever writes what."""
    return failure in _STOPS_WRITES


def sqlstate_of(error: BaseException) -> str | None:
    """The code, if PostgreSQL gave one."""
    cause = _cause(error)
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


def _cause(error: BaseException) -> BaseException:
    """Django's errors carry psycopg's as their cause, and the pool's may carry another one below."""
    seen = error
    while not isinstance(seen, psycopg.Error) and seen.__cause__ is not None:
        seen = seen.__cause__
    return seen


def _of_code(sqlstate: str) -> Failure:
    return _BY_CODE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2], Failure.INCOMPATIBLE)


_STOPS_READS: Final = frozenset({Failure.UNAVAILABLE, Failure.TIMEOUT, Failure.INCOMPATIBLE})
_STOPS_WRITES: Final = _STOPS_READS | {Failure.READ_ONLY}

_BY_CODE: Final[dict[str, Failure]] = {
    "0A000": Failure.SESSION,  # "cached plan must not change result type": prepared before a migration
    "25006": Failure.READ_ONLY,  # read_only_sql_transaction: also on a standby
    "25P03": Failure.SESSION,  # idle_in_transaction_session_timeout
    "25P04": Failure.TIMEOUT,  # transaction_timeout
    "26000": Failure.SESSION,  # a prepared statement is not there: a pooler gave the session another server
    "40003": Failure.UNAVAILABLE,  # statement_completion_unknown
    "42P05": Failure.SESSION,  # a prepared statement is there already: likewise
    "53100": Failure.READ_ONLY,  # disk_full
    "55P03": Failure.CONTENTION,  # lock_not_available: lock_timeout, NOWAIT
    "55006": Failure.CONTENTION,  # object_in_use
    "57014": Failure.TIMEOUT,  # query_canceled: statement_timeout
    "57P05": Failure.SESSION,  # idle_session_timeout
    "72000": Failure.CONTENTION,  # snapshot_too_old
    "P0001": Failure.REJECTED,  # raise_exception: a trigger of ours
}
_BY_CLASS: Final[dict[str, Failure]] = {
    "08": Failure.UNAVAILABLE,  # connection exceptions
    "0B": Failure.SESSION,  # invalid transaction initiation
    "21": Failure.REJECTED,  # cardinality
    "22": Failure.REJECTED,  # data
    "23": Failure.REJECTED,  # constraints
    "25": Failure.SESSION,  # invalid transaction state
    "28": Failure.UNAVAILABLE,  # authorisation: no session comes about
    "2D": Failure.SESSION,  # invalid transaction termination
    "34": Failure.SESSION,  # a cursor that is not there
    "3B": Failure.SESSION,  # a savepoint that is not there
    "3D": Failure.UNAVAILABLE,  # the database is not there
    "40": Failure.CONTENTION,  # 40001 serialization_failure, 40P01 deadlock_detected
    "53": Failure.UNAVAILABLE,  # 53200 out_of_memory, 53300 too_many_connections
    "54": Failure.REJECTED,  # a program limit: too large, too complex
    "57": Failure.UNAVAILABLE,  # 57P01 admin_shutdown, 57P02 crash_shutdown, 57P03 cannot_connect_now
    "58": Failure.UNAVAILABLE,  # errors of the operating system
    "XX": Failure.UNAVAILABLE,  # internal errors, corrupted data
}
