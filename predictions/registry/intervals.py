"""How far a figure could have come out otherwise: customers are drawn anew, as often as there are, with replacement.

Whole customers, because the frauds of one come together: transactions drawn one by one would promise too much. The same
draws for two models give the interval of their difference (a paired bootstrap; Efron, Tibshirani: "An Introduction to
the Bootstrap", 1993, chapters 8 and 13). Pure; the same data give the same intervals.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 200
_SHARES = (2.5, 97.5)
"""The ends of a 95 % interval, in percent of the draws."""

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """95 %. Both ends are `value` where the draws say nothing, as with frauds of one customer."""

    value: float
    low: float
    high: float


class RankedScores:
    """The scores of labelled transactions, sorted once."""

    def __init__(self, scores: Floats, labels: Integers) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._last_of_equals = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
        self._labels = labels[self._order].astype(np.float64)

    def average_precision(self, weights: Floats | None = None) -> float:
        """Each transaction counted as often as its weight; not a number without fraud."""
        weighed = np.ones(len(self._order)) if weights is None else weights[self._order]
        caught = np.cumsum(weighed * self._labels)[self._last_of_equals]
        looked_at = np.cumsum(weighed)[self._last_of_equals]
        if caught[-1] == 0:
            return float("nan")
        precision = np.divide(caught, looked_at, out=np.zeros_like(caught), where=looked_at > 0)
        return float((np.diff(caught, prepend=0.0) * precision).sum() / caught[-1])


def average_precision_interval(*, scores: Floats, labels: Integers, customers: Integers) -> Interval:
    """`customers` says of each transaction whose it is, by any number."""
    ranked = RankedScores(scores, labels)
    draws = [ranked.average_precision(weights) for weights in _weights(customers)]
    return _interval(ranked.average_precision(), draws)


def difference_interval(*, candidate: Floats, champion: Floats, labels: Integers, customers: Integers) -> Interval:
    """Of the average precision: positive where the candidate is better."""
    one, other = RankedScores(candidate, labels), RankedScores(champion, labels)
    draws = [one.average_precision(weights) - other.average_precision(weights) for weights in _weights(customers)]
    return _interval(one.average_precision() - other.average_precision(), draws)


def _weights(customers: Integers) -> Iterator[Floats]:
    of_customer = np.unique(customers, return_inverse=True)[1]
    count = int(of_customer.max()) + 1
    random = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        drawn = np.bincount(random.integers(0, count, count), minlength=count)
        yield drawn[of_customer].astype(np.float64)


def _interval(value: float, draws: list[float]) -> Interval:
    found = np.array(draws)
    found = found[~np.isnan(found)]
    low, high = np.percentile(found, _SHARES) if len(found) else (value, value)
    return Interval(value=value, low=float(low), high=float(high))
