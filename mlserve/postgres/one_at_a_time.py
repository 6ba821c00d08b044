"""Work of which only one may be under way in a database at a time: a build, a training, a warm-up.

Whoever begins takes an advisory lock in a session of its own, which PostgreSQL gives back by itself when the process is
gone, however it ended. Whoever comes second waits for a bounded time and then hears who is at it and since when, out of
`pg_stat_activity`: the name of the session says it.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from typing import ClassVar, Final

import psycopg
from django.db import connection as django_connection

from mlserve.errors import ErrorCode, MlserveError
from mlserve.postgres.direct import connect_directly
from mlserve.postgres.sessions import BoundedConnection, Kind, session_of

WAIT_S: Final = 5.0
"""What takes no longer is simply done one after the other."""
_NAME_BYTES: Final = 63
"""PostgreSQL cuts the name of a session off there."""


class AlreadyRunning(MlserveError):
    """Somebody else is at it, and was still after the wait."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_CONTENTION


@contextmanager
def one_at_a_time(work: str, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds `work` (a word or two, such as `build`) for this process while the block runs.

    Raises AlreadyRunning if others hold it for longer than `wait_s`, DirectAddressNeeded behind a pooler whose
    server's own address is unknown, or Django's database errors.
    """
    with session_of(Kind.BUILD), django_connection.wrap_database_errors:
        session = connect_directly(_session_name(work), settings={})
    try:
        with django_connection.wrap_database_errors:
            _take(session, work, wait_s)
        yield
    finally:
        session.close()


def _take(session: BoundedConnection, work: str, wait_s: float) -> None:
    with session_of(Kind.BUILD), session.cursor() as cursor:
        cursor.execute(_LIMITS, {"wait": f"{max(1, round(wait_s * 1000))}"})
        try:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_number(work),))
        except psycopg.errors.LockNotAvailable:
            raise AlreadyRunning(_who(cursor, work)) from None


def _who(cursor: psycopg.Cursor, work: str) -> str:
    high, low = divmod(_number(work) % 2**64, 2**32)
    cursor.execute(_HOLDER, {"high": high, "low": low})
    row = cursor.fetchone()
    if row is None or row[0] is None:
        return f"{work}: another one has only just ended, or is not to be seen by this role; try again"
    name, since = row
    whose = name.partition(" by ")[2] or name
    moment = f" since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if isinstance(since, datetime) else ""
    return f"{work}: another one is running{moment}, by {whose}; wait until it has ended, or end that process"


def _session_name(work: str) -> str:
    name = f"mlserve {work} by process {os.getpid()} on {socket.gethostname()}"
    return name.encode("ascii", "replace")[:_NAME_BYTES].decode()


def _number(work: str) -> int:
    digest = blake2b(b"one at a time:" + work.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


# The lock may be held for hours by an idle session.
_LIMITS: Final = """
SELECT set_config('lock_timeout', %(wait)s, false), set_config('idle_session_timeout', '0', false)
"""
_HOLDER: Final = """
SELECT session.application_name, session.backend_start
FROM pg_locks AS held JOIN pg_stat_activity AS session USING (pid)
WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND held.classid = %(high)s::oid AND held.objid = %(low)s::oid
"""
