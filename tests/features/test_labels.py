"""Labels: what is in force, what is kept of how it came about, and that no feature knows one before it was recorded."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from threading import Thread

import numpy as np
import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from features import compute
from features.compute import LateLabels
from features.cutoffs import cutoff_us
from features.labels import (
    Labelled,
    LabelOutcome,
    NewLabel,
    ReportConflict,
    ReportedTooEarly,
    UnknownTransaction,
    report_labels,
)
from features.ledger import read_ledger
from features.models import FeatureRow, LabelReport, Transaction
from features.point_in_time import training_vectors
from features.refresh import build
from mlserve.errors import MlserveError
from tests.features.ledgers import START, payment, record, some_payments
from tests.features.sessions import somebody_waits
from tests.fixtures.waiting import until

DAY = timedelta(days=1)


def report(
    *labels: tuple[str, bool] | tuple[str, bool, datetime], now: datetime = START + 30 * DAY
) -> list[Labelled | MlserveError]:
    return report_labels([NewLabel(*label) for label in labels], client="mls_test", now=now)


def outcomes(taken: Sequence[Labelled | MlserveError]) -> list[tuple[str, bool]]:
    return [(str(each.outcome), each.is_fraud) for each in taken if isinstance(each, Labelled)]


def in_force(transaction_id: str = "1") -> bool | None:
    return Transaction.objects.values_list("is_fraud", flat=True).get(pk=transaction_id)


@pytest.fixture
def ledger(db: None) -> None:
    record([payment("1", START, is_fraud=None), payment("2", START, is_fraud=None), payment("3", START, is_fraud=True)])


@pytest.mark.usefixtures("ledger")
def test_a_label_comes_into_force_and_is_kept_with_its_origin() -> None:
    """In the ledger at once; the report says who, when it was known, when it came and what held before."""
    reported, now = START + DAY, START + 3 * DAY
    assert outcomes(report(("1", True, reported), now=now)) == [("recorded", True)]
    assert (in_force("1"), in_force("2")) == (True, None)
    kept = LabelReport.objects.get()
    assert (kept.transaction_id, kept.is_fraud, kept.was, kept.applied) == ("1", True, None, True)
    assert (kept.reported_at, kept.recorded_at, kept.client) == (reported, now, "mls_test")


@pytest.mark.usefixtures("ledger")
def test_the_same_again_changes_nothing() -> None:
    """With its moment, without one, and twice in one list; also what the import said already."""
    report(("1", True, START + DAY), ("2", False))
    again = report(("1", True, START + DAY), ("1", True), ("2", False), ("3", True), now=START + 40 * DAY)
    assert outcomes(again) == [("unchanged", True), ("unchanged", True), ("unchanged", False), ("unchanged", True)]
    kept = LabelReport.objects.count()
    assert LabelReport.objects.filter(applied=True).count() == 2
    report(("1", True, START + DAY), ("1", True), ("2", False), ("3", True), now=START + 41 * DAY)
    assert LabelReport.objects.count() == kept


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("moment", [None, START + 29 * DAY, START + 30 * DAY + timedelta(hours=2)])
def test_a_report_that_is_delivered_again_undoes_no_correction(moment: datetime | None) -> None:
    """Whether it says no moment, one that has passed, or one that is ahead of the service's clock."""
    hours = [START + 30 * DAY + timedelta(hours=hour) for hour in range(4)]
    first, correction = NewLabel("1", True, moment), NewLabel("1", False, moment)
    for label, now, outcome in (
        (first, hours[0], ("recorded", True)),
        (correction, hours[1], ("recorded", False)),
        (first, hours[2], ("unchanged", False)),
        (correction, hours[3], ("unchanged", False)),
    ):
        assert outcomes(report_labels([label], client="mls_test", now=now)) == [outcome]
    assert in_force() is False
    assert LabelReport.objects.count() == 2


@pytest.mark.usefixtures("ledger")
def test_a_report_that_confirmed_is_recognised_too() -> None:
    """Payment 3 came as fraud with its import: the report that says so, delivered again, undoes no correction."""
    assert outcomes(report(("3", True))) == [("unchanged", True)]
    assert outcomes(report(("3", False), now=START + 31 * DAY)) == [("recorded", False)]
    assert outcomes(report(("3", True), now=START + 32 * DAY)) == [("unchanged", False)]
    assert in_force("3") is False


@pytest.mark.usefixtures("ledger")
def test_a_report_is_what_its_id_says() -> None:
    """The same contents under a new id are a new report; other contents under a known id are refused."""
    days = iter(range(30, 40))

    def say(is_fraud: bool, report_id: str | None) -> list[Labelled | MlserveError]:
        label = NewLabel("1", is_fraud, None, report_id)
        return report_labels([label], client="mls_test", now=START + next(days) * DAY)

    assert outcomes(say(True, "a")) == [("recorded", True)]
    assert outcomes(say(False, "b")) == [("recorded", False)]
    assert outcomes(say(True, "a")) == [("unchanged", False)]
    assert outcomes(say(True, None)) == [("unchanged", False)]
    assert outcomes(say(True, "c")) == [("recorded", True)]
    (refused,) = say(False, "c")
    assert isinstance(refused, ReportConflict)
    assert refused.errors[0].pointer == "/report_id"
    assert LabelReport.objects.count() == 3


@pytest.mark.usefixtures("ledger")
def test_reports_of_releases_before_are_recognised_by_their_moments() -> None:
    """They have no digest: one whose moment is that of its arrival may have said none."""
    report(("1", True), now=START + 30 * DAY)
    report(("1", False), now=START + 31 * DAY)
    LabelReport.objects.update(digest=None)
    assert outcomes(report(("1", True), now=START + 32 * DAY)) == [("unchanged", False)]


@pytest.mark.usefixtures("ledger")
def test_a_later_report_corrects_and_the_history_stays() -> None:
    """Also within one list; the correction knows what it corrects."""
    taken = report(("1", True), ("1", False), ("3", False))
    assert outcomes(taken) == [("recorded", True), ("recorded", False), ("recorded", False)]
    assert (in_force("1"), in_force("3")) == (False, False)
    assert list(LabelReport.objects.order_by("id").values_list("transaction_id", "was", "is_fraud")) == [
        ("1", None, True),
        ("1", True, False),
        ("3", True, False),
    ]


@pytest.mark.usefixtures("ledger")
def test_an_older_report_that_arrives_late_is_kept_and_changes_nothing() -> None:
    """The newest moment is in force, in whatever order reports arrive; at the same moment the later arrival."""
    report(("1", False, START + 5 * DAY))
    assert outcomes(report(("1", True, START + 2 * DAY))) == [("superseded", False)]
    assert in_force() is False
    assert outcomes(report(("1", True, START + 5 * DAY))) == [("recorded", True)]
    assert in_force() is True
    assert list(LabelReport.objects.order_by("id").values_list("applied", flat=True)) == [True, False, True]


@pytest.mark.usefixtures("ledger")
def test_a_moment_ahead_of_the_clock_does_not_outlast_corrections() -> None:
    """It counts as now."""
    now = START + 10 * DAY
    report(("1", True, now + timedelta(hours=20)), now=now)
    assert outcomes(report(("1", False), now=now + timedelta(minutes=1))) == [("recorded", False)]


@pytest.mark.usefixtures("ledger")
def test_what_cannot_be_is_refused_in_its_place() -> None:
    """An unknown transaction, and a report from before it occurred; the others are stored."""
    taken = report(("1", True), ("nobody", True), ("2", True, START - DAY))
    assert isinstance(taken[0], Labelled)
    assert isinstance(taken[1], UnknownTransaction) and "nobody" in str(taken[1])
    assert isinstance(taken[2], ReportedTooEarly) and taken[2].errors[0].pointer == "/reported_at"
    assert (in_force("1"), in_force("2")) == (True, None)


@pytest.mark.parametrize("count", [1, 200])
def test_the_number_of_statements_does_not_depend_on_the_number_of_labels(db: None, count: int) -> None:
    """Lock, reports, insert, update; begin and end are savepoints here."""
    record([payment(str(number), START, is_fraud=None) for number in range(count)])
    with CaptureQueriesContext(connection) as queries:
        report(*((str(number), True) for number in range(count)))
    assert len(queries) == 6


@pytest.mark.django_db(transaction=True)
def test_a_second_reporter_waits_for_the_first_and_knows_what_it_said() -> None:
    """What held before is true of both reports, and the later arrival is in force."""
    record([payment("1", START, is_fraud=None)])
    taken: list[Labelled | MlserveError] = []

    def second() -> None:
        try:
            taken.extend(report(("1", False), now=START + 31 * DAY))
        finally:
            connections.close_all()

    thread = Thread(target=second)
    with transaction.atomic():
        report(("1", True))
        thread.start()
        until(somebody_waits, within_s=10)
    thread.join()
    assert outcomes(taken) == [("recorded", False)]
    assert list(LabelReport.objects.order_by("id").values_list("was", "is_fraud")) == [(None, True), (True, False)]
    assert in_force() is False


# --- point in time ---


@pytest.mark.usefixtures("ledger")
def test_merchant_risk_follows_with_its_next_build() -> None:
    """Share of fraud over the windows that hold the transaction, seven days delayed."""
    now = START + timedelta(days=7, hours=12)
    build(["merchant_risk"], as_of=now, now=now)
    assert FeatureRow.objects.get(group="merchant_risk", entity_id="m1").values[:2] == [3, pytest.approx(1 / 3)]
    report(("1", True), now=now)
    build(["merchant_risk"], as_of=now, now=now)
    assert FeatureRow.objects.get(group="merchant_risk", entity_id="m1").values[:2] == [3, pytest.approx(2 / 3)]


def test_a_label_that_was_reported_late_was_not_known_earlier(db: None) -> None:
    """Neither in training vectors nor in a build of the past: before it was recorded it counts in no window.

    The moment that the reporter names does not matter: this service did not know.
    """
    fraud, asked = payment("1", START, is_fraud=None), [9, 12, 13, 20]
    record([fraud, *(payment(f"9{day:02}", START + day * DAY) for day in asked)])
    report(("1", True, START + DAY), now=START + 12.5 * DAY)
    vectors = training_vectors((START + 9 * DAY).date(), (START + 20 * DAY).date(), ["merchant_risk_30d"])
    trained = dict(zip(vectors.transaction_ids, vectors.X[:, 0].tolist(), strict=True))
    assert [trained[f"9{day:02}"] > 0 for day in asked] == [False, False, True, True]
    for day in asked:
        at = START + day * DAY
        build(["merchant_risk"], as_of=at, now=START + 40 * DAY)
        served = FeatureRow.objects.get(group="merchant_risk", entity_id="m1").values[5]
        assert served == pytest.approx(trained[f"9{day:02}"])


def test_a_label_that_came_in_time_counts_as_one_that_was_imported(db: None) -> None:
    """From the seventh day on, which is when windows look at it."""
    record([payment("1", START, is_fraud=None), payment("2", START + 6.9 * DAY), payment("3", START + 7.1 * DAY)])
    report(("1", True), now=START + 2 * DAY)
    assert len(read_ledger(until=START + 30 * DAY).late.row) == 0
    vectors = training_vectors(START.date(), (START + 8 * DAY).date(), ["merchant_risk_30d"])
    assert vectors.X[:, 0].tolist() == [0, 0, 1]


def test_a_correction_is_known_from_its_own_moment_on(db: None) -> None:
    """Fraud from the first report on, genuine from the second on."""
    asked = [8, 10, 12]
    record([payment("1", START, is_fraud=None), *(payment(f"9{day:02}", START + day * DAY) for day in asked)])
    report(("1", True), now=START + 9 * DAY)
    report(("1", False), now=START + 11 * DAY)
    vectors = training_vectors((START + 8 * DAY).date(), (START + 12 * DAY).date(), ["merchant_risk_30d"])
    assert (vectors.X[:, 0] > 0).tolist() == [False, True, False]


def test_windows_with_late_labels_are_what_counting_by_hand_gives(db: None) -> None:
    """For every transaction of a ledger with many labels that came late, were corrected, or came in time."""
    chance = random.Random(5)
    payments = some_payments(250, days=60)
    record(payments)
    for when in sorted(chance.uniform(0, 75) for _ in range(40)):
        now = START + when * DAY
        known = [row.id for row in payments if row.occurred_at < now]
        if known:
            report(*((each, chance.random() < 0.6) for each in chance.sample(known, min(8, len(known)))), now=now)
    history = list(LabelReport.objects.order_by("id"))
    assert len({one.transaction_id for one in history}) < len(history), "some are corrected"
    imported = {row.id: row.is_fraud for row in payments}

    def known_at(transaction_id: str, now: datetime) -> bool:
        label = imported[transaction_id]
        for one in history:
            if one.transaction_id == transaction_id and one.recorded_at <= now:
                label = one.is_fraud
        return bool(label)

    def counted(merchant: str, now: datetime) -> list[float]:
        row: list[float] = []
        for days in (1, 7, 30):
            found = [
                known_at(each.id, now)
                for each in payments
                if each.merchant_id == merchant and now - (7 + days) * DAY < each.occurred_at <= now - 7 * DAY
            ]
            row += [len(found), sum(found) / len(found) if found else 0.0]
        return row

    until = START + 90 * DAY
    columns = read_ledger(until=until)
    assert len(columns.late.row) > 20
    trained = compute.merchant_windows(columns.merchant, columns.at_us, columns.fraud, late=columns.late)
    by_id = {row.id: row for row in payments}
    for transaction_id, windows in zip(columns.transaction_ids, trained, strict=True):
        row = by_id[transaction_id]
        assert windows.tolist() == pytest.approx(counted(row.merchant_id, row.occurred_at)), transaction_id
    cutoffs = cutoff_us("merchant_risk", columns.at_us)
    assert (cutoffs < columns.at_us).any()
    at_cutoffs = compute.merchant_windows(
        columns.merchant, columns.at_us, columns.fraud, moments_us=cutoffs, late=columns.late
    )
    for place, windows in enumerate(at_cutoffs):
        cutoff = datetime.fromtimestamp(cutoffs[place] / 1e6, UTC)
        assert windows.tolist() == pytest.approx(counted(columns.merchants[columns.merchant[place]], cutoff)), place
    for day in (20, 45.5, 70):
        now = START + day * DAY
        at = int((now - START).total_seconds() * 1e6) + int(START.timestamp() * 1e6)
        built = compute.merchant_windows_at(
            len(columns.merchants), columns.merchant, columns.at_us, columns.fraud, now_us=at, late=columns.late
        )
        for merchant, windows in zip(columns.merchants, built, strict=True):
            assert windows.tolist() == pytest.approx(counted(merchant, now))


def test_spans_that_are_empty_change_nothing() -> None:
    """A step that was recorded out of turn, or before any window looks."""
    at_us = np.array([0, 9 * 86_400 * 10**6])
    merchant, fraud, one = np.array([0, 0]), np.array([1, 0]), np.array([1])
    late = LateLabels(np.array([0]), 5 * one, 4 * one, 0 * one)
    same = compute.merchant_windows(merchant, at_us, fraud)
    assert compute.merchant_windows(merchant, at_us, fraud, late=late).tolist() == same.tolist()
    assert same[1].tolist() == [0, 0, 1, 1, 1, 1]


def test_outcomes_have_their_names() -> None:
    """Clients rely on them."""
    assert [str(each) for each in LabelOutcome] == ["recorded", "unchanged", "superseded"]
