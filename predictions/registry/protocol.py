"""What a model is trained on, what it is tested on and how good it is: the protocol of the Fraud Detection Handbook.

Train on `train_days`; leave out `delay_days`, in which nobody knows yet what was fraud; test on `test_days`. From each
test day leave out the customers who are known by then to be compromised, that is by labels that arrive `delay_days`
late: their cards are blocked. Le Borgne, Siblini, Lebichot, Bontempi: "Reproducible Machine Learning for Credit Card
Fraud Detection - Practical Handbook" (ULB and Worldline, 2022), chapters 3 and 4.

Days are UTC and counted since 1970. Labels are 0 (genuine) and 1 (fraud). Customers are numbered in the order of their
ids. Pure.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from mlserve.errors import MlserveError

CARDS_PER_DAY = 100
"""How many customers investigators can look at in a day."""
_WHOLE_DAY_FROM_HOUR = 23
"""A day whose last transaction lies in its last hour is taken to be over."""

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


class TooLittleData(MlserveError):
    """The ledger does not have what training or testing needs. The message says what is missing and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Periods:
    """Whole days, UTC. All counts in days."""

    train_start: date
    train_days: int = 7
    delay_days: int = 7
    test_days: int = 7

    def __post_init__(self) -> None:
        if self.train_days < 1 or self.test_days < 1 or self.delay_days < 0:
            raise ValueError("train_days and test_days are at least 1, delay_days at least 0")

    @property
    def days(self) -> int:
        return self.train_days + self.delay_days + self.test_days

    @property
    def last_day(self) -> date:
        """The last test day."""
        return self.train_start + timedelta(days=self.days - 1)

    def starting(self, train_start: date) -> "Periods":
        """The same lengths from another day on."""
        return Periods(
            train_start=train_start,
            train_days=self.train_days,
            delay_days=self.delay_days,
            test_days=self.test_days,
        )

    def __str__(self) -> str:
        return (
            f"{self.train_days} d of training from {self.train_start}, {self.delay_days} d of delay, "
            f"{self.test_days} d of test up to {self.last_day}"
        )


def latest_train_start(newest: datetime, *, days: int) -> date:
    """The latest first day of `days` whole days that end with the newest transaction.

    The newest transaction's own day counts if it is nearly over, otherwise the day before is the last.
    """
    newest = newest.astimezone(UTC)
    last = newest.date() if newest.hour >= _WHOLE_DAY_FROM_HOUR else newest.date() - timedelta(days=1)
    return last - timedelta(days=days - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Row numbers of the transactions of training, delay and test; `left_out` are those of the test days whose
    customers are known to be compromised."""

    train: Integers
    delay: Integers
    test: Integers
    left_out: Integers


def split(*, periods: Periods, days: Integers, customers: Integers, labels: Integers) -> Split:
    """Divides transactions of all three periods. Raises TooLittleData where nothing can be learnt or tested."""
    first = (periods.train_start - date(1970, 1, 1)).days
    first_test = first + periods.train_days + periods.delay_days
    in_train = (days >= first) & (days < first + periods.train_days)
    test_rows, left_out = [], []
    known = np.unique(customers[in_train & (labels == 1)])
    for test_day in range(first_test, first_test + periods.test_days):
        newly_known = (days == test_day - periods.delay_days - 1) & (labels == 1)
        known = np.union1d(known, customers[newly_known])
        of_day = np.flatnonzero(days == test_day)
        compromised = np.isin(customers[of_day], known)
        test_rows.append(of_day[~compromised])
        left_out.append(of_day[compromised])
    found = Split(
        train=np.flatnonzero(in_train),
        delay=np.flatnonzero((days >= first + periods.train_days) & (days < first_test)),
        test=np.concatenate(test_rows),
        left_out=np.concatenate(left_out),
    )
    _check_learnable("training", labels[found.train], periods)
    _check_learnable("test", labels[found.test], periods)
    return found


def _check_learnable(period: str, labels: Integers, periods: Periods) -> None:
    frauds = int(labels.sum())
    if 0 < frauds < len(labels):
        return
    has = f"{len(labels)} transactions, {frauds} of them fraud" if len(labels) else "no transactions"
    raise TooLittleData(
        f"the {period} period has {has}; it needs both fraud and genuine ones ({periods}). "
        "Choose other days with --train-start, --train-days, --delay-days and --test-days, or import more transactions"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well scores find fraud: each from 0 to 1, more is better."""

    auc_roc: float
    average_precision: float
    card_precision_at_100: float


def assess(*, scores: Floats, labels: Integers, days: Integers, customers: Integers) -> Quality:
    """The three figures of the Handbook on the test transactions."""
    return Quality(
        auc_roc=float(roc_auc_score(labels, scores)),
        average_precision=float(average_precision_score(labels, scores)),
        card_precision_at_100=card_precision(scores=scores, labels=labels, days=days, customers=customers),
    )


def card_precision(
    *, scores: Floats, labels: Integers, days: Integers, customers: Integers, cards: int = CARDS_PER_DAY
) -> float:
    """The share of compromised customers among the `cards` that score highest in a day, as the mean over the days.

    A customer scores the highest of that day's scores. Customers found compromised are left out of later days. Equal
    scores are ordered by customer id. A day with fewer customers than `cards` still counts as `cards`.
    """
    found: Integers = np.empty(0, dtype=customers.dtype)
    precisions = []
    for day in np.unique(days):
        rows = np.flatnonzero(days == day)
        rows = rows[~np.isin(customers[rows], found)]
        ids, of_customer = np.unique(customers[rows], return_inverse=True)
        highest = np.full(len(ids), -np.inf)
        np.maximum.at(highest, of_customer, scores[rows])
        compromised = np.zeros(len(ids), dtype=bool)
        np.logical_or.at(compromised, of_customer, labels[rows] == 1)
        looked_at = np.argsort(-highest, kind="stable")[:cards]
        caught = ids[looked_at[compromised[looked_at]]]
        precisions.append(len(caught) / cards)
        found = np.concatenate((found, caught))
    return float(np.mean(precisions))
