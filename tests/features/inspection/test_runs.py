"""Runs of the inspector: from beat and from `manage.py inspect`."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from features.inspection import results
from features.inspection.run import inspect
from features.models import InspectionCount, InspectionFinding
from tests.features.inspection.conftest import GROUP, Bench
from tests.fixtures.servers import ServerHandle


def _old_finding(at: Any, entity_id: str = "x") -> None:
    InspectionFinding.objects.create(
        at=at,
        group=GROUP,
        entity_id=entity_id,
        tier="l2",
        horizon_s=1,
        age_s=1,
        cause="late",
        held_version=1,
        written_version=2,
        switched_off=False,
    )


def test_a_run_looks_until_its_time_is_over(bench: Bench) -> None:
    """Another look every half second."""
    inspector = bench.inspector
    inspector.run(0.6)
    assert inspector.tally.looks == 2


def test_beats_run_prunes_and_looks(bench: Bench) -> None:
    """Findings of long ago go; the lines that are due are counted."""
    _old_finding("2020-01-01T00:00:00Z")
    bench.write(1)
    bench.inspector.look()
    bench.grow_old(2)
    inspect(now=timezone.now(), seconds=0)
    assert not InspectionFinding.objects.exists()
    assert InspectionCount.objects.get(horizon_s=1, tier="all").checked == 1


def test_beats_run_says_that_postgres_is_away(
    bench: Bench, postgres: ServerHandle, caplog: pytest.LogCaptureFixture
) -> None:
    """And ends; the next one comes in seconds."""
    bench.session.close()
    connection.close()
    postgres.kill()
    inspect(now=timezone.now(), seconds=0)
    assert "inspection_waits" in caplog.text


def test_findings_do_not_fill_the_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of them stay."""
    monkeypatch.setattr(results, "MOST_FINDINGS", 3)
    now = timezone.now()
    for number in range(5):
        _old_finding(now, str(number))
    results.prune(now=now)
    assert list(InspectionFinding.objects.values_list("entity_id", flat=True)) == ["4", "3", "2"]


def test_the_command_tells_what_it_has_seen(bench: Bench) -> None:
    """As one JSON object, or in words; 0 if nothing was wrong."""
    bench.write(1)
    bench.inspector.look()
    bench.grow_old(2)
    out = StringIO()
    call_command("inspect", "--seconds", "1", "--json", stdout=out)
    told = json.loads(out.getvalue())
    (writes,) = [check for check in told["checks"] if (check["horizon_s"], check["tier"]) == (1, "all")]
    assert writes["checked"] >= 1 and writes["inconsistent"] == {}
    assert (told["trouble"], told["findings"], told["switched_off"]) == ("", [], [])
    out = StringIO()
    call_command("inspect", "--seconds", "1", stdout=out)
    assert "nothing to look at" in out.getvalue() or "checked" in out.getvalue()


def test_the_command_fails_where_something_was_wrong(proven: Bench) -> None:
    """And names it."""
    version = proven.write(1)
    proven.told(version)
    proven.plant(version, 7)
    proven.inspector.look()
    proven.grow_old(2)
    out = StringIO()
    with pytest.raises(CommandError, match="1 writes were missing or wrong"):
        call_command("inspect", "--seconds", "1", stdout=out)
    assert f"wrong_bytes: {GROUP} of {proven.key.id} in l2" in out.getvalue()
    assert f"{GROUP}: L1 and L2 are off" in out.getvalue()


def test_the_command_says_who_is_away(bench: Bench, valkey_cache: ServerHandle) -> None:
    """If something is due and cannot be looked at."""
    bench.write(1)
    bench.inspector.look()
    bench.grow_old(2)
    valkey_cache.kill()
    with pytest.raises(CommandError, match="the last look was not concluded"):
        call_command("inspect", "--seconds", "1", stdout=StringIO())


@pytest.mark.parametrize("seconds", ["-1", "x", "999999999"])
def test_a_wrong_number_of_seconds_is_refused(seconds: str) -> None:
    """With the range."""
    with pytest.raises(CommandError, match="whole number from 0"):
        call_command("inspect", "--seconds", seconds)
