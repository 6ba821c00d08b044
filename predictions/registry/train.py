"""From the ledger to a trained, measured and exported model. Writes nothing: see `register.py`."""

from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import numpy as np
from django.db.models import Min
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from features.definitions import MODEL_FEATURES
from features.models import Transaction
from features.point_in_time import TrainingSet, training_vectors
from predictions.decisions import Thresholds
from predictions.registry.coverage import warnings_of
from predictions.registry.estimators import Estimator, EstimatorKind, make_estimator
from predictions.registry.export import export_onnx, export_skops
from predictions.registry.flagging import AtThresholds, measure, reliability
from predictions.registry.intervals import Interval, average_precision_interval
from predictions.registry.parity import Parity, compare, rows_to_compare
from predictions.registry.protocol import (
    Floats,
    Integers,
    Periods,
    Quality,
    TooLittleData,
    assess,
    latest_train_start,
    split,
)
from predictions.registry.stages import Stages
from predictions.registry.thresholds import COST_RATIOS, choose_thresholds, unseen_scores

MOST_UNLABELLED = 0.5
"""More than this share without a label, and what is left is no fair sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What to train, on what."""

    model_name: str
    kind: EstimatorKind
    feature_names: tuple[str, ...]
    periods: Periods
    seed: int
    cost_ratio: float | None = None
    """How many false declines cost as much as a missed fraud; None: decline at a precision (`thresholds.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """Everything that a model version consists of. `baseline` is each feature's median over the training rows."""

    plan: TrainingPlan
    estimator: Estimator
    onnx_bytes: bytes
    skops_bytes: bytes
    thresholds: Thresholds
    baseline: tuple[float, ...]
    quality: Quality
    parity: Parity
    train_rows: int
    train_frauds: int
    test_rows: int
    test_frauds: int
    unlabelled_rows: int
    """Transactions of these days that were left out because nobody has said yet whether they were fraud."""
    at_thresholds: AtThresholds | None = None
    """On the test transactions, as what follows."""
    precision_interval: Interval | None = None
    """Of the average precision."""
    reliability: tuple[dict[str, float | int], ...] = ()
    choices: tuple[dict[str, Any], ...] = ()
    """The thresholds at each of `COST_RATIOS`, and what they do."""
    warnings: tuple[str, ...] = ()
    """What the days lack."""


def periods_in_ledger(*, train_start: date | None, train_days: int, delay_days: int, test_days: int) -> Periods:
    """The periods from `train_start` on, or the latest ones that end with the newest labelled transaction.

    Raises TooLittleData where the ledger does not reach over all of them.
    """
    labelled = Transaction.objects.filter(is_fraud__isnull=False)
    newest = labelled.order_by("-occurred_at").values_list("occurred_at", flat=True).first()
    oldest = Transaction.objects.aggregate(oldest=Min("occurred_at"))["oldest"]
    if newest is None:
        what = "is empty" if oldest is None else "has no labelled transaction"
        raise TooLittleData(f"the ledger {what}: run `manage.py import_transactions` or `simulate_transactions` first")
    periods = Periods(
        train_start=train_start or newest.date(), train_days=train_days, delay_days=delay_days, test_days=test_days
    )
    if train_start is None:
        periods = periods.starting(latest_train_start(newest, days=periods.days))
    if periods.train_start < oldest.date() or periods.last_day > newest.date():
        raise TooLittleData(
            f"labelled transactions go from {oldest:%Y-%m-%d %H:%M} to {newest:%Y-%m-%d %H:%M} UTC, which does "
            f"not hold {periods}. Choose --train-start, --train-days, --delay-days and --test-days in it or import more"
        )
    return periods


def train(plan: TrainingPlan, *, stages: Stages) -> TrainedModel:
    """Trains on the training period, chooses thresholds on it, measures on the test period, exports, compares.

    The same ledger, plan and library versions give the same artifact. Raises TooLittleData.
    """
    with stages.stage("vectors"):
        periods = plan.periods
        vectors = training_vectors(periods.train_start, periods.last_day, plan.feature_names, progress=stages.progress)
        labelled = vectors.labels >= 0
        _check_labelled(vectors)
        rows = _float32(vectors.X[labelled])
        days = vectors.occurred_at[labelled].astype("datetime64[D]").astype(np.int64)
        customers = _numbered(vectors)[labelled]
        labels = vectors.labels[labelled]
        part = split(periods=periods, days=days, customers=customers, labels=labels)
    # One thread: two would wait for each other actively and cost the scoring processes of the same host more than they
    # save here.
    with threadpool_limits(1, user_api="openmp"):
        with stages.stage("fit"):
            estimator = make_estimator(plan.kind, seed=plan.seed).fit(rows[part.train], labels[part.train])
        with stages.stage("thresholds"):
            defaults = tuple(MODEL_FEATURES[name].default for name in plan.feature_names)
            compared = rows_to_compare(test=rows[part.test], train=rows[part.train], defaults=defaults)
            choose = partial(
                choose_thresholds,
                unseen_scores=unseen_scores(
                    kind=plan.kind,
                    seed=plan.seed,
                    rows=rows[part.train],
                    labels=labels[part.train],
                    customers=customers[part.train],
                ),
                labels=labels[part.train],
                # Not only those that it was trained on: what parity compares must not lie on a threshold either.
                final_scores=_scores(estimator, np.concatenate((rows[part.train], compared))),
                later_scores=_scores(estimator, rows[part.delay]),
            )
            thresholds = choose(cost_ratio=plan.cost_ratio)
        with stages.stage("test"):
            scores, tested = _scores(estimator, rows[part.test]), labels[part.test]
            quality = assess(scores=scores, labels=tested, days=days[part.test], customers=customers[part.test])
            choices = [_choice(ratio, choose(cost_ratio=ratio), scores=scores, labels=tested) for ratio in COST_RATIOS]
            interval = average_precision_interval(scores=scores, labels=tested, customers=customers[part.test])
        with stages.stage("export"):
            onnx_bytes = export_onnx(estimator, model_name=plan.model_name, feature_names=plan.feature_names)
            skops_bytes = export_skops(estimator)
        with stages.stage("parity"):
            parity = compare(estimator=estimator, onnx_bytes=onnx_bytes, rows=compared, thresholds=thresholds)
    return TrainedModel(
        plan=plan,
        estimator=estimator,
        onnx_bytes=onnx_bytes,
        skops_bytes=skops_bytes,
        thresholds=thresholds,
        baseline=tuple(np.median(rows[part.train], axis=0).tolist()),
        quality=quality,
        parity=parity,
        train_rows=len(part.train),
        train_frauds=int(labels[part.train].sum()),
        test_rows=len(part.test),
        test_frauds=int(labels[part.test].sum()),
        unlabelled_rows=int(len(labelled) - labelled.sum()),
        at_thresholds=measure(scores=scores, labels=tested, thresholds=thresholds),
        precision_interval=interval,
        reliability=tuple(reliability(scores=scores, labels=tested)),
        choices=tuple(choices),
        warnings=tuple(warnings_of(periods=periods, part=part, days=days, customers=customers, labels=labels)),
    )


def _check_labelled(vectors: TrainingSet) -> None:
    """Some transactions have no label yet, those scored a moment ago above all; most of them must have one."""
    unlabelled = np.flatnonzero(vectors.labels < 0)
    if len(unlabelled) > MOST_UNLABELLED * len(vectors):
        first = unlabelled[0]
        raise TooLittleData(
            f"{len(unlabelled)} of {len(vectors)} transactions in these days have no label, the first is "
            f"{vectors.transaction_ids[first]} of {vectors.occurred_at[first]} UTC; at most "
            f"{MOST_UNLABELLED:.0%} may be left out. Choose an earlier --train-start, or import their labels"
        )


def _choice(ratio: float, thresholds: Thresholds, *, scores: Floats, labels: Integers) -> dict[str, Any]:
    """What a caller who knows their costs chooses by. `missed`: frauds that are not declined; `cost` is in false
    declines."""
    found = measure(scores=scores, labels=labels, thresholds=thresholds)
    caught = round(found.declined * (found.decline_precision or 0))
    missed, false = int(labels.sum()) - caught, found.declined - caught
    return {
        "cost_ratio": ratio,
        "review_from": thresholds.review_from,
        "decline_from": thresholds.decline_from,
        "declined": found.declined,
        "false_declines": false,
        "missed": missed,
        "cost": ratio * missed + false,
    }


def _scores(estimator: Estimator, rows: NDArray[np.float32]) -> Floats:
    if not len(rows):
        return np.empty(0)
    scores: Floats = estimator.predict_proba(rows)[:, 1]
    return scores


def _float32(X: NDArray[np.floating]) -> NDArray[np.float32]:
    # As serving will see it: trees that were trained on float64 split differently when they are fed float32.
    return X.astype(np.float32)


def _numbered(vectors: TrainingSet) -> Integers:
    numbers: Integers = np.unique(vectors.customer_ids, return_inverse=True)[1]
    return numbers
