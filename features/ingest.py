"""Records transactions in the ledger and, in the same database transaction, in their customers' activity."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from features.activity import Cursor, lock_customers, update_activity
from features.existence import announce
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key


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


def record(cursor: Cursor, transactions: Sequence[NewTransaction], *, now: datetime) -> Recorded:
    """Idempotent on the transaction id. In the caller's database transaction, at READ COMMITTED."""
    lock_customers(cursor, {transaction.customer_id for transaction in transactions})
    added = _insert(cursor, transactions)
    known = [transaction for transaction in transactions if transaction.id not in added]
    customers = {transaction.customer_id for transaction in transactions if transaction.id in added}
    activity = {}
    if customers:
        rows = update_activity(cursor, customers, now)
        announce({"customer": [row.entity_id for row in rows if row.inserted]})
        for row in rows:
            activity[Key("customer", row.entity_id, row.group)] = Entry(
                row.version, row.as_of, row.as_of, row.values, 0.0, row.as_of
            )
    return Recorded(_conflicting(cursor, known) if known else frozenset(), activity)


def _insert(cursor: Cursor, transactions: Sequence[NewTransaction]) -> set[str]:
    cursor.execute(
        """
        INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount, currency)
        SELECT * FROM unnest(%s::text[], %s::timestamptz[], %s::text[], %s::text[], %s::numeric[], %s::text[])
        ORDER BY 1
        ON CONFLICT (id) DO NOTHING
        RETURNING id
        """,
        (
            [transaction.id for transaction in transactions],
            [transaction.occurred_at for transaction in transactions],
            [transaction.customer_id for transaction in transactions],
            [transaction.merchant_id for transaction in transactions],
            [Decimal(repr(transaction.amount)) for transaction in transactions],
            [transaction.currency for transaction in transactions],
        ),
    )
    return {row[0] for row in cursor.fetchall()}


def _conflicting(cursor: Cursor, transactions: Sequence[NewTransaction]) -> frozenset[str]:
    cursor.execute(
        "SELECT id, occurred_at, customer_id, merchant_id, amount::float8, currency FROM features_transaction "
        "WHERE id = ANY(%s)",
        ([transaction.id for transaction in transactions],),
    )
    held = {row[0]: NewTransaction(*row) for row in cursor.fetchall()}
    return frozenset(
        transaction.id
        for transaction in transactions
        if msgspec.structs.replace(transaction, occurred_at=transaction.occurred_at.astimezone(UTC))
        != msgspec.structs.replace(held[transaction.id], occurred_at=held[transaction.id].occurred_at.astimezone(UTC))
    )
