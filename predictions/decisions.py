"""From a score to a decision: the thresholds of a model version, and nothing else. Pure."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from predictions.messages import RiskLevel


class Action(StrEnum):
    """What to do with a transaction."""

    APPROVE = "approve"
    REVIEW = "review"
    DECLINE = "decline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The lowest scores (probabilities of fraud) that are reviewed and declined: 0 < review_from < decline_from.

    They are compared with the score that the artifact returns, a 32-bit float widened to 64 bits without rounding, so
    that a decision does not depend on who compares.
    """

    review_from: float
    decline_from: float

    def __post_init__(self) -> None:
        if not 0 < self.review_from < self.decline_from < math.inf:
            raise ValueError(
                f"thresholds need 0 < review_from < decline_from, not {self.review_from} and {self.decline_from}"
            )


class Decided(NamedTuple):
    decision: Action
    risk_level: RiskLevel


_APPROVE = Decided(Action.APPROVE, RiskLevel.LOW)
_REVIEW = Decided(Action.REVIEW, RiskLevel.MEDIUM)
_DECLINE = Decided(Action.DECLINE, RiskLevel.HIGH)


def decide(score: float, thresholds: Thresholds) -> Decided:
    """Approve (low risk), review (medium) or decline (high). Raises ValueError for a score that is not a number."""
    if score >= thresholds.decline_from:
        return _DECLINE
    if score >= thresholds.review_from:
        return _REVIEW
    if score < thresholds.review_from:
        return _APPROVE
    raise ValueError(f"the score is {score}: the model was fed something that is not a number")
