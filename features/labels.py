"""Takes in what became of transactions: into the ledger what is in force, into the reports how that came about.

Of two reports of one transaction the one whose `reported_at` is newer is in force, in whatever order they arrive; of
two with the same moment, the one that arrived later. `merchant_risk` follows with its next build, and a report counts
in no feature before the moment at which it was recorded (`ledger.py`), however early its `reported_at` is.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

import msgspec
from django.db import connection, transaction

from mlserve.errors import ErrorCode, FieldError, MlserveError
from mlserve.observability import metrics
from mlserve.postgres.sessions import Kind, session_of


class UnknownTransaction(MlserveError):
    """The ledger does not have it, or not yet: a decision may be waiting on a host's disk."""

    code: ClassVar[ErrorCode] = ErrorCode.NOT_FOUND


class ReportedTooEarly(MlserveError):
    """Nobody can know what becomes of a transaction before it occurs."""

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_FIELDS


class LabelOutcome(StrEnum):
    RECORDED = "recorded"
    """It is in force now."""
    UNCHANGED = "unchanged"
    """It was known already; nothing was stored."""
    SUPERSEDED = "superseded"
    """It was stored, and a newer report stays in force."""


class NewLabel(msgspec.Struct, frozen=True):
    """`reported_at` None: now, unless that very label is in force already."""

    transaction_id: str
    is_fraud: bool
    reported_at: datetime | None = None


class Labelled(msgspec.Struct, frozen=True):
    """`is_fraud`: the label in force afterwards."""

    outcome: LabelOutcome
    is_fraud: bool


class _Known(msgspec.Struct):
    """What is known of a transaction: the label in force, and the reports (moment, label)."""

    occurred_at: datetime
    is_fraud: bool | None
    reports: set[tuple[datetime, bool]] = msgspec.field(default_factory=set)
    newest: datetime | None = None


class _Report(msgspec.Struct, frozen=True):
    transaction_id: str
    is_fraud: bool
    reported_at: datetime
    applied: bool
    was: bool | None


def report_labels(labels: Sequence[NewLabel], *, client: str, now: datetime) -> list[Labelled | MlserveError]:
    """What became of each, in their order, durable on return; UnknownTransaction or ReportedTooEarly in its place.

    One database transaction and five statements, whatever their number. Raises Django's database errors, and then
    nothing was stored; to report the same again does no harm.
    """
    if not labels:
        return []
    ids = sorted({label.transaction_id for label in labels})
    with session_of(Kind.API), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_LOCK, (ids,))
        known = {row[0]: _Known(row[1], row[2]) for row in cursor.fetchall()}
        cursor.execute(_REPORTS, (list(known),))
        for transaction_id, is_fraud, reported_at, applied in cursor.fetchall():
            of = known[transaction_id]
            of.reports.add((reported_at, is_fraud))
            if applied:
                of.newest = reported_at if of.newest is None else max(of.newest, reported_at)
        reports: list[_Report] = []
        outcomes = [_take(label, known.get(label.transaction_id), reports, now=now) for label in labels]
        if reports:
            cursor.execute(
                _INSERT,
                (
                    now,
                    client,
                    [report.transaction_id for report in reports],
                    [report.is_fraud for report in reports],
                    [report.reported_at for report in reports],
                    [report.applied for report in reports],
                    [report.was for report in reports],
                ),
            )
        changed = sorted({report.transaction_id for report in reports if report.applied})
        if changed:
            cursor.execute(_LABEL, (changed, [known[transaction_id].is_fraud for transaction_id in changed]))
    for outcome in outcomes:
        metrics.LABELS.labels(str(outcome.outcome) if isinstance(outcome, Labelled) else "refused").inc()
    return outcomes


def _take(label: NewLabel, known: _Known | None, reports: list[_Report], *, now: datetime) -> Labelled | MlserveError:
    """One label, after all before it. Adds what is to be stored to `reports`; `known` is then as it will be."""
    if known is None:
        return UnknownTransaction(f"The ledger has no transaction {label.transaction_id}.")
    at = now if label.reported_at is None else min(label.reported_at, now)
    if at < known.occurred_at and label.reported_at is not None:
        detail = f"before the transaction, which occurred at {known.occurred_at:%Y-%m-%dT%H:%M:%SZ}"
        return ReportedTooEarly("One field is wrong.", errors=[FieldError(pointer="/reported_at", detail=detail)])
    if label.reported_at is None:
        known_already = label.is_fraud == known.is_fraud
    else:
        known_already = (at, label.is_fraud) in known.reports
    if known_already:
        assert known.is_fraud is not None
        return Labelled(LabelOutcome.UNCHANGED, known.is_fraud)
    applied = known.newest is None or at >= known.newest
    reports.append(_Report(label.transaction_id, label.is_fraud, at, applied, known.is_fraud))
    known.reports.add((at, label.is_fraud))
    if applied:
        known.newest, known.is_fraud = at, label.is_fraud
        return Labelled(LabelOutcome.RECORDED, label.is_fraud)
    assert known.is_fraud is not None
    return Labelled(LabelOutcome.SUPERSEDED, known.is_fraud)


# In the ids' order, so that two reporters never wait for each other in a circle. Reports are read after the lock: they
# hold everything that an earlier holder committed.
_LOCK = """
SELECT id, occurred_at, is_fraud FROM features_transaction WHERE id = ANY(%s) ORDER BY id COLLATE "C" FOR NO KEY UPDATE
"""
_REPORTS = """
SELECT transaction_id, is_fraud, reported_at, applied FROM features_labelreport WHERE transaction_id = ANY(%s)
"""
_INSERT = """
INSERT INTO features_labelreport (transaction_id, is_fraud, reported_at, applied, was, recorded_at, client)
SELECT report.*, %s::timestamptz, %s::text
FROM unnest(%s::text[], %s::boolean[], %s::timestamptz[], %s::boolean[], %s::boolean[]) AS report
"""
_LABEL = """
UPDATE features_transaction AS ledger SET is_fraud = label.is_fraud
FROM unnest(%s::text[], %s::boolean[]) AS label (id, is_fraud)
WHERE ledger.id = label.id AND ledger.is_fraud IS DISTINCT FROM label.is_fraud
"""
