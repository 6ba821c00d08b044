"""Training vectors: what serving would have known at the moment of each transaction, and nothing later."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from features import compute
from features.compute import DAY_US, Floats, Integers
from features.definitions import BASELINE_FEATURES, MODEL_FEATURES
from features.embeddings import embed
from features.ledger import Ledger, Names, microseconds, read_ledger
from features.progress import Progress, silent

_PROFILE_FEATURES = (
    "customer_age_days",
    "amount_to_usual",
    "amount_deviations",
    "merchant_age_days",
    "amount_to_ticket",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """One row per transaction, by moment, then by id.

    `occurred_at` in UTC (datetime64, microseconds); `labels` 1 fraud, 0 not, -1 not known; `X` [n, features] in the
    order of `names`.
    """

    names: tuple[str, ...]
    transaction_ids: Names
    customer_ids: Names
    occurred_at: npt.NDArray[np.datetime64]
    labels: npt.NDArray[np.int8]
    X: Floats

    def __len__(self) -> int:
        return len(self.labels)


def training_vectors(
    start: date,
    end: date,
    names: tuple[str, ...] | list[str] = BASELINE_FEATURES,
    *,
    progress: Progress = silent,
) -> TrainingSet:
    """The vectors of all transactions from `start` to `end` (UTC days, both included).

    Windows end at the transaction's own moment. Profiles and embeddings are those of a daily build at the last UTC
    midnight, from transactions before it; what that build did not know has the definition's default. An empty span
    gives an empty set. Raises ValueError for names that are no model features and for an end before the start.
    """
    unknown = [name for name in names if name not in MODEL_FEATURES]
    if unknown:
        raise ValueError(f"no model features: {', '.join(unknown)}; known are {', '.join(MODEL_FEATURES)}")
    if end < start:
        raise ValueError(f"the span ends on {end}, before it starts on {start}")
    after = datetime.combine(end, time(), UTC) + timedelta(days=1)
    progress("read the ledger", 0.0)
    ledger = read_ledger(until=after - timedelta(microseconds=1))
    span = slice(int(np.searchsorted(ledger.at_us, microseconds(datetime.combine(start, time(), UTC)))), len(ledger))
    columns = _columns(ledger, span, frozenset(names), progress)
    rows = span.stop - span.start
    return TrainingSet(
        names=tuple(names),
        transaction_ids=ledger.transaction_ids[span],
        customer_ids=ledger.customers[ledger.customer[span]],
        occurred_at=ledger.at_us[span].astype("datetime64[us]"),
        labels=ledger.label[span],
        X=np.column_stack([columns[name] for name in names]) if names else np.empty((rows, 0)),
    )


def _columns(ledger: Ledger, span: slice, names: frozenset[str], progress: Progress) -> dict[str, Floats]:
    at_us, amount = ledger.at_us[span], ledger.amount[span]
    calendar = compute.calendar(at_us)
    columns = {"amount": amount, "is_weekend": calendar[:, 0], "is_night": calendar[:, 1]}
    progress("windows", 0.0)
    customers = compute.customer_windows(ledger.customer, ledger.at_us, ledger.amount_units)[span]
    merchants = compute.merchant_windows(ledger.merchant, ledger.at_us, ledger.fraud, late=ledger.late)[span]
    columns |= dict(zip(BASELINE_FEATURES[3:], [*customers.T, *merchants.T], strict=True))
    if names.intersection(_PROFILE_FEATURES):
        columns |= _profile_columns(ledger, span, progress)
    if "affinity" in names:
        columns["affinity"] = _affinity(ledger, span, progress)
    return columns


def _profile_columns(ledger: Ledger, span: slice, progress: Progress) -> dict[str, Floats]:
    """Profiles are brought forward day by day; each day is judged by what was there before it began."""
    customer_side, merchant_side = np.empty((len(ledger), 3)), np.empty((len(ledger), 2))
    customers, merchants = compute.Profiles(len(ledger.customers)), compute.Profiles(len(ledger.merchants))
    for done, day in _days(ledger.at_us):
        progress("profiles", done)
        at_us, units = ledger.at_us[day], ledger.amount_units[day]
        customer, merchant = ledger.customer[day], ledger.merchant[day]
        if day.stop > span.start:
            amount = ledger.amount[day]
            customer_side[day] = compute.against_customer(customers.customers()[customer], at_us, amount)
            merchant_side[day] = compute.against_merchant(merchants.merchants()[merchant], at_us, amount)
        customers.add(customer, at_us, units)
        merchants.add(merchant, at_us, units)
    return dict(zip(_PROFILE_FEATURES, [*customer_side[span].T, *merchant_side[span].T], strict=True))


def _affinity(ledger: Ledger, span: slice, progress: Progress) -> Floats:
    affinity = np.zeros(len(ledger))
    for done, day in _days(ledger.at_us):
        if day.stop > span.start:
            progress("embeddings", done)
            before = slice(0, day.start)
            left, right = embed(
                len(ledger.customers), len(ledger.merchants), ledger.customer[before], ledger.merchant[before]
            )
            affinity[day] = compute.cosines(left[ledger.customer[day]], right[ledger.merchant[day]])
    return affinity[span]


def _days(at_us: Integers) -> list[tuple[float, slice]]:
    """Each UTC day's rows, with the share of the ledger that lies before it."""
    day = at_us // DAY_US
    edges = [*np.flatnonzero(np.diff(day, prepend=day[:1] - 1)).tolist(), len(day)]
    return [(start / len(day), slice(start, stop)) for start, stop in pairwise(edges)]
