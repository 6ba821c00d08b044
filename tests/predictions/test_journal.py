import shutil
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.db import connection

from features.models import FeatureRow, Transaction
from mlserve.api.admission import Admission, Visit
from mlserve.cache.wiring import engine
from mlserve.errors import MlserveError
from predictions import journal as journal_module
from predictions import spool
from predictions.delivery import deliver_spooled, refused_decisions
from predictions.journal import (
    MOST_PER_COMMIT,
    Journal,
    JournalEntry,
    Recorded,
    TransactionConflict,
    commit,
    stored_response,
)
from predictions.models import Decision
from predictions.stored import AnswerUnreadable
from tests.fixtures.population import World
from tests.predictions.entries import entry


def test_decisions_of_one_moment_share_a_commit_and_are_all_durable(world: World) -> None:
    """Ledger, activity and decision of each, when `record` returns."""
    journal, entries = Journal(), [entry(world.newcomer("t")) for _ in range(20)]
    barrier = threading.Barrier(len(entries))

    def record(each: JournalEntry) -> None:
        barrier.wait()
        assert not journal.record(each).spooled

    threads = [threading.Thread(target=record, args=(each,)) for each in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.stop()
    ids = [each.transaction.id for each in entries]
    assert Decision.objects.filter(pk__in=ids).count() == 20
    assert Transaction.objects.filter(pk__in=ids).count() == 20
    customers = [each.transaction.customer_id for each in entries]
    assert FeatureRow.objects.filter(group="customer_activity", entity_id__in=customers).count() == 20


def test_what_is_handed_over_together_is_one_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much it is; outcomes come in the order of the entries, a refused one among them."""
    sizes: list[int] = []

    def counting(entries: Any) -> Any:
        sizes.append(len(entries))
        return commit(entries)

    monkeypatch.setattr(journal_module, "commit", counting)
    journal, entries = Journal(), [entry(world.newcomer("t")) for _ in range(MOST_PER_COMMIT + 50)]
    other = msgspec.structs.replace(entries[3], digest=b"x" * 32)
    outcomes = journal.record_many([*entries, other])
    assert journal.record_many([]) == []
    journal.stop()
    assert sizes == [len(entries) + 1]
    assert [type(outcome) for outcome in outcomes] == [Recorded] * len(entries) + [TransactionConflict]
    assert Decision.objects.filter(pk__in=[each.transaction.id for each in entries]).count() == len(entries)


def test_the_statements_of_a_commit_are_planned_once(world: World) -> None:
    """Planning them takes about as long as carrying them out."""
    connection.close()  # a session without prepared statements
    for _ in range(12):  # PostgreSQL plans the first five for their values
        commit([entry(world.newcomer("planned"))])
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement, generic_plans FROM pg_prepared_statements")
        plans = dict(cursor.fetchall())
    for written in ("features_transaction", "predictions_decision"):
        assert any(f"INSERT INTO {written}" in statement and generic for statement, generic in plans.items()), written


def test_repetitions_within_one_commit_are_found(world: World) -> None:
    """The first of the batch stands; an equal one gets its answer, another one a conflict."""
    name = world.newcomer("t")
    first, same, other = entry(name), entry(name), entry(name, digest=b"x" * 32, amount=21.0)
    outcomes = commit([first, same, other])
    assert not isinstance(outcomes[0], MlserveError)
    assert outcomes[0].stored is None
    assert not isinstance(outcomes[1], MlserveError)
    assert outcomes[1].stored == stored_response(name)
    assert isinstance(outcomes[2], TransactionConflict)


def test_an_imported_transaction_can_be_scored_as_it_is_and_not_otherwise(world: World) -> None:
    """The ledger knows it, but nobody has decided yet; other contents are a conflict and leave no decision."""
    known = Transaction.objects.get(pk="ledger-1")
    contents: dict[str, Any] = {
        "occurred_at": known.occurred_at,
        "customer_id": known.customer_id,
        "merchant_id": known.merchant_id,
        "amount": float(known.amount),
    }
    (refused,) = commit([entry("ledger-1", **{**contents, "amount": 0.01})])
    assert isinstance(refused, TransactionConflict)
    assert stored_response("ledger-1") is None
    (accepted,) = commit([entry("ledger-1", **contents)])
    assert not isinstance(accepted, MlserveError)
    assert stored_response("ledger-1") is not None


def test_an_entry_that_postgres_refuses_harms_no_other(world: World) -> None:
    """It fails alone; the rest of its batch is stored, the breaker stays closed, nothing is spooled."""
    journal, bad, barrier = Journal(), entry(world.newcomer("t"), amount=1e20), threading.Barrier(5)
    good = [entry(world.newcomer("t")) for _ in range(4)]
    failures: list[MlserveError] = []

    def record(each: JournalEntry) -> None:
        barrier.wait()
        try:
            journal.record(each)
        except MlserveError as error:
            failures.append(error)

    threads = [threading.Thread(target=record, args=(each,)) for each in (bad, *good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.stop()
    assert [bad.transaction.id in str(error) for error in failures] == [True]
    assert Decision.objects.filter(pk__in=[each.transaction.id for each in good]).count() == 4
    assert engine().l3_breaker.opened_count == 0
    assert spool.pending_files() == []


def test_a_spooled_decision_is_delivered_once_however_often(world: World, tmp_path: Path) -> None:
    """A delivery that was cut off after its commit is repeated without harm: one decision, one place in the windows."""
    each = entry(world.newcomer("t"))
    spool.append([each])
    spool.leave_own_file()
    (path,) = spool.pending_files()
    shutil.copy(path, tmp_path)
    assert deliver_spooled() == 1
    row = FeatureRow.objects.get(group="customer_activity", entity_id=each.transaction.customer_id)
    stored = stored_response(each.transaction.id)
    shutil.copy(tmp_path / path.name, path)
    assert deliver_spooled() == 1
    again = FeatureRow.objects.get(group="customer_activity", entity_id=each.transaction.customer_id)
    assert (again.values, again.version) == (row.values, row.version)
    assert stored_response(each.transaction.id) == stored
    assert deliver_spooled() == 0


def test_a_spooled_line_that_cannot_be_delivered_is_set_aside(world: World) -> None:
    """Broken, or in conflict with a decision that stands: the others are delivered, and nothing is thrown away."""
    name = world.newcomer("t")
    commit([entry(name)])
    conflicting, good = entry(name, digest=b"x" * 32), entry(world.newcomer("t"))
    spool.append([conflicting, good])
    spool.leave_own_file()
    (path,) = spool.pending_files()
    path.write_bytes(b'{"transaction": "?"}\n' + path.read_bytes())
    assert deliver_spooled() == 3
    assert stored_response(good.transaction.id) is not None
    first, second = refused_decisions().records()
    refused_decisions().path.unlink()
    assert first.data == b'{"transaction": "?"}'
    assert msgspec.json.decode(second.data, type=JournalEntry) == conflicting


def test_a_journal_that_is_stopped_finishes_what_it_has(world: World) -> None:
    """And starts again with the next entry."""
    journal = Journal()
    for _ in range(2):
        each = entry(world.newcomer("t"))
        journal.record(each)
        journal.stop()
        assert stored_response(each.transaction.id) is not None
    journal.stop()


def test_a_repetition_is_compared_with_what_was_stored(world: World) -> None:
    """Not with what this process remembers."""
    each = entry(world.newcomer("t"))
    journal = Journal()
    assert journal.record(each).stored is None
    assert journal.record(each).stored == stored_response(each.transaction.id)
    with pytest.raises(TransactionConflict):
        journal.record(msgspec.structs.replace(each, digest=b"y" * 32))
    journal.stop()


def test_an_answer_from_before_it_was_deflated_is_read_as_it_is(world: World) -> None:
    """And a repetition is answered with it."""
    each = entry(world.newcomer("t"))
    commit([each])
    answer = stored_response(each.transaction.id)
    assert answer is not None
    stored = Decision.objects.filter(transaction_id=each.transaction.id)
    assert len(stored.get().response) < len(answer)
    stored.update(response=answer)
    assert stored_response(each.transaction.id) == answer
    assert commit([each])[0].stored == answer  # type: ignore[union-attr]


@pytest.mark.parametrize("garbage", [b"", b"\x78\x01\x02", b"\x80\x04K*."])
def test_a_stored_answer_that_cannot_be_read_harms_only_who_asks_for_it(world: World, garbage: bytes) -> None:
    """Others of the same commit are stored."""
    broken, other = entry(world.newcomer("t")), entry(world.newcomer("t"))
    commit([broken])
    Decision.objects.filter(transaction_id=broken.transaction.id).update(response=garbage)
    with pytest.raises(AnswerUnreadable):
        stored_response(broken.transaction.id)
    outcomes = commit([broken, other])
    assert isinstance(outcomes[0], AnswerUnreadable)
    assert isinstance(outcomes[1], Recorded)


def test_who_waits_for_a_commit_leaves_the_place_to_others(world: World) -> None:
    """Until the request is over it is counted aside."""
    admission = Admission(at_once=1, most_waiting=1, clock=engine().clock)
    visit = Visit()
    assert visit.enter(admission) is None
    journal = Journal()
    journal.record(entry(world.newcomer("t")))
    journal.stop()
    assert (admission.under_way, admission.aside) == (0, 1)
    visit.leave()
    assert (admission.under_way, admission.aside) == (0, 0)
