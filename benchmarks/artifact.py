"""`artifact`: one row through the served ONNX artifact, against scikit-learn's own prediction of the same model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.contest import BenchmarkFailed, Contest, Progress, per_call
from benchmarks.ratio import Compare, Target
from features.definitions import ALL_FEATURES
from predictions.decisions import Thresholds
from predictions.registry.artifact import LoadedModel, artifact_digest, load_artifact
from predictions.registry.estimators import EstimatorKind, make_estimator
from predictions.registry.export import export_onnx

_ROWS = 20_000
_COMPARED = 500
_SAME_WITHIN = 1e-6


def trained() -> tuple[Any, LoadedModel, npt.NDArray[np.float32]]:
    """Boosted trees from scikit-learn, the same as served, and the made-up rows that they were trained on."""
    random = np.random.default_rng(1)
    rows = random.gamma(2.0, 20.0, size=(_ROWS, len(ALL_FEATURES))).astype(np.float32)
    logit = (rows[:, 0] - 60) / 15 + (rows[:, 10] - 60) / 30 - 2
    labels = random.random(_ROWS) < 1 / (1 + np.exp(-logit))
    estimator = make_estimator(EstimatorKind.BOOSTED_TREES, seed=1).fit(rows, labels)
    onnx = export_onnx(estimator, model_name="bench", feature_names=ALL_FEATURES)
    model = load_artifact(
        onnx,
        model_version_id=0,
        name="bench",
        version=1,
        digest=artifact_digest(onnx),
        feature_names=ALL_FEATURES,
        thresholds=Thresholds(review_from=0.2, decline_from=0.5),
        baseline=(0.0,) * len(ALL_FEATURES),
    )
    return estimator, model, rows


@contextmanager
def open_artifact(progress: Progress) -> Iterator[list[Contest]]:
    """Trains on made-up rows; touches no server."""
    progress("train boosted trees", 0.0)
    # One thread for both: for one row, starting more costs scikit-learn more than they bring.
    with threadpool_limits(limits=1):
        estimator, model, rows = trained()
        # Each side gets the row as it comes to it: the score path has a tuple, scikit-learn wants an array.
        values, row = tuple(rows[0].tolist()), rows[:1]

        def check() -> None:
            theirs = estimator.predict_proba(rows[:_COMPARED])[:, 1]
            ours = [model.score_one(tuple(one.tolist())) for one in rows[:_COMPARED]]
            difference = float(np.abs(theirs - ours).max())
            if difference > _SAME_WITHIN:
                raise BenchmarkFailed(f"artifact: scores differ from scikit-learn's by up to {difference:.1e}")

        check()
        yield [
            Contest(
                name="artifact",
                ours_is=f"LoadedModel.score_one: boosted trees, {len(ALL_FEATURES)} features, one row, onnxruntime",
                other_is="predict_proba of the same model in scikit-learn, one row, one thread",
                unit="us/call",
                compare=Compare.OTHER_OVER_OURS,
                target=Target(50),
                ours=per_call(lambda: model.score_one(values)),
                other=per_call(lambda: estimator.predict_proba(row)),
                check=check,
            )
        ]
