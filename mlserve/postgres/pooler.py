"""Whether a pooler (PgBouncer, or another of its kind) stands between this process and PostgreSQL, and how it pools.

A backend says its own process number at the start of a session, and when it is asked in SQL. A pooler makes up the
first one. And where two sessions that are open at the same time find themselves in one backend, that backend belongs to
transactions, and not to sessions.
"""

from enum import StrEnum
from typing import Any

import psycopg
from django.db import connection

from mlserve.postgres.sessions import POOLER_OPTION, BoundedConnection, answer_within

_LIMIT_S = 2.0
_TRIES = 3
"""A pooler that is busy with others may give two sessions two backends by chance."""


class Pooling(StrEnum):
    NONE = "none"
    """PostgreSQL itself is at the address."""
    SESSION = "session"
    """A pooler, and each session has a backend for as long as it lasts."""
    TRANSACTION = "transaction"
    """A pooler, and each transaction may have another backend."""


def is_declared() -> bool:
    """Whether the settings say that a pooler gives a backend to each transaction."""
    return bool(connection.settings_dict["OPTIONS"].get(POOLER_OPTION))


def pooling() -> Pooling:
    """What is found out by two short sessions. Raises psycopg's errors."""
    parameters: dict[str, Any] = connection.get_connection_params()
    parameters["prepare_threshold"] = None
    with answer_within(_LIMIT_S), _session(parameters) as first, _session(parameters) as second:
        if _backend(first) == first.info.backend_pid and _backend(second) == second.info.backend_pid:
            return Pooling.NONE
        met = any(_backend(first) == _backend(second) for _ in range(_TRIES))
    return Pooling.TRANSACTION if met else Pooling.SESSION


def _session(parameters: dict[str, Any]) -> "psycopg.Connection[Any]":
    return BoundedConnection.connect(**parameters, autocommit=True)


def _backend(session: "psycopg.Connection[Any]") -> int:
    row = session.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    assert row is not None
    pid: int = row[0]
    return pid
