"""Training vectors: what serving would have known at the moment of each transaction, and nothing later."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from features import compute
from features.compute import Floats, Integers
from features.cutoffs import cutoff_us
from features.definitions import (
    BASELINE_FEATURES,
    CUSTOMER_EMBEDDING,
    CUSTOMER_PROFILE,
    MERCHANT_RISK,
    MODEL_FEATURES,
)
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

    Windows of the customer end at the transaction's own moment. Of what is built, each row sees the build of its last
    cutoff (`cutoffs.py`): profiles and embeddings of the last UTC midnight, merchant windows of the last half hour;
    what that build did not know has the definition's default. An empty span gives an empty set. Raises ValueError for
    names that are no model features and for an end before the start.
    """
    _refuse_unknown(names)
    if end < start:
        raise ValueError(f"the span ends on {end}, before it starts on {start}")
    after = datetime.combine(end, time(), UTC) + timedelta(days=1)
    progress("read the ledger", 0.0)
    ledger = read_ledger(until=after - timedelta(microseconds=1))
    first = int(np.searchsorted(ledger.at_us, microseconds(datetime.combine(start, time(), UTC))))
    return _vectors(ledger, np.arange(first, len(ledger)), names, progress)


def vectors_of(
    transaction_ids: Collection[str], names: Sequence[str], *, until: datetime, progress: Progress = silent
) -> TrainingSet:
    """The vectors that `training_vectors` has of these transactions, without those of the rest of their days.

    Those that the ledger up to `until` does not have are left out. Raises ValueError for names that are no model
    features.
    """
    _refuse_unknown(names)
    progress("read the ledger", 0.0)
    ledger = read_ledger(until=until)
    wanted = np.isin(ledger.transaction_ids, np.array(list(transaction_ids), dtype=object))
    return _vectors(ledger, np.flatnonzero(wanted), names, progress)


def _refuse_unknown(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in MODEL_FEATURES]
    if unknown:
        raise ValueError(f"no model features: {', '.join(unknown)}; known are {', '.join(MODEL_FEATURES)}")


def _vectors(ledger: Ledger, rows: Integers, names: Sequence[str], progress: Progress) -> TrainingSet:
    columns = _columns(ledger, rows, frozenset(names), progress)
    return TrainingSet(
        names=tuple(names),
        transaction_ids=ledger.transaction_ids[rows],
        customer_ids=ledger.customers[ledger.customer[rows]],
        occurred_at=ledger.at_us[rows].astype("datetime64[us]"),
        labels=ledger.label[rows],
        X=np.column_stack([columns[name] for name in names]) if names else np.empty((len(rows), 0)),
    )


def _columns(ledger: Ledger, rows: Integers, names: frozenset[str], progress: Progress) -> dict[str, Floats]:
    """Of `rows`, which are places in the ledger, in its order."""
    calendar = compute.calendar(ledger.at_us[rows])
    columns = {"amount": ledger.amount[rows], "is_weekend": calendar[:, 0], "is_night": calendar[:, 1]}
    progress("windows", 0.0)
    customers = compute.customer_windows(ledger.customer, ledger.at_us, ledger.amount_units)[rows]
    merchants = compute.merchant_windows(
        ledger.merchant,
        ledger.at_us,
        ledger.fraud,
        moments_us=cutoff_us(MERCHANT_RISK.name, ledger.at_us),
        late=ledger.late,
    )[rows]
    columns |= dict(zip(BASELINE_FEATURES[3:], [*customers.T, *merchants.T], strict=True))
    if names.intersection(_PROFILE_FEATURES):
        columns |= _profile_columns(ledger, rows, progress)
    if "affinity" in names:
        columns["affinity"] = _affinity(ledger, rows, progress)
    return columns


def _profile_columns(ledger: Ledger, rows: Integers, progress: Progress) -> dict[str, Floats]:
    """Profiles are brought forward from cutoff to cutoff; rows are judged by what was there at theirs."""
    customer_side, merchant_side = np.empty((len(rows), 3)), np.empty((len(rows), 2))
    customers, merchants = compute.Profiles(len(ledger.customers)), compute.Profiles(len(ledger.merchants))
    amounts = ledger.amount
    for part, of in _between_cutoffs(CUSTOMER_PROFILE.name, ledger, rows):
        progress("profiles", part.start / len(ledger))
        asked = rows[of]
        if len(asked):
            at_us, amount = ledger.at_us[asked], amounts[asked]
            customer_side[of] = compute.against_customer(customers.customers()[ledger.customer[asked]], at_us, amount)
            merchant_side[of] = compute.against_merchant(merchants.merchants()[ledger.merchant[asked]], at_us, amount)
        customers.add(ledger.customer[part], ledger.at_us[part], ledger.amount_units[part])
        merchants.add(ledger.merchant[part], ledger.at_us[part], ledger.amount_units[part])
    return dict(zip(_PROFILE_FEATURES, [*customer_side.T, *merchant_side.T], strict=True))


def _affinity(ledger: Ledger, rows: Integers, progress: Progress) -> Floats:
    affinity = np.zeros(len(rows))
    for part, of in _between_cutoffs(CUSTOMER_EMBEDDING.name, ledger, rows):
        asked = rows[of]
        if len(asked):
            progress("embeddings", part.start / len(ledger))
            before = slice(0, part.start)
            left, right = embed(
                len(ledger.customers), len(ledger.merchants), ledger.customer[before], ledger.merchant[before]
            )
            affinity[of] = compute.cosines(left[ledger.customer[asked]], right[ledger.merchant[asked]])
    return affinity


def _between_cutoffs(group: str, ledger: Ledger, rows: Integers) -> Iterator[tuple[slice, slice]]:
    """The parts of the ledger that share a cutoff, each with the part of `rows` that lies in it."""
    cutoffs = cutoff_us(group, ledger.at_us)
    edges = [*np.flatnonzero(np.diff(cutoffs, prepend=cutoffs[:1] - 1)).tolist(), len(cutoffs)]
    for start, stop in pairwise(edges):
        first, last = np.searchsorted(rows, (start, stop)).tolist()
        yield slice(start, stop), slice(first, last)
