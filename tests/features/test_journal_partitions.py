"""The journal's partitions: ahead of time, and gone when nobody needs them."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection

from features import journal_partitions
from features.journal_partitions import HOURS_AHEAD, KEPT, KEPT_AT_MOST, keep_up
from features.models import FeatureRow
from tests.features.sessions import conninfo
from tests.fixtures.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)
NOW = datetime(2026, 3, 2, 10, 30, tzinfo=UTC)
OLD = "features_journal_2026022810"


def _execute(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


def _one(sql: str, *parameters: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchone()[0]


def _remember(snapshot: str) -> None:
    _execute(
        """INSERT INTO features_cachepartition (partition, epoch, snapshot, safe_at, system_identifier, timeline)
        VALUES (900, 1, %s::pg_snapshot, now(), 1, 1)""",
        snapshot,
    )


def _line(at: datetime, entity_id: str = "m1") -> int:
    """The number of the transaction that wrote it."""
    return int(
        _one(
            """INSERT INTO features_journal (versions, at, "group", entity_ids)
            VALUES ('{1}', %s, 'merchant_risk', ARRAY[%s]) RETURNING xid::text""",
            at,
            entity_id,
        )
    )


@pytest.fixture(autouse=True)
def journal() -> Iterator[None]:
    """Empty, without partitions but the default one; so it is left."""
    _clear()
    yield
    _clear()


def _clear() -> None:
    names = "SELECT string_agg(inhrelid::regclass::text, ', ') FROM pg_inherits WHERE inhparent = %s::regclass"
    hours = _one(f"{names} AND inhrelid <> 'features_journal_default'::regclass", "features_journal")
    if hours:
        _execute(f"DROP TABLE {hours}")
    _execute("DELETE FROM features_journal")
    _execute("DELETE FROM features_cachepartition WHERE partition = 900")


def test_partitions_are_made_ahead() -> None:
    """One for this hour and each of the next; a second run finds them there. Lines go where they belong."""
    first = keep_up(now=NOW)
    assert first.created == [f"features_journal_20260302{10 + hour:02}" for hour in range(HOURS_AHEAD + 1)]
    assert keep_up(now=NOW).created == []
    _line(NOW)
    assert _one("SELECT tableoid::regclass::text FROM features_journal") == first.created[0]
    names = "SELECT count(*) FROM pg_indexes WHERE tablename = %s AND indexdef LIKE '%%(xid)'"
    assert _one(names, first.created[0]) == 1


def test_a_write_finds_a_place_without_a_partition() -> None:
    """Lines of an hour that has none go to the default partition, which then keeps that hour."""
    FeatureRow(group="merchant_risk", entity_id="m1", values=[1.0], as_of=NOW).save(force_insert=True)
    assert _one("SELECT tableoid::regclass::text FROM features_journal") == "features_journal_default"
    _line(NOW)
    assert "features_journal_2026030210" not in keep_up(now=NOW).created


def _old_partition(age: timedelta = KEPT + timedelta(hours=24)) -> int:
    """With one line; the number of its transaction."""
    keep_up(now=NOW - age)
    return _line(NOW - age)


def test_a_partition_that_every_watermark_has_passed_is_dropped() -> None:
    """A day old, and the number up to which lines are gone is noted."""
    xid = _old_partition()
    _remember(f"{xid + 1}:{xid + 1}:")
    assert OLD in keep_up(now=NOW).dropped
    assert _one("SELECT trimmed::text::bigint FROM features_cachepartition WHERE partition = 900") == xid
    assert _one("SELECT count(*) FROM features_journal") == 0


def test_a_partition_that_a_watermark_needs_stays() -> None:
    """Its relay is away, and will ask for what it holds; so does a partition that is not a day old."""
    xid = _old_partition()
    _remember(f"{xid}:{xid + 1}:{xid}")
    assert OLD not in keep_up(now=NOW).dropped
    assert _one("SELECT count(*) FROM features_journal") == 1
    assert keep_up(now=NOW - timedelta(hours=24)).dropped == []


def test_after_a_week_a_partition_goes_whatever_the_watermarks_say() -> None:
    """An installation without a relay does not fill its disk; the watermark will not be continued."""
    xid = _old_partition(KEPT_AT_MOST + timedelta(hours=2))
    _remember(f"{xid}:{xid + 1}:{xid}")
    assert "features_journal_2026022308" in keep_up(now=NOW).dropped
    assert _one("SELECT trimmed::text::bigint FROM features_cachepartition WHERE partition = 900") == xid


def test_old_lines_of_the_default_partition_are_deleted() -> None:
    """By the same rule: not those that a watermark needs."""
    gone = _line(NOW - KEPT - timedelta(hours=1), "gone")
    needed = _line(NOW - KEPT - timedelta(hours=1), "needed")
    _line(NOW, "young")
    _remember(f"{needed}:{needed + 1}:{needed}")
    assert keep_up(now=NOW).default_lines_deleted == 1
    assert _one("SELECT string_agg(entity_id, ' ' ORDER BY xid) FROM features_journal_row") == "needed young"
    assert _one("SELECT trimmed::text::bigint FROM features_cachepartition WHERE partition = 900") == gone


def test_lines_of_another_servers_future_are_not_kept_and_not_noted() -> None:
    """A dump or a replication brought them; by its numbers this server has not come so far."""
    mine = _old_partition()
    late = NOW - KEPT - timedelta(hours=2)
    for at in (NOW - KEPT - timedelta(hours=24), late):
        _execute(
            """INSERT INTO features_journal (xid, versions, at, "group", entity_ids)
            VALUES ('900000000', '{1}', %s, 'merchant_risk', '{m1}')""",
            at,
        )
    _remember(f"{mine + 1}:{mine + 1}:")
    upkeep = keep_up(now=NOW)
    assert OLD in upkeep.dropped and upkeep.default_lines_deleted == 1
    assert _one("SELECT trimmed::text::bigint FROM features_cachepartition WHERE partition = 900") == mine
    assert _one("SELECT count(*) FROM features_journal") == 0


def test_a_writer_who_has_not_committed_keeps_the_journal_whole() -> None:
    """Nothing is dropped beneath it, and it is not kept waiting; the next run drops."""
    _old_partition()
    with psycopg.connect(conninfo()) as other:
        other.execute(_WRITE)
        upkeep = keep_up(now=NOW)
        assert OLD in upkeep.busy and OLD not in upkeep.dropped
        other.execute(_WRITE)
    assert OLD in keep_up(now=NOW).dropped


def test_a_line_that_is_committed_at_the_last_moment_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks for the last line of a partition while somebody may still write to it."""
    monkeypatch.setattr(journal_partitions, "_LOCK_WAIT_MS", 10_000)
    early = _old_partition()
    with psycopg.connect(conninfo()) as other:
        late = other.execute(
            """INSERT INTO features_journal (versions, at, "group", entity_ids) VALUES ('{1}', %s, 'g', '{e}')
            RETURNING xid::text""",
            (NOW - timedelta(hours=48),),
        ).fetchall()[0][0]
        _remember(f"{late}:{int(late) + 1}:{late}")
        assert early < int(late)
        dropped: list[str] = []
        upkeep = threading.Thread(target=lambda: dropped.extend(_in_a_session_of_its_own()))
        upkeep.start()
        until(lambda: _one("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
        other.commit()
        upkeep.join()
    assert OLD not in dropped
    assert _one("SELECT count(*) FROM features_journal WHERE xid = %s::xid8", late) == 1


def _in_a_session_of_its_own() -> list[str]:
    try:
        return keep_up(now=NOW).dropped
    finally:
        connection.close()


_WRITE = """INSERT INTO features_journal (versions, "group", entity_ids) VALUES ('{1}', 'merchant_risk', '{m2}')"""
