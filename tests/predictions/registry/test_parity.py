"""The gate before serving: it lets right artifacts through and catches wrong ones."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from features.definitions import BASELINE_FEATURES
from predictions.decisions import Thresholds
from predictions.registry.estimators import EstimatorKind, make_estimator
from predictions.registry.export import export_onnx
from predictions.registry.parity import MAX_DIFFERENCE, MAX_ROWS, compare, rows_to_compare
from tests.predictions.registry import examples

DEFAULTS = (0.0,) * examples.WIDTH


def _rows() -> np.ndarray:
    data = examples.rows()
    return rows_to_compare(test=data.X[:1500], train=data.X[1500:], defaults=DEFAULTS)


@pytest.mark.parametrize("kind", list(EstimatorKind))
def test_every_kind_of_model_passes(kind: EstimatorKind) -> None:
    """ONNX scores and decides like scikit-learn, at zero, at the defaults and at a thousand million too."""
    found = compare(
        estimator=examples.estimator(kind),
        onnx_bytes=examples.onnx_of(kind),
        rows=_rows(),
        thresholds=examples.THRESHOLDS,
    )
    assert found.passed, str(found)
    assert found.rows > 3000


@pytest.mark.parametrize("kind", list(EstimatorKind))
def test_the_export_is_reproducible(kind: EstimatorKind) -> None:
    """The same estimator gives the same bytes, so the digest names the model and not the hour of its export."""
    again = export_onnx(examples.estimator(kind), model_name="fraud", feature_names=BASELINE_FEATURES)
    assert again == examples.onnx_of(kind)


@pytest.mark.parametrize("kind", [kind for kind in EstimatorKind if kind is not EstimatorKind.LOGISTIC_REGRESSION])
@pytest.mark.parametrize("start", [0.1, -7.3, 1e6])
def test_splits_between_neighbouring_float32_values_pass(kind: EstimatorKind, start: float) -> None:
    """Few different values, as shares of few merchants are, one bit apart: no float32 lies between them to split at."""
    random = np.random.default_rng(0)
    values = [np.float32(start)]
    for _ in range(40):
        values.append(np.nextafter(values[-1], np.float32(np.inf)))
    place = random.integers(0, len(values), 2000)
    X = random.random((2000, 2), dtype=np.float32)
    X[:, 0] = np.array(values)[place]
    model = make_estimator(kind, seed=0).fit(X, place % 3 == 0)
    found = compare(
        estimator=model,
        onnx_bytes=export_onnx(model, model_name="fraud", feature_names=("a", "b")),
        rows=rows_to_compare(test=X, train=X, defaults=(0.0, 0.0)),
        thresholds=Thresholds(review_from=0.5037, decline_from=0.9037),
    )
    assert found.passed, str(found)


def test_the_export_leaves_the_estimator_as_it_is() -> None:
    """Its archive is that of what was trained."""
    model = make_estimator(EstimatorKind.BOOSTED_TREES, seed=0).fit(examples.rows().X, examples.rows().labels)
    before = [tree.nodes.copy() for trees in model._predictors for tree in trees]
    export_onnx(model, model_name="fraud", feature_names=BASELINE_FEATURES)
    after = [tree.nodes for trees in model._predictors for tree in trees]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))


def test_the_artifact_of_another_model_is_caught() -> None:
    """A deliberately wrong artifact, trained on other rows, does not pass."""
    found = compare(
        estimator=examples.estimator(),
        onnx_bytes=examples.onnx_of(seed=1),
        rows=_rows(),
        thresholds=examples.THRESHOLDS,
    )
    assert not found.passed
    assert found.max_difference > MAX_DIFFERENCE


def test_a_silently_wrong_conversion_is_caught() -> None:
    """Boosted trees with native categories are converted without an error and wrongly; the gate sees it."""
    data = examples.rows()
    X = data.X.copy()
    X[:, 1] = np.floor(X[:, 1]) % 7
    labels = np.isin(X[:, 1], (1, 4, 6)).astype(int)
    model = HistGradientBoostingClassifier(categorical_features=[1], max_iter=10).fit(X, labels)
    onnx_bytes = export_onnx(model, model_name="fraud", feature_names=BASELINE_FEATURES)
    found = compare(estimator=model, onnx_bytes=onnx_bytes, rows=X, thresholds=examples.THRESHOLDS)
    assert not found.passed
    assert found.max_difference > 0.1


def test_one_differing_decision_is_enough() -> None:
    """Scores within the tolerance but on either side of a threshold do not pass."""
    data = examples.rows()
    model = examples.estimator()
    exact = model.predict_proba(data.X)[:, 1].astype(np.float64)
    served: np.ndarray = np.array(examples.loaded().score_many(data.X.tolist()))
    row = int(np.argmax(np.abs(exact - served)))
    between = (exact[row] + served[row]) / 2
    found = compare(
        estimator=model,
        onnx_bytes=examples.onnx_of(),
        rows=data.X,
        thresholds=Thresholds(review_from=between, decline_from=1.0),
    )
    assert found.max_difference <= MAX_DIFFERENCE
    assert found.differing_decisions >= 1
    assert not found.passed


def test_a_score_that_is_no_number_does_not_pass() -> None:
    """NaN compares as a difference of 1 even where both sides say NaN."""

    class Undecided:
        def predict_proba(self, rows: np.ndarray) -> np.ndarray:
            return np.full((len(rows), 2), np.nan)

    found = compare(estimator=Undecided(), onnx_bytes=examples.onnx_of(), rows=_rows(), thresholds=examples.THRESHOLDS)
    assert found.max_difference == 1.0
    assert not found.passed


def test_the_rows_are_capped_and_keep_the_extremes() -> None:
    """At most MAX_ROWS rows: extremes first, then the test rows, then as many training rows as fit."""
    many = np.zeros((MAX_ROWS, examples.WIDTH), np.float32)
    found = rows_to_compare(test=many + 1, train=many + 2, defaults=DEFAULTS)
    assert len(found) == MAX_ROWS
    assert np.abs(found[:100]).max() >= 1e9
    few = rows_to_compare(test=many[:10] + 1, train=many + 2, defaults=DEFAULTS)
    assert (few == 1).all(axis=1).sum() >= 10
