"""What the features mean: every window, share, ratio and cosine, for serving and for training side by side.

Pure. Serving derives one transaction's vector from the stored groups (`VectorPlan`); training derives a whole
ledger's columns (`customer_windows`, `merchant_windows`, ...). A property test holds both to the same numbers.

Windows are half open, `(t - w, t]`. Transactions at the same moment are ordered by their id, shorter ids first, then
byte by byte (for digits that is by number). Amounts are those of the ledger: four decimals.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from operator import itemgetter, mul
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features.definitions import (
    CUSTOMER_EMBEDDING,
    EMBEDDING_SIZE,
    LABEL_DELAY_DAYS,
    MERCHANT_RISK,
    MODEL_FEATURES,
    WINDOW_DAYS,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Vector = tuple[float, ...]

DAY_S = 86_400.0
DAY_US = 86_400 * 1_000_000
AMOUNT_UNITS = 10_000
"""The ledger's amounts have four decimals: as integers of 1e-4 their cumulative sums are exact."""
_SHORT_S, _MIDDLE_S, _LONG_S = (days * DAY_S for days in WINDOW_DAYS)
_NIGHT_ENDS_S = 7 * 3600.0
_FIRST_DAY_OF_1970 = 3  # a Thursday, with Monday as 0
_SATURDAY = 5
_STORED_EMBEDDING = len(CUSTOMER_EMBEDDING.values)
_NO_RISK: Vector = tuple(stored.default for stored in MERCHANT_RISK.values)


class ActivityWindows(msgspec.Struct, frozen=True, gc=False):
    """Count and mean amount over 1, 7 and 30 days, in the order of the model features.

    `complete` is False if the list does not reach back to the start of the longest window.
    """

    values: Vector
    complete: bool


class Derived(msgspec.Struct, frozen=True, gc=False):
    """A model's input. `incomplete`: the kept history was too short for this transaction's windows.

    `unrelated`: the customer's and the merchant's embeddings are of two builds, and the affinity is its default.
    """

    values: Vector
    incomplete: bool
    unrelated: bool = False


def transaction_tag(transaction_id: str) -> float:
    """32 bits of the id's SHA-256, by which a transaction is found in a list of recent ones.

    The database computes the same in `activity.py`. Tags are only compared at equal moments, so 32 bits are ample.
    """
    return float(int.from_bytes(sha256(transaction_id.encode()).digest()[:4], "big"))


def activity_windows(values: Sequence[float], *, at: float, amount: float, tag: float | None) -> ActivityWindows:
    """The customer's windows at moment `at` (s since 1970), the transaction of `amount` and `tag` itself included.

    `values` as stored: [complete from, time, amount, tag, time, amount, tag, ...], oldest first. A transaction that
    the list already holds counts once, with the amount in the list, and then only those before it in the list count;
    otherwise all up to `at` do. Later ones never count.
    """
    times = values[1::3]
    end = bisect_right(times, at)
    here = end
    while here and times[here - 1] == at:
        here -= 1
        if values[3 * here + 3] == tag:
            end = here
            amount = values[3 * here + 2]
            break
    long_from = at - _LONG_S
    long = bisect_right(times, long_from, 0, end)
    middle = bisect_right(times, at - _MIDDLE_S, long, end)
    short = bisect_right(times, at - _SHORT_S, middle, end)
    amounts = values[2::3]
    short_sum = amount + sum(amounts[short:end])
    middle_sum = short_sum + sum(amounts[middle:short])
    long_sum = middle_sum + sum(amounts[long:middle])
    end += 1  # this transaction
    short_count, middle_count, long_count = end - short, end - middle, end - long
    return ActivityWindows(
        (
            float(short_count),
            short_sum / short_count,
            float(middle_count),
            middle_sum / middle_count,
            float(long_count),
            long_sum / long_count,
        ),
        long_from >= values[0],
    )


def with_transaction(values: Sequence[float] | None, *, at: float, amount: float, tag: float) -> Vector:
    """A customer's stored activity as recording this transaction would leave it; unchanged if it is in there already.

    None stands for a customer of whom nothing is known.
    """
    if not values:
        return (0.0, at, amount, tag)
    times = values[1::3]
    end = here = bisect_right(times, at)
    while here and times[here - 1] == at:
        here -= 1
        if values[3 * here + 3] == tag:
            return tuple(values)
    place = 1 + 3 * end
    return (*values[:place], at, amount, tag, *values[place:])


class VectorPlan:
    """How to derive the vector that one model version declares; made once, used for every score. Thread-safe.

    Raises ValueError for a name that is no model feature. `groups` are the stored groups to read for it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in MODEL_FEATURES]
        if unknown:
            raise ValueError(f"no model features: {', '.join(unknown)}; known are {', '.join(MODEL_FEATURES)}")
        if not names:
            raise ValueError("a model needs at least one feature")
        self.names = tuple(names)
        self.groups = tuple(dict.fromkeys(group for name in names for group in MODEL_FEATURES[name].groups))
        self._needs_affinity = "affinity" in names
        places = [_ORDER[name] for name in names]
        # itemgetter of one place returns the bare item
        self._pick: Any = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)

    def derive(
        self,
        *,
        occurred_at: float,
        amount: float,
        tag: float | None,
        groups: Mapping[str, Sequence[float] | None],
    ) -> Derived:
        """The vector at `occurred_at` (s since 1970) from the stored values of each group.

        A group that is None or absent gives the definition's defaults; an unknown customer's windows hold the
        transaction itself: count 1, mean its amount.
        """
        activity = groups.get("customer_activity")
        if activity:
            windows = activity_windows(activity, at=occurred_at, amount=amount, tag=tag)
            recent, incomplete = windows.values, not windows.complete
        else:
            recent, incomplete = (1.0, amount) * 3, False
        affinity, unrelated = (
            affinity_of(groups.get("customer_embedding"), groups.get("merchant_embedding"))
            if self._needs_affinity
            else (0.0, False)
        )
        row = (
            amount,
            *_calendar(occurred_at),
            *recent,
            *(groups.get("merchant_risk") or _NO_RISK),
            *_against_customer(groups.get("customer_profile"), occurred_at, amount),
            *_against_merchant(groups.get("merchant_profile"), occurred_at, amount),
            affinity,
        )
        return Derived(self._pick(row), incomplete, unrelated)


_ORDER = {name: place for place, name in enumerate(MODEL_FEATURES)}


def derive(
    *,
    names: Sequence[str],
    occurred_at: float,
    amount: float,
    tag: float | None,
    groups: Mapping[str, Sequence[float] | None],
) -> Derived:
    """`VectorPlan(names).derive(...)` for those who need it once."""
    return VectorPlan(names).derive(occurred_at=occurred_at, amount=amount, tag=tag, groups=groups)


def affinity_of(customer: Sequence[float] | None, merchant: Sequence[float] | None) -> tuple[float, bool]:
    """The cosine of two stored embeddings, and whether they are of two builds: then it is 0, the default.

    Coordinates of two builds are on other axes. What was stored without a build's number, or with 0, fits nothing.
    """
    if not customer or not merchant:
        return 0.0, False
    if len(customer) != _STORED_EMBEDDING or len(merchant) != _STORED_EMBEDDING:
        return 0.0, True
    if customer[-1] != merchant[-1] or not customer[-1]:
        return 0.0, True
    return cosine(customer[:EMBEDDING_SIZE], merchant[:EMBEDDING_SIZE]), False


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Between -1 and 1; 0 if either is all zero."""
    norm = math.sqrt(sum(map(mul, left, left)) * sum(map(mul, right, right)))
    return sum(map(mul, left, right)) / norm if norm else 0.0


def _calendar(at: float) -> tuple[float, float]:
    day, second = divmod(at, DAY_S)
    return float((day + _FIRST_DAY_OF_1970) % 7 >= _SATURDAY), float(second < _NIGHT_ENDS_S)


def _against_customer(profile: Sequence[float] | None, at: float, amount: float) -> tuple[float, float, float]:
    if not profile:
        return 0.0, 1.0, 0.0
    first_seen, mean, deviation = profile
    return (
        max(0.0, at - first_seen) / DAY_S,
        amount / mean if mean else 1.0,
        (amount - mean) / deviation if deviation else 0.0,
    )


def _against_merchant(profile: Sequence[float] | None, at: float, amount: float) -> tuple[float, float]:
    if not profile:
        return 0.0, 1.0
    first_seen, ticket = profile
    return max(0.0, at - first_seen) / DAY_S, amount / ticket if ticket else 1.0


# --- The same for whole ledgers. Rows are in ledger order: by moment, then by id. ---


def customer_windows(customer: Integers, at_us: Integers, amount_units: Integers) -> Floats:
    """`activity_windows` of every row: [n, 6]. Entities as codes from 0, times in microseconds, amounts in 1e-4."""
    lines = _Lines(customer, at_us)
    end = lines.place + 1
    sums = lines.running(amount_units)
    columns = []
    for days in WINDOW_DAYS:
        start = lines.after(at_us - days * DAY_US)
        count = end - start
        columns += [count.astype(np.float64), (sums[end] - sums[start]) / (AMOUNT_UNITS * count)]
    return np.column_stack(columns)


class LateLabels(NamedTuple):
    """Spans of time in which something else was known of a row than its label says now. Columns of equal length.

    From `begin_us` on and before `end_us` the row counted as `fraud` (1 or 0). Only what was said later than
    `LABEL_DELAY_DAYS` after the transaction matters: windows look no nearer.
    """

    row: Integers
    begin_us: Integers
    end_us: Integers
    fraud: Integers


_none = np.empty(0, dtype=np.int64)
NONE_LATE = LateLabels(_none, _none, _none, _none)


def merchant_windows(
    merchant: Integers,
    at_us: Integers,
    fraud: Integers,
    *,
    moments_us: Integers | None = None,
    late: LateLabels = NONE_LATE,
) -> Floats:
    """Count and share of fraud of every row's merchant, the windows ending seven days earlier: [n, 6].

    Earlier than the row, or than its moment of `moments_us`. `fraud` is 1 where fraud is known, else 0; what was said
    `late` counts from the moment on at which it was said. An empty window has share 0.
    """
    asked_us = at_us if moments_us is None else moments_us
    distinct, rank = np.unique(asked_us, return_inverse=True)
    stride = len(distinct) + 1

    def wrongly_counted(days: int) -> Integers:
        # A late row counts wrongly for its merchant from the moment `enters` on and before `leaves`: a step up and
        # one down, in the order of merchant and moment, whose running sum says how many are on at a moment.
        steps_us = np.concatenate(_spans(at_us, fraud, late, days)[:2])
        excess = fraud[late.row] - late.fraud
        keys = np.tile(merchant[late.row], 2) * stride + np.searchsorted(distinct, steps_us, side="left")
        order = np.argsort(keys, kind="stable")
        running = np.concatenate(([0], np.cumsum(np.concatenate((excess, -excess))[order])))
        counted: Integers = running[np.searchsorted(keys[order], merchant * stride + rank, side="right")]
        return counted

    return _delayed_windows(_Lines(merchant, at_us), asked_us, fraud, wrongly_counted)


def merchant_windows_at(
    merchants: int,
    merchant: Integers,
    at_us: Integers,
    fraud: Integers,
    *,
    now_us: int,
    late: LateLabels = NONE_LATE,
) -> Floats:
    """The same at one moment for each of the `merchants`: [merchants, 6]."""
    lines = _Lines(merchant, at_us, asked=np.arange(merchants, dtype=np.int64))

    def wrongly_counted(days: int) -> Integers:
        enters, leaves, excess = _spans(at_us, fraud, late, days)
        counted = np.zeros(merchants, dtype=np.int64)
        np.add.at(counted, merchant[late.row], np.where((enters <= now_us) & (now_us < leaves), excess, 0))
        return counted

    return _delayed_windows(lines, np.full(merchants, now_us, dtype=np.int64), fraud, wrongly_counted)


def _spans(at_us: Integers, fraud: Integers, late: LateLabels, days: int) -> tuple[Integers, Integers, Integers]:
    """From when and until when a window of `days` counts a late row by its label of now, and by how much too high."""
    oldest_us = at_us[late.row] + LABEL_DELAY_DAYS * DAY_US
    enters = np.maximum(oldest_us, late.begin_us)
    leaves = np.maximum(enters, np.minimum(oldest_us + days * DAY_US, late.end_us))
    return enters, leaves, fraud[late.row] - late.fraud


def _delayed_windows(
    lines: "_Lines", at_us: Integers, fraud: Integers, wrongly_counted: Callable[[int], Integers]
) -> Floats:
    known_us = at_us - LABEL_DELAY_DAYS * DAY_US
    end = lines.after(known_us)
    frauds = lines.running(fraud)
    columns = []
    for days in WINDOW_DAYS:
        start = lines.after(known_us - days * DAY_US)
        count, found = end - start, frauds[end] - frauds[start] - wrongly_counted(days)
        columns += [count.astype(np.float64), found / np.maximum(count, 1)]
    return np.column_stack(columns)


def calendar(at_us: Integers) -> Floats:
    """Weekend and night of every moment: [n, 2]."""
    day, within = np.divmod(at_us, DAY_US)
    return np.column_stack(((day + _FIRST_DAY_OF_1970) % 7 >= _SATURDAY, within < _NIGHT_ENDS_S * 1e6)).astype(float)


def against_customer(profiles: Floats, at_us: Integers, amount: Floats) -> Floats:
    """Age in days, ratio and deviations of every row against its customer's profile, NaN where unknown: [n, 3]."""
    first_seen, mean, deviation = profiles.T
    return np.column_stack(
        (
            _age_days(first_seen, at_us),
            _quotient(amount, mean, default=1.0),
            _quotient(amount - mean, deviation, default=0.0),
        )
    )


def against_merchant(profiles: Floats, at_us: Integers, amount: Floats) -> Floats:
    """Age in days and ratio of every row against its merchant's profile, NaN where unknown: [n, 2]."""
    first_seen, ticket = profiles.T
    return np.column_stack((_age_days(first_seen, at_us), _quotient(amount, ticket, default=1.0)))


def cosines(left: Floats, right: Floats) -> Floats:
    """`cosine` row by row; unknown embeddings are rows of zeros."""
    norm = np.sqrt((left * left).sum(axis=1) * (right * right).sum(axis=1))
    return _quotient((left * right).sum(axis=1), norm, default=0.0)


def _age_days(first_seen: Floats, at_us: Integers) -> Floats:
    return np.nan_to_num(np.maximum(0.0, at_us / 1e6 - first_seen) / DAY_S, nan=0.0)


def _quotient(dividend: Floats, divisor: Floats, *, default: float) -> Floats:
    known = np.isfinite(divisor) & (divisor != 0)
    return np.divide(dividend, divisor, out=np.full(len(divisor), default), where=known)


class Profiles:
    """Each entity's first moment, mean amount and population deviation, brought forward by batches of later rows.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which loses no digits where a
    difference of sums of squares would: equal amounts have deviation 0 exactly.
    """

    def __init__(self, entities: int) -> None:
        self._count = np.zeros(entities, dtype=np.int64)
        self._first_seen = np.full(entities, np.nan)
        self._mean = np.zeros(entities)
        self._squares = np.zeros(entities)

    def add(self, entity: Integers, at_us: Integers, amount_units: Integers) -> None:
        """Rows in ledger order, none earlier than those added before."""
        entities = len(self._count)
        count = np.bincount(entity, minlength=entities)
        mean = np.zeros(entities)
        present = count > 0
        total = np.zeros(entities, dtype=np.int64)
        np.add.at(total, entity, amount_units)
        np.divide(total, AMOUNT_UNITS * count, out=mean, where=present)
        squares = np.bincount(entity, (amount_units / AMOUNT_UNITS - mean[entity]) ** 2, minlength=entities)
        both = np.maximum(self._count + count, 1)
        step = np.where(present, mean - self._mean, 0.0)
        self._mean += step * (count / both)
        self._squares += squares + step * step * (self._count * (count / both))
        unseen, first = np.unique(entity, return_index=True)
        new = self._count[unseen] == 0
        self._first_seen[unseen[new]] = at_us[first[new]] / 1e6
        self._count += count

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        return self._count > 0

    def customers(self) -> Floats:
        """[entities, 3] as the group `customer_profile` stores it; NaN for those without a row."""
        deviation = np.sqrt(self._squares / np.maximum(self._count, 1))
        return self._or_nan(np.column_stack((self._first_seen, self._mean, deviation)))

    def merchants(self) -> Floats:
        """[entities, 2] as the group `merchant_profile` stores it; NaN for those without a row."""
        return self._or_nan(np.column_stack((self._first_seen, self._mean)))

    def _or_nan(self, values: Floats) -> Floats:
        values[~self.known] = np.nan
        return values


class _Lines:
    """The ledger's rows entity by entity, each entity's in ledger order: where does a window start and end?

    A row's place in the ledger is its rank in time, so an entity's code and that rank make one sorted integer key,
    and every window edge is two binary searches: which rank has the edge's moment, which place has that key.
    """

    def __init__(self, entity: Integers, at_us: Integers, *, asked: Integers | None = None) -> None:
        size = len(entity)
        self._at_us = at_us
        self._stride = size + 1
        self._order = np.argsort(entity, kind="stable")
        self._keys = entity[self._order].astype(np.int64) * self._stride + self._order
        self._asked = (entity if asked is None else asked).astype(np.int64)
        self.place = np.empty(size, dtype=np.int64)
        self.place[self._order] = np.arange(size)

    def after(self, edge_us: Integers) -> Integers:
        """The place of each asked entity's first row later than its edge."""
        rank = np.searchsorted(self._at_us, edge_us, side="right")
        return np.searchsorted(self._keys, self._asked * self._stride + rank, side="left")

    def running(self, values: Integers) -> Integers:
        """Sums of all values before each place; differences of two are exact."""
        return np.concatenate(([0], np.cumsum(values[self._order], dtype=np.int64)))
