"""What a session with PostgreSQL is for, and therefore how long anything in it may take, on both sides.

A server that is frozen, or cut off without a word, keeps its connections open and never answers, and libpq would wait
for ever: so the client gives up after `answer_s`, and the connection with it, because nobody knows what still travels
on it. A server that works but is held up (a lock of somebody else's, a slow statement) must give up before that:
otherwise the sessions of clients that have left pile up behind the lock, since a backend that waits for a lock does
not look whether its client is still there. So each kind of session has limits on the server, all below `answer_s`.

Every session also states what it relies on and does not leave to defaults of server, database or role: statements of a
transaction see what was committed before each of them (READ COMMITTED), what was committed survives a crash, floats
keep all their digits. What an operator sets on purpose, that nothing may be written, is obeyed.

Behind a pooler in transaction mode a session belongs to nobody, and what one client sets another would find. There,
limits and isolation go with each transaction (`SET LOCAL`), and a statement outside of one has the role's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, Final

import msgspec
import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from mlserve.postgres.failures import AnswerTimeout


class Kind(StrEnum):
    """What a session is for."""

    REQUEST = "request"
    """A read by key that a score waits for: rows of features, an API key."""
    API = "api"
    """Any other endpoint: labels, lists, a stored decision."""
    PAGE = "page"
    """A page of the admin."""
    JOURNAL = "journal"
    """The commit of decisions."""
    BACKGROUND = "background"
    """What is asked again and again by threads and processes of their own: pollers, relay, inspector, flush."""
    WORKER = "worker"
    """A Celery task."""
    BUILD = "build"
    """Commands, migrations, builds, imports: nobody waits but the one who started it."""


class Limits(msgspec.Struct, frozen=True):
    """In seconds. `answer_s` is the client's, for each statement; the others are the server's, and below it."""

    answer_s: float
    statement_s: float
    lock_s: float
    idle_in_transaction_s: float


LIMITS: Final = {
    # A read by primary key takes about a millisecond.
    Kind.REQUEST: Limits(answer_s=1.0, statement_s=0.8, lock_s=0.4, idle_in_transaction_s=2.0),
    Kind.API: Limits(answer_s=2.0, statement_s=1.7, lock_s=0.8, idle_in_transaction_s=5.0),
    Kind.PAGE: Limits(answer_s=4.0, statement_s=3.5, lock_s=1.5, idle_in_transaction_s=10.0),
    # A commit of many customers must not wait long for one of them: who is locked is found out and left for later.
    Kind.JOURNAL: Limits(answer_s=1.5, statement_s=1.2, lock_s=0.15, idle_in_transaction_s=2.0),
    Kind.BACKGROUND: Limits(answer_s=5.0, statement_s=4.5, lock_s=2.0, idle_in_transaction_s=10.0),
    # Below the limits of tasks, which would kill the process in the middle of the statement.
    Kind.WORKER: Limits(answer_s=530.0, statement_s=500.0, lock_s=10.0, idle_in_transaction_s=120.0),
    Kind.BUILD: Limits(answer_s=3700.0, statement_s=3600.0, lock_s=30.0, idle_in_transaction_s=600.0),
}
LOST_CLIENT_CHECK_S: Final = 1.0
"""How often a busy backend looks whether its client is still connected."""
TCP_USER_TIMEOUT_S: Final = 10.0
"""Of both sides: what was sent must be acknowledged by the other host, else the connection is given up."""
SETUP_S: Final = 2.0
"""For each trip that only prepares a session, whatever it is for: as long as connecting may take."""
POOLER_OPTION: Final = "transaction_pooler"
"""In a database's `OPTIONS`: its address is a pooler's that gives a server to each transaction."""
KEEPALIVES: Final = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3}

_kind: ContextVar[Kind | None] = ContextVar("postgres_session_kind", default=None)
_of_this_process = Kind.BUILD
_answer_s: ContextVar[float | None] = ContextVar("postgres_answer_limit_s", default=None)


@contextmanager
def session_of(kind: Kind) -> Iterator[None]:
    """What this thread asks PostgreSQL in here is of this kind. Nested: the innermost counts.

    A transaction that is under way keeps the server's limits that it began with.
    """
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def usual_kind(kind: Kind) -> None:
    """What all threads of this process ask PostgreSQL outside of any `session_of` is of this kind."""
    global _of_this_process
    _of_this_process = kind


def limits_in_force() -> Limits:
    """Of this thread at this moment."""
    return LIMITS[_kind.get() or _of_this_process]


@contextmanager
def answer_within(seconds: float) -> Iterator[None]:
    """Each statement of this thread must be answered within `seconds`, where that is less than its kind of session
    allows. Nested: the innermost counts."""
    token = _answer_s.set(seconds)
    try:
        yield
    finally:
        _answer_s.reset(token)


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up when PostgreSQL does not answer in time, whoever uses it and however it was made.

    Raises AnswerTimeout then, and is closed.
    """

    limits_set: Limits | None = None
    """What the server has been told for this session."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        limit_s = limits_in_force().answer_s
        own_s = _answer_s.get()
        if own_s is not None and own_s < limit_s:
            limit_s = own_s
        try:
            return super().wait(gen, interval, limit_s)
        except errors._WaitTimeout as error:
            self.pgconn.finish()
            raise AnswerTimeout(f"PostgreSQL did not answer within {limit_s:g} s") from error

    def state_what_it_relies_on(self, *, time_zone: str, others: Mapping[str, str] | None = None) -> None:
        """Once after connecting: one trip. `others`: what this session alone needs. Raises psycopg's errors."""
        settings = {**_RELIED_ON, "TimeZone": time_zone, **(others or {})}
        try:
            self._tell(_STATE, {"names": list(settings), "values": list(settings.values())})
        except errors.InvalidParameterValue:  # a server on a system that cannot look whether a client has left
            del settings["client_connection_check_interval"]
            self.rollback()
            self._tell(_STATE, {"names": list(settings), "values": list(settings.values())})

    def keep_to(self, limits: Limits) -> None:
        """Tell the server the limits of this session unless it knows them. Raises psycopg's errors.

        Does nothing inside of a transaction: that keeps what it began with.
        """
        if self.limits_set is limits or self.info.transaction_status != TransactionStatus.IDLE:
            return
        self._tell(_LIMIT, _in_milliseconds(limits))
        self.limits_set = limits

    def keep_transaction_to(self, limits: Limits) -> None:
        """As the first thing in a transaction: limits for it alone. Raises psycopg's errors."""
        with self.cursor() as cursor:
            cursor.execute(_LIMIT_LOCALLY, _in_milliseconds(limits), prepare=False)

    def _tell(self, statement: str, parameters: dict[str, Any]) -> None:
        with answer_within(SETUP_S), self.cursor() as cursor:
            cursor.execute(statement, parameters, prepare=False)
            if not self.autocommit:
                self.commit()


def _in_milliseconds(limits: Limits) -> dict[str, str]:
    return {
        "statement": f"{limits.statement_s * 1000:.0f}",
        "lock": f"{limits.lock_s * 1000:.0f}",
        "idle": f"{limits.idle_in_transaction_s * 1000:.0f}",
    }


_RELIED_ON: Final = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "client_connection_check_interval": f"{LOST_CLIENT_CHECK_S * 1000:.0f}",
    "tcp_user_timeout": f"{TCP_USER_TIMEOUT_S * 1000:.0f}",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
}
_STATE: Final = """
SELECT set_config(name, value, false) FROM unnest(%(names)s::text[], %(values)s::text[]) AS relied_on (name, value)
UNION ALL
SELECT set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), false)
"""
_LIMIT: Final = """
SELECT set_config('statement_timeout', %(statement)s, false), set_config('lock_timeout', %(lock)s, false),
       set_config('idle_in_transaction_session_timeout', %(idle)s, false)
"""
_LIMIT_LOCALLY: Final = _LIMIT.replace("false", "true")
