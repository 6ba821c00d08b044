"""The judge, the conduct and the plan of a bad day find what is planted, and nothing else."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from tests.torture.bad_day import judge as judging
from tests.torture.bad_day.conduct import CALM, Allowed, Answer, Conduct, faults_of
from tests.torture.bad_day.evidence import raised
from tests.torture.bad_day.fault import Fault
from tests.torture.bad_day.judge import (
    ActivityRow,
    Copy,
    Difference,
    Facts,
    ProcessSample,
    Session,
    Stored,
    judge,
)
from tests.torture.bad_day.ledger import Attempt, LabelTold, Ledger, Told
from tests.torture.bad_day.plan import plan_day


def _attempt(told: Told = Told.DECIDED, *, score: float = 0.25, decision: str = "approve", **changes: Any) -> Attempt:
    attempt = Attempt(
        transaction_id="t-1",
        sent_at=1.0,
        answered_at=1.1,
        told=told,
        under="postgres frozen",
        web=0,
        kind="score",
        amount=20.0,
        score=score if told is Told.DECIDED else None,
        decision=decision if told is Told.DECIDED else "",
    )
    return replace(attempt, **changes)


STORED = Stored(transaction_id="t-1", score=0.25, decision="approve", amount=20.0)
OTHER = replace(STORED, score=0.75, decision="decline")


def _rules(**facts: Any) -> list[str]:
    return [violation.rule for violation in judge(Facts(**facts))]


def _told(*attempts: Attempt) -> dict[str, list[Attempt]]:
    return {"t-1": list(attempts)}


def test_what_was_told_and_is_stored_is_well() -> None:
    """Once, with the answer that was given; repetitions and who got no answer change nothing."""
    attempts = _told(_attempt(Told.UNKNOWN), _attempt(), _attempt(replayed=True), _attempt(Told.CONFLICT, amount=21.0))
    assert _rules(attempts=attempts, stored=[STORED]) == []


def test_a_lost_decision_is_found() -> None:
    """With its id, the moment and the fault that was under way."""
    (violation,) = judge(Facts(attempts=_told(_attempt())))
    assert (violation.rule, violation.at, violation.under) == ("lost", 1.0, "postgres frozen")
    assert "t-1" in violation.detail


@pytest.mark.parametrize("explained_by", ["refused", "lost_by_restore"])
def test_a_decision_that_is_explained_is_not_lost(explained_by: str) -> None:
    """By the file of refused ones, or because the restored copy was older; but only the very answer that was given."""
    assert _rules(attempts=_told(_attempt()), **{explained_by: [STORED]}) == []
    assert _rules(attempts=_told(_attempt()), **{explained_by: [OTHER]}) == ["lost"]


@pytest.mark.parametrize("stored", [OTHER, replace(STORED, amount=21.0)])
def test_another_answer_than_was_told_is_found(stored: Stored) -> None:
    """Another score, or the same score of other contents."""
    assert _rules(attempts=_told(_attempt()), stored=[stored]) == ["other answer"]


def test_of_two_answers_one_must_be_explained() -> None:
    """Two processes that decided on one id while PostgreSQL was away."""
    attempts = _told(_attempt(), _attempt(score=0.75, decision="decline", web=1))
    assert _rules(attempts=attempts, stored=[STORED]) == ["other answer"]
    assert _rules(attempts=attempts, stored=[STORED], refused=[OTHER]) == []


def test_a_doubled_decision_is_found() -> None:
    """Stored twice, or once more in the customer's windows."""
    assert _rules(attempts=_told(_attempt()), stored=[STORED, STORED]) == ["twice"]
    payment = (1.0, 20.0, 7.0)
    assert _rules(activity=[ActivityRow(customer_id="c", stored=(payment, payment), derived=(payment,))]) == [
        "activity"
    ]


def test_a_decision_without_its_transaction_is_found() -> None:
    """They are written together."""
    assert _rules(attempts=_told(_attempt()), stored=[replace(STORED, amount=None)]) == ["no transaction"]


def test_a_refused_decision_that_stands_is_found() -> None:
    """Unless somebody got no answer, or was told that nobody knows."""
    refused = _attempt(Told.REFUSED)
    assert _rules(attempts=_told(refused), stored=[STORED]) == ["stands after all"]
    assert _rules(attempts=_told(refused, _attempt(Told.UNKNOWN)), stored=[STORED]) == []
    assert _rules(attempts=_told(refused)) == []


def test_a_lost_label_is_found() -> None:
    """A report of the other label is none of this one."""
    told = LabelTold(transaction_id="t-1", is_fraud=True, sent_at=1.0, under="beat killed")
    assert _rules(labels_told=[told], label_reports={("t-1", True)}) == []
    assert _rules(labels_told=[told], label_reports={("t-1", False)}) == ["label lost"]


def test_windows_that_miss_a_transaction_are_found() -> None:
    """The row's or the whole row."""
    first, second = (1.0, 20.0, 7.0), (2.0, 30.0, 8.0)
    assert _rules(activity=[ActivityRow(customer_id="c", stored=(first,), derived=(first, second))]) == ["activity"]
    assert _rules(activity=[ActivityRow(customer_id="c", stored=None, derived=(first,))]) == ["activity"]
    assert _rules(activity=[ActivityRow(customer_id="c", stored=(first, second), derived=(first, second))]) == []


@pytest.mark.parametrize(("version", "rules"), [(4, ["stale"]), (5, []), (6, ["from nowhere"])])
def test_a_copy_of_another_version_is_found(version: int, rules: list[str]) -> None:
    """An older one, and one of a database that was restored to before it."""
    copy = Copy(where="l1 of web-0", entity="customer/c", group="customer_activity", version=version, source_version=5)
    assert _rules(copies=[copy]) == rules


def test_a_different_feature_and_a_policy_that_nobody_heard_of_are_found() -> None:
    """Both are what an operator and a client would see."""
    wrong = Difference(where="web-0", entity="c at m", feature="customer_count_1d", cached=3.0, source=4.0)
    assert _rules(differences=[wrong]) == ["wrong value"]
    assert _rules(policies={"web-1": {"policy_version": 3, "newest": 4}}) == ["policies"]


def test_a_growing_file_and_new_files_are_found() -> None:
    """While nobody asks for anything; some lines of a log are none."""
    before = {"log/web-0.log": 1_000, "spool/refused.jsonl": 1_000}
    assert _rules(files=(before, {**before, "log/web-0.log": 5_000})) == []
    grown = judging.MAX_GROWTH_BYTES + 2_000
    assert _rules(files=(before, {**before, "spool/refused.jsonl": grown})) == ["grows"]
    assert _rules(files=(before, {**before, **{f"spool/decisions-{n}.jsonl": 10 for n in range(4)}})) == ["files"]


def test_a_growing_process_is_found() -> None:
    """By threads, open files or memory; one that was not there in the beginning is compared with nothing."""
    first = ProcessSample(threads=20, files=40, rss_bytes=200 * 2**20)

    def rules(last: ProcessSample) -> list[str]:
        return _rules(processes=({"web-0": first}, {"web-0": last, "web-0/1": last}))

    assert rules(first) == []
    assert rules(replace(first, threads=50)) == ["threads"]
    assert rules(replace(first, files=100)) == ["open files"]
    assert rules(replace(first, rss_bytes=600 * 2**20)) == ["memory"]


def test_what_hangs_is_found() -> None:
    """A process, a session, a relay, a spool that nobody empties."""
    held = Session(application="mlserve", state="idle in transaction", wait="Client", seconds=60.0, query="SELECT 1")
    assert _rules(silent=["beat does not run"]) == ["hangs"]
    assert _rules(sessions=[held]) == ["session"]
    assert _rules(sessions=[replace(held, seconds=1.0)]) == []
    assert _rules(relay_lag_s=30.0) == ["relay"]
    assert _rules(spooled_lines=3) == ["spool"]


def test_an_epoch_that_rises_by_itself_is_found() -> None:
    """All copies are void each time."""
    assert _rules(epochs=({"0": 3.0}, {"0": 3.0})) == []
    assert _rules(epochs=({"0": 3.0}, {"0": 9.0})) == ["epoch"]


def test_what_the_processes_say_themselves_is_found() -> None:
    """Errors that nobody foresaw, in logs and counters, and what the doctor finds."""
    assert _rules(tracebacks={"web-0.log: ValueError: broken": 2}) == ["traceback"]
    assert _rules(errors_500=1.0) == ["500"]
    refused = ("spool", "3 decisions that clients were told were refused by PostgreSQL")
    assert _rules(doctor=[("warn", *refused)]) == []
    assert _rules(doctor=[("warn", "spool", "something else"), ("fail", *refused)]) == ["doctor", "doctor"]


def test_tracebacks_are_read_by_their_last_line() -> None:
    """One for a chain of them; a line of the log that follows ends it."""
    lines = [
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in a',
        "OSError: disk",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "b.py", line 2, in b',
        "ValueError: broken",
        "2026-11-28T10:12:53Z [info] request",
        "Traceback (most recent call last):",
        "KeyError",
    ]
    assert list(raised(lines)) == ["ValueError: broken", "KeyError"]


# --- conduct ---

ANSWER = Answer(kind="score", what="t-1", web=0, sent_at=1.0, seconds=0.1, status=200, customers=("c",))
AWAY = Allowed(refusals=frozenset({"score"}), spools=True, slowest_s=8.0, broken_webs=frozenset({1}), answered=0.5)


@pytest.mark.parametrize(
    ("answer", "calm", "away"),
    [
        (ANSWER, [], []),
        (replace(ANSWER, status=500), ["500"], ["500"]),
        (replace(ANSWER, status=401), ["status"], ["status"]),
        (replace(ANSWER, status=503, retry_after=True), ["refused"], []),
        (replace(ANSWER, status=503, retry_after=True, kind="find"), ["refused"], ["refused"]),
        (replace(ANSWER, status=503), ["refused", "retry-after"], ["retry-after"]),
        (replace(ANSWER, status=503, code="overloaded", retry_after=True), [], []),
        (replace(ANSWER, spooled=True), ["spooled"], []),
        (replace(ANSWER, seconds=6.0), ["slow"], []),
        (replace(ANSWER, seconds=9.0), ["slow"], ["slow"]),
        (replace(ANSWER, status=None, timed_out=True, seconds=10.0), ["timeout"], ["timeout"]),
        (replace(ANSWER, status=None, web=1), ["no answer"], []),
        (replace(ANSWER, kind="other", status=422), [], []),
        (replace(ANSWER, kind="other", status=200), ["status"], []),
        (replace(ANSWER, kind="repeat", status=422), ["status"], []),
    ],
)
def test_an_answer_is_held_against_what_may_be_seen(answer: Answer, calm: list[str], away: list[str]) -> None:
    """On a good day, and while PostgreSQL is away and the second web process is killed."""
    assert [rule for rule, _ in faults_of(answer, [CALM])] == calm
    assert [rule for rule, _ in faults_of(answer, [AWAY])] == away


def test_a_locked_customer_alone_may_wait() -> None:
    """All others are answered as ever."""
    locked = Allowed(held_customer="c")
    slow = replace(ANSWER, seconds=6.0, spooled=True)
    assert faults_of(slow, [locked]) == []
    assert [rule for rule, _ in faults_of(replace(slow, customers=("d",)), [locked])] == ["spooled", "slow"]


def test_an_answer_on_the_border_of_two_phases_may_be_seen_in_either() -> None:
    """Sent before the fault and answered while it lasts; a phase that has refused too much is told at its end."""
    conduct = Conduct()
    conduct.examine(replace(ANSWER, sent_at=9.0, seconds=2.0, status=503, retry_after=True))
    assert [violation.rule for violation in conduct.violations] == ["refused"]
    conduct.violations.clear()
    phase = conduct.begin("postgres frozen", AWAY, at=10.0)
    conduct.examine(replace(ANSWER, sent_at=9.0, seconds=2.0, status=503, retry_after=True))
    for _ in range(3):
        conduct.examine(replace(ANSWER, sent_at=11.0, status=503, retry_after=True))
    assert conduct.violations == []
    conduct.close_phase(phase, at=20.0)
    assert [violation.rule for violation in conduct.violations] == ["answered"]


# --- ledger and plan ---


def test_what_was_decided_before_a_restore_is_not_certain() -> None:
    """Nor what is only spooled yet."""
    ledger = Ledger()
    ledger.note(_attempt(Told.UNKNOWN))
    ledger.note(_attempt(reasons=("decision_spooled",)))
    assert ledger.certain("t-1") is None
    ledger.note(_attempt(sent_at=5.0))
    assert ledger.certain("t-1") is not None
    ledger.doubt_all_before(6.0)
    assert ledger.certain("t-1") is None
    assert len(ledger.attempts()["t-1"]) == 3


def _faults(number: int) -> list[Fault]:
    return [Fault(name=f"fault {n}", play=lambda day, lasts_s: None) for n in range(number)]


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    """And has every fault once, if there is time for one round, each as long as usual."""
    faults = _faults(10)
    steps, again = (plan_day(faults, seconds=161, random=Random(3)) for _ in range(2))
    assert steps == again
    assert sorted(step.fault.name for step in steps) == sorted(fault.name for fault in faults)
    assert {step.lasts_s for step in steps} == {faults[0].usual_s}


def test_a_short_day_leaves_faults_out_and_a_long_one_has_rounds() -> None:
    """Never longer than asked for by more than the faults' own estimate."""
    faults = _faults(10)
    assert 0 < len(plan_day(faults, seconds=60, random=Random(3))) < 10
    assert len(plan_day(faults, seconds=400, random=Random(3))) > 20


def test_times_on_a_crowded_machine_are_notes() -> None:
    """What is wrong at any speed is a violation there too."""
    conduct = Conduct(is_crowded=lambda: True)
    conduct.examine(replace(ANSWER, seconds=9.0, status=500))
    assert [note.rule for note in conduct.notes] == ["slow"]
    assert [violation.rule for violation in conduct.violations] == ["500"]
