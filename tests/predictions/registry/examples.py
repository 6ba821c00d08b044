"""Small made-up data and models, the same in every run."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from features.definitions import BASELINE_FEATURES
from predictions.decisions import Thresholds
from predictions.registry.artifact import LoadedModel, artifact_digest, load_artifact
from predictions.registry.estimators import Estimator, EstimatorKind, make_estimator
from predictions.registry.export import export_onnx

THRESHOLDS = Thresholds(review_from=0.2, decline_from=0.5)
WIDTH = len(BASELINE_FEATURES)


@dataclass(frozen=True)
class Rows:
    X: np.ndarray
    labels: np.ndarray
    customers: np.ndarray


@cache
def rows(count: int = 3000, seed: int = 0) -> Rows:
    """Frauds are large amounts at risky merchants, with noise; about one row in twelve."""
    random = np.random.default_rng(seed)
    X = random.gamma(2.0, 20.0, size=(count, WIDTH)).astype(np.float32)
    logit = (X[:, 0] - 60) / 15 + (X[:, 10] - 60) / 30 - 1
    labels = (random.random(count) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    return Rows(X, labels, random.integers(0, 200, count))


@cache
def estimator(kind: EstimatorKind = EstimatorKind.LOGISTIC_REGRESSION, seed: int = 0) -> Estimator:
    data = rows(seed=seed)
    return make_estimator(kind, seed=0).fit(data.X, data.labels)


@cache
def onnx_of(kind: EstimatorKind = EstimatorKind.LOGISTIC_REGRESSION, seed: int = 0) -> bytes:
    return export_onnx(estimator(kind, seed), model_name="fraud", feature_names=BASELINE_FEATURES)


def loaded(kind: EstimatorKind = EstimatorKind.LOGISTIC_REGRESSION) -> LoadedModel:
    onnx_bytes = onnx_of(kind)
    return load_artifact(
        onnx_bytes,
        model_version_id=1,
        name="fraud",
        version=1,
        digest=artifact_digest(onnx_bytes),
        feature_names=BASELINE_FEATURES,
        thresholds=THRESHOLDS,
        baseline=tuple(np.median(rows().X, axis=0).tolist()),
    )
