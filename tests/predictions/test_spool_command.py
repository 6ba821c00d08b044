"""`manage.py spool`, and what doctor, readiness and metrics say of the same folder."""

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from mlserve.observability import metrics
from mlserve.platform.diagnosis import Finding, Level
from predictions import delivery, spool
from predictions.delivery import refused_decisions
from predictions.journal import JournalEntry
from predictions.models import Decision
from predictions.spooled import diagnosis, known, refused
from predictions.spooled.diagnosis import SpoolUnsound, diagnose_spool, measure_spool, spool_is_sound
from predictions.spooled.lines import Line
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.predictions.entries import entry


@pytest.fixture(autouse=True)
def folder(world: World, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    settings.VAR_DIR = tmp_path
    monkeypatch.setattr(delivery, "ensure_delivering", lambda: None)
    spool.leave_own_file()
    yield tmp_path / "spool"
    spool.leave_own_file()
    known.forget()


@pytest.fixture
def good(world: World) -> JournalEntry:
    return _recent(entry(world.newcomer("good")))


@pytest.fixture
def bad(world: World) -> JournalEntry:
    """PostgreSQL refuses it."""
    return _recent(msgspec.structs.replace(entry(world.newcomer("bad")), model_version_id=10**9))


def _recent(each: JournalEntry, *, seconds: float = 5) -> JournalEntry:
    at = timezone.now() - timedelta(seconds=seconds)
    return msgspec.structs.replace(each, response=msgspec.structs.replace(each.response, decided_at=at))


def _run(*arguments: str) -> str:
    out = StringIO()
    call_command("spool", *arguments, stdout=out)
    return out.getvalue()


def _json(*arguments: str) -> dict[str, Any]:
    return dict(json.loads(_run(*arguments, "--json")))


def _findings() -> list[Finding]:
    return list(diagnose_spool())


def test_nothing_there_is_said(folder: Path) -> None:
    """Without a folder as well; nothing is made."""
    assert "nothing waits" in _run("list")
    assert _json("list")["waiting"]["decisions"] == 0
    assert _json("list")["refused"] == []
    assert "0 left the spool, 0 wait" in _run("deliver")
    assert "0 stored, 0 refused again" in _run("retry")
    assert not folder.exists()
    assert [finding.level for finding in _findings()] == [Level.OK]
    assert spool_is_sound() == "nothing waits"


def test_what_waits_and_what_was_refused_is_listed(good: JournalEntry, bad: JournalEntry) -> None:
    """Since when, why, with the code."""
    spool.append([bad])
    delivery.deliver_spooled()
    spool.append([good])
    listed = _run("list")
    assert "waiting        1 decisions since" in listed
    assert f"refused  {bad.transaction.id}" in listed and "[23503]" in listed and "violates foreign key" in listed
    document = _json("list")
    assert document["waiting"]["decisions"] == 1
    assert document["waiting"]["oldest_at"] == good.response.decided_at.isoformat(timespec="seconds")
    (record,) = document["refused"]
    assert (record["transaction_id"], record["sqlstate"]) == (bad.transaction.id, "23503")
    assert "left the spool, 0 wait" in _run("deliver")
    assert Decision.objects.filter(pk=good.transaction.id).exists()


def test_list_and_drop_need_no_postgresql(bad: JournalEntry, postgres: ServerHandle) -> None:
    """Retry and deliver say what is in the way, and keep everything."""
    spool.append([bad])
    delivery.deliver_spooled()
    postgres.stop()
    assert bad.transaction.id in _run("list")
    with pytest.raises(CommandError, match="PostgreSQL does not take them") as failed:
        _run("retry")
    assert failed.value.returncode == 1
    assert len(_json("list")["refused"]) == 1
    assert "1 dropped" in _run("drop", bad.transaction.id, "--reason", "reversed by hand")
    assert _json("list")["refused"] == []


def test_what_is_dropped_is_kept_with_who_when_and_why(folder: Path, bad: JournalEntry, good: JournalEntry) -> None:
    """The whole line; what was not named stays."""
    other = msgspec.structs.replace(good, model_version_id=10**9)
    spool.append([bad, other])
    delivery.deliver_spooled()
    assert _json("drop", bad.transaction.id, "--reason", "reversed by hand")["dropped"]
    (line,) = (folder / "dropped.jsonl").read_bytes().splitlines()
    dropped = msgspec.json.decode(line, type=refused.Dropped)
    assert dropped.reason == "reversed by hand" and "@" in dropped.who
    assert abs(dropped.at - timezone.now()) < timedelta(minutes=1)
    assert msgspec.json.decode(dropped.refused.data, type=JournalEntry) == bad
    assert [record.transaction_id for record in refused_decisions().records()] == [other.transaction.id]
    assert (folder / "dropped.jsonl").stat().st_mode & 0o777 == 0o600


def test_retry_takes_all_or_those_that_are_named(bad: JournalEntry, good: JournalEntry) -> None:
    """What is refused again stays, and the exit code says so."""
    refused_decisions().folder.mkdir()
    lines = [msgspec.json.encode(each) for each in (bad, good)]
    refused_decisions().add(
        [refused.refused_line(Line(0, line, len(line) + 1), at=None, reason="then") for line in lines]
    )
    assert _json("retry", good.transaction.id) == {"stored": 1, "refused": 0, "held": 0}
    with pytest.raises(CommandError, match="1 of 1 stay refused") as failed:
        _run("retry")
    assert failed.value.returncode == 1
    assert Decision.objects.filter(pk=good.transaction.id).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "t-1"),
        ("deliver", "t-1"),
        ("drop",),
        ("drop", "--reason", "x"),
        ("drop", "t-1"),
        ("drop", "t-1", "--reason", "  "),
        ("retry", "--reason", "x"),
    ],
)
def test_wrong_usage_is_said(arguments: tuple[str, ...]) -> None:
    """Exit code 2; nothing is dropped without a reason."""
    with pytest.raises(CommandError) as failed:
        _run(*arguments)
    assert failed.value.returncode == 2


def test_an_id_that_is_not_refused_is_named(bad: JournalEntry) -> None:
    """And nothing is done with the others."""
    spool.append([bad])
    delivery.deliver_spooled()
    for action in (("retry",), ("drop", "--reason", "x")):
        with pytest.raises(CommandError, match="not among the refused: t-unknown") as failed:
            _run(action[0], bad.transaction.id, "t-unknown", *action[1:])
        assert failed.value.returncode == 1
    assert len(_json("list")["refused"]) == 1


def test_a_line_without_an_id_is_named_by_its_key(folder: Path) -> None:
    """As `list` shows it."""
    folder.mkdir()
    (folder / "decisions-1-a.jsonl").write_bytes(b"\x00garbage\n")
    delivery.deliver_spooled()
    (record,) = _json("list")["refused"]
    assert record["key"] in _run("list")
    assert "1 dropped" in _run("drop", record["key"], "--reason", "not ours")


# --- doctor, readiness, metrics ---


def test_who_waits_for_more_than_a_minute_is_a_warning(good: JournalEntry) -> None:
    """With what to do; before that it is not."""
    spool.append([good])
    (finding,) = _findings()
    assert finding.level is Level.OK and "1 decisions wait" in finding.detail
    assert spool_is_sound().startswith("1 decisions wait, the oldest for ")
    spool.append([_recent(good, seconds=90)])
    spool.leave_own_file()
    (path,) = spool.pending_files()
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    (finding,) = _findings()
    assert finding.level is Level.WARN
    assert "2 decisions wait" in finding.detail and "spool deliver" in finding.fix


def test_what_was_refused_is_a_warning_until_it_is_dropped(bad: JournalEntry) -> None:
    """The fix names the command."""
    spool.append([bad])
    delivery.deliver_spooled()
    (finding,) = _findings()
    assert finding.level is Level.WARN and "1 decisions" in finding.detail and "spool drop" in finding.fix
    assert spool_is_sound() == "nothing waits; 1 refused"
    _run("drop", bad.transaction.id, "--reason", "x")
    assert [finding.level for finding in _findings()] == [Level.OK]


def test_refused_without_room_is_a_failure(bad: JournalEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the doctor and for readiness, which stays ready: it can score."""
    spool.append([bad])
    with monkeypatch.context() as full:
        full.setattr(refused, "MAX_BYTES", 0)
        delivery.deliver_spooled()
    assert Level.FAIL in [finding.level for finding in _findings()]
    with pytest.raises(SpoolUnsound, match="no room"):
        spool_is_sound()


def test_a_folder_that_cannot_take_a_decision_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before PostgreSQL goes away, and not when it has; without naming a path to who asks for readiness."""
    folder.write_bytes(b"in the way")
    with pytest.raises(SpoolUnsound) as unsound:
        spool_is_sound()
    assert str(folder) not in unsound.value.detail
    (finding,) = _findings()
    assert finding.level is Level.FAIL and str(folder) in finding.fix
    folder.unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SpoolUnsound, match="cannot be written"):
        spool_is_sound()
    monkeypatch.undo()
    monkeypatch.setattr(delivery, "ensure_delivering", lambda: None)
    monkeypatch.setattr(diagnosis, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(SpoolUnsound, match="MB left"):
        spool_is_sound()


def test_the_gauges_are_the_folders(good: JournalEntry, bad: JournalEntry, client: Client) -> None:
    """Whichever process is scraped, and although this one has counted nothing."""
    spool.append([bad])
    delivery.deliver_spooled()
    spool.append([good])
    text = client.get("/metrics").content.decode()
    assert 'mlserve_spool_decisions{state="waiting"} 1.0' in text
    assert 'mlserve_spool_decisions{state="refused"} 1.0' in text
    assert text.count("# TYPE mlserve_spool_oldest_seconds gauge") == 1
    values = {gauge._name: values for gauge, values in measure_spool().items()}
    assert 4 < values["mlserve_spool_oldest_seconds"]["waiting"] < 60
    assert values["mlserve_spool_bytes"]["waiting"] > 100
    spool.append([good])
    assert measure_spool()[metrics.SPOOL_DECISIONS]["waiting"] == 2
    delivery.deliver_spooled()
    assert measure_spool()[metrics.SPOOL_DECISIONS]["waiting"] == 0
    assert measure_spool()[metrics.SPOOL_OLDEST]["waiting"] == 0
