"""Whether PostgreSQL does what is asked of it: answers reads, takes writes. Raises Django's database errors if not."""

from typing import Any

import psycopg
from django.db import connection, transaction

from mlserve.postgres.sessions import Kind, session_of


def read() -> None:
    """Returns when it has answered."""
    with session_of(Kind.REQUEST), connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def write() -> None:
    """Returns when a transaction that has written to the log is on the disk: what a commit of ours waits for.

    Leaves no row. A full disk of the data alone is not found out.
    """
    with session_of(Kind.JOURNAL), transaction.atomic(), connection.cursor() as cursor:
        _require_writable(cursor)
        cursor.execute("SELECT pg_logical_emit_message(true, 'mlserve', 'probe')")


def require_writable() -> None:
    """Returns if it would take a write of ours, as far as its settings say. Writes nothing."""
    with session_of(Kind.REQUEST), connection.cursor() as cursor:
        _require_writable(cursor)


def _require_writable(cursor: Any) -> None:
    cursor.execute("SELECT current_setting('transaction_read_only') = 'on', pg_is_in_recovery()")
    read_only, standby = cursor.fetchone()
    with connection.wrap_database_errors:
        if standby:
            raise psycopg.errors.ReadOnlySqlTransaction("PostgreSQL is a standby that has not been promoted")
        if read_only:
            raise psycopg.errors.ReadOnlySqlTransaction("PostgreSQL, or its role, is set to read only")
