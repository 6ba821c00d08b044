"""Keeps a periodic task from running beside itself, in whatever process: who comes second leaves at once.

By a lock of Postgres, which goes with its database transaction: a worker that was killed holds nobody up, a pooled
connection cannot carry it away, and no time limit has to be guessed, as it would for a lock in Redis.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from django.db import connection, transaction


@contextmanager
def only_one(name: str) -> Iterator[bool]:
    """Whether this caller is the only one inside `only_one(name)` now.

    What is done inside is one database transaction; at READ COMMITTED each statement still sees the newest data, and
    nothing is held back while it waits. Raises Django's database errors.
    """
    number = int.from_bytes(blake2b(b"only_one:" + name.encode(), digest_size=8).digest(), "big", signed=True)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (number,))
            granted: bool = cursor.fetchone()[0]
        yield granted
