"""Intervals of figures, by drawing customers anew."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from predictions.registry.intervals import RankedScores, average_precision_interval, difference_interval


@given(st.data(), hnp.arrays(np.float32, st.integers(2, 40), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])))
def test_average_precision_is_that_of_scikit_learn(data: st.DataObject, scores: np.ndarray) -> None:
    """Of scores with ties, and of transactions that are counted several times or not at all."""
    labels = data.draw(hnp.arrays(np.int8, len(scores), elements=st.integers(0, 1)))
    weights = data.draw(hnp.arrays(np.float64, len(scores), elements=st.integers(0, 3)))
    if not (labels * weights).any():
        assert np.isnan(RankedScores(scores, labels).average_precision(weights))
        return
    expected = average_precision_score(labels, scores, sample_weight=weights)
    assert RankedScores(scores, labels).average_precision(weights) == pytest.approx(expected)


def _world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    customers = random.integers(0, 300, 4000)
    labels = (random.random(4000) < 0.03).astype(int)
    return customers, labels, labels * 0.5 + random.random(4000)


def test_the_interval_holds_the_figure_and_is_the_same_each_time() -> None:
    """Wider than nothing, narrower than everything."""
    customers, labels, scores = _world()
    found, again = (average_precision_interval(scores=scores, labels=labels, customers=customers) for _ in range(2))
    assert found == again
    assert 0 < found.low < found.value < found.high < 1


def test_a_difference_that_chance_would_give_holds_zero() -> None:
    """And one that it would not does not, whichever of the two is better."""
    customers, labels, scores = _world()
    random = np.random.default_rng(1)
    alike, useless = scores + random.random(4000) / 100, random.random(4000)
    for candidate, champion, sign in ((scores, alike, 0), (useless, scores, -1), (scores, useless, 1)):
        found = difference_interval(candidate=candidate, champion=champion, labels=labels, customers=customers)
        assert (found.low > 0) - (found.high < 0) == sign


def test_frauds_of_one_customer_leave_much_open() -> None:
    """Draws without that customer say nothing and are left out."""
    customers = np.arange(100) % 10
    labels = (customers == 3).astype(int)
    found = average_precision_interval(scores=np.linspace(0, 1, 100), labels=labels, customers=customers)
    assert found.low <= found.value <= found.high
