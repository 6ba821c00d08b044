"""Builds feature groups from the ledger into L3: which rows each group gets, and how they are written.

Every group but the customers' activity is computed in numpy from one snapshot of the ledger and written by COPY into
a temporary table and one INSERT ... ON CONFLICT. Activity is written by scoring at the same time, so its rows are
derived in the database under the customers' locks, a chunk of customers per database transaction.

After its commit a build drops the cached copies of those rows whose values changed, whatever the group's strategy: to
write all of them through would push out of L2 what is asked for. Rows that were built anew with the same values keep
their copies, which expire by their own `as_of` as if there had been no build.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import blake2b

from django.db import connection, transaction

from features import compute, outdated
from features.activity import Cursor, StoredRow, load_rows, lock_customers, update_activity
from features.compute import Floats
from features.cutoffs import cutoff_us
from features.definitions import (
    BUILT_GROUPS,
    CUSTOMER_ACTIVITY,
    CUSTOMER_EMBEDDING,
    CUSTOMER_PROFILE,
    EMBEDDINGS,
    GROUPS,
    MERCHANT_EMBEDDING,
    MERCHANT_PROFILE,
    MERCHANT_RISK,
)
from features.embeddings import embed, with_build
from features.existence import announce
from features.ledger import Ledger, Names, microseconds, read_ledger
from features.progress import Progress, silent
from features.writes import Invalidated, write_around
from mlserve.cache.keys import Key
from mlserve.postgres.one_at_a_time import WAIT_S, one_at_a_time
from mlserve.postgres.retries import retry_contention

ACTIVITY_CHUNK = 200
"""Customers per database transaction: a score of one of them waits for the rest of its chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """Rows written and rows whose values changed per group, in build order.

    `pending` of the changed rows' copies are still in L2, which did not answer.
    """

    as_of: datetime
    rows: dict[str, int]
    invalidated: dict[str, int]
    pending: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Written:
    """How many rows were written, the entities whose values are not what they were, and those that had no row."""

    rows: int
    changed: list[str]
    inserted: list[str]


def build_alone(
    groups: Collection[str], *, now: datetime, wait_s: float = WAIT_S, progress: Progress = silent
) -> BuildReport:
    """`build` as of now, one at a time in a database: for commands and tasks.

    What they build is what serves, so no other moment can be given. Raises AlreadyRunning, which says who builds and
    since when, if that takes longer than `wait_s`; else as `build` and `one_at_a_time` do.
    """
    with one_at_a_time("build", wait_s=wait_s):
        return build(groups, as_of=now, now=now, progress=progress)


def build(groups: Collection[str], *, as_of: datetime, now: datetime, progress: Progress = silent) -> BuildReport:
    """Computes `groups` from the transactions that occurred at `as_of` or before; `now` becomes the rows' as_of.

    But for the customers' activity, what is built is what the last cutoff before `as_of` knew (`cutoffs.py`), as in
    training: profiles and embeddings hold no transaction of the same day.

    Builds of one group wait for each other. Idempotent. Rows of entities that the ledger up to there does not know
    stay as they are, unless the ledger has lost them since it was last read; soft-deleted rows of entities that it
    knows come back to life. An `as_of` before `now` is a view of the past, for tests and comparisons and never for what
    serves: what a customer did later leaves the activity row until that customer's next transaction. With `as_of`
    at `now` no recorded transaction is ever left out of it, also none recorded meanwhile. Raises ValueError for
    groups that are unknown or do not follow from the ledger. Not for use within a database transaction: copies are
    dropped after the commit. Who asks for one side's embeddings gets both (`_in_build_order`).
    """
    unknown = [group for group in groups if group not in BUILT_GROUPS]
    if unknown:
        raise ValueError(f"no groups to build: {', '.join(unknown)}; known are {', '.join(BUILT_GROUPS)}")
    begun = time.perf_counter()
    written: dict[str, Written] = {}
    wanted = _in_build_order(groups)
    if CUSTOMER_ACTIVITY.name in wanted:
        wanted.remove(CUSTOMER_ACTIVITY.name)
        written[CUSTOMER_ACTIVITY.name] = _build_activity(as_of, now, progress)
    if wanted:
        what = f"build of {', '.join(wanted)}"
        written |= retry_contention(partial(_build_computed, wanted, as_of, now, progress), what=what)
    invalidated = _invalidate(written, progress)
    return BuildReport(
        as_of=as_of,
        rows={group: of.rows for group, of in written.items()},
        invalidated={group: len(of.changed) for group, of in written.items()},
        pending=invalidated.pending,
        seconds=time.perf_counter() - begun,
    )


def _in_build_order(groups: Collection[str]) -> list[str]:
    """One embedding comes with the other: what a build of one side wrote could not be compared with the other side."""
    both = () if set(groups).isdisjoint(EMBEDDINGS) else EMBEDDINGS
    return [group for group in BUILT_GROUPS if group in groups or group in both]


def _invalidate(written: Mapping[str, Written], progress: Progress) -> Invalidated:
    keys = [Key(GROUPS[group].entity, entity_id, group) for group, of in written.items() for entity_id in of.changed]
    if not keys:
        return Invalidated()
    progress("drop old copies", 0.0)
    return write_around(keys)


def _build_activity(as_of: datetime, now: datetime, progress: Progress) -> Written:
    progress(CUSTOMER_ACTIVITY.name, 0.0)
    until = as_of if as_of < now else None
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT customer_id FROM features_transaction WHERE occurred_at <= %s", (until or "infinity",)
        )
        customers = sorted(customer for (customer,) in cursor.fetchall())
    rows, changed, inserted = 0, [], []
    for start in range(0, len(customers), ACTIVITY_CHUNK):
        chunk = customers[start : start + ACTIVITY_CHUNK]
        written = retry_contention(partial(_write_chunk, chunk, now, until), what="build of customer_activity")
        inserted += written.inserted
        rows += written.rows
        changed += written.changed
        progress(CUSTOMER_ACTIVITY.name, min(1.0, (start + ACTIVITY_CHUNK) / len(customers)))
    return Written(rows, changed, inserted)


def _write_chunk(customers: list[str], now: datetime, until: datetime | None) -> Written:
    with transaction.atomic(), connection.cursor() as cursor:
        if until is None:
            outdated.settle(CUSTOMER_ACTIVITY.name, customers)
        return write_activity(cursor, customers, now, until)


def write_activity(cursor: Cursor, customers: Sequence[str], now: datetime, until: datetime | None = None) -> Written:
    """In the caller's database transaction. Rows of customers of whom the ledger knows nothing stay as they are."""
    lock_customers(cursor, customers)
    before = load_rows(cursor, [(CUSTOMER_ACTIVITY.name, customer) for customer in customers]).rows
    after = update_activity(cursor, customers, now, until=until)
    new = [row.entity_id for row in after if row.inserted]
    announce({CUSTOMER_ACTIVITY.entity: new})
    return Written(len(after), changed_entities(before, after), new)


def changed_entities(before: Iterable[StoredRow], after: Iterable[StoredRow]) -> list[str]:
    held = {row.entity_id: row.values for row in before if not row.deleted}
    return [row.entity_id for row in after if held.get(row.entity_id) != row.values]


def _build_computed(groups: list[str], as_of: datetime, now: datetime, progress: Progress) -> dict[str, Written]:
    # One transaction, so that the locks last from the ledger's snapshot to the write: a build that read earlier
    # cannot overwrite one that read later. At READ COMMITTED it holds no snapshot while numpy works.
    with transaction.atomic():
        _lock_builds(groups)
        progress("read the ledger", 0.0)
        # A view of the past is not what the ledger says now: it leaves the flags.
        behind = outdated.settle_groups(groups) if as_of >= now else {}
        ledger = read_ledger(until=as_of)
        values = GroupValues(ledger, as_of, progress)
        written = {group: write_rows(group, *values.of(group), now, behind=behind.get(group, ())) for group in groups}
        new: dict[str, set[str]] = {}
        for group, of in written.items():
            new.setdefault(GROUPS[group].entity, set()).update(of.inserted)
        announce({entity: sorted(ids) for entity, ids in new.items()})
    return written


class GroupValues:
    """The values of each group, [entities, values] beside the entities' ids; what two groups share is computed once."""

    def __init__(self, ledger: Ledger, as_of: datetime, progress: Progress) -> None:
        self._ledger = ledger
        self._as_of_us = microseconds(as_of)
        self._progress = progress
        self._days: dict[int, Ledger] = {}
        self._embeddings: dict[int, tuple[Floats, Floats]] = {}
        self._of: dict[str, Callable[[], tuple[Names, Floats]]] = {
            CUSTOMER_PROFILE.name: self._customer_profiles,
            CUSTOMER_EMBEDDING.name: self._customer_embeddings,
            MERCHANT_PROFILE.name: self._merchant_profiles,
            MERCHANT_RISK.name: self._merchant_risk,
            MERCHANT_EMBEDDING.name: self._merchant_embeddings,
        }

    def of(self, group: str) -> tuple[Names, Floats]:
        """The ids, and [entities, values] beside them."""
        self._progress(group, 0.0)
        return self._of[group]()

    def _customer_profiles(self) -> tuple[Names, Floats]:
        _, ledger = self._before_cutoff(CUSTOMER_PROFILE.name)
        profiles = compute.Profiles(len(ledger.customers))
        profiles.add(ledger.customer, ledger.at_us, ledger.amount_units)
        return ledger.customers, profiles.customers()

    def _merchant_profiles(self) -> tuple[Names, Floats]:
        _, ledger = self._before_cutoff(MERCHANT_PROFILE.name)
        profiles = compute.Profiles(len(ledger.merchants))
        profiles.add(ledger.merchant, ledger.at_us, ledger.amount_units)
        return ledger.merchants, profiles.merchants()

    def _merchant_risk(self) -> tuple[Names, Floats]:
        ledger = self._ledger
        return ledger.merchants, compute.merchant_windows_at(
            len(ledger.merchants),
            ledger.merchant,
            ledger.at_us,
            ledger.fraud,
            now_us=cutoff_us(MERCHANT_RISK.name, self._as_of_us),
            late=ledger.late,
        )

    def _customer_embeddings(self) -> tuple[Names, Floats]:
        cutoff, ledger = self._before_cutoff(CUSTOMER_EMBEDDING.name)
        return ledger.customers, self._both_embeddings(cutoff, ledger)[0]

    def _merchant_embeddings(self) -> tuple[Names, Floats]:
        cutoff, ledger = self._before_cutoff(MERCHANT_EMBEDDING.name)
        return ledger.merchants, self._both_embeddings(cutoff, ledger)[1]

    def _before_cutoff(self, group: str) -> tuple[int, Ledger]:
        # The ledger holds `as_of` itself, so as of a day's last microsecond it is complete up to midnight.
        cutoff = cutoff_us(group, self._as_of_us + 1)
        if cutoff not in self._days:
            self._days[cutoff] = self._ledger.before(cutoff)
        return cutoff, self._days[cutoff]

    def _both_embeddings(self, cutoff: int, ledger: Ledger) -> tuple[Floats, Floats]:
        if cutoff not in self._embeddings:
            places = embed(len(ledger.customers), len(ledger.merchants), ledger.customer, ledger.merchant)
            self._embeddings[cutoff] = with_build(*places)
        return self._embeddings[cutoff]


def write_rows(group: str, entities: Names, values: Floats, now: datetime, *, behind: Collection[str] = ()) -> Written:
    """In key order, so that two writers of the table never wait for each other in a circle.

    `behind`: entities that were behind the ledger. Of those that have no values now the ledger knows nothing any more,
    and their rows go.
    """
    with connection.cursor() as cursor:
        cursor.execute('CREATE TEMPORARY TABLE features_built (entity_id text, "values" float8[])')
        with cursor.copy('COPY features_built (entity_id, "values") FROM STDIN') as copy:
            for row in zip(entities.tolist(), values.tolist(), strict=True):
                copy.write_row(row)
        cursor.execute(_UNCHANGED, (group,))
        unchanged = {entity_id for (entity_id,) in cursor.fetchall()}
        cursor.execute(_UPSERT, (group, now))
        rows, inserted = cursor.fetchone()
        cursor.execute("DROP TABLE features_built")
    changed = [entity_id for entity_id in entities.tolist() if entity_id not in unchanged]
    return Written(rows, changed + outdated.retire(group, set(behind) - set(entities.tolist()), now=now), inserted)


def build_locks(groups: Iterable[str]) -> list[int]:
    digests = (blake2b(b"build:" + group.encode(), digest_size=8).digest() for group in groups)
    return sorted(int.from_bytes(digest, "big", signed=True) for digest in digests)


def _lock_builds(groups: Iterable[str]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(number) FROM unnest(%s::bigint[]) AS number", (build_locks(groups),)
        )


def try_lock_build(group: str) -> bool:
    """Whether nobody builds the group now, and nobody begins to before the caller's transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", build_locks([group]))
        return bool(cursor.fetchone()[0])


# The rows' locks, so that nobody changes a row between this look at it and the upsert; in the upsert's order.
_UNCHANGED = """
SELECT entity_id FROM features_built AS built
JOIN features_featurerow AS stored USING (entity_id)
WHERE stored."group" = %s AND stored.deleted_at IS NULL AND stored."values" = built."values"
ORDER BY entity_id COLLATE "C" FOR NO KEY UPDATE OF stored
"""
# A row that was there before has the lock of ON CONFLICT in its xmax.
_UPSERT = """
WITH written AS (
    INSERT INTO features_featurerow ("group", entity_id, "values", version, as_of, deleted_at)
    SELECT %s, entity_id, "values", 0, %s, NULL FROM features_built ORDER BY entity_id COLLATE "C"
    ON CONFLICT ("group", entity_id)
    DO UPDATE SET "values" = excluded."values", as_of = excluded.as_of, deleted_at = NULL
    RETURNING entity_id, xmax = 0 AS inserted
)
SELECT count(*), coalesce(array_agg(entity_id) FILTER (WHERE inserted), '{}') FROM written
"""
