"""A transaction whose decision lies in the spool is recognised, in whichever process it is sent again."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from pytest_django import Settings

from mlserve.errors import ErrorCode
from mlserve.observability import metrics
from predictions import delivery, spool
from predictions.journal import JournalEntry, Recorded, TransactionConflict, _spool
from predictions.spooled import known
from predictions.spooling import AnswerAway, spool_decisions
from tests.fixtures.population import World
from tests.predictions.entries import entry
from tests.predictions.spools import drained


@pytest.fixture(autouse=True)
def folder(settings: Settings, tmp_path: Path, world: World) -> Iterator[Path]:
    delivery.stop()
    settings.VAR_DIR = tmp_path
    spool.leave_own_file()
    known.forget()
    yield tmp_path / "spool"
    spool.leave_own_file()
    known.forget()


@pytest.fixture
def entries(world: World) -> list[JournalEntry]:
    return [entry(world.newcomer("known")) for _ in range(6)]


def _answer(each: JournalEntry) -> bytes:
    """As it was given: flagged."""
    response = msgspec.structs.replace(each.response, degraded=True, degraded_reasons=("decision_spooled",))
    return msgspec.json.encode(response)


def _lines() -> int:
    return sum(path.read_bytes().count(b"\n") for path in spool.pending_files())


def test_a_repetition_gets_the_answer_that_was_given(entries: list[JournalEntry]) -> None:
    """Byte for byte, whatever the second calculation said; other contents are a conflict; one line is written."""
    assert _spool(entries) == [Recorded(spooled=True)] * 6
    other_score = msgspec.structs.replace(entries[0], response=msgspec.structs.replace(entries[0].response, score=0.9))
    other_contents = msgspec.structs.replace(entries[1], digest=b"x" * 32)
    same, conflict = _spool([other_score, other_contents])
    assert same == Recorded(stored=_answer(entries[0]))
    assert isinstance(conflict, TransactionConflict)
    assert _lines() == 6


def test_repetitions_within_a_batch_are_found(entries: list[JournalEntry]) -> None:
    """The first of the batch stands."""
    other = msgspec.structs.replace(entries[0], digest=b"x" * 32)
    first, same, conflict = _spool([entries[0], entries[0], other])
    assert first == Recorded(spooled=True)
    assert same == Recorded(stored=_answer(entries[0]))
    assert isinstance(conflict, TransactionConflict)
    assert _lines() == 1


def test_a_batch_that_evicts_what_it_needs_is_answered(
    entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known ids are looked up before new ones take their places."""
    monkeypatch.setattr(known, "MAX_KNOWN", 2)
    _spool(entries[:2])
    outcomes = _spool([*entries[2:], entries[0]])
    assert outcomes[-1] == Recorded(stored=_answer(entries[0]))
    assert outcomes[:-1] == [Recorded(spooled=True)] * 4
    assert len(known.known_decisions()) == 2


def test_a_process_that_begins_anew_knows_what_lies_in_the_folder(
    entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what lies in several files, and what another process appended meanwhile."""
    monkeypatch.setattr(spool, "MAX_FILE_BYTES", 1)
    _spool(entries[:4])
    known.forget()
    spool.leave_own_file()
    assert _spool(entries[:1]) == [Recorded(stored=_answer(entries[0]))]
    if (child := os.fork()) == 0:
        spool.append([entries[4]])
        os._exit(0)
    os.waitpid(child, 0)
    outcomes = _spool([msgspec.structs.replace(entries[4], digest=b"x" * 32), entries[5]])
    assert isinstance(outcomes[0], TransactionConflict)
    assert outcomes[1] == Recorded(spooled=True)
    spool.leave_own_file()
    assert len(drained()) == 6


def test_a_large_spool_is_read_little_by_little(entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    """No request waits until all of it is known."""
    _spool(entries)
    known.forget()
    length = (spool.pending_files()[0]).stat().st_size // 6
    monkeypatch.setattr(known, "MAX_READ_BYTES", length * 2 + length // 2)
    sizes = []
    for _ in range(4):
        known.known_decisions().find(["somebody"])
        sizes.append(len(known.known_decisions()))
    assert sizes == [2, 4, 6, 6]


def test_an_answer_that_was_delivered_is_known_by_its_digest(entries: list[JournalEntry]) -> None:
    """In the next outage PostgreSQL has it and does not answer: 503, no second answer. Other contents: a conflict."""
    _spool(entries)
    assert len(drained()) == 6
    same, conflict = _spool([entries[0], msgspec.structs.replace(entries[1], digest=b"x" * 32)])
    assert isinstance(same, AnswerAway)
    assert (same.code, same.retry_after_s) == (ErrorCode.SOURCE_UNAVAILABLE, 5)
    assert isinstance(conflict, TransactionConflict)
    assert spool.pending_files() == []


def test_a_line_that_was_taken_back_is_not_known(entries: list[JournalEntry]) -> None:
    """Its process was told that the disk is full, and another line stands there now."""
    _spool(entries[:1])
    spool.leave_own_file()
    (path,) = spool.pending_files()
    line = msgspec.json.encode(entries[1]) + b"\n"
    good = path.stat().st_size
    with path.open("ab") as file:
        file.write(line)
    assert known.known_decisions().find([entries[1].transaction.id])[entries[1].transaction.id].response is not None
    os.truncate(path, good)
    found = known.known_decisions().find([entries[1].transaction.id])
    assert found[entries[1].transaction.id].response is None


def test_what_the_disk_does_not_take_is_refused_and_the_rest_of_its_batch_answered(
    entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repetition needs no disk; the refused decision is not known afterwards."""
    _spool(entries[:1])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        same, refused = _spool(entries[:2])
    assert same == Recorded(stored=_answer(entries[0]))
    assert isinstance(refused, spool.SpoolFailed)
    assert _spool(entries[1:2]) == [Recorded(spooled=True)]


def test_what_is_beyond_the_limit_is_counted(entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten; sent again it is decided again, and explained when both are delivered."""
    monkeypatch.setattr(known, "MAX_KNOWN", 5)
    counted: list[float] = []
    monkeypatch.setattr(metrics.SPOOL_FORGOTTEN, "inc", lambda amount=1.0: counted.append(amount))
    spool_decisions(entries)
    assert len(counted) == 1
    assert len(known.known_decisions()) == 5
