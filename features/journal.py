"""What Postgres says to a relay: which rows changed between two snapshots, and the epochs of the cache's partitions.

The difference of two snapshots is exact. A journal line is wanted if its transaction is visible now and was not at the
earlier snapshot: it had not begun then (its number is xmax or above), or it was running (its number is in xip). Both
are look-ups in the index on `xid`, however long the oldest transaction has been running. The statement that reads the
lines reports its own snapshot, so there are no gaps, no line comes twice, and nobody waits for stragglers.

T is the statement's transaction timestamp. `statement_timestamp()` will not do: in the extended protocol it is taken
anew when the statement is executed, after its snapshot, and a commit that was acknowledged in between would be
promised and missing.

Numbers of transactions mean something to one server only. What a dump, a base backup or a replication brought from
another one is told apart by two things that it cannot bring along: the identity of the server and of its history
(`Incarnation`), and for the partitions' rows the transaction that really wrote them (migration 0012). A relay that
finds such rows makes them this server's, once and for all partitions (`begin_anew`): every epoch is raised, the journal
is emptied, and versions go on above any that another server can have given. Lines that come later from elsewhere, and
whose numbers lie in this server's future, are never told; when it comes to these numbers itself they are invalidated
once more than needed, which harms nobody.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import psycopg

from features.definitions import GROUPS, GROUPS_OF_ENTITY
from features.guards import TABLE, TRIGGERS
from mlserve.cache.tiers.batches import Change
from mlserve.cache.watermark import Watermark
from mlserve.postgres.direct import connect_directly
from mlserve.postgres.failures import Failure, failure_of
from mlserve.postgres.sessions import BoundedConnection, Kind, limits_in_force, session_of

MOST_CHANGES = 200_000
"""Rows between two snapshots that are told one by one, in about two seconds. More are told by a new epoch, at once."""
VERSIONS_SKIPPED = 1_000_000
"""What a failover of Postgres may have lost were numbers that copies in the cache carry. They are not given again."""
VERSIONS_PER_SECOND = 1_000_000
"""More than any server gives. Versions that go on at so many for each second since 1970 are above all that were ever
given, by whatever server."""
EPOCHS_SKIPPED = 1_000
"""Likewise for epochs, where nothing in the cache says which one its copies are of."""
JOURNAL_LOCK_S = 0.2
"""Writers wait as long while the journal is emptied at once; where it is in use it is emptied line by line."""
_SKIP_LOCK = 0x6D6C_7365_7276_6501
"""Any number that no other advisory lock of the project has."""


class Span(msgspec.Struct, frozen=True):
    """From an earlier snapshot to `snapshot`. `changes` is None if they are more than `MOST_CHANGES`.

    Every commit that was acknowledged before `safe_time` (seconds since 1970, the database's clock) is in `snapshot`.
    """

    snapshot: str
    safe_time: float
    changes: Sequence[Change] | None


class Incarnation(msgspec.Struct, frozen=True):
    """Which history of which database. A promoted standby, and a restored backup, has another timeline."""

    system_identifier: int
    timeline: int


class KeptPartition(msgspec.Struct, frozen=True):
    """What Postgres keeps of a partition. Of transactions up to `trimmed`, lines of the journal may be gone.

    `written_here`: by a transaction of this very database, in its past. Others were brought here by a dump or a copy.
    """

    epoch: int
    trimmed: int
    incarnation: Incarnation
    written_here: bool = True


class Kept(msgspec.Struct, frozen=True):
    incarnation: Incarnation
    """Of now."""
    partitions: Mapping[int, KeptPartition]
    journaled: bool = True
    """Whether the triggers are in place that write the journal. Without them changes go unseen."""

    def is_of_here(self, partition: int) -> bool:
        """Whether what is kept of the partition speaks of this database and this history of it."""
        held = self.partitions[partition]
        return held.written_here and held.incarnation == self.incarnation


class Journal:
    """Over one connection of its own, made when it is needed. Every method raises psycopg's errors.

    After an error, or `close`, the next call connects anew. Not thread-safe.
    """

    def __init__(self) -> None:
        self._connection: BoundedConnection | None = None

    def since(self, snapshot: str) -> Span:
        """What was committed since `snapshot`, which must be one that Postgres can read."""
        with self._cursor() as cursor:
            cursor.execute(_SINCE, {"snapshot": snapshot, "most": MOST_CHANGES + 1}, prepare=True)
            rows = cursor.fetchall()
        now, safe_time = next(row[:2] for row in rows if row[0] is not None)
        if len(rows) > MOST_CHANGES + 1:
            return Span(now, float(safe_time), None)
        return Span(now, float(safe_time), list(_changes(rows)))

    def now(self) -> Span:
        """This moment, with no changes."""
        with self._cursor() as cursor:
            cursor.execute(_NOW)
            snapshot, safe_time = cursor.fetchall()[0]
        return Span(snapshot, float(safe_time), ())

    def kept(self) -> Kept:
        """Read after a span's snapshot it holds all epochs that were raised in that span."""
        with self._cursor() as cursor:
            cursor.execute(_KEPT, prepare=True)
            rows = cursor.fetchall()
        return _kept(rows)

    def raise_epochs(self, wanted: Mapping[int, int], kept: Kept) -> None:
        """Gives each of the partitions a new epoch, above the one in `wanted` and any that it had; durable on return.

        What another relay has raised since `kept` was read stays as it is.
        """
        with self._cursor() as cursor, cursor.connection.transaction():
            _raise(cursor, wanted, kept)

    def begin_anew(self, wanted: Mapping[int, int], kept: Kept) -> bool:
        """Makes what is kept of all partitions this server's; durable on return.

        Every partition gets a new epoch, those in `wanted` one above the number there; the journal ends here and
        begins again; versions go on above all that were ever given; the inspector begins again. False, and nothing
        is done, if another relay has done it since `kept` was read.
        """
        with session_of(Kind.BUILD), self._cursor() as cursor, cursor.connection.transaction():
            cursor.connection.keep_transaction_to(limits_in_force())
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SKIP_LOCK,))
            cursor.execute(_KEPT)
            present = _kept(cursor.fetchall()).partitions
            if all(at in present and _epoch_of(present, at) != _epoch_of(kept.partitions, at) for at in wanted):
                return False
            # May take a second for each million rows, so it comes before the journal is locked.
            cursor.execute(_SKIP_VERSIONS, {"skipped": VERSIONS_SKIPPED, "per_second": VERSIONS_PER_SECOND})
            emptied_by = _EMPTY_AT_ONCE if _lock_journal(cursor) else _EMPTY_BY_LINES
            rest = {at: held.epoch for at, held in present.items() if at not in wanted}
            _raise(cursor, {**rest, **wanted}, Kept(kept.incarnation, present))
            # All that is visible here is void by the epochs. What is not is committed later, and stays.
            cursor.execute(emptied_by)
            cursor.execute(_FORGET_INSPECTION)
        return True

    def distrust(self) -> None:
        """What is kept of the partitions counts as brought from elsewhere from now on; durable on return."""
        with self._cursor() as cursor:
            cursor.execute(_DISTRUST)

    def remember(self, watermarks: Mapping[int, Watermark]) -> None:
        """The journal is kept from here on, for whoever finds these watermarks in the cache later."""
        held = sorted(watermarks.items())
        with self._cursor() as cursor:
            asked = {
                "partitions": [partition for partition, _ in held],
                "epochs": [mark.epoch for _, mark in held],
                "snapshots": [mark.snapshot for _, mark in held],
                "moments": [mark.safe_time for _, mark in held],
            }
            cursor.execute(_REMEMBER, asked)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _cursor(self) -> Iterator["_Cursor"]:
        try:
            with session_of(Kind.BACKGROUND):
                if self._connection is None:
                    self._connection = connect_directly("mlserve relay", settings=_PLANS)
                with self._connection.cursor() as cursor:
                    yield cast(_Cursor, cursor)
        except BaseException:
            self.close()
            raise


class _Cursor(psycopg.Cursor[Any]):
    connection: BoundedConnection


def _kept(rows: Sequence[tuple[Any, ...]]) -> Kept:
    return Kept(
        Incarnation(*rows[0][:2]),
        {
            partition: KeptPartition(epoch, int(trimmed), Incarnation(*incarnation), written_here)
            for _, _, _, partition, epoch, trimmed, *incarnation, written_here in rows
            if partition is not None
        },
        journaled=rows[0][2],
    )


def _epoch_of(partitions: Mapping[int, KeptPartition], partition: int) -> int | None:
    held = partitions.get(partition)
    return held.epoch if held is not None else None


def _raise(cursor: "_Cursor", wanted: Mapping[int, int], kept: Kept) -> None:
    for partition, above in sorted(wanted.items()):
        seen = _epoch_of(kept.partitions, partition)
        asked = {
            "partition": partition,
            "above": above,
            "seen": -1 if seen is None else seen,
            "system_identifier": kept.incarnation.system_identifier,
            "timeline": kept.incarnation.timeline,
        }
        cursor.execute(_RAISE, asked)


def _lock_journal(cursor: "_Cursor") -> bool:
    """Whether nobody writes to the journal until the transaction ends. Waits for less than writers do."""
    try:
        with cursor.connection.transaction():
            cursor.execute(f"SET LOCAL lock_timeout = '{JOURNAL_LOCK_S * 1000:.0f}ms'")
            cursor.execute("LOCK TABLE features_journal IN ACCESS EXCLUSIVE MODE")
    except psycopg.Error as error:
        if failure_of(error) is not Failure.CONTENTION:
            raise
        return False
    return True


_PLANS = {
    # Fresh partitions of the journal have no statistics, and most questions find nothing: the index, and no more.
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"), "off"),
    "max_parallel_workers_per_gather": "0",
    "plan_cache_mode": "force_generic_plan",
}


def _changes(rows: Sequence[tuple[Any, ...]]) -> Iterator[Change]:
    for _, _, group, entity_id, version in rows:
        if group is None:
            continue
        if group in GROUPS:
            yield Change(GROUPS[group].entity, entity_id, group, version)
        else:  # of a newer release than this process: whatever entity it may describe
            yield from (Change(kind, entity_id, group, version) for kind in GROUPS_OF_ENTITY)


_NOW = "SELECT pg_current_snapshot()::text, extract(epoch FROM now())::text"

_SINCE = """
SELECT pg_current_snapshot()::text, extract(epoch FROM now())::text, NULL, NULL, NULL
UNION ALL
SELECT NULL, NULL, changed."group", changed.entity_id, changed.version
FROM (
    SELECT line."group", line.entity_id, max(line.version) AS version
    FROM (
        SELECT begun."group", begun.entity_id, begun.version
        FROM features_journal_row AS begun
        WHERE begun.xid >= pg_snapshot_xmax(%(snapshot)s::pg_snapshot)
              AND begun.xid < pg_snapshot_xmax(pg_current_snapshot())
        UNION ALL
        SELECT ended."group", ended.entity_id, ended.version
        FROM pg_snapshot_xip(%(snapshot)s::pg_snapshot) AS running (xid) JOIN features_journal_row AS ended USING (xid)
    ) AS line
    GROUP BY line."group", line.entity_id
    LIMIT %(most)s
) AS changed
"""

# `to_regclass`: the table may have another number than when this was prepared.
_KEPT = f"""
SELECT present.system_identifier, present.timeline, present.journaled,
       kept.partition, kept.epoch, kept.trimmed::text, kept.system_identifier, kept.timeline,
       kept.xmin = kept.written_by::xid AND greatest(kept.trimmed, kept.written_by) < pg_snapshot_xmax(present.snapshot)
           AND pg_snapshot_xmax(kept.snapshot) <= pg_snapshot_xmax(present.snapshot)
FROM (
    SELECT system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint AS timeline,
           pg_current_snapshot() AS snapshot,
           (SELECT count(*) FROM pg_trigger
            WHERE tgrelid = to_regclass('{TABLE}') AND tgname = ANY (ARRAY{list(TRIGGERS)}) AND tgenabled IN ('O', 'A'))
           = {len(TRIGGERS)} AS journaled
    FROM pg_control_system()
) AS present LEFT JOIN features_cachepartition AS kept ON true
"""

_RAISE = """
INSERT INTO features_cachepartition AS kept
    (partition, epoch, snapshot, safe_at, system_identifier, timeline, written_by)
VALUES (
    %(partition)s, %(above)s + 1, pg_current_snapshot(), now(), %(system_identifier)s, %(timeline)s,
    pg_current_xact_id()
)
ON CONFLICT (partition)
DO UPDATE SET epoch = greatest(kept.epoch, %(above)s) + 1, snapshot = excluded.snapshot, safe_at = excluded.safe_at,
              trimmed = CASE
                  WHEN kept.xmin = kept.written_by::xid AND kept.trimmed < excluded.written_by
                      AND (kept.system_identifier, kept.timeline) = (excluded.system_identifier, excluded.timeline)
                  THEN kept.trimmed ELSE '0'
              END,
              system_identifier = excluded.system_identifier, timeline = excluded.timeline,
              written_by = excluded.written_by
WHERE kept.epoch = %(seen)s
"""

# nextval and not last_value, so that whoever draws in between stays below what is set.
_SKIP_VERSIONS = """
SELECT setval('features_version_seq', greatest(
    nextval('features_version_seq') + %(skipped)s,
    floor(extract(epoch FROM clock_timestamp()) * %(per_second)s)::bigint,
    (SELECT max(version) + 1 FROM features_featurerow)
))
"""

# Of what is emptied while nobody writes, nothing is of a transaction that is still running.
_EMPTY_AT_ONCE = "TRUNCATE features_journal"
_EMPTY_BY_LINES = "DELETE FROM features_journal"

# Marks and cursors are snapshots of another server, too.
_FORGET_INSPECTION = """
WITH cursors AS (DELETE FROM features_inspectioncursor) DELETE FROM features_inspectionmark
"""

# No transaction has this number.
_DISTRUST = "UPDATE features_cachepartition SET written_by = '0' WHERE written_by <> '0'"

_REMEMBER = """
UPDATE features_cachepartition AS kept
SET snapshot = held.snapshot::pg_snapshot, safe_at = to_timestamp(held.moment)
FROM unnest(%(partitions)s::int[], %(epochs)s::bigint[], %(snapshots)s::text[], %(moments)s::float8[])
     AS held (partition, epoch, snapshot, moment)
WHERE kept.partition = held.partition AND kept.epoch = held.epoch
"""
