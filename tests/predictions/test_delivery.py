"""What becomes of spooled decisions when PostgreSQL is back: each is stored, or held for later, or refused once."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from django.db import DatabaseError, OperationalError, connection
from pytest_django import Settings

from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from mlserve.errors import MlserveError
from predictions import delivery, spool
from predictions.delivery import deliver_spooled, refused_decisions, retry
from predictions.journal import JournalEntry, Recorded, commit, journal, stored_response
from predictions.models import Decision
from predictions.spooled import known, refused
from predictions.spooled.lines import Line
from predictions.spooled.progress import load_progress
from predictions.spooled.survey import survey
from tests.features.sessions import conninfo
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.postgres.server_defaults import server_default
from tests.predictions.entries import NOW, entry


@pytest.fixture(autouse=True)
def folder(world: World, settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """A spool of the test's own."""
    settings.VAR_DIR = tmp_path
    spool.leave_own_file()
    yield tmp_path / "spool"
    journal().stop()
    spool.leave_own_file()
    known.forget()


@pytest.fixture
def entries(world: World) -> list[JournalEntry]:
    return [entry(world.newcomer("spooled")) for _ in range(10)]


def _ids(entries: list[JournalEntry]) -> list[str]:
    return [each.transaction.id for each in entries]


def _stored(entries: list[JournalEntry]) -> int:
    return Decision.objects.filter(pk__in=_ids(entries)).count()


def _response(each: JournalEntry, **changes: Any) -> JournalEntry:
    return msgspec.structs.replace(each, response=msgspec.structs.replace(each.response, **changes))


POISON: dict[str, tuple[dict[str, Any], str]] = {
    "a model version that a restored database does not have": ({"model_version_id": 10**9}, "23503"),
    "a number that no column takes": ({"model_version_id": 2**70}, "22003"),
    "a NUL character": ({"client": "a\x00b"}, "22P05"),
    "an id that no index takes": ({"transaction": {"id": "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))}}, "54000"),
    "an amount that no column takes": ({"transaction": {"amount": 1e20}}, "22003"),
}


@pytest.mark.parametrize("kind", POISON)
def test_what_postgresql_refuses_keeps_nothing_else(entries: list[JournalEntry], kind: str) -> None:
    """It is kept once, with time, reason, SQLSTATE and the whole line, however often the rest is delivered."""
    changes, sqlstate = POISON[kind]
    bad = msgspec.structs.replace(
        entries[4],
        **changes | {"transaction": msgspec.structs.replace(entries[4].transaction, **changes.get("transaction", {}))},
    )
    good = [*entries[:4], *entries[5:]]
    spool.append([*entries[:4], bad, *entries[5:]])
    assert deliver_spooled() == 10
    assert _stored(good) == 9
    assert spool.pending_files() == []
    (record,) = refused_decisions().records()
    assert record.sqlstate == sqlstate
    assert record.reason and record.at is not None
    assert record.transaction_id == bad.transaction.id
    assert msgspec.json.decode(record.data, type=JournalEntry) == bad
    size = refused_decisions().size()
    spool.append([bad])
    assert deliver_spooled() == 1
    assert refused_decisions().size() == size


@pytest.mark.parametrize(
    "line",
    [
        b'{"transaction": "?"}',
        b"",
        b"\x00" * 5000,
        b"\xff\xfe not UTF-8",
        b"[" * 100_000,
        b'{"digest": NaN}',
        b"\x80\x04K*.",
        b'{"transaction": {"id": "\\ud800"}}',
    ],
)
def test_a_line_that_is_no_decision_keeps_nothing_else(entries: list[JournalEntry], line: bytes) -> None:
    """Whatever it is; it is kept as it was."""
    spool.append(entries)
    spool.leave_own_file()
    (path,) = spool.pending_files()
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert deliver_spooled() == 11
    assert _stored(entries) == 10
    (record,) = refused_decisions().records()
    assert record.data == line
    assert record.reason.startswith(("ValidationError", "DecodeError", "RecursionError", "UnicodeDecodeError"))


def test_a_value_that_no_statement_can_be_made_of_keeps_nothing_else(entries: list[JournalEntry]) -> None:
    """A moment before the year 1, or without a zone, beside others: Python raises before PostgreSQL does."""
    spool.append(entries)
    spool.leave_own_file()
    (path,) = spool.pending_files()
    lines = path.read_bytes().splitlines(keepends=True)
    moment = b'"2026-01-05T12:00:00Z"'
    lines[3] = lines[3].replace(b'"occurred_at":' + moment, b'"occurred_at":"0001-01-01T00:00:00+14:00"')
    lines[5] = lines[5].replace(b'"decided_at":' + moment, b'"decided_at":"2026-01-05T12:00:00"')
    assert len(set(map(len, lines))) > 1
    path.write_bytes(b"".join(lines))
    spool.append([entries[9]])
    path.write_bytes(path.read_bytes() + lines[3])  # the second time it is compared with what is stored
    while deliver_spooled():
        pass
    assert spool.pending_files() == []
    assert _stored(entries) >= 9
    assert {record.transaction_id for record in refused_decisions().records()} <= {
        entries[3].transaction.id,
        entries[5].transaction.id,
    }
    with connection.cursor() as cursor:  # nothing else in the tests' ledger is as old
        cursor.execute("DELETE FROM features_transaction WHERE id = %s", [entries[3].transaction.id])


def test_what_python_refuses_keeps_nothing_else(entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept as what PostgreSQL refuses is, without a code."""
    bad = entries[6].transaction.id
    spool.append(entries)

    def fail(entries: list[JournalEntry]) -> list[Recorded | MlserveError]:
        if bad in _ids(entries):
            raise OverflowError("date value out of range")
        return commit(entries)

    monkeypatch.setattr(delivery, "commit", fail)
    assert deliver_spooled() == 10
    assert _stored(entries) == 9
    (record,) = refused_decisions().records()
    assert (record.transaction_id, record.sqlstate) == (bad, None)
    assert record.reason == "OverflowError: date value out of range"


def test_an_outages_decisions_that_are_all_refused_are_all_kept(
    entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cause for all of them, such as a restore: the files rotate, and each is there once."""
    monkeypatch.setattr(refused, "MAX_FILE_BYTES", 2_000)
    monkeypatch.setattr(delivery._chunk, "_lines", 2)
    bad = [msgspec.structs.replace(each, model_version_id=10**9) for each in entries]
    spool.append(bad)
    assert deliver_spooled() == 10
    assert len(refused_decisions().paths()) > 2
    assert [record.transaction_id for record in refused_decisions().records()] == _ids(bad)
    spool.append(bad)
    assert deliver_spooled() == 10
    assert len(list(refused_decisions().records())) == 10


def test_refused_decisions_stay_in_the_spool_where_there_is_no_room(
    entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are delivered, PostgreSQL is not asked again until there is room, and then they are moved."""
    bad = msgspec.structs.replace(entries[4], model_version_id=10**9)
    spool.append([*entries[:4], bad, *entries[5:]])
    asked: list[int] = []

    def counting(entries: list[JournalEntry]) -> list[Recorded | MlserveError]:
        asked.append(len(entries))
        return commit(entries)

    monkeypatch.setattr(delivery, "commit", counting)
    with monkeypatch.context() as full:
        full.setattr(refused, "MAX_BYTES", 0)
        assert deliver_spooled() == 9
        assert survey().is_full and survey().decisions == 1
        asked.clear()
        assert deliver_spooled() == 0
        assert asked == []
    monkeypatch.setattr(delivery, "REFUSED_PAUSE_S", 0.0)
    assert deliver_spooled() == 1
    assert not survey().is_full and survey().refused == 1
    assert spool.pending_files() == []


def _lock(cursor: Any, customer_id: str) -> None:
    cursor.execute(
        """SELECT FROM features_featurerow WHERE "group" = 'customer_activity' AND entity_id = %s FOR UPDATE""",
        (customer_id,),
    )


def test_a_locked_customer_keeps_nobody_else(entries: list[JournalEntry], folder: Path) -> None:
    """Its decisions stay and are tried again; nothing of the rest is delivered twice meanwhile."""
    locked = entries[2].transaction.customer_id
    commit([entry("before-" + entries[2].transaction.id, customer_id=locked)])
    spool.append(entries)
    with _other_session() as other:
        _lock(other, locked)
        assert deliver_spooled() == 9
        assert deliver_spooled() == 0
        assert _stored(entries) == 9
        (file,) = survey().files
        assert (file.decisions, file.held) == (1, 1)
    until(lambda: deliver_spooled() == 1)  # the lock ends when the server has noticed that its session has
    assert _stored(entries) == 10
    assert list(refused_decisions().records()) == []


def test_a_lock_on_something_else_holds_that_decision_alone(entries: list[JournalEntry]) -> None:
    """Somebody has inserted its id and not committed yet; which decision that is shows by halving."""
    spool.append(entries)
    with _other_session() as other:
        other.execute(
            "INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount, currency) "
            "VALUES (%s, now(), 'another', 'M1', 1, 'EUR')",
            (entries[7].transaction.id,),
        )
        assert deliver_spooled() == 9
        assert _stored(entries) == 9
    until(lambda: deliver_spooled() == 1)
    assert _stored(entries) == 10


@contextmanager
def _other_session() -> Iterator["psycopg.Cursor[Any]"]:
    """A transaction of somebody else, rolled back at the end."""
    with closing(psycopg.connect(conninfo())) as session:
        yield session.cursor()


def test_an_outage_ends_the_round_and_what_was_delivered_stays_so(
    entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next round goes on where the last one ended."""
    monkeypatch.setattr(delivery._chunk, "_lines", 5)
    spool.append(entries)
    commits: list[list[str]] = []

    def away_after_one(entries: list[JournalEntry]) -> list[Recorded | MlserveError]:
        if commits:
            raise OperationalError("the connection is closed")
        commits.append(_ids(entries))
        return commit(entries)

    with monkeypatch.context() as away:
        away.setattr(delivery, "commit", away_after_one)
        with pytest.raises(OperationalError):
            deliver_spooled()
    assert _stored(entries) == 5
    assert survey().decisions == 5
    spool.leave_own_file()
    (path,) = spool.pending_files()
    with path.open("rb") as file:
        assert load_progress(path, file.fileno()).lines == 5
    assert deliver_spooled() == 5
    assert _stored(entries) == 10


def test_a_decision_that_postgresql_fails_at_is_alone_in_the_end(
    entries: list[JournalEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks like an outage each time; yet all others arrive within some rounds, and it when it can be stored."""
    bad = entries[3].transaction.id
    spool.append(entries)

    def fail(entries: list[JournalEntry]) -> list[Recorded | MlserveError]:
        if bad in _ids(entries):
            raise OperationalError("missing chunk number 0 for toast value")
        return commit(entries)

    monkeypatch.setattr(delivery, "MAX_LINES", 8)
    monkeypatch.setattr(delivery, "_chunk", delivery._Chunk())
    with monkeypatch.context() as failing:
        failing.setattr(delivery, "commit", fail)
        for _ in range(12):
            try:
                deliver_spooled()
            except OperationalError:
                continue
        assert _stored(entries) == 9
        (file,) = survey().files
        assert (file.decisions, file.held) == (1, 1)
    until(lambda: deliver_spooled() == 1)  # the lock ends when the server has noticed that its session has
    assert _stored(entries) == 10


def test_a_read_only_postgresql_costs_no_files(entries: list[JournalEntry]) -> None:
    """Each attempt leaves the file where it is, and everything in it."""
    spool.append(entries)
    with server_default("default_transaction_read_only", "on"):
        for _ in range(5):
            with pytest.raises(DatabaseError, match="read-only"):
                deliver_spooled()
        assert len(spool.pending_files()) == 1
    connection.close()
    until(lambda: engine().l3_write_breaker.state is State.CLOSED)
    assert deliver_spooled() == 10
    assert _stored(entries) == 10


def test_a_killed_postgresql_costs_nothing(entries: list[JournalEntry], postgres: ServerHandle) -> None:
    """What was committed before is a repetition afterwards."""
    spool.append(entries)
    postgres.kill()
    with pytest.raises(OperationalError):
        deliver_spooled()
    postgres.start()
    until(lambda: engine().l3_write_breaker.state is State.CLOSED)
    assert deliver_spooled() == 10
    assert _stored(entries) == 10


# --- two answers to one transaction ---


def test_another_answer_that_was_stored_first_is_explained(entries: list[JournalEntry]) -> None:
    """Equal contents, another score: two processes decided while PostgreSQL was away."""
    first = entries[0]
    second = _response(first, score=0.97, decision="decline", decided_at=NOW + timedelta(seconds=1))
    spool.append([first, second])
    assert deliver_spooled() == 2
    (record,) = refused_decisions().records()
    assert record.transaction_id == first.transaction.id
    for said in ("stored first", "approve with score 0.25", "decline with score 0.97", "64646464"):
        assert said in record.reason
    assert Decision.objects.get(pk=first.transaction.id).decision == "approve"


def test_other_contents_under_an_id_are_explained(entries: list[JournalEntry]) -> None:
    """With both digests."""
    first, second = entries[0], msgspec.structs.replace(entries[0], digest=b"x" * 32)
    spool.append([first, second])
    assert deliver_spooled() == 2
    (record,) = refused_decisions().records()
    assert "stored first" in record.reason and "64646464" in record.reason and "78787878" in record.reason


def test_the_same_answer_at_another_moment_is_a_repetition(entries: list[JournalEntry]) -> None:
    """Nobody was told anything else."""
    spool.append([entries[0], _response(entries[0], decided_at=NOW + timedelta(seconds=5), oldest_feature_age_s=5.0)])
    assert deliver_spooled() == 2
    assert list(refused_decisions().records()) == []


def test_a_transaction_that_the_ledger_has_otherwise_is_explained(entries: list[JournalEntry]) -> None:
    """No answer is stored under its id at all."""
    spool.append([msgspec.structs.replace(entries[0], transaction=msgspec.structs.replace(
        entries[0].transaction, id="ledger-1"))])  # fmt: skip
    assert deliver_spooled() == 1
    (record,) = refused_decisions().records()
    assert "in the ledger with another" in record.reason
    assert stored_response("ledger-1") is None


def test_what_waits_is_not_decided_once_more_when_postgresql_is_back(entries: list[JournalEntry]) -> None:
    """A repetition that comes before the delivery gets the answer that was given; other contents are a conflict."""
    first = entries[0]
    spool.append([first])
    repeated = journal().record(_response(first, score=0.99))
    assert repeated.stored == msgspec.json.encode(first.response)
    outcomes = journal().record_many([msgspec.structs.replace(first, digest=b"x" * 32), entries[1]])
    assert isinstance(outcomes[0], MlserveError) and "other contents" in outcomes[0].detail
    assert outcomes[1] == Recorded(activity_version=outcomes[1].activity_version)  # type: ignore[union-attr]
    assert deliver_spooled() == 1
    assert list(refused_decisions().records()) == []
    assert journal().record(first).stored == stored_response(first.transaction.id)


# --- refused decisions, once more ---


def test_what_can_be_stored_meanwhile_leaves_the_refused(entries: list[JournalEntry]) -> None:
    """The rest stays, with the newest reason."""
    good, bad = entries[0], msgspec.structs.replace(entries[1], model_version_id=10**9)
    refused_decisions().folder.mkdir()
    records = [refused.refused_line(_line(each), at=NOW, reason="earlier") for each in (good, bad)]
    refused_decisions().add(records)
    done = retry(list(refused_decisions().records()))
    assert done.error is None
    assert _stored([good]) == 1
    (left,) = refused_decisions().records()
    assert (left.transaction_id, left.sqlstate) == (bad.transaction.id, "23503")
    assert left.at is not None and left.at > NOW


def test_a_refused_file_with_a_torn_end_is_continued(entries: list[JournalEntry]) -> None:
    """What a process left that was killed while it wrote does not swallow the next one."""
    refused_decisions().folder.mkdir()
    refused_decisions().path.write_bytes(b'{"key": "tor')
    spool.append([msgspec.structs.replace(entries[0], model_version_id=10**9)])
    assert deliver_spooled() == 1
    torn, whole = refused_decisions().records()
    assert torn.data == b'{"key": "tor'
    assert whole.transaction_id == entries[0].transaction.id


def _line(each: JournalEntry) -> Line:
    data = msgspec.json.encode(each)
    return Line(0, data, len(data) + 1)
