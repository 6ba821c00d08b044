"""Upkeep of the journal: a partition for each coming hour, and old ones dropped.

A partition is dropped when it is a day old and every watermark that Postgres remembers lies behind its last line. A
week is the limit whatever the watermarks say, so that an installation without a relay does not fill its disk: a
watermark as old as that is answered by a new epoch, as is any that a trimmed journal cannot continue. The number up to
which lines are gone is noted in the same database transaction as the drop. Lines with numbers of this server's future
were brought from another one: nobody needs them, and what is noted does not count them.

Nothing here may hold up a writer: each lock is waited for a fraction of a second, and what is busy now is done by the
next run.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
from django.db import OperationalError, ProgrammingError, connection, transaction
from psycopg import errors

HOURS_AHEAD = 6
"""More than a schedule that is down over a deployment needs. Lines that have no partition go to the default one."""
KEPT = timedelta(hours=24)
KEPT_AT_MOST = timedelta(days=7)
_HOUR = timedelta(hours=1)
_LOCK_WAIT_MS = 100
_PREFIX = "features_journal_"
_DEFAULT = f"{_PREFIX}default"
_NAMED = "%Y%m%d%H"


class Upkeep(msgspec.Struct, kw_only=True):
    """Names of partitions. `busy`: left for the next run."""

    created: list[str]
    dropped: list[str]
    busy: list[str]
    default_lines_deleted: int = 0


def keep_up(*, now: datetime) -> Upkeep:
    """Safe to repeat and to run several times at once. Raises Django's database errors, but not for want of a lock."""
    upkeep = Upkeep(created=[], dropped=[], busy=[])
    existing = _existing()
    first = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    for start in (first + number * _HOUR for number in range(HOURS_AHEAD + 1)):
        if _name(start) not in existing:
            _attempt(upkeep, upkeep.created, _name(start), partial(_create, start))
    for name, start in sorted(existing.items()):
        end = start + _HOUR
        if end <= now - KEPT:
            _attempt(upkeep, upkeep.dropped, name, partial(_drop, name, whatever=end <= now - KEPT_AT_MOST))
    upkeep.default_lines_deleted = _trim_default(now)
    return upkeep


def _attempt(upkeep: Upkeep, done: list[str], name: str, work: Callable[[], bool]) -> None:
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}")
            if work():
                done.append(name)
    except (OperationalError, ProgrammingError) as error:
        # Somebody holds a lock, or another run was quicker.
        if not isinstance(error.__cause__, errors.LockNotAvailable | errors.DuplicateTable | errors.UndefinedTable):
            raise
        upkeep.busy.append(name)


def _name(start: datetime) -> str:
    return start.strftime(f"{_PREFIX}{_NAMED}")


def _existing() -> dict[str, datetime]:
    """Name and first moment of each hour's partition."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'features_journal'::regclass"
        )
        names = [name for (name,) in cursor.fetchall() if name != _DEFAULT]
    return {name: datetime.strptime(name.removeprefix(_PREFIX), _NAMED).replace(tzinfo=UTC) for name in names}


def _create(start: datetime) -> bool:
    """Attached when it is complete: to create it as a partition would lock out the writers of all others."""
    name, bounds = _name(start), (start.isoformat(), (start + _HOUR).isoformat())
    with connection.cursor() as cursor:
        # Lines of this hour that came before their partition stay in the default one, which keeps the hour.
        cursor.execute(f"SELECT EXISTS (SELECT FROM {_DEFAULT} WHERE at >= %s AND at < %s)", bounds)
        if cursor.fetchone()[0]:
            return False
        cursor.execute(f"CREATE TABLE {name} (LIKE features_journal INCLUDING DEFAULTS INCLUDING INDEXES)")
        cursor.execute(f"ALTER TABLE features_journal ATTACH PARTITION {name} FOR VALUES FROM (%s) TO (%s)", bounds)
    return True


def _drop(name: str, *, whatever: bool) -> bool:
    with connection.cursor() as cursor:
        # The parent first, as writers do. Who has written and not committed holds it, so no line can come late.
        cursor.execute("LOCK TABLE ONLY features_journal IN ACCESS EXCLUSIVE MODE")
        cursor.execute(f"SELECT xid::text FROM {name} WHERE {_OF_HERE} ORDER BY xid DESC LIMIT 1")
        last = cursor.fetchone()
        if last is not None:
            cursor.execute(_WANTED, last)
            if cursor.fetchone()[0] and not whatever:
                return False
            cursor.execute(_NOTE_TRIMMED, last)
        cursor.execute(f"DROP TABLE {name}")
    return True


def _trim_default(now: datetime) -> int:
    """How many lines went; one by one, because the default partition stays."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_DELETE_OLD, (now - KEPT, now - KEPT_AT_MOST))
        lines, last = cursor.fetchone()
        if last is not None:
            cursor.execute(_NOTE_TRIMMED, (last,))
    return int(lines)


_OF_HERE = "xid < pg_snapshot_xmax(pg_current_snapshot())"

_WANTED = "SELECT EXISTS (SELECT FROM features_cachepartition WHERE pg_snapshot_xmin(snapshot) <= %s::xid8)"

_NOTE_TRIMMED = "UPDATE features_cachepartition SET trimmed = greatest(trimmed, %s::xid8)"

_DELETE_OLD = f"""
WITH gone AS (
    DELETE FROM {_DEFAULT} AS line
    WHERE at < %s AND (at < %s OR NOT ({_OF_HERE}) OR NOT EXISTS (
        SELECT FROM features_cachepartition WHERE pg_snapshot_xmin(snapshot) <= line.xid
    ))
    RETURNING xid
)
SELECT count(*), (SELECT xid::text FROM gone WHERE {_OF_HERE} ORDER BY xid DESC LIMIT 1) FROM gone
"""
