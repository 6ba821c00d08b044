"""What an operator may set for a whole server, for as long as a test lasts; obeyed by sessions that exist, at once."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import cast

import psycopg
from django.db import connections
from psycopg import sql

from mlserve.postgres.backend.base import DatabaseWrapper
from tests.features.sessions import conninfo
from tests.fixtures.waiting import until


@contextmanager
def server_default(setting: str, value: str) -> Iterator[None]:
    """`ALTER SYSTEM SET setting = value`, and back."""
    with closing(psycopg.connect(conninfo(), autocommit=True)) as session:
        session.execute("SET default_transaction_read_only = off")
        name = sql.Identifier(setting)
        session.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(name, value))
        session.execute("SELECT pg_reload_conf()")
        until(lambda: _default_of(setting) == value)
        try:
            yield
        finally:
            session.execute(sql.SQL("ALTER SYSTEM RESET {}").format(name))
            session.execute("SELECT pg_reload_conf()")
            until(lambda: _default_of(setting) != value)


def drop_sessions() -> None:
    """Of this thread and of the pool: the next ones begin anew."""
    wrapper = cast(DatabaseWrapper, connections["default"])
    wrapper.close()
    wrapper.close_pool()


def _default_of(setting: str) -> str:
    """What a new session finds."""
    with closing(psycopg.connect(conninfo(), autocommit=True)) as session:
        row = session.execute("SELECT current_setting(%s)", (setting,)).fetchone()
        assert row is not None
        return str(row[0])
