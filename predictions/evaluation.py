"""How good a model version's decisions were, by day, now that labels have come in.

Only labelled decisions count, so the figures are those of what somebody looked at: a transaction that was declined
rarely gets a label, and one that nobody complained about may never get any. A day is `mature` once labels of its last
decision have had the delay that features allow for; before that its recall is flattering.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec
from django.db import connection

from features.definitions import LABEL_DELAY_DAYS
from predictions.decisions import Action
from predictions.messages import ServedModel
from predictions.models import ModelVersion

DAYS = 30
MOST_DAYS = 365


class DayQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Of decisions of one UTC day; `day` None: of all of them.

    `flagged`: labelled decisions other than approve; `caught`: those of them that were fraud. `precision` is caught /
    flagged, `recall` caught / frauds, `auc_roc` that of the scores; each is None where there is nothing to divide by.
    """

    day: date | None
    decisions: int
    labelled: int
    frauds: int
    flagged: int
    caught: int
    precision: float | None
    recall: float | None
    auc_roc: float | None
    mature: bool


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """`by_day`: the days with decisions, oldest first."""

    model: ServedModel
    days: int
    label_delay_days: int
    total: DayQuality
    by_day: list[DayQuality]


class _Counts(msgspec.Struct):
    decisions: int = 0
    flagged: int = 0
    caught: int = 0
    frauds: list[float] = []
    """Scores of transactions that were fraud."""
    genuine: list[float] = []


def evaluate_model(version: ModelVersion, *, now: datetime, days: int = DAYS) -> Evaluation:
    """Over the last `days` days, today included, in one statement. Raises Django's database errors."""
    today = now.astimezone(UTC).date()
    since = datetime.combine(today - timedelta(days=days - 1), time(), UTC)
    with connection.cursor() as cursor:
        cursor.execute(_COUNTS, {"version": version.pk, "since": since, "until": now, "approve": Action.APPROVE.value})
        rows = cursor.fetchall()
    total, by_day = _Counts(), []
    for day, *numbers in rows:
        counts = _Counts(*numbers)
        by_day.append(_quality(counts, day=day, mature=day + timedelta(days=LABEL_DELAY_DAYS) < today))
        total.decisions += counts.decisions
        total.flagged += counts.flagged
        total.caught += counts.caught
        total.frauds += counts.frauds
        total.genuine += counts.genuine
    return Evaluation(
        model=ServedModel(version.name, version.version),
        days=days,
        label_delay_days=LABEL_DELAY_DAYS,
        total=_quality(total, day=None, mature=all(one.mature for one in by_day)),
        by_day=by_day,
    )


def _quality(counts: _Counts, *, day: date | None, mature: bool) -> DayQuality:
    frauds, genuine = len(counts.frauds), len(counts.genuine)
    return DayQuality(
        day=day,
        decisions=counts.decisions,
        labelled=frauds + genuine,
        frauds=frauds,
        flagged=counts.flagged,
        caught=counts.caught,
        precision=counts.caught / counts.flagged if counts.flagged else None,
        recall=counts.caught / frauds if frauds else None,
        auc_roc=_auc(counts.frauds, counts.genuine),
        mature=mature,
    )


def _auc(frauds: list[float], genuine: list[float]) -> float | None:
    if not (frauds and genuine):
        return None
    labels: Any = [1] * len(frauds) + [0] * len(genuine)
    from sklearn.metrics import roc_auc_score  # seconds of every process's start, for what a page or command asks

    return float(roc_auc_score(labels, [*frauds, *genuine]))


_COUNTS = """
SELECT (decided_at AT TIME ZONE 'UTC')::date AS day,
       count(*),
       count(*) FILTER (WHERE is_fraud IS NOT NULL AND decision <> %(approve)s),
       count(*) FILTER (WHERE is_fraud AND decision <> %(approve)s),
       coalesce(array_agg(score) FILTER (WHERE is_fraud), '{}'),
       coalesce(array_agg(score) FILTER (WHERE NOT is_fraud), '{}')
FROM predictions_decision AS given LEFT JOIN features_transaction AS ledger ON ledger.id = given.transaction_id
WHERE model_version_id = %(version)s AND decided_at >= %(since)s AND decided_at <= %(until)s
GROUP BY day ORDER BY day
"""
