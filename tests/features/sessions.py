"""Sessions of PostgreSQL beside Django's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg
from django.db import connection
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg.conninfo import make_conninfo


def conninfo() -> str:
    """For libpq: the database that Django uses now."""
    known = cast(DatabaseWrapper, connection).get_connection_params()
    wanted = ("dbname", "user", "password", "host", "port", "options")
    return make_conninfo(**{name: known[name] for name in wanted if name in known})


@contextmanager
def second_session() -> Iterator[psycopg.Connection[Any]]:
    """With a transaction of its own; what it has not committed in the end is rolled back."""
    with psycopg.connect(conninfo()) as session:
        yield session
        session.rollback()


def somebody_waits() -> bool:
    """Whether a session of PostgreSQL waits for a lock that another one holds."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        return bool(cursor.fetchone()[0])
