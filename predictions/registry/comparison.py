"""The model version that serves beside one that may serve instead, on the same transactions.

The days are the test days of whichever was tested last, without those that either was trained on. Of all labelled
transactions of these days, both models score the vectors that training would see.
"""

from dataclasses import asdict
from datetime import date, timedelta
from typing import Any

import numpy as np

from features.point_in_time import training_vectors
from features.progress import Progress, silent
from predictions.models import Activation, Comparison, ModelVersion
from predictions.registry.active import load_model_version
from predictions.registry.artifact import ArtifactRefused, LoadedModel, run_session
from predictions.registry.flagging import measure
from predictions.registry.intervals import RankedScores, difference_interval
from predictions.registry.protocol import Floats, TooLittleData
from predictions.registry.register import ActivationRefused, check_servable


def compare_with_serving(candidate: ModelVersion, *, progress: Progress = silent) -> Comparison | None:
    """Scores the days with both and keeps the result. None where there is nothing to compare with: no other version
    serves, or the one that does cannot be loaded.

    Raises ActivationRefused where the candidate cannot serve, TooLittleData where the ledger lacks the days.
    """
    serving = Activation.objects.select_related("model_version").first()
    if serving is None or serving.model_version_id == candidate.pk:
        return None
    champion = serving.model_version
    try:
        models = check_servable(candidate), load_model_version(champion)
    except ArtifactRefused:
        return None
    first, last = _days(candidate, champion)
    report = _compare(*models, first=first, last=last, progress=progress)
    return Comparison.objects.create(candidate=candidate, champion=champion, report=report)


def _days(one: ModelVersion, other: ModelVersion) -> tuple[date, date]:
    """The first and the last day to compare on."""
    try:
        spans = [_Span(version) for version in (one, other)]
    except (KeyError, TypeError, ValueError):
        raise TooLittleData(
            f"it is not recorded on which days {one} and {other} were trained and tested: they cannot be compared"
        ) from None
    later = max(spans, key=lambda span: span.last_day)
    first = max(later.first_test_day, *(span.trained_until + timedelta(days=1) for span in spans))
    if first > later.last_day:
        raise TooLittleData(
            f"{one} or {other} was trained on the test days of the other, up to {later.last_day}: no day is left to "
            "compare them on. Train again on days that end before the test days"
        )
    return first, later.last_day


class _Span:
    """Raises KeyError, TypeError or ValueError where the version does not say."""

    def __init__(self, version: ModelVersion) -> None:
        training = version.training
        start = date.fromisoformat(training["train_start"])
        self.trained_until = start + timedelta(days=training["train_days"] - 1)
        self.first_test_day = self.trained_until + timedelta(days=training["delay_days"] + 1)
        self.last_day = date.fromisoformat(training["last_day"])


def _compare(
    candidate: LoadedModel, champion: LoadedModel, *, first: date, last: date, progress: Progress
) -> dict[str, Any]:
    names = tuple(dict.fromkeys((*candidate.feature_names, *champion.feature_names)))
    vectors = training_vectors(first, last, names, progress=progress)
    labelled = vectors.labels >= 0
    labels, X = vectors.labels[labelled], vectors.X[labelled]
    frauds = int(labels.sum())
    if not 0 < frauds < len(labels):
        raise TooLittleData(
            f"from {first} to {last} the ledger has {len(labels)} labelled transactions, {frauds} of them fraud: "
            "models are compared on both fraud and genuine ones"
        )
    customers = np.unique(vectors.customer_ids[labelled], return_inverse=True)[1]
    scores = [_scores(model, names, X) for model in (candidate, champion)]
    difference = difference_interval(candidate=scores[0], champion=scores[1], labels=labels, customers=customers)
    return {
        "first_day": first.isoformat(),
        "last_day": last.isoformat(),
        "rows": len(labels),
        "frauds": frauds,
        "customers": int(customers.max()) + 1,
        **{
            role: {
                "version": f"{model.name} {model.version}",
                "average_precision": RankedScores(of, labels).average_precision(),
                **asdict(measure(scores=of, labels=labels, thresholds=model.thresholds)),
            }
            for role, model, of in zip(("candidate", "champion"), (candidate, champion), scores, strict=True)
        },
        "difference": asdict(difference),
    }


def _scores(model: LoadedModel, names: tuple[str, ...], X: Floats) -> Floats:
    columns = [names.index(name) for name in model.feature_names]
    return run_session(model.session, np.ascontiguousarray(X[:, columns], dtype=np.float32))


def why_not_compared(candidate: ModelVersion, *, progress: Progress = silent) -> str | None:
    """Compares; why it could not be, in words."""
    try:
        compare_with_serving(candidate, progress=progress)
    except (ActivationRefused, TooLittleData) as error:
        return error.detail
    return None
