"""Records transactions in the ledger and, in the same database transaction, in their customers' activity.

Most transactions are the newest of their customer, and then the list that is stored only has to be continued: that
takes less than deriving it from the ledger anew, which is left for all other cases. The statement tells them apart by
itself: a list may be continued if it holds as many transactions as the ledger has in its window, and nobody has changed
the ledger since without it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg

from features.activity import ACTIVITY_MOST_KEPT, StoredRow, lock_customers_to_record, update_activity
from features.definitions import ACTIVITY_KEPT_DAYS, CUSTOMER_ACTIVITY
from features.existence import announce
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key

Session = psycopg.Connection[Any]


class NewTransaction(msgspec.Struct, frozen=True):
    """A transaction as it arrives; `amount` has at most four decimals."""

    id: str
    occurred_at: datetime
    customer_id: str
    merchant_id: str
    amount: float
    currency: str


class Recorded(msgspec.Struct, frozen=True):
    """`conflicts`: ids that the ledger knows with other contents. `activity`: the customers' new values, to be
    written through to the cache once the database transaction has committed."""

    conflicts: frozenset[str]
    activity: dict[Key, Entry]


class Recording:
    """What was sent, and may not be answered yet if the session is in pipeline mode."""

    def __init__(self, session: Session, transactions: Sequence[NewTransaction], now: datetime) -> None:
        self._transactions = transactions
        self._now = now
        self._cursor = psycopg.Cursor(session)
        lock_customers_to_record(self._cursor, {transaction.customer_id for transaction in transactions})
        self._answer = psycopg.Cursor(session)
        self._answer.execute(_RECORD, {"rows": msgspec.json.encode(transactions), "now": now}, binary=True)

    def finish(self) -> Recorded:
        """Once the answer has come. Derives what could not be continued."""
        added: set[str] = set()
        rows: dict[str, StoredRow] = {}
        rest: set[str] = set()
        for transaction_id, customer_id, values, version, as_of in self._answer.fetchall():
            added.add(transaction_id)
            if values is None:
                rest.add(customer_id)
            else:
                rows[customer_id] = StoredRow(CUSTOMER_ACTIVITY.name, customer_id, tuple(values), version, as_of)
        if rest:
            derived = update_activity(self._cursor, rest, self._now)
            announce({"customer": [row.entity_id for row in derived if row.inserted]})
            rows |= {row.entity_id: row for row in derived}
        known = [transaction for transaction in self._transactions if transaction.id not in added]
        return Recorded(
            _conflicting(self._cursor, known) if known else frozenset(),
            {
                Key("customer", row.entity_id, row.group): Entry(
                    row.version, row.as_of, row.as_of, row.values, 0.0, row.as_of
                )
                for row in rows.values()
            },
        )


def record(session: Session, transactions: Sequence[NewTransaction], *, now: datetime) -> Recorded:
    """Idempotent on the transaction id. In the session's database transaction, at READ COMMITTED."""
    return Recording(session, transactions, now).finish()


def _conflicting(cursor: psycopg.Cursor[Any], transactions: Sequence[NewTransaction]) -> frozenset[str]:
    cursor.execute(
        "SELECT id, occurred_at, customer_id, merchant_id, amount::float8, currency FROM features_transaction "
        "WHERE id = ANY(%s)",
        ([transaction.id for transaction in transactions],),
    )
    held = {row[0]: NewTransaction(*row) for row in cursor.fetchall()}
    return frozenset(transaction.id for transaction in transactions if not is_same(transaction, held[transaction.id]))


def is_same(one: NewTransaction, other: NewTransaction) -> bool:
    """Whether both are one transaction, in whatever time zones."""
    return msgspec.structs.replace(one, occurred_at=one.occurred_at.astimezone(UTC)) == msgspec.structs.replace(
        other, occurred_at=other.occurred_at.astimezone(UTC)
    )


# The rows come as one JSON text: psycopg looks at each member of an array, which costs more than the text.
# All parts of one statement see the ledger as it was before it: the count is without what is added here. The sums are
# of `activity._UPDATE`, which says more of the list's form. `OFFSET 0`: the list is unpacked once, not at each access.
# `LIMIT 1`: by their key, also where PostgreSQL would rather read a small table whole, as it plans for a hundred rows.
# Prepared: to plan this takes about as long as to carry it out for a few rows.
_RECORD = f"""
WITH added AS (
    INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount, currency)
    SELECT id, occurred_at, customer_id, merchant_id, amount, currency
    FROM json_to_recordset(convert_from(%(rows)b, 'UTF8')::json) AS given (
        id text, occurred_at timestamptz, customer_id text, merchant_id text, amount numeric, currency text
    )
    ORDER BY id COLLATE "C"
    ON CONFLICT (id) DO NOTHING
    RETURNING id, customer_id, occurred_at, amount
), arrived AS (
    SELECT customer_id, extract(epoch FROM min(occurred_at))::float8 AS first,
           extract(epoch FROM max(occurred_at) - interval '{ACTIVITY_KEPT_DAYS * 24} hours')::float8 AS start,
           array_agg(number ORDER BY occurred_at, octet_length(id), id COLLATE "C", place) AS list
    FROM added
    CROSS JOIN LATERAL unnest(ARRAY[
        extract(epoch FROM occurred_at)::float8,
        amount::float8,
        ('x' || left(encode(sha256(convert_to(id, 'UTF8')), 'hex'), 8))::bit(32)::bigint::float8
    ]) WITH ORDINALITY AS flat (number, place)
    GROUP BY customer_id
), continued AS (
    SELECT held.entity_id, held.version, joined.list, joined.list[1] AS complete_from, arrived.start, (
        SELECT place FROM generate_series(2, cardinality(joined.list), 3) AS place
        WHERE joined.list[place] >= arrived.start LIMIT 1
    ) AS kept_from
    FROM arrived
    CROSS JOIN LATERAL (
        SELECT entity_id, version, "values" FROM features_featurerow
        WHERE "group" = '{CUSTOMER_ACTIVITY.name}' AND entity_id = arrived.customer_id AND deleted_at IS NULL LIMIT 1
    ) AS held
    CROSS JOIN LATERAL (
        SELECT held."values" || arrived.list AS list, cardinality(held."values") AS length OFFSET 0
    ) AS joined
    CROSS JOIN LATERAL (SELECT joined.list[joined.length - 2] AS newest, (joined.length - 1) / 3 AS transactions) AS was
    WHERE joined.length %% 3 = 1
        AND cardinality(joined.list) < 1 + 3 * {ACTIVITY_MOST_KEPT}
        AND was.newest < arrived.first
        AND was.transactions = (
            SELECT count(*) FROM features_transaction AS ledger
            WHERE ledger.customer_id = arrived.customer_id
                AND ledger.occurred_at >= to_timestamp(was.newest) - interval '{ACTIVITY_KEPT_DAYS * 24} hours'
        )
        AND NOT EXISTS (
            SELECT FROM features_outdatedfeature AS line
            WHERE line."group" = '{CUSTOMER_ACTIVITY.name}' AND line.entity_id = arrived.customer_id
        )
), written AS (
    UPDATE features_featurerow AS stored
    SET as_of = %(now)b::timestamptz, "values" = ARRAY[
            CASE WHEN continued.complete_from > 0 OR continued.kept_from > 2 THEN continued.start ELSE 0 END
        ] || continued.list[continued.kept_from:]
    FROM continued
    WHERE stored."group" = '{CUSTOMER_ACTIVITY.name}' AND stored.entity_id = continued.entity_id
        AND stored.version = continued.version AND stored.deleted_at IS NULL
    RETURNING stored.entity_id, stored."values", stored.version, extract(epoch FROM stored.as_of)::float8 AS as_of
)
SELECT added.id, added.customer_id, written."values", written.version, written.as_of
FROM added LEFT JOIN written ON written.entity_id = added.customer_id
"""
