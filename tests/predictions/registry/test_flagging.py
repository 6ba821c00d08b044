"""What thresholds do to held-out transactions."""

import numpy as np
import pytest

from predictions.decisions import Thresholds
from predictions.registry.flagging import measure, reliability, what_is_implausible


def test_shares_precision_and_recall_are_counted() -> None:
    """Of ten: three flagged, two of them declined, one of which is fraud; one fraud in two is flagged."""
    scores = np.array([0.9, 0.8, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    labels = np.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    found = measure(scores=scores, labels=labels, thresholds=Thresholds(review_from=0.2, decline_from=0.5))
    assert (found.flagged, found.declined, found.flagged_share, found.declined_share) == (3, 2, 0.3, 0.2)
    assert (found.decline_precision, found.recall) == (0.5, 0.5)
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.09 + 0.81 + 6 * 0.01) / 10)


def test_nothing_to_divide_by_is_none() -> None:
    """No precision where nothing was declined, no recall where nothing was fraud."""
    found = measure(
        scores=np.array([0.1, 0.1]), labels=np.zeros(2, int), thresholds=Thresholds(review_from=0.2, decline_from=0.5)
    )
    assert (found.decline_precision, found.recall) == (None, None)


def test_reliability_counts_every_row_once() -> None:
    """Zero and one are scores, too."""
    scores = np.array([0.0, 0.005, 0.05, 0.4, 1.0], np.float32)
    found = reliability(scores=scores, labels=np.array([0, 0, 1, 0, 1]))
    assert sum(one["rows"] for one in found) == 5
    assert found[-1] == {"from": 0.5, "to": 1.0, "rows": 1, "mean_score": 1.0, "fraud_share": 1.0}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((10_000, 90, 9_900, 5), "it flags 9900 of 10000 held-out transactions (99.0%), of which 90 are fraud"),
        ((10_000, 90, 9_900, 9_900), "it declines 9900 of 10000"),
        ((10_000, 90, 0, 0), "it flags none of 10000"),
        ((0, 0, 0, 0), "checked on no transaction"),
    ],
)
def test_what_no_working_model_does_is_said(counts: tuple[int, int, int, int], said: str) -> None:
    """With the numbers that it was seen by."""
    rows, frauds, flagged, declined = counts
    found = what_is_implausible(rows=rows, frauds=frauds, flagged=flagged, declined=declined)
    assert said in "; ".join(found)


@pytest.mark.parametrize(
    "counts", [(10_000, 90, 120, 30), (100, 6, 8, 4), (400, 90, 200, 100), (200, 2, 0, 0), (10_000, 0, 0, 0)]
)
def test_what_a_working_model_does_is_not(counts: tuple[int, int, int, int]) -> None:
    """Few rows leave room for chance, and where fraud is common much is flagged."""
    rows, frauds, flagged, declined = counts
    assert what_is_implausible(rows=rows, frauds=frauds, flagged=flagged, declined=declined) == []
