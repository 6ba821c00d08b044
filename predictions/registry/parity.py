"""Does the artifact say what scikit-learn says? The gate that a model version passes before it may serve.

Converters can be wrong without an error: boosted trees with native categories, for instance, came out with scores that
differed by 0.998. So every row of the test, the training rows and made-up extremes are scored by both.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictions.decisions import Thresholds
from predictions.registry.artifact import open_session, run_session
from predictions.registry.estimators import Estimator
from predictions.registry.protocol import Floats

MAX_DIFFERENCE = 1e-5
"""In probability."""
MAX_ROWS = 100_000
_HUGE = 1e9
"""Above every amount that the API takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What the comparison found. `max_difference` is the largest difference of two scores, in probability."""

    max_difference: float
    differing_decisions: int
    rows: int

    @property
    def passed(self) -> bool:
        return self.max_difference <= MAX_DIFFERENCE and self.differing_decisions == 0

    def __str__(self) -> str:
        return (
            f"scores of ONNX and scikit-learn differ by up to {self.max_difference:.2g} (allowed {MAX_DIFFERENCE:g}) "
            f"and {self.differing_decisions} of {self.rows} decisions differ (allowed 0)"
        )


def compare(*, estimator: Estimator, onnx_bytes: bytes, rows: NDArray[np.float32], thresholds: Thresholds) -> Parity:
    """Scores the rows with both. A score that is not a number on either side counts as a difference of 1."""
    ours = run_session(open_session(onnx_bytes), rows).astype(np.float64)
    theirs = estimator.predict_proba(rows)[:, 1].astype(np.float64)
    difference = np.nan_to_num(np.abs(ours - theirs), nan=1.0)
    differing = _decisions(ours, thresholds) != _decisions(theirs, thresholds)
    return Parity(
        max_difference=float(difference.max()),
        differing_decisions=int(differing.sum()),
        rows=len(rows),
    )


def rows_to_compare(
    *, test: NDArray[np.float32], train: NDArray[np.float32], defaults: tuple[float, ...]
) -> NDArray[np.float32]:
    """The rows that the gate looks at: extremes, the test rows, and training rows up to `MAX_ROWS` in all."""
    extremes = _extremes(np.concatenate((test, train)), np.array(defaults, np.float32))
    room = max(0, MAX_ROWS - len(extremes))
    return np.concatenate((extremes, _spread(test, room), _spread(train, max(0, room - len(test)))))


def _extremes(rows: NDArray[np.float32], defaults: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nothing known, all zero, all huge, and each feature by itself at its ends, beyond them and at zero."""
    width = rows.shape[1]
    low, middle, high = rows.min(axis=0), np.median(rows, axis=0), rows.max(axis=0)
    made: list[Floats] = [defaults, np.zeros(width), np.full(width, _HUGE), np.full(width, -_HUGE), low, middle, high]
    for feature in range(width):
        for value in (0.0, _HUGE, -_HUGE, low[feature], high[feature]):
            row = middle.copy()
            row[feature] = value
            made.append(row)
    return np.array(made, np.float32)


def _spread(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """At most `count` of the rows, evenly over all of them."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, num=count, dtype=np.intp)]


def _decisions(scores: Floats, thresholds: Thresholds) -> NDArray[np.int8]:
    """0, 1 or 2: as `decisions.decide`, for many; -1 for what is not a number."""
    ruled = (scores >= thresholds.review_from).astype(np.int8) + (scores >= thresholds.decline_from).astype(np.int8)
    return np.where(np.isnan(scores), np.int8(-1), ruled)
