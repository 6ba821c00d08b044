"""What a training's days lack: said with counts, because a figure from half of the days looks like any other. Pure."""

from datetime import date, timedelta

import numpy as np

from predictions.registry.protocol import Integers, Periods, Split

FEW_FRAUDS = 30
"""Figures of fewer are rough, though not refused."""
_SHOWN = 5


def warnings_of(*, periods: Periods, part: Split, days: Integers, customers: Integers, labels: Integers) -> list[str]:
    """In words, with counts; none where there is nothing to say. `days` are counted since 1970."""
    first = (periods.train_start - date(1970, 1, 1)).days
    first_test = first + periods.train_days + periods.delay_days
    found = []
    for name, rows, begin, count in (
        ("training", part.train, first, periods.train_days),
        ("test", part.test, first_test, periods.test_days),
    ):
        all_days = range(begin, begin + count)
        of_days = days[np.union1d(rows, part.left_out)] if name == "test" else days[rows]
        empty = [day for day in all_days if not (of_days == day).any()]
        if empty:
            found.append(f"{len(empty)} of {count} {name} days have no labelled transaction: {_listed(empty)}")
        one_class = [
            day for day in all_days if day not in empty and len(np.unique(labels[rows[days[rows] == day]])) < 2
        ]
        if one_class:
            found.append(
                f"{len(one_class)} of {count} {name} days have only fraud, or none of it: {_listed(one_class)}"
            )
        frauds = int(labels[rows].sum())
        if frauds < FEW_FRAUDS:
            found.append(f"the {name} period has {frauds} frauds, fewer than {FEW_FRAUDS}: its figures are rough")
    if len(part.left_out):
        found.append(
            f"{len(part.left_out)} test transactions of {len(np.unique(customers[part.left_out]))} customers were left "
            f"out: these are known to be compromised by then ({int(labels[part.left_out].sum())} frauds among them)"
        )
    return found


def _listed(days: list[int]) -> str:
    shown = ", ".join(str(date(1970, 1, 1) + timedelta(days=day)) for day in days[:_SHOWN])
    return shown if len(days) <= _SHOWN else f"{shown} and {len(days) - _SHOWN} more"
