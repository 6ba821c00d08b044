"""Builds feature groups from the ledger into L3: which rows each group gets, and how they are written.

Every group but the customers' activity is computed in numpy from one snapshot of the ledger and written by COPY into
a temporary table and one INSERT ... ON CONFLICT. Activity is written by scoring at the same time, so its rows are
derived in the database under the customers' locks, a chunk of customers per database transaction.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

from django.db import connection, transaction

from features import compute
from features.activity import update_activity
from features.compute import Floats
from features.definitions import (
    CUSTOMER_ACTIVITY,
    CUSTOMER_EMBEDDING,
    CUSTOMER_PROFILE,
    GROUPS,
    MERCHANT_EMBEDDING,
    MERCHANT_PROFILE,
    MERCHANT_RISK,
)
from features.embeddings import embed
from features.ledger import Ledger, Names, microseconds, read_ledger
from features.progress import Progress, silent

ACTIVITY_CHUNK = 500
"""Customers per database transaction: a score of one of them waits for the rest of its chunk, some 100 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """Rows written per group, in build order."""

    as_of: datetime
    rows: dict[str, int]
    seconds: float


def build(groups: Collection[str], *, as_of: datetime, now: datetime, progress: Progress = silent) -> BuildReport:
    """Computes `groups` from the transactions that occurred at `as_of` or before; `now` becomes the rows' as_of.

    Builds of one group wait for each other. Idempotent. Rows of entities that the ledger up to `as_of` does not know
    stay as they are; soft-deleted rows of entities that it knows come back to life. An `as_of` before `now` is a view
    of the past: what a customer did later leaves the activity row until that customer's next transaction. With `as_of`
    at `now` no recorded transaction is ever left out of it, also none recorded meanwhile. Raises ValueError for
    unknown groups.
    """
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise ValueError(f"no feature groups: {', '.join(unknown)}; known are {', '.join(GROUPS)}")
    begun = time.perf_counter()
    rows: dict[str, int] = {}
    wanted = [group for group in GROUPS if group in groups]
    if CUSTOMER_ACTIVITY.name in wanted:
        wanted.remove(CUSTOMER_ACTIVITY.name)
        rows[CUSTOMER_ACTIVITY.name] = _build_activity(as_of, now, progress)
    if wanted:
        rows |= _build_computed(wanted, as_of, now, progress)
    return BuildReport(as_of=as_of, rows=rows, seconds=time.perf_counter() - begun)


def _build_activity(as_of: datetime, now: datetime, progress: Progress) -> int:
    progress(CUSTOMER_ACTIVITY.name, 0.0)
    until = as_of if as_of < now else None
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT customer_id FROM features_transaction WHERE occurred_at <= %s", (until or "infinity",)
        )
        customers = sorted(customer for (customer,) in cursor.fetchall())
    written = 0
    for start in range(0, len(customers), ACTIVITY_CHUNK):
        with transaction.atomic(), connection.cursor() as cursor:
            written += len(update_activity(cursor, customers[start : start + ACTIVITY_CHUNK], now, until=until))
        progress(CUSTOMER_ACTIVITY.name, min(1.0, (start + ACTIVITY_CHUNK) / len(customers)))
    return written


def _build_computed(groups: list[str], as_of: datetime, now: datetime, progress: Progress) -> dict[str, int]:
    # One transaction, so that the locks last from the ledger's snapshot to the write: a build that read earlier
    # cannot overwrite one that read later. At READ COMMITTED it holds no snapshot while numpy works.
    with transaction.atomic():
        _lock_builds(groups)
        progress("read the ledger", 0.0)
        ledger = read_ledger(until=as_of)
        values = _Values(ledger, as_of, progress)
        return {group: _write(group, *values.of(group), now) for group in groups}


class _Values:
    """The values of each group, [entities, values] beside the entities' ids; what two groups share is computed once."""

    def __init__(self, ledger: Ledger, as_of: datetime, progress: Progress) -> None:
        self._ledger = ledger
        self._as_of = as_of
        self._progress = progress
        self._embeddings: tuple[Floats, Floats] | None = None
        self._of: dict[str, Callable[[], tuple[Names, Floats]]] = {
            CUSTOMER_PROFILE.name: self._customer_profiles,
            CUSTOMER_EMBEDDING.name: lambda: (ledger.customers, self._both_embeddings()[0]),
            MERCHANT_PROFILE.name: self._merchant_profiles,
            MERCHANT_RISK.name: self._merchant_risk,
            MERCHANT_EMBEDDING.name: lambda: (ledger.merchants, self._both_embeddings()[1]),
        }

    def of(self, group: str) -> tuple[Names, Floats]:
        self._progress(group, 0.0)
        return self._of[group]()

    def _customer_profiles(self) -> tuple[Names, Floats]:
        ledger = self._ledger
        profiles = compute.Profiles(len(ledger.customers))
        profiles.add(ledger.customer, ledger.at_us, ledger.amount_units)
        return ledger.customers, profiles.customers()

    def _merchant_profiles(self) -> tuple[Names, Floats]:
        ledger = self._ledger
        profiles = compute.Profiles(len(ledger.merchants))
        profiles.add(ledger.merchant, ledger.at_us, ledger.amount_units)
        return ledger.merchants, profiles.merchants()

    def _merchant_risk(self) -> tuple[Names, Floats]:
        ledger = self._ledger
        return ledger.merchants, compute.merchant_windows_at(
            len(ledger.merchants), ledger.merchant, ledger.at_us, ledger.fraud, now_us=microseconds(self._as_of)
        )

    def _both_embeddings(self) -> tuple[Floats, Floats]:
        ledger = self._ledger
        if self._embeddings is None:
            self._embeddings = embed(len(ledger.customers), len(ledger.merchants), ledger.customer, ledger.merchant)
        return self._embeddings


def _write(group: str, entities: Names, values: Floats, now: datetime) -> int:
    """In key order, so that two writers of the table never wait for each other in a circle."""
    with connection.cursor() as cursor:
        cursor.execute('CREATE TEMPORARY TABLE features_built (entity_id text, "values" float8[])')
        with cursor.copy('COPY features_built (entity_id, "values") FROM STDIN') as copy:
            for row in zip(entities.tolist(), values.tolist(), strict=True):
                copy.write_row(row)
        cursor.execute(_UPSERT, (group, now))
        written: int = cursor.rowcount
        cursor.execute("DROP TABLE features_built")
    return written


def _lock_builds(groups: Iterable[str]) -> None:
    digests = (blake2b(b"build:" + group.encode(), digest_size=8).digest() for group in groups)
    numbers = sorted(int.from_bytes(digest, "big", signed=True) for digest in digests)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(number) FROM unnest(%s::bigint[]) AS number", (numbers,))


_UPSERT = """
INSERT INTO features_featurerow ("group", entity_id, "values", version, as_of, deleted_at)
SELECT %s, entity_id, "values", 0, %s, NULL FROM features_built ORDER BY entity_id COLLATE "C"
ON CONFLICT ("group", entity_id)
DO UPDATE SET "values" = excluded."values", as_of = excluded.as_of, deleted_at = NULL
"""
