"""Which lines of the journal are due: each once for each horizon, and not before its time."""

from contextlib import closing

import psycopg
import pytest
from django.db import transaction

from features.inspection import due as due_module
from features.inspection.due import Due, Mark, advance, read_schedule
from features.models import InspectionCursor, InspectionMark
from mlserve.observability import metrics
from tests.features.inspection.conftest import _WRITE, GROUP, Bench, fetch
from tests.features.sessions import conninfo


def _due(horizon_s: int) -> Due | None:
    return next((due for due in read_schedule().due if due.horizon_s == horizon_s), None)


def _ids(horizon_s: int) -> list[str]:
    due = _due(horizon_s)
    return sorted(line.key.id for line in due.lines) if due else []


def _conclude() -> bool:
    with transaction.atomic():
        return advance(read_schedule())


def test_a_line_is_due_once_at_each_horizon(bench: Bench) -> None:
    """And until somebody concludes, again and again."""
    version = bench.write(1)
    _conclude()
    assert _ids(1) == []
    bench.grow_old(1.1)
    (line,) = ((found := _due(1)) and found.lines) or ()
    assert (line.key, line.version) == (bench.key, version)
    assert 1.1 <= line.began_s < 10 and found is not None and found.age_s >= 1.1
    assert _ids(1) == [bench.key.id]
    _conclude()
    assert _ids(1) == []
    bench.grow_old(9)
    assert (_ids(1), _ids(10)) == ([], [bench.key.id])
    _conclude()
    bench.grow_old(290)
    assert (_ids(1), _ids(10), _ids(300)) == ([], [], [bench.key.id])


def test_a_line_is_not_due_before_somebody_has_seen_it_committed(bench: Bench) -> None:
    """Its transaction may have begun long ago; then it counts where it certainly belongs."""
    with closing(psycopg.connect(conninfo())) as slow:
        slow.execute(_WRITE, (GROUP, bench.key.id, [1.0] * 6))
        _conclude()
        bench.grow_old(8)
        slow.commit()
    _conclude()
    assert _ids(1) == [], "committed a moment ago"
    bench.grow_old(1.5)
    (found,) = [each for each in read_schedule().due if each.horizon_s == 1]
    assert [line.key for line in found.lines] == [bench.key]
    assert 1.5 <= found.age_s < 8, "ages are not told longer than they are"


def test_a_transaction_that_runs_while_the_cursor_passes_is_not_lost(bench: Bench) -> None:
    """It had begun before what was looked at, and committed after: due when it is old, neither sooner nor never."""
    with closing(psycopg.connect(conninfo())) as slow:
        slow.execute(_WRITE, (GROUP, bench.key.id, [1.0] * 6))
        bench.write(1, other := bench.other_key())
        _conclude()
        slow.commit()
    bench.grow_old(2)
    assert _ids(1) == [other.id]
    _conclude()
    bench.grow_old(2)
    assert _ids(1) == [bench.key.id]


def test_a_line_that_may_be_older_than_the_next_horizon_is_left_to_that_one(bench: Bench) -> None:
    """After an outage of the inspector: it is no evidence of how things stood after a second."""
    bench.write(1)
    bench.grow_old(12)
    _conclude()
    bench.grow_old(2)
    assert _ids(1) == []
    bench.grow_old(9)
    assert _ids(10) == [bench.key.id]


def test_the_newest_write_of_a_key_is_what_is_looked_for(bench: Bench) -> None:
    """One line for it, with the largest version."""
    versions = [bench.write(number) for number in range(3)]
    _conclude()
    bench.grow_old(2)
    found = _due(1)
    assert found is not None and [line.version for line in found.lines] == [versions[-1]]


def test_all_lines_of_a_quiet_group_and_a_share_of_a_busy_one(bench: Bench) -> None:
    """The same ones if the same lines are looked at again; one statement of a thousand rows does not hide another."""
    bench.session.execute(
        """INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
        SELECT 'merchant_profile', %s || number, '{1,1}', now() FROM generate_series(1, 1000) AS number""",
        (f"{bench.key.id}-",),
    )
    bench.write(1)
    _conclude()
    bench.grow_old(2)
    chosen = _ids(1)
    assert bench.key.id in chosen
    assert len(chosen) == 1 + due_module.LEAST_OF_GROUP
    assert _ids(1) == chosen
    positions = sorted(int(entity_id.rpartition("-")[2]) for entity_id in chosen if entity_id != bench.key.id)
    assert positions[-1] > 500 and positions[0] < 500, "not the first ones"


def test_a_look_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond is passed over, and that is told."""
    monkeypatch.setattr(due_module, "MOST_LINES", 20)
    monkeypatch.setattr(due_module, "MOST_CHOSEN", 7)
    for number in range(30):
        bench.write(number, bench.other_key())
    _conclude()
    bench.grow_old(2)
    found = _due(1)
    assert found is not None and (len(found.lines), found.skipped) == (7, "too_many")
    before = metrics.INSPECTION_SKIPPED.labels("too_many")._value.get()
    bench.inspector.look()
    assert metrics.INSPECTION_SKIPPED.labels("too_many")._value.get() == before + 1


def test_where_the_journal_was_trimmed_the_look_goes_on_behind(bench: Bench) -> None:
    """And says that lines are gone; nothing is counted for them."""
    bench.write(1)
    _conclude()
    bench.grow_old(2)
    ((now,),) = fetch("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
    bench.session.execute(
        """INSERT INTO features_cachepartition
        (partition, epoch, snapshot, safe_at, system_identifier, timeline, trimmed)
        VALUES (990, 1, pg_current_snapshot(), now(), 1, 1, %s::xid8)""",
        (now,),
    )
    try:
        inspector = bench.inspector
        inspector.look()
        assert inspector.tally.skipped == ["trimmed"] * 3 and not inspector.tally.counts.of
    finally:
        bench.session.execute("DELETE FROM features_cachepartition WHERE partition = 990")
    bench.session.execute("SELECT pg_current_xact_id()")
    inspector.look()
    assert inspector.tally.skipped == ["trimmed"] * 3
    bench.write(2)
    assert bench.look_after(2).tally.counts.at(1, "all").checked == 1


def test_a_cursor_of_more_than_a_day_ago_is_given_up(bench: Bench) -> None:
    """Nobody promises to keep the journal for longer."""
    _conclude()
    bench.grow_old(2 * 86_400)
    assert {due.skipped for due in read_schedule().due} == {"trimmed"}


def test_a_cursor_of_another_database_is_given_up(bench: Bench) -> None:
    """One that was restored has not seen what the cursor has."""
    InspectionCursor.objects.update(snapshot="900000000:900000000:")
    assert {due.skipped for due in read_schedule().due} == {"other_postgres"}
    bench.inspector.look()
    assert all(due.skipped == "" for due in read_schedule().due)


def test_marks_are_kept_as_long_as_the_longest_horizon(bench: Bench) -> None:
    """Another one every look; of those older than that only the newest is of use."""
    for _ in range(3):
        _conclude()
        bench.grow_old(200)
    _conclude()
    ages = sorted(InspectionMark.objects.values_list("at", flat=True))
    assert len(ages) == 3


def test_a_cursor_that_somebody_else_moved_keeps_nothing(bench: Bench) -> None:
    """Neither cursors nor marks nor counts: the look is taken back as a whole."""
    bench.write(1)
    _conclude()
    bench.grow_old(2)
    mine = read_schedule()
    assert _conclude()
    with transaction.atomic():
        assert not advance(mine)
        transaction.set_rollback(True)


def test_a_mark_is_never_older_than_its_snapshot(bench: Bench) -> None:
    """What is committed after the moment that it names is not in it."""
    mark = read_schedule().now
    bench.write(1)
    ((seen,),) = fetch(
        "SELECT bool_or(pg_visible_in_snapshot(xid, %s::pg_snapshot)) FROM features_journal_row WHERE entity_id = %s",
        mark.snapshot,
        bench.key.id,
    )
    assert seen is False and mark.next_xid > 0 and isinstance(mark, Mark)
