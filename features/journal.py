"""What Postgres says to a relay: which rows changed between two snapshots, and the epochs of the cache's partitions.

The difference of two snapshots is exact. A journal line is wanted if its transaction is visible now and was not at the
earlier snapshot: it had not begun then (its number is xmax or above), or it was running (its number is in xip). Both
are look-ups in the index on `xid`, however long the oldest transaction has been running. The statement that reads the
lines reports its own snapshot, so there are no gaps, no line comes twice, and nobody waits for stragglers.

T is the statement's transaction timestamp. `statement_timestamp()` will not do: in the extended protocol it is taken
anew when the statement is executed, after its snapshot, and a commit that was acknowledged in between would be
promised and missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg

from features.definitions import GROUPS, GROUPS_OF_ENTITY
from mlserve.cache.tiers.batches import Change
from mlserve.cache.watermark import Watermark
from mlserve.postgres.direct import connect_directly
from mlserve.postgres.sessions import Kind, session_of

MOST_CHANGES = 200_000
"""Rows between two snapshots that are told one by one, in about two seconds. More are told by a new epoch, at once."""
VERSIONS_SKIPPED = 1_000_000
"""What a failover of Postgres may have lost were numbers that copies in the cache carry. They are not given again."""
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
    """What Postgres keeps of a partition. Of transactions up to `trimmed`, lines of the journal may be gone."""

    epoch: int
    trimmed: int
    incarnation: Incarnation


class Kept(msgspec.Struct, frozen=True):
    incarnation: Incarnation
    """Of now."""
    partitions: Mapping[int, KeptPartition]


class Journal:
    """Over one connection of its own, made when it is needed. Every method raises psycopg's errors.

    After an error, or `close`, the next call connects anew. Not thread-safe.
    """

    def __init__(self) -> None:
        self._connection: psycopg.Connection[Any] | None = None

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
        return Kept(
            Incarnation(*rows[0][:2]),
            {
                partition: KeptPartition(epoch, int(trimmed), Incarnation(*incarnation))
                for _, _, partition, epoch, trimmed, *incarnation in rows
                if partition is not None
            },
        )

    def raise_epochs(self, wanted: Mapping[int, int], kept: Kept) -> None:
        """Gives each of the partitions a new epoch, above the one in `wanted` and any that it had; durable on return.

        What another relay has raised since `kept` was read stays as it is. Where Postgres is another one than before,
        versions that may have been lost with the last one are skipped as well.
        """
        now = kept.incarnation
        with self._cursor() as cursor, cursor.connection.transaction():
            for partition, above in sorted(wanted.items()):
                before = kept.partitions.get(partition)
                asked = {
                    "partition": partition,
                    "above": above,
                    "seen": before.epoch if before else -1,
                    "system_identifier": now.system_identifier,
                    "timeline": now.timeline,
                }
                cursor.execute(_RAISE, asked)
            if any(kept.partitions[at].incarnation != now for at in wanted if at in kept.partitions):
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SKIP_LOCK,))
                cursor.execute(_SKIP_VERSIONS, (VERSIONS_SKIPPED,))

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
    def _cursor(self) -> Iterator[psycopg.Cursor[Any]]:
        try:
            with session_of(Kind.BACKGROUND):
                if self._connection is None:
                    self._connection = connect_directly("mlserve relay", settings=_PLANS)
                with self._connection.cursor() as cursor:
                    yield cursor
        except BaseException:
            self.close()
            raise


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
        UNION ALL
        SELECT ended."group", ended.entity_id, ended.version
        FROM pg_snapshot_xip(%(snapshot)s::pg_snapshot) AS running (xid) JOIN features_journal_row AS ended USING (xid)
    ) AS line
    GROUP BY line."group", line.entity_id
    LIMIT %(most)s
) AS changed
"""

_KEPT = """
SELECT present.system_identifier, present.timeline,
       kept.partition, kept.epoch, kept.trimmed::text, kept.system_identifier, kept.timeline
FROM (
    SELECT system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint AS timeline
    FROM pg_control_system()
) AS present LEFT JOIN features_cachepartition AS kept ON true
"""

_RAISE = """
INSERT INTO features_cachepartition AS kept (partition, epoch, snapshot, safe_at, system_identifier, timeline)
VALUES (%(partition)s, %(above)s + 1, pg_current_snapshot(), now(), %(system_identifier)s, %(timeline)s)
ON CONFLICT (partition)
DO UPDATE SET epoch = greatest(kept.epoch, %(above)s) + 1, snapshot = excluded.snapshot, safe_at = excluded.safe_at,
              system_identifier = excluded.system_identifier, timeline = excluded.timeline
WHERE kept.epoch = %(seen)s
"""

# nextval and not last_value, so that whoever draws in between stays below what is set.
_SKIP_VERSIONS = "SELECT setval('features_version_seq', nextval('features_version_seq') + %s)"

_REMEMBER = """
UPDATE features_cachepartition AS kept
SET snapshot = held.snapshot::pg_snapshot, safe_at = to_timestamp(held.moment)
FROM unnest(%(partitions)s::int[], %(epochs)s::bigint[], %(snapshots)s::text[], %(moments)s::float8[])
     AS held (partition, epoch, snapshot, moment)
WHERE kept.partition = held.partition AND kept.epoch = held.epoch
"""
