"""The stored rows on the path of a score: reading them, and keeping a customer's recent transactions in step.

A transaction that is recorded changes its customer's activity in the same database transaction. Two sessions that
record for one customer meet at an advisory lock *before* they read the ledger: at READ COMMITTED the statement after
the lock has a snapshot that holds everything the earlier holder committed, so the list derived last has both. The
row's own lock would come too late for that: it is taken after the statement's snapshot.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from features.definitions import ACTIVITY_KEPT_DAYS, CUSTOMER_ACTIVITY

ACTIVITY_MOST_KEPT = 2_000
"""Transactions kept per customer. Without a limit one busy id would make every further write of its row slower."""


class StoredRow(msgspec.Struct, frozen=True, gc=False):
    """One row of L3. `as_of` in seconds since 1970; a soft-deleted row comes with `deleted` and its last values.

    `inserted`: there was no row before, not even a deleted one; only said of rows that were just written.
    `outdated_since`: when the ledger changed first of what has not come into the row yet; 0 if all of it has. Only said
    of rows that were just read.
    """

    group: str
    entity_id: str
    values: tuple[float, ...]
    version: int
    as_of: float
    deleted: bool = False
    inserted: bool = False
    outdated_since: float = 0.0


class LoadedRows(msgspec.Struct, frozen=True, gc=False):
    """Rows of one snapshot. All that was acknowledged before `read_at` (seconds, the database's clock) is in them."""

    rows: tuple[StoredRow, ...]
    read_at: float


class Cursor(Protocol):
    """What is needed of a cursor: psycopg's and Django's both have it."""

    def execute(self, query: Any, params: Any = None, /) -> Any: ...

    def fetchall(self) -> list[Any]: ...


def load_rows(cursor: Cursor, keys: Sequence[tuple[str, str]]) -> LoadedRows:
    """The rows of `keys` (group, entity id) that exist, in one statement; keys without a row are left out."""
    cursor.execute(_LOAD, ([group for group, _ in keys], [entity_id for _, entity_id in keys]))
    found = cursor.fetchall()
    return LoadedRows(
        rows=tuple(
            StoredRow(group, entity_id, tuple(values), version, as_of, deleted, outdated_since=outdated_since)
            for _, group, entity_id, values, version, as_of, deleted, outdated_since in found
            if group is not None
        ),
        read_at=found[0][0],
    )


def lock_customers(cursor: Cursor, customer_ids: Iterable[str]) -> None:
    """Makes this database transaction the only one to change these customers' activity until it ends.

    Call it before the ledger insert, with all customers at once: two sessions that insert the same transaction id
    wait for each other at the ledger's primary key, and would deadlock if the lock came second.
    """
    # In the order of the numbers, for every caller the same: no two can wait for each other.
    cursor.execute(_LOCK, (sorted({_lock_number(customer_id) for customer_id in customer_ids}),))


def lock_customers_to_record(cursor: Cursor, customer_ids: Iterable[str]) -> None:
    """`lock_customers`, and what this database transaction adds to the ledger leaves no feature behind it.

    Only for who writes the customers' activity in the same transaction: the ledger's trigger obeys (migration 0013).
    """
    cursor.execute(_LOCK_TO_RECORD, (sorted({_lock_number(customer_id) for customer_id in customer_ids}),))


def free_customers(cursor: Cursor, customer_ids: Iterable[str]) -> set[str]:
    """Those that `lock_customers` and a write of their activity would not have to wait for at this moment.

    Asks by taking the locks, which end with the caller's transaction: it should end at once.
    """
    numbers = {customer_id: _lock_number(customer_id) for customer_id in customer_ids}
    cursor.execute(_TRY_LOCKS, (list(numbers), list(numbers.values())))
    taken = {customer_id for (customer_id,) in cursor.fetchall()}
    cursor.execute(_LOCKED_ROWS, {"ids": sorted(taken)})
    return taken - {customer_id for (customer_id,) in cursor.fetchall()}


def update_activity(
    cursor: Cursor,
    customer_ids: Iterable[str],
    now: datetime,
    *,
    until: datetime | None = None,
) -> list[StoredRow]:
    """Derives the customers' activity from the ledger anew and returns the rows as written.

    In the caller's transaction, at READ COMMITTED, after the ledger insert. Takes the customers' locks itself; to
    have them already costs nothing but the round trip. Customers without a transaction get no row. Each list holds
    the transactions of the `ACTIVITY_KEPT_DAYS` up to the customer's newest one, at most the newest
    `ACTIVITY_MOST_KEPT`; its first number says from which moment on it is complete (0: nothing was left out).
    `until` leaves out what occurred later. A soft-deleted row comes back to life.
    """
    wanted = sorted(set(customer_ids))
    lock_customers(cursor, wanted)
    # The newest possible moment of PostgreSQL instead of a second statement without the condition.
    cursor.execute(_UPDATE, {"ids": wanted, "until": until or "infinity", "now": now})
    return [
        StoredRow(group, entity_id, tuple(values), version, as_of, inserted=inserted)
        for group, entity_id, values, version, as_of, inserted in cursor.fetchall()
    ]


def _lock_number(customer_id: str) -> int:
    digest = blake2b(b"customer_activity:" + customer_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


_LOCK = "SELECT pg_advisory_xact_lock(number) FROM unnest(%s::bigint[]) AS number"

_LOCK_TO_RECORD = """
SELECT pg_advisory_xact_lock(number)
FROM (SELECT set_config('mlserve.activity_follows', 'on', true) AS said OFFSET 0) AS setting
CROSS JOIN unnest(%s::bigint[]) AS number
WHERE setting.said = 'on'
"""

_TRY_LOCKS = """
SELECT customer_id FROM unnest(%s::text[], %s::bigint[]) AS wanted (customer_id, number)
WHERE pg_try_advisory_xact_lock(number)
"""
_LOCKED_ROWS = f"""
WITH free AS MATERIALIZED (
    SELECT entity_id FROM features_featurerow WHERE "group" = '{CUSTOMER_ACTIVITY.name}' AND entity_id = ANY(%(ids)s)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT entity_id FROM features_featurerow
WHERE "group" = '{CUSTOMER_ACTIVITY.name}' AND entity_id = ANY(%(ids)s)
    AND entity_id NOT IN (SELECT entity_id FROM free)
"""

# statement_timestamp() is taken before the statement's snapshot. The left join returns it also without any row.
_LOAD = """
SELECT extract(epoch FROM asked.at)::float8, stored."group", stored.entity_id, stored."values", stored.version,
       extract(epoch FROM stored.as_of)::float8, stored.deleted_at IS NOT NULL, coalesce((
           SELECT extract(epoch FROM min(line.at))::float8 FROM features_outdatedfeature AS line
           WHERE line."group" = stored."group" AND line.entity_id = stored.entity_id
       ), 0)
FROM (SELECT statement_timestamp() AS at) AS asked
LEFT JOIN (
    unnest(%s::text[], %s::text[]) AS key ("group", entity_id)
    JOIN features_featurerow AS stored USING ("group", entity_id)
) ON true
"""

# Hours, because the length of an interval of days depends on the session's time zone.
# The tag is compute.transaction_tag, in SQL. A row that was there before has the lock of ON CONFLICT in its xmax.
_UPDATE = f"""
INSERT INTO features_featurerow AS stored ("group", entity_id, "values", version, as_of, deleted_at)
SELECT '{CUSTOMER_ACTIVITY.name}', wanted.customer_id, ARRAY[
           CASE WHEN kept.transactions = {ACTIVITY_MOST_KEPT} THEN kept.oldest + 0.000001
                WHEN EXISTS (
                    SELECT FROM features_transaction AS older
                    WHERE older.customer_id = wanted.customer_id AND older.occurred_at < span.start
                ) THEN extract(epoch FROM span.start)::float8
                ELSE 0 END
       ] || kept.list, 0, %(now)s::timestamptz, NULL
FROM unnest(%(ids)s::text[]) AS wanted (customer_id)
CROSS JOIN LATERAL (
    SELECT max(occurred_at) - interval '{ACTIVITY_KEPT_DAYS * 24} hours' AS start
    FROM features_transaction
    WHERE customer_id = wanted.customer_id AND occurred_at <= %(until)s::timestamptz
) AS span
CROSS JOIN LATERAL (
    SELECT count(*) AS transactions, min(newest.at) AS oldest,
           (SELECT array_agg(number ORDER BY place) FROM unnest(array_agg(
               ARRAY[newest.at, newest.amount::float8, newest.tag]
               ORDER BY newest.occurred_at, octet_length(newest.id), newest.id COLLATE "C"
           )) WITH ORDINALITY AS flat (number, place)) AS list
    FROM (
        SELECT id, occurred_at, amount, extract(epoch FROM occurred_at)::float8 AS at,
               ('x' || left(encode(sha256(convert_to(id, 'UTF8')), 'hex'), 8))::bit(32)::bigint::float8 AS tag
        FROM features_transaction
        WHERE customer_id = wanted.customer_id
              AND occurred_at >= span.start AND occurred_at <= %(until)s::timestamptz
        ORDER BY occurred_at DESC, octet_length(id) DESC, id COLLATE "C" DESC
        LIMIT {ACTIVITY_MOST_KEPT}
    ) AS newest
) AS kept
WHERE span.start IS NOT NULL
ORDER BY wanted.customer_id COLLATE "C"
ON CONFLICT ("group", entity_id)
DO UPDATE SET "values" = excluded."values", as_of = excluded.as_of, deleted_at = NULL
RETURNING stored."group", stored.entity_id, stored."values", stored.version, extract(epoch FROM stored.as_of)::float8,
          stored.xmax = 0
"""
