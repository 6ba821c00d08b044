"""Into the ledger through COPY: exactly once for every transaction id, whoever else is writing.

The batch goes into a temporary table and from there into the ledger with ON CONFLICT DO NOTHING. What was not inserted
is looked at again: the same contents are an id that is already known (or stands twice in the input), other contents are
a conflict. Labels may arrive later than their transactions, so an unknown label of a known row is filled in.

Others write to the ledger meanwhile: scores insert, label reports lock rows. Whoever does either takes its rows in the
order of their ids, byte by byte, first those that are new to it and then those that it changes: so nobody waits in a
circle. Batches are small enough that nobody waits for long.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from features.models import Transaction
from features.transactions.ledger_batch import LedgerBatch

LEDGER = Transaction._meta.db_table
_LOCK = 0x6C65_6467  # one loader at a time: two of them could wait for each other's rows in a circle
_LABEL_TEXT = {-1: "", 0: "f", 1: "t"}

_STAGE = """
CREATE TEMPORARY TABLE ledger_staged (
    position integer, id text, occurred_at timestamptz, customer_id text, merchant_id text, amount numeric(18, 4),
    currency text, is_fraud boolean
) ON COMMIT DROP;
CREATE TEMPORARY TABLE ledger_inserted (id text) ON COMMIT DROP
"""
_COPY = "COPY ledger_staged FROM STDIN (FORMAT text, NULL '')"
_INSERT = f"""
WITH inserted AS (
    INSERT INTO {LEDGER} (id, occurred_at, customer_id, merchant_id, amount, currency, is_fraud)
    SELECT id, occurred_at, customer_id, merchant_id, amount, currency, is_fraud FROM ledger_staged
    ORDER BY id COLLATE "C", position
    ON CONFLICT DO NOTHING
    RETURNING id
)
INSERT INTO ledger_inserted SELECT id FROM inserted
"""
_SAME = """(s.occurred_at, s.customer_id, s.merchant_id, s.amount, s.currency)
    = (known.occurred_at, known.customer_id, known.merchant_id, known.amount, known.currency)"""
_LOCK_UNLABELLED = f"""
SELECT FROM {LEDGER} WHERE id IN (SELECT id FROM ledger_staged WHERE is_fraud IS NOT NULL) AND is_fraud IS NULL
ORDER BY id COLLATE "C" FOR NO KEY UPDATE
"""
_LABEL = f"""
UPDATE {LEDGER} AS ledger SET is_fraud = first_label.is_fraud
FROM (
    SELECT DISTINCT ON (s.id) s.id, s.is_fraud
    FROM ledger_staged s JOIN {LEDGER} known ON known.id = s.id
    WHERE s.is_fraud IS NOT NULL AND known.is_fraud IS NULL AND {_SAME}
    ORDER BY s.id, s.position
) first_label
WHERE ledger.id = first_label.id AND ledger.is_fraud IS NULL
"""
_NOT_INSERTED = f"""
SELECT s.position, {_SAME} AS same, s.is_fraud IS DISTINCT FROM known.is_fraud AND s.is_fraud IS NOT NULL AS relabels,
    s.turn > 1 OR known.recorded_at >= coalesce(%s, 'infinity'::timestamptz) AS repeated
FROM (SELECT *, row_number() OVER (PARTITION BY id ORDER BY position) AS turn FROM ledger_staged) s
JOIN {LEDGER} known ON known.id = s.id
LEFT JOIN ledger_inserted ON ledger_inserted.id = s.id
WHERE s.turn > 1 OR ledger_inserted.id IS NULL
ORDER BY s.position
"""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row of the batch, by position from 0, that contradicts what the ledger has under its id."""

    position: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """`imported` + `already_known` + `duplicates` + conflicts = rows of the batch.

    `duplicates` repeat a row of the same batch or, with `since`, of the same load. `labelled` rows of the ledger got
    the label that they lacked.
    """

    imported: int
    already_known: int
    duplicates: int
    labelled: int
    conflicts: tuple[Conflict, ...]


def database_now(connection: BaseDatabaseWrapper) -> datetime:
    """The database's clock, by which `recorded_at` is written: what a load passes as `since`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cast(datetime, cursor.fetchone()[0])


def copy_transactions(connection: BaseDatabaseWrapper, batch: LedgerBatch, *, since: datetime | None = None) -> Loaded:
    """Loads a batch in one transaction: all of it is in the ledger afterwards, or nothing.

    `since` is the beginning of this load; known rows recorded after it count as duplicates. Raises ValueError if an id
    holds what would break out of its column, django.db.Error if the database fails.
    """
    if not len(batch):
        return Loaded(imported=0, already_known=0, duplicates=0, labelled=0, conflicts=())
    block = _copy_block(batch)
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        # Inside a test's transaction the last batch's tables are still there.
        cursor.execute("DROP TABLE IF EXISTS pg_temp.ledger_staged, pg_temp.ledger_inserted")
        cursor.execute(_STAGE)
        with cast(Any, cursor).copy(_COPY) as copy:
            copy.write(block)
        cursor.execute(_INSERT)
        imported = cursor.rowcount
        if imported == len(batch):
            return Loaded(imported=imported, already_known=0, duplicates=0, labelled=0, conflicts=())
        cursor.execute("ANALYZE ledger_staged; ANALYZE ledger_inserted")
        cursor.execute(_LOCK_UNLABELLED)
        cursor.execute(_LABEL)
        labelled = cursor.rowcount
        cursor.execute(_NOT_INSERTED, [since])
        already_known, duplicates, conflicts = 0, 0, []
        for position, same, relabels, repeated in cursor.fetchall():
            if not same:
                conflicts.append(Conflict(position, "transaction_id", "already known with other contents"))
            elif relabels:
                conflicts.append(Conflict(position, "is_fraud", "already known with another label"))
            elif repeated:
                duplicates += 1
            else:
                already_known += 1
        return Loaded(
            imported=imported,
            already_known=already_known,
            duplicates=duplicates,
            labelled=labelled,
            conflicts=tuple(conflicts),
        )


def analyse_ledger(connection: BaseDatabaseWrapper) -> None:
    """Tells the planner of what was loaded, instead of leaving it to autovacuum's next round."""
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {LEDGER}")


def _copy_block(batch: LedgerBatch) -> bytes:
    times = np.datetime_as_string(batch.occurred_at, timezone="UTC").tolist()
    labels = [_LABEL_TEXT[label] for label in batch.labels.tolist()]
    block = "".join(
        [
            f"{position}\t{transaction_id}\t{moment}\t{customer}\t{merchant}\t{amount:.4f}\t{currency}\t{label}\n"
            for position, (transaction_id, moment, customer, merchant, amount, currency, label) in enumerate(
                zip(
                    batch.transaction_ids,
                    times,
                    batch.customer_ids,
                    batch.merchant_ids,
                    batch.amounts.tolist(),
                    batch.currencies,
                    labels,
                    strict=True,
                )
            )
        ]
    )
    # The ids have been checked by whoever made the batch; this only holds the text format of COPY together.
    if block.count("\t") != 7 * len(batch) or block.count("\n") != len(batch) or "\\" in block or "\r" in block:
        raise ValueError("an id or currency holds a tab, a line end or a backslash")
    return block.encode()
