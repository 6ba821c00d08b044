"""Which lines of the journal are due to be looked at: those that were committed so many seconds ago, each exactly once.

A line says when its transaction began, not when it was committed, so its age cannot be read from it. Instead the
inspector leaves *marks*: a snapshot of Postgres and the moment at which it was taken. What a mark sees was committed
before that moment. For each horizon (1 s, 10 s, 300 s) a cursor says up to which snapshot lines have been looked at;
due is what the newest mark of that age sees and the cursor's snapshot did not. It is the relay's difference of two
snapshots (`features/journal.py`): no gaps, nothing twice, whatever was running meanwhile.

A line counts for a horizon only if it is certainly younger than the next one: a line that is looked at after an outage,
minutes late, is no evidence of how things stood after a second.

Of a group with few lines since the last look all are taken; of others a share, chosen by a hash of the id and of the
snapshot, so that another run over the same lines takes the same ones.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db import connection, transaction

from features.activity import Cursor
from features.definitions import GROUPS
from features.journal_partitions import KEPT
from mlserve.cache.keys import Key

HORIZONS_S = (1, 10, 300)
LEAST_OF_GROUP = 50
"""Lines of a group since the last look, of which all are taken."""
SHARE = 0.01
"""Of more lines than that; never fewer than those."""
MOST_CHOSEN = 1_000
"""Of one horizon at one look: a few round trips to L2 and one statement of Postgres."""
MOST_LINES = 200_000
"""Considered at one look; a larger build is sampled from its first so many lines."""


class Mark(msgspec.Struct, frozen=True):
    """What `snapshot` sees was committed before `at` (the database's clock)."""

    snapshot: str
    at: datetime

    @property
    def next_xid(self) -> int:
        return int(self.snapshot.split(":")[1])


class Line(msgspec.Struct, frozen=True):
    """The newest due line of a key. `began_s` ago its transaction began."""

    key: Key
    version: int
    began_s: float


class Due(msgspec.Struct, frozen=True):
    """What one horizon has to look at.

    `age_s`: so long ago, at least, all of it had been committed. `skipped`: why lines were passed over, empty if none.
    """

    horizon_s: int
    reached: Mark
    target: Mark
    age_s: float
    lines: Sequence[Line]
    skipped: str = ""


class Schedule(msgspec.Struct, frozen=True):
    """`now`: a mark that was just taken and is not kept yet."""

    now: Mark
    due: Sequence[Due]
    lag_s: float
    """For how long the oldest line that was not looked at has been due."""


class _Cursor(msgspec.Struct, frozen=True):
    horizon_s: int
    reached: Mark
    target: Mark | None
    """The newest kept mark of that age."""


def read_schedule() -> Schedule:
    """Reads Postgres. The first call of an installation makes its cursors, which begin now; nothing else changes.

    Raises Django's database errors.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # Fresh partitions of the journal have no statistics, and most questions find nothing: the index, and no more.
        for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"):
            cursor.execute(f"SET LOCAL {setting} = off")
        cursor.execute(_NOW)
        now = Mark(*cursor.fetchone())
        cursor.execute(_TRIMMED)
        trimmed = int(cursor.fetchone()[0])
        cursors = _cursors(cursor, now)
        due = [found for each in cursors if (found := _due(cursor, each, now, trimmed)) is not None]
    overdue = [(now.at - each.reached.at).total_seconds() - each.horizon_s for each in cursors]
    return Schedule(now, due, max([0.0, *overdue]))


def advance(schedule: Schedule) -> bool:
    """Keeps the schedule's mark and moves the cursors to what was looked at; for use within a database transaction.

    False if somebody else has moved one of them: then nothing of this look may be kept.
    """
    with connection.cursor() as cursor:
        cursor.execute(_KEEP_MARK, (schedule.now.at, schedule.now.snapshot))
        for due in schedule.due:
            asked = (due.target.snapshot, due.target.at, due.horizon_s, due.reached.snapshot)
            cursor.execute(_MOVE, asked)
            if cursor.rowcount != 1:
                return False
        cursor.execute(_FORGET_MARKS, (schedule.now.at - timedelta(seconds=HORIZONS_S[-1]),))
    return True


def _cursors(cursor: Cursor, now: Mark) -> list[_Cursor]:
    asked = {"now": now.at, "horizons": list(HORIZONS_S)}
    cursor.execute(_CURSORS, asked)
    rows = cursor.fetchall()
    if any(snapshot is None for _, snapshot, *_ in rows):
        for horizon_s in HORIZONS_S:
            cursor.execute(_BEGIN, (horizon_s, now.snapshot, now.at))
        cursor.execute(_CURSORS, asked)
        rows = cursor.fetchall()
    return [
        _Cursor(horizon_s, Mark(snapshot, at), Mark(target, target_at) if target is not None else None)
        for horizon_s, snapshot, at, target, target_at in rows
    ]


def _due(cursor: Cursor, of: _Cursor, now: Mark, trimmed: int) -> Due | None:
    """None if no mark of that age is ahead of the cursor."""
    skipped = _why_not_continued(of.reached, now, trimmed)
    if skipped:
        return Due(of.horizon_s, of.reached, now, 0.0, (), skipped)
    if of.target is None or of.target.at <= of.reached.at:
        return None
    age_s = (now.at - of.target.at).total_seconds()
    following = next((horizon_s for horizon_s in HORIZONS_S if horizon_s > of.horizon_s), None)
    asked = {
        "reached": of.reached.snapshot,
        "target": of.target.snapshot,
        "since": now.at - timedelta(seconds=following) if following else None,
        "now": now.at,
        "seed": of.target.next_xid % 2**62,
        "most_lines": MOST_LINES,
        "least": LEAST_OF_GROUP,
        "share": SHARE,
        "most": MOST_CHOSEN,
        "groups": list(GROUPS),
    }
    cursor.execute(_LINES, asked)
    rows = cursor.fetchall()
    considered = rows[0][-1] if rows else 0
    return Due(
        of.horizon_s,
        of.reached,
        of.target,
        age_s,
        list(_lines(rows)),
        "too_many" if considered >= MOST_LINES else "",
    )


def _why_not_continued(reached: Mark, now: Mark, trimmed: int) -> str:
    """Empty if the journal still holds all that came after `reached`."""
    if reached.next_xid > now.next_xid:
        return "other_postgres"  # it has seen what this database has not
    if int(reached.snapshot.partition(":")[0]) <= trimmed or now.at - reached.at > KEPT:
        return "trimmed"
    return ""


def _lines(rows: Sequence[tuple[Any, ...]]) -> Iterator[Line]:
    for group, entity_id, version, began_s, _ in rows:
        yield Line(Key(GROUPS[group].entity, entity_id, group), version, began_s)


# The moment is taken after the snapshot: ages are never told longer than they are.
_NOW = "SELECT pg_current_snapshot()::text, clock_timestamp()"

_TRIMMED = "SELECT coalesce(max(trimmed::text::numeric), 0)::text FROM features_cachepartition"

_CURSORS = """
SELECT horizon.s, held.snapshot, held.at, mark.snapshot, mark.at
FROM unnest(%(horizons)s::int[]) AS horizon (s)
LEFT JOIN features_inspectioncursor AS held ON held.horizon_s = horizon.s
LEFT JOIN LATERAL (
    SELECT kept.snapshot, kept.at FROM features_inspectionmark AS kept
    WHERE kept.at <= %(now)s - horizon.s * interval '1 second' ORDER BY kept.at DESC LIMIT 1
) AS mark ON true
ORDER BY horizon.s
"""

_BEGIN = """
INSERT INTO features_inspectioncursor (horizon_s, snapshot, at) VALUES (%s, %s, %s) ON CONFLICT (horizon_s) DO NOTHING
"""

_KEEP_MARK = "INSERT INTO features_inspectionmark (at, snapshot) VALUES (%s, %s) ON CONFLICT (at) DO NOTHING"

_MOVE = "UPDATE features_inspectioncursor SET snapshot = %s, at = %s WHERE horizon_s = %s AND snapshot = %s"

# The newest of those that are old enough for every horizon is still wanted.
_FORGET_MARKS = """
DELETE FROM features_inspectionmark
WHERE at < (SELECT max(kept.at) FROM features_inspectionmark AS kept WHERE kept.at <= %s)
"""

_LINES = """
WITH line AS MATERIALIZED (
    SELECT found."group", found.entity_id, found.version, found.at
    FROM (
        SELECT begun."group", begun.entity_id, begun.version, begun.at, begun.xid
        FROM features_journal_row AS begun
        WHERE begun.xid >= pg_snapshot_xmax(%(reached)s::pg_snapshot)
              AND begun.xid < pg_snapshot_xmax(%(target)s::pg_snapshot)
        UNION ALL
        SELECT ended."group", ended.entity_id, ended.version, ended.at, ended.xid
        FROM pg_snapshot_xip(%(reached)s::pg_snapshot) AS running (xid) JOIN features_journal_row AS ended USING (xid)
    ) AS found
    WHERE pg_visible_in_snapshot(found.xid, %(target)s::pg_snapshot)
    LIMIT %(most_lines)s
), newest AS (
    SELECT DISTINCT ON (line."group", line.entity_id) line."group", line.entity_id, line.version, line.at
    FROM line WHERE line."group" = ANY (%(groups)s)
    ORDER BY line."group", line.entity_id, line.version DESC
), ranked AS (
    SELECT newest.*, count(*) OVER (PARTITION BY newest."group") AS of_group, row_number() OVER (
        PARTITION BY newest."group" ORDER BY hashtextextended(newest.entity_id, %(seed)s), newest.entity_id
    ) AS place
    FROM newest WHERE %(since)s::timestamptz IS NULL OR newest.at > %(since)s
)
SELECT ranked."group", ranked.entity_id, ranked.version, extract(epoch FROM %(now)s - ranked.at)::float8,
       (SELECT count(*) FROM line)
FROM ranked
WHERE ranked.place <= greatest(%(least)s, ceil(%(share)s * ranked.of_group))
ORDER BY ranked.place
LIMIT %(most)s
"""
