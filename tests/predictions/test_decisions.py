"""From score to decision."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictions.decisions import Action, Thresholds, decide
from predictions.messages import RiskLevel

THRESHOLDS = Thresholds(review_from=0.1, decline_from=0.3)


@pytest.mark.parametrize(
    ("score", "action", "risk"),
    [
        (0.0, Action.APPROVE, RiskLevel.LOW),
        (math.nextafter(0.1, 0), Action.APPROVE, RiskLevel.LOW),
        (0.1, Action.REVIEW, RiskLevel.MEDIUM),
        (math.nextafter(0.3, 0), Action.REVIEW, RiskLevel.MEDIUM),
        (0.3, Action.DECLINE, RiskLevel.HIGH),
        (1.0, Action.DECLINE, RiskLevel.HIGH),
    ],
)
def test_a_threshold_belongs_to_the_stricter_side(score: float, action: Action, risk: RiskLevel) -> None:
    """A score that equals a threshold is reviewed or declined."""
    assert decide(score, THRESHOLDS) == (action, risk)


def test_a_score_that_is_no_number_is_an_error() -> None:
    """NaN is never approved silently."""
    with pytest.raises(ValueError, match="not a number"):
        decide(math.nan, THRESHOLDS)


@pytest.mark.parametrize(("review", "decline"), [(0.3, 0.3), (0.4, 0.3), (0.0, 0.3), (0.1, math.nan), (0.1, math.inf)])
def test_thresholds_out_of_order_are_refused(review: float, decline: float) -> None:
    """Review begins above 0 and below decline."""
    with pytest.raises(ValueError, match="review_from < decline_from"):
        Thresholds(review_from=review, decline_from=decline)


@given(st.floats(0, 1, width=32))
def test_the_decision_on_a_float32_does_not_depend_on_who_widens_it(score: float) -> None:
    """A score that went through float32 arrays, JSON or Redis is decided as it was when the model returned it."""
    widened = float(np.float32(score))
    assert decide(widened, THRESHOLDS) == decide(float(repr(widened)), THRESHOLDS)
