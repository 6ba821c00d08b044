"""Where review and decline begin for a new model version. Pure.

Chosen from scores that the training rows get from models that did not see them (two folds, no customer in both):
scores of rows that a model has learnt by heart would promise far too much.

* decline_from: the lowest score from which on at least `DECLINE_PRECISION` of the declined transactions are fraud;
  where no score gets there, the top `DECLINE_SHARE_OTHERWISE` of the transactions. Or, given how many false declines
  cost as much as a missed fraud, where both together cost least.
* review_from: the top `REVIEW_SHARE` of the transactions, what investigators can look at; below decline_from always.

Both then move into the widest gap between the final model's own scores within `LEEWAY` of them. A threshold on top of a
score would let the last bit of a float32 decide, and forests give whole groups of rows the same score.

The final model's scores are not those of the models that did not see its rows: of a small tree nearly all rows have the
same score, which may lie above a threshold that lay above theirs. So the thresholds are held against the final model's
scores of later transactions, whose labels play no part; where more are flagged or declined than can be meant
(`flagging.py`), they rise.
"""

import numpy as np
from numpy.typing import NDArray

from predictions.decisions import Thresholds
from predictions.registry.estimators import EstimatorKind, make_estimator
from predictions.registry.flagging import most_declined, most_flagged
from predictions.registry.protocol import Floats, Integers, TooLittleData

DECLINE_PRECISION = 0.8
DECLINED_AT_LEAST = 10
"""A precision measured on fewer transactions is chance."""
DECLINE_SHARE_OTHERWISE = 0.001
REVIEW_SHARE = 0.01
COST_RATIOS = (1.0, 5.0, 20.0, 100.0)
"""What a training shows to choose from."""
LEEWAY = 0.001
"""Relative."""
SMALLEST = 1e-4
"""No threshold lies lower: probabilities near the parity gate's tolerance do not tell rows apart."""


def choose_thresholds(
    *,
    unseen_scores: Floats,
    labels: Integers,
    final_scores: Floats,
    later_scores: Floats | None = None,
    cost_ratio: float | None = None,
) -> Thresholds:
    """The thresholds, given the training rows' scores by models that did not see them, and scores by the final model.

    `final_scores` are of all rows that the thresholds should not lie on. `later_scores` are of rows that it was not
    trained on, `final_scores` if there are none. With `cost_ratio`, how many false declines cost as much as a missed
    fraud, decline begins where both together cost least instead.
    """
    cuts = _Cuts(unseen_scores, labels)
    if cost_ratio is not None:
        decline = cuts.at_least_cost(cost_ratio)
    else:
        decline = cuts.at_precision(DECLINE_PRECISION, at_least=DECLINED_AT_LEAST)
    if decline is None:
        decline = cuts.at_share(DECLINE_SHARE_OTHERWISE)
    decline = max(decline, 2 * SMALLEST)
    review = cuts.at_share(REVIEW_SHARE)
    highest_review = decline * (1 - 3 * LEEWAY)
    if review > highest_review:
        review = cuts.next_below(highest_review)
    review = _into_widest_gap(max(review, SMALLEST), final_scores)
    decline = _into_widest_gap(decline, final_scores)
    later = final_scores if later_scores is None or not len(later_scores) else later_scores
    scores = np.unique(np.concatenate((final_scores, later))).astype(np.float64)
    fraud_share = float(labels.mean())
    review = _raised(review, later=later, share=most_flagged(fraud_share), scores=scores)
    decline = _raised(decline, later=later, share=most_declined(fraud_share), scores=scores)
    if review >= decline:
        decline = _between(review, scores[scores > review])
    return Thresholds(review_from=review, decline_from=decline)


def _raised(threshold: float, *, later: Floats, share: float, scores: Floats) -> float:
    """The threshold, or the lowest place above it where at most that share of the later scores lies above."""
    if (later >= threshold).mean() <= share:
        return threshold
    below = float(np.sort(later)[-(int(share * len(later)) + 1)])
    return max(_between(below, scores[scores > below]), SMALLEST)


def _between(below: float, higher: Floats) -> float:
    """A place above `below`, and not above the higher scores; well above it where there are none."""
    if not len(higher):
        return below + max(below * LEEWAY, SMALLEST)
    lowest = float(higher.min())
    middle = (below + lowest) / 2
    return middle if middle > below else lowest


def unseen_scores(
    *, kind: EstimatorKind, seed: int, rows: NDArray[np.float32], labels: Integers, customers: Integers
) -> Floats:
    """Every training row's score by a model fitted on the other half of the customers.

    Raises TooLittleData unless at least two customers had a fraud, since each half needs one.
    """
    fold = _fold_of_rows(labels, customers)
    scores = np.empty(len(labels))
    for held_out in (0, 1):
        seen = fold != held_out
        if len(np.unique(labels[seen])) < 2:
            raise TooLittleData(
                f"all {int(labels.sum())} frauds of the training period are of one customer; thresholds need frauds "
                "of two. Use a longer --train-days or another --train-start"
            )
        model = make_estimator(kind, seed=seed).fit(rows[seen], labels[seen])
        scores[~seen] = model.predict_proba(rows[~seen])[:, 1]
    return scores


def _fold_of_rows(labels: Integers, customers: Integers) -> NDArray[np.intp]:
    """0 or 1 per row: customers dealt out in turn, those with most frauds first, to give each half its share."""
    ids, of_customer = np.unique(customers, return_inverse=True)
    frauds = np.bincount(of_customer, weights=labels, minlength=len(ids))
    turn = np.empty(len(ids), dtype=np.intp)
    turn[np.argsort(-frauds, kind="stable")] = np.arange(len(ids)) % 2
    return turn[of_customer]


class _Cuts:
    """The places between neighbouring different scores, where a threshold can stand, from the highest score down."""

    def __init__(self, scores: Floats, labels: Integers) -> None:
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order].astype(np.float64)
        last_of_equals = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
        lower_neighbours = np.append(ordered[last_of_equals[:-1] + 1], 0.0)
        self._positions = (ordered[last_of_equals] + lower_neighbours) / 2
        self._above = last_of_equals + 1
        self._caught = np.cumsum(labels[order])[last_of_equals]
        self._precision = self._caught / self._above

    def at_precision(self, precision: float, *, at_least: int) -> float | None:
        """The lowest cut with that precision among what is above it; None if there is none."""
        good = np.flatnonzero((self._precision >= precision) & (self._above >= at_least))
        return float(self._positions[good[-1]]) if len(good) else None

    def at_least_cost(self, ratio: float) -> float | None:
        """The cut where false declines, and `ratio` times the frauds below it, are fewest; the highest of equals; None
        where declining nothing costs no more."""
        cost = ratio * (self._caught[-1] - self._caught) + (self._above - self._caught)
        best = int(np.argmin(cost))
        return float(self._positions[best]) if cost[best] < ratio * self._caught[-1] else None

    def at_share(self, share: float) -> float:
        """The highest cut with at least that share of the rows above it."""
        wanted = max(1, round(share * int(self._above[-1])))
        return float(self._positions[np.searchsorted(self._above, wanted)])

    def next_below(self, limit: float) -> float:
        """The highest cut not above the limit; half the limit if there is none."""
        lower = self._positions[self._positions <= limit]
        return float(lower[0]) if len(lower) and lower[0] > 0 else limit / 2


def _into_widest_gap(threshold: float, scores: Floats) -> float:
    low, high = threshold * (1 - LEEWAY), threshold * (1 + LEEWAY)
    inside = np.sort(scores[(scores > low) & (scores < high)])
    edges = np.concatenate(([low], inside, [high]))
    widest = int(np.argmax(np.diff(edges)))
    return float((edges[widest] + edges[widest + 1]) / 2)
