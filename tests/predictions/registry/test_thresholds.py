"""Where review and decline begin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from predictions.registry.estimators import EstimatorKind
from predictions.registry.flagging import most_declined, most_flagged
from predictions.registry.protocol import TooLittleData
from predictions.registry.thresholds import DECLINE_PRECISION, LEEWAY, _fold_of_rows, choose_thresholds, unseen_scores
from tests.predictions.registry import examples


def test_decline_begins_where_four_in_five_are_fraud() -> None:
    """Of what is declined 80 % are fraud, and no lower threshold would do; 1 % is reviewed or declined at least."""
    count = 10_000
    scores = np.linspace(0.9, 0.001, count)
    labels = np.zeros(count, dtype=int)
    labels[:40] = 1  # with the next 10 genuine ones: 40 of 50
    chosen = choose_thresholds(unseen_scores=scores, labels=labels, final_scores=scores)
    declined = scores >= chosen.decline_from
    assert abs(declined.sum() - 50) <= count * LEEWAY
    assert labels[declined].mean() == pytest.approx(DECLINE_PRECISION, abs=0.15)
    assert abs((scores >= chosen.review_from).sum() - 100) <= count * LEEWAY


def test_a_model_without_precision_declines_the_top_thousandth() -> None:
    """Where no score reaches the precision, one transaction in a thousand is declined, one in a hundred reviewed."""
    scores = np.linspace(0.9, 0.1, 10_000) ** 8  # far apart at the top
    labels = np.zeros(10_000, dtype=int)
    labels[5000:5100] = 1  # far below the top
    chosen = choose_thresholds(unseen_scores=scores, labels=labels, final_scores=scores)
    assert 8 <= (scores >= chosen.decline_from).sum() <= 12
    assert 98 <= (scores >= chosen.review_from).sum() <= 102
    assert chosen.review_from < chosen.decline_from


@given(
    st.data(),
    hnp.arrays(np.float32, st.integers(2, 60), elements=st.floats(0, 1, width=32)),
)
def test_thresholds_exist_for_every_model(data: st.DataObject, scores: np.ndarray) -> None:
    """Whatever the scores are, few or all equal: 0 < review_from < decline_from."""
    labels = data.draw(hnp.arrays(np.int8, len(scores), elements=st.integers(0, 1)))
    chosen = choose_thresholds(unseen_scores=scores, labels=labels, final_scores=scores)
    assert 0 < chosen.review_from < chosen.decline_from


@given(
    hnp.arrays(np.float32, 40, elements=st.sampled_from([0.0, 0.0045, 0.0046, 0.01, 0.3, 0.9, 1.0])),
    hnp.arrays(np.float32, 60, elements=st.sampled_from([0.0, 0.0044, 0.0045, 0.0047, 0.3, 0.31, 1.0])),
    hnp.arrays(np.float32, 60, elements=st.sampled_from([0.0, 0.0044, 0.0045, 0.0047, 0.3, 0.31, 1.0])),
)
def test_never_more_is_flagged_than_can_be_meant(unseen: np.ndarray, final: np.ndarray, later: np.ndarray) -> None:
    """Of later transactions, scored by the final model, whatever the models give that the thresholds come from."""
    labels = (np.arange(40) == 0).astype(int)
    chosen = choose_thresholds(unseen_scores=unseen, labels=labels, final_scores=final, later_scores=later)
    assert (later >= chosen.review_from).mean() <= most_flagged(1 / 40)
    assert (later >= chosen.decline_from).mean() <= most_declined(1 / 40)
    assert 0 < chosen.review_from < chosen.decline_from


def test_dearer_frauds_are_declined_earlier() -> None:
    """Where a missed fraud costs as much as so many false declines, both together cost least."""
    random = np.random.default_rng(0)
    labels = (random.random(20_000) < 0.01).astype(int)
    scores = np.clip(random.normal(0.2 + 0.3 * labels, 0.1), 0.001, 0.999)

    def cost(threshold: float, ratio: float) -> float:
        declined = scores >= threshold
        return float(ratio * labels[~declined].sum() + (1 - labels)[declined].sum())

    found = []
    for ratio in (1, 5, 20):
        chosen = choose_thresholds(unseen_scores=scores, labels=labels, final_scores=scores, cost_ratio=ratio)
        # All transactions are held-out ones here; what may be declined has an end.
        assert (scores >= chosen.decline_from).mean() <= most_declined(labels.mean())
        found.append(chosen.decline_from)
    assert found == sorted(found, reverse=True)
    assert cost(found[0], 1) <= min(cost(threshold, 1) for threshold in np.linspace(0.1, 0.9, 200)) + 1


def test_a_small_tree_does_not_send_nearly_everything_to_review() -> None:
    """Nearly all rows have the score of one leaf, which in the final model lies a little higher than in the folds."""
    count = 20_000
    labels = np.zeros(count, dtype=int)
    labels[:180] = 1
    folds = np.full(count, 0.0043)
    folds[::2] = 0.0047
    folds[:120] = 0.9
    final = np.where(folds > 0.5, 0.88, 0.0046)
    chosen = choose_thresholds(unseen_scores=folds, labels=labels, final_scores=final, later_scores=final)
    assert (final >= chosen.review_from).sum() == 120


def test_no_training_score_lies_on_a_threshold() -> None:
    """Forests give many rows the same score; a threshold there would be decided by the last bit of a float32."""
    random = np.random.default_rng(0)
    scores = random.integers(0, 100, 5000) / 100
    labels = (random.random(5000) < scores**3).astype(int)
    chosen = choose_thresholds(unseen_scores=scores, labels=labels, final_scores=scores)
    for threshold in (chosen.review_from, chosen.decline_from):
        assert np.abs(scores - threshold).min() > 1e-3


def test_folds_share_no_customer_and_share_the_frauds() -> None:
    """No customer is on both sides, and each half has its part of the compromised customers."""
    data = examples.rows()
    fold = _fold_of_rows(data.labels, data.customers)
    assert not set(data.customers[fold == 0]) & set(data.customers[fold == 1])
    assert 0.4 < data.labels[fold == 0].sum() / data.labels.sum() < 0.6


def test_unseen_scores_are_not_those_of_a_model_that_knew_the_answer() -> None:
    """A forest scores its own training rows near 0 or 1; thresholds are chosen from honest scores."""
    data = examples.rows(1000)
    honest = unseen_scores(
        kind=EstimatorKind.RANDOM_FOREST, seed=0, rows=data.X, labels=data.labels, customers=data.customers
    )
    assert honest[data.labels == 1].mean() < 0.7
    assert honest[data.labels == 1].mean() > 2 * honest[data.labels == 0].mean()


def test_frauds_of_one_customer_are_too_few() -> None:
    """Each half of the customers needs a fraud to learn from."""
    data = examples.rows(100)
    labels = (data.customers == data.customers[0]).astype(int)
    with pytest.raises(TooLittleData, match="of one customer"):
        unseen_scores(kind=EstimatorKind.DECISION_TREE, seed=0, rows=data.X, labels=labels, customers=data.customers)
