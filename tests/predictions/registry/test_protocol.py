"""The Handbook's protocol, on examples small enough to check by hand."""

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest

from predictions.registry.protocol import Periods, TooLittleData, card_precision, latest_train_start, split

START = date(2018, 7, 25)
DAY_0 = (START - date(1970, 1, 1)).days


@pytest.mark.parametrize(
    ("newest", "start"),
    [
        (datetime(2018, 8, 14, 23, 59, 43, tzinfo=UTC), date(2018, 7, 25)),
        (datetime(2018, 8, 14, 22, 59, tzinfo=UTC), date(2018, 7, 24)),
        (datetime(2018, 8, 15, 1, 30, tzinfo=timezone(timedelta(hours=2))), date(2018, 7, 25)),
    ],
)
def test_the_last_test_day_is_a_whole_one(newest: datetime, start: date) -> None:
    """The newest transaction's day counts once its last hour has begun, in UTC."""
    assert latest_train_start(newest, days=21) == start


def _split(rows: list[tuple[int, int, int]], **lengths: int) -> tuple[list[int], list[int]]:
    """`rows`: day from the start, customer, label."""
    days, customers, labels = np.array(rows).T
    found = split(periods=Periods(train_start=START, **lengths), days=days + DAY_0, customers=customers, labels=labels)
    return found.train.tolist(), found.test.tolist()


def test_customers_known_to_be_compromised_leave_the_test() -> None:
    """Known on test day k are the frauds of the training week and, seven days late, of the days up to 7 before it."""
    rows = [
        (0, 1, 1),  # training: fraud of customer 1
        (6, 2, 0),
        (7, 3, 1),  # delay: fraud of customer 3, known from test day 1 (day 15) on
        (14, 1, 0),  # 1 is known
        (14, 3, 0),  # 3 is not known yet
        (15, 3, 0),  # now it is
        (15, 2, 0),
        (20, 4, 1),
        (21, 2, 0),  # after the test
        (-1, 2, 0),  # before the training
    ]
    assert _split(rows) == ([0, 1], [4, 6, 7])


def test_without_delay_frauds_are_known_the_next_day() -> None:
    """With a delay of 0 days a fraud of yesterday blocks the customer today, within the test too."""
    rows = [(0, 1, 1), (0, 2, 0), (1, 2, 1), (1, 3, 0), (2, 2, 1), (2, 3, 0)]
    assert _split(rows, train_days=1, delay_days=0, test_days=2) == ([0, 1], [2, 3, 5])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(14, 1, 1), (14, 2, 0)], "training period has no transactions"),
        ([(0, 1, 0), (14, 1, 1), (14, 2, 0)], "training period has 1 transactions, 0 of them fraud"),
        ([(0, 1, 0), (0, 3, 1), (14, 1, 1)], "test period has 1 transactions, 1 of them fraud"),
        ([(0, 1, 0), (0, 3, 1), (14, 3, 1)], "test period has no transactions"),
    ],
)
def test_what_cannot_be_learnt_or_tested_is_refused(rows: list[tuple[int, int, int]], message: str) -> None:
    """Each period needs both classes; the message says which lacks what, and the options to change."""
    with pytest.raises(TooLittleData, match=message) as caught:
        _split(rows)
    assert "--train-start" in str(caught.value)


def test_card_precision_by_hand() -> None:
    """A customer counts once a day with the highest score; who was caught is not looked for again."""
    table = np.array(
        [
            # day, customer, label, score
            (0, 1, 0, 0.1),
            (0, 1, 1, 0.9),  # caught, first of two
            (0, 2, 0, 0.8),  # second: not compromised
            (0, 3, 1, 0.7),  # missed
            (1, 1, 1, 1.0),  # caught before: left out
            (1, 3, 1, 0.6),  # caught, first of two
            (1, 4, 0, 0.5),  # second: not compromised
            (1, 5, 1, 0.4),  # missed
        ]
    )
    days, customers, labels = table[:, :3].T.astype(int)
    found = card_precision(scores=table[:, 3], labels=labels, days=days, customers=customers, cards=2)
    assert found == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_equal_scores_are_ordered_by_customer() -> None:
    """Ties do not depend on the order of the rows."""
    one = card_precision(
        scores=np.array([0.5, 0.5]), labels=np.array([1, 0]), days=np.zeros(2, int), customers=np.array([1, 2]), cards=1
    )
    other = card_precision(
        scores=np.array([0.5, 0.5]), labels=np.array([0, 1]), days=np.zeros(2, int), customers=np.array([2, 1]), cards=1
    )
    assert one == other == 1.0
