"""Which kinds of model can be trained, with their settings.

The first three are the baselines of the Fraud Detection Handbook. Its scaling stands before the logistic regression
only: it changes nothing for trees, but rounds their inputs, and ONNX would split differently at the rounded ones.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

Estimator = Any
"""A scikit-learn classifier with `fit` and `predict_proba`; scikit-learn has no type for it."""


class EstimatorKind(StrEnum):
    LOGISTIC_REGRESSION = "logistic_regression"
    DECISION_TREE = "decision_tree"
    RANDOM_FOREST = "random_forest"
    BOOSTED_TREES = "boosted_trees"


def make_estimator(kind: EstimatorKind, *, seed: int) -> Estimator:
    """A fresh estimator; the same seed and data give the same model."""
    return _MAKERS[kind](seed)


_MAKERS: dict[EstimatorKind, Callable[[int], Estimator]] = {
    EstimatorKind.LOGISTIC_REGRESSION: lambda seed: make_pipeline(
        StandardScaler(), LogisticRegression(random_state=seed)
    ),
    EstimatorKind.DECISION_TREE: lambda seed: DecisionTreeClassifier(max_depth=2, random_state=seed),
    EstimatorKind.RANDOM_FOREST: lambda seed: RandomForestClassifier(n_estimators=100, n_jobs=2, random_state=seed),
    # Small leaves and few, slow steps: frauds are one row in a hundred, and a week of them is a few hundred.
    # No early stopping: it would hold back frauds, and there are too few of them to stop by.
    EstimatorKind.BOOSTED_TREES: lambda seed: HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.05,
        max_leaf_nodes=15,
        min_samples_leaf=20,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    ),
}
