"""The story of an import: read a batch, judge its rows, load the good ones, write down the others, commit, go on."""

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
from django.db.backends.base.base import BaseDatabaseWrapper

from features.models import Transaction
from features.transactions.load import analyse_ledger, copy_transactions, database_now
from features.transactions.number_style import PLAIN, NumberStyle
from features.transactions.progress import Report
from features.transactions.read_ahead import read_ahead
from features.transactions.rejects import RejectsFile
from features.transactions.rows import Reject, TransactionFile
from features.transactions.validation import Checked, check_rows
from mlserve.event_time import LATEST_AHEAD, UNLIKELY_BEFORE
from mlserve.null_words import NULL_WORDS
from mlserve.postgres.retries import retry_contention

CHUNK_ROWS = 5_000
"""Rows per commit: what an interruption can cost, and locks that are held for some 0.2 s. Scores and label reports of
the same transactions wait for that."""
WEEK = timedelta(days=7)
_UNLIKELY_BEFORE = np.datetime64(UNLIKELY_BEFORE.replace(tzinfo=None), "us")


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """What an import has done so far; every chunk it counts is committed.

    `rows` = `imported` + `already_known` + `duplicates` + `rejected`. `first` and `last` are the times of the accepted
    rows, after the shift. `already_known` includes `labelled`.
    """

    file: str
    layout: str
    rows: int = 0
    imported: int = 0
    already_known: int = 0
    duplicates: int = 0
    labelled: int = 0
    rejected: int = 0
    rejects_file: str | None = None
    seconds: float = 0.0
    rows_per_second: int = 0
    first: str | None = None
    last: str | None = None
    shifted_by_s: int = 0
    early: int = 0
    """Accepted rows from before 1990 (after the shift), which are more often a wrong column than a payment."""
    reasons: list[str] = field(default_factory=list)
    """The commonest reasons for rejecting, with their counts."""
    unused_columns: list[str] = field(default_factory=list)
    amounts: str = str(PLAIN)
    """How amounts were read."""


def import_file(
    connection: BaseDatabaseWrapper,
    file: TransactionFile,
    rejects: RejectsFile,
    *,
    report: ImportReport,
    shift: timedelta = timedelta(0),
    null_words: AbstractSet[str] = NULL_WORDS,
    style: NumberStyle = PLAIN,
    chunk_rows: int = CHUNK_ROWS,
    progress: Report,
) -> None:
    """Loads the file chunk by chunk and keeps `report` up to date, so that it is true whenever this is interrupted.

    Raises FileError, OSError (rejects file) or django.db.Error; what is committed stays, and a second run of the same
    file loads the rest.
    """
    started = time.monotonic()
    since = database_now(connection)
    report.shifted_by_s = int(shift.total_seconds())
    report.amounts, report.unused_columns = str(style), file.unused_columns
    try:
        checked_batches = (
            (batch, check_rows(batch, shift=shift, now=since, null_words=null_words, style=style))
            for batch in file.batches(rows=chunk_rows)
        )
        for batch, checked in read_ahead(checked_batches):
            loaded = retry_contention(
                partial(copy_transactions, connection, checked.good, since=since), what="import of transactions"
            )
            conflicts = [
                Reject(checked.lines[conflict.position], conflict.field, conflict.reason, _shown(checked, conflict))
                for conflict in loaded.conflicts
            ]
            report.rows += len(batch.rows) + len(batch.unreadable)
            report.imported += loaded.imported
            report.already_known += loaded.already_known
            report.duplicates += loaded.duplicates
            report.labelled += loaded.labelled
            _widen(report, checked.good.occurred_at)
            report.early += int(np.count_nonzero(checked.good.occurred_at < _UNLIKELY_BEFORE))
            rejects.write(sorted([*checked.rejects, *conflicts], key=lambda reject: reject.line))
            report.rejected, report.reasons = rejects.count, rejects.commonest()
            report.rejects_file = str(rejects.path) if rejects.path else None
            _time(report, started)
            progress(batch.fraction, f"{report.rows:,} rows, {report.rows_per_second:,} rows/s")
        if report.imported:
            analyse_ledger(connection)
    finally:
        _time(report, started)


def weeks_to_now(
    connection: BaseDatabaseWrapper,
    file: TransactionFile,
    *,
    now: datetime,
    style: NumberStyle = PLAIN,
    null_words: AbstractSet[str] = NULL_WORDS,
    progress: Report,
) -> timedelta:
    """The whole weeks that bring the file's newest good row into the last seven days before `now`.

    Rows that lie more than a day ahead of `now` do not count beside others: one of 2099 would move all the rest out of
    every window. An import that was begun earlier keeps the shift that it had: its first rows in the ledger tell.
    """
    latest = np.datetime64((now + LATEST_AHEAD).astimezone(UTC).replace(tzinfo=None), "us")
    begun_looked_for = False
    newest: np.datetime64 | None = None
    newest_ahead: np.datetime64 | None = None
    for batch in file.batches(rows=CHUNK_ROWS):
        good = check_rows(batch, style=style, null_words=null_words).good
        if not len(good):
            continue
        if not begun_looked_for:
            begun_looked_for = True
            begun = _shift_of_known(connection, good.transaction_ids[:1000], good.occurred_at[:1000])
            if begun is not None:
                return begun
        ahead = good.occurred_at > latest
        newest = _newer(newest, good.occurred_at[~ahead])
        newest_ahead = _newer(newest_ahead, good.occurred_at[ahead])
        progress(batch.fraction, "looking for the newest row")
    newest = newest_ahead if newest is None else newest
    if newest is None:
        return timedelta(0)
    return (now - _moment(newest)) // WEEK * WEEK


def _newer(newest: np.datetime64 | None, times: Any) -> np.datetime64 | None:
    if not len(times):
        return newest
    latest: np.datetime64 = np.max(times)
    return latest if newest is None else max(newest, latest)


def _shift_of_known(connection: BaseDatabaseWrapper, ids: Sequence[str], times: Any) -> timedelta | None:
    moments = dict(zip(ids, times, strict=True))
    ledger = Transaction.objects.using(connection.alias)
    known = ledger.filter(id__in=ids).order_by("id").values_list("id", "occurred_at")
    for transaction_id, occurred_at in known[:10]:
        shift = occurred_at - _moment(moments[transaction_id])
        if shift % WEEK == timedelta(0):
            return shift
    return None


def _moment(value: np.datetime64) -> datetime:
    moment: datetime = value.astype("datetime64[us]").item()
    return moment.replace(tzinfo=UTC)


def _shown(checked: Checked, conflict: Any) -> str:
    good, position = checked.good, conflict.position
    return good.transaction_ids[position] if conflict.field == "transaction_id" else str(good.labels[position])


def _widen(report: ImportReport, times: Any) -> None:
    if len(times):
        first, last = _text(times.min()), _text(times.max())
        report.first = first if report.first is None else min(report.first, first)
        report.last = last if report.last is None else max(report.last, last)


def _text(value: np.datetime64) -> str:
    return _moment(value).isoformat(timespec="microseconds").replace("+00:00", "Z").replace(".000000Z", "Z")


def _time(report: ImportReport, started: float) -> None:
    report.seconds = round(time.monotonic() - started, 3)
    report.rows_per_second = round(report.rows / report.seconds) if report.seconds else 0
