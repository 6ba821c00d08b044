"""Takes in what became of transactions: into the ledger what is in force, into the reports how that came about.

Of two reports of one transaction the one whose `reported_at` is newer is in force, in whatever order they arrive; of
two with the same moment, the one that arrived later. A report that comes again changes nothing, whatever came between:
it is recognised by its `report_id`, or, without one, by all that it says. `merchant_risk` follows with its next build,
and a report counts in no feature before the moment at which it was recorded (`ledger.py`), however early its
`reported_at` is.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import blake2b
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


class ReportConflict(MlserveError):
    """The transaction has a report with this id that says something else."""

    code: ClassVar[ErrorCode] = ErrorCode.INVALID_FIELDS


class LabelOutcome(StrEnum):
    RECORDED = "recorded"
    """It is in force now."""
    UNCHANGED = "unchanged"
    """It had been reported before, or the label in force says the same: that one stays in force."""
    SUPERSEDED = "superseded"
    """It was stored, and a newer report stays in force."""


class NewLabel(msgspec.Struct, frozen=True):
    """`reported_at` None: now, unless that very label is in force already. `report_id` names this report for ever."""

    transaction_id: str
    is_fraud: bool
    reported_at: datetime | None = None
    report_id: str | None = None


class Labelled(msgspec.Struct, frozen=True):
    """`is_fraud`: the label in force afterwards."""

    outcome: LabelOutcome
    is_fraud: bool


class _Known(msgspec.Struct):
    """What is known of a transaction: the label in force, the digests of its reports, and those of their ids."""

    occurred_at: datetime
    is_fraud: bool | None
    digests: set[bytes] = msgspec.field(default_factory=set)
    by_id: dict[str, bytes] = msgspec.field(default_factory=dict)
    newest: datetime | None = None

    def remember(self, report_id: str, digests: Sequence[bytes]) -> None:
        self.digests.update(digests)
        if report_id:
            self.by_id[report_id] = digests[0]


class _Report(msgspec.Struct, frozen=True):
    transaction_id: str
    is_fraud: bool
    reported_at: datetime
    applied: bool
    was: bool | None
    report_id: str
    digest: bytes


def report_labels(labels: Sequence[NewLabel], *, client: str, now: datetime) -> list[Labelled | MlserveError]:
    """What became of each, in their order, durable on return; an UnknownTransaction, ReportedTooEarly or ReportConflict
    in its place.

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
        for transaction_id, is_fraud, reported_at, applied, report_id, digest, recorded_at in cursor.fetchall():
            of = known[transaction_id]
            of.remember(report_id, [bytes(digest)] if digest else _digests_of(is_fraud, reported_at, recorded_at))
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
                    [report.report_id for report in reports],
                    [report.digest for report in reports],
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
    digest, report_id = _digest(label.is_fraud, label.reported_at), label.report_id or ""
    earlier = known.by_id.get(report_id)
    if earlier not in (None, digest):
        detail = f"{report_id} is the id of another report on this transaction; a new report needs a new id"
        return ReportConflict("One field is wrong.", errors=[FieldError(pointer="/report_id", detail=detail)])
    if earlier == digest or (not report_id and digest in known.digests):
        assert known.is_fraud is not None
        return Labelled(LabelOutcome.UNCHANGED, known.is_fraud)
    known.remember(report_id, [digest])
    # One that confirms what is in force, and says no moment, is kept to be recognised, and counts for nothing else.
    confirms = label.reported_at is None and label.is_fraud == known.is_fraud
    applied = not confirms and (known.newest is None or at >= known.newest)
    reports.append(_Report(label.transaction_id, label.is_fraud, at, applied, known.is_fraud, report_id, digest))
    if confirms:
        return Labelled(LabelOutcome.UNCHANGED, label.is_fraud)
    if applied:
        known.newest, known.is_fraud = at, label.is_fraud
        return Labelled(LabelOutcome.RECORDED, label.is_fraud)
    assert known.is_fraud is not None
    return Labelled(LabelOutcome.SUPERSEDED, known.is_fraud)


def _digest(is_fraud: bool, reported_at: datetime | None) -> bytes:
    """Over what a report says, as it was sent: a moment ahead of the clock is another moment each time it is capped."""
    moment = "" if reported_at is None else reported_at.astimezone(UTC).isoformat()
    return blake2b(f"{is_fraud} {moment}".encode(), digest_size=16).digest()


def _digests_of(is_fraud: bool, reported_at: datetime, recorded_at: datetime) -> list[bytes]:
    """What a report may have said that was stored without a digest: of the moment of its arrival, perhaps nothing."""
    said = [_digest(is_fraud, reported_at)]
    return [*said, _digest(is_fraud, None)] if reported_at == recorded_at else said


# In the ids' order, so that two reporters never wait for each other in a circle. Reports are read after the lock: they
# hold everything that an earlier holder committed.
_LOCK = """
SELECT id, occurred_at, is_fraud FROM features_transaction WHERE id = ANY(%s) ORDER BY id COLLATE "C" FOR NO KEY UPDATE
"""
_REPORTS = """
SELECT transaction_id, is_fraud, reported_at, applied, report_id, digest, recorded_at
FROM features_labelreport WHERE transaction_id = ANY(%s)
"""
_INSERT = """
INSERT INTO features_labelreport (
    recorded_at, client, transaction_id, is_fraud, reported_at, applied, was, report_id, digest
)
SELECT %s::timestamptz, %s::text, report.*
FROM unnest(
    %s::text[], %s::boolean[], %s::timestamptz[], %s::boolean[], %s::boolean[], %s::text[], %s::bytea[]
) AS report
"""
_LABEL = """
UPDATE features_transaction AS ledger SET is_fraud = label.is_fraud
FROM unnest(%s::text[], %s::boolean[]) AS label (id, is_fraud)
WHERE ledger.id = label.id AND ledger.is_fraud IS DISTINCT FROM label.is_fraud
"""
