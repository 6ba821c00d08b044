"""Simulated transactions: a ledger of the past, day by day, and the traffic of now, one by one.

Everything about a day follows from the population, the seed, the rate and the day itself. A span may therefore begin
and end anywhere: two simulations with the same seed agree, id by id, where they overlap, and a later one only adds.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from features.transactions import fraud
from features.transactions.ledger_batch import LedgerBatch, joined
from features.transactions.population import Floats, Integers, Population, cents

BATCH_ROWS = 5_000
DAY_S = 86_400
WEEKEND_FACTOR = 1.2
_HOURS = np.array(
    [2, 1, 1, 1, 1, 2, 4, 8, 11, 12, 13, 15, 17, 15, 13, 13, 15, 18, 19, 16, 12, 9, 6, 4], dtype=np.float64
)
_WEEKEND_HOURS = np.array(
    [5, 4, 3, 2, 1, 1, 2, 4, 7, 12, 16, 18, 18, 16, 15, 15, 15, 15, 15, 14, 12, 11, 9, 7], dtype=np.float64
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBERS_PER_DAY = 10_000_000
_DAY, _LIVE = 5, 6  # streams of the seed; see fraud.py for the others


def generate(
    population: Population, *, start: datetime, end: datetime, per_day: float, seed: int
) -> Iterator[LedgerBatch]:
    """All transactions of [start, end), in order of time, to the second, under 10,000 in a batch; labels are known.

    `per_day` is the mean number on a working day; weekends have a fifth more. Ids are `S<seed>-<day><number of the
    day>`: "shorter first, then by bytes" is the order of time. Memory holds one day.
    """
    first, last = _seconds(start), _seconds(end)
    waiting: list[LedgerBatch] = []
    for day in range(first // DAY_S, -(-last // DAY_S)):
        for batch in _day_batches(population, day=day, first=first, last=last, per_day=per_day, seed=seed):
            waiting.append(batch)
            if sum(map(len, waiting)) >= BATCH_ROWS:
                yield joined(waiting)
                waiting.clear()
    if waiting:
        yield joined(waiting)


def _day_batches(
    population: Population, *, day: int, first: int, last: int, per_day: float, seed: int
) -> Iterator[LedgerBatch]:
    seconds, customers, merchants, amounts, labels = _day(population, day=day, per_day=per_day, seed=seed)
    begin, end = np.searchsorted(seconds, [first, last])
    for low in range(int(begin), int(end), BATCH_ROWS):
        rows = slice(low, min(int(end), low + BATCH_ROWS))
        yield LedgerBatch(
            transaction_ids=[f"S{seed}-{day * _NUMBERS_PER_DAY + number}" for number in range(rows.start, rows.stop)],
            occurred_at=seconds[rows].astype("datetime64[s]").astype("datetime64[us]"),
            customer_ids=[population.customer_ids[number] for number in customers[rows].tolist()],
            merchant_ids=[population.merchant_ids[number] for number in merchants[rows].tolist()],
            amounts=amounts[rows],
            currencies=["EUR"] * (rows.stop - rows.start),
            labels=labels[rows],
        )


def _day(
    population: Population, *, day: int, per_day: float, seed: int
) -> tuple[Integers, Integers, Integers, Floats, Any]:
    """Seconds since 1970, customers, merchants, amounts and labels of one whole day, in order of time."""
    random = np.random.default_rng([seed, _DAY, day])
    weekend = (day + 3) % 7 >= 5  # 1970-01-01 was a Thursday
    genuine = int(random.poisson(per_day * (WEEKEND_FACTOR if weekend else 1.0)))
    customers = _draw(np.cumsum(population.frequency), random.random(genuine))
    merchants = population.choose_merchants(customers, random)
    amounts = population.draw_amounts(customers, merchants, random)
    labels = np.zeros(genuine, dtype=np.int8)

    large = random.random(genuine) < fraud.LARGE_SHARE
    amounts[large] = cents(fraud.large_amounts(population.usual_amount[customers[large]], random))
    at_risk = np.isin(merchants, fraud.compromised_merchants(population, seed=seed, day=day))
    labels[large | (at_risk & (random.random(genuine) < fraud.MERCHANT_HIT_SHARE))] = 1

    victims = fraud.compromised_customers(population, seed=seed, day=day, per_day=per_day)
    thefts = np.repeat(victims, random.poisson(fraud.CUSTOMER_EXTRA_PER_DAY, len(victims)))
    shops = _draw(np.cumsum(population.popularity), random.random(len(thefts)))
    stolen = population.draw_amounts(thefts, shops, random) * random.uniform(*fraud.CUSTOMER_FACTOR, len(thefts))

    count = genuine + len(thefts)
    hours = _draw(np.cumsum((h := _WEEKEND_HOURS if weekend else _HOURS) / h.sum()), random.random(count))
    seconds = day * DAY_S + hours * 3600 + random.integers(0, 3600, count)
    order = np.argsort(seconds, kind="stable")
    return (
        seconds[order],
        np.concatenate([customers, thefts])[order],
        np.concatenate([merchants, shops])[order],
        np.concatenate([amounts, cents(stolen)])[order],
        np.concatenate([labels, np.ones(len(thefts), dtype=np.int8)])[order],
    )


def _draw(cumulative: Floats, draws: Floats) -> Integers:
    return np.minimum(np.searchsorted(cumulative, draws, side="right"), len(cumulative) - 1).astype(np.int64)


def _seconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=1)


class LiveTraffic:
    """Plausible next transactions of a population, without end; a few have unusually large amounts.

    Customers, merchants and amounts are the same for the same population and seed. Not for several threads at once;
    processes that run side by side need different seeds, or ids could meet.
    """

    BLOCK = 1024

    def __init__(self, population: Population, seed: int) -> None:
        self._population = population
        self._seed = seed
        self._random = np.random.default_rng([seed, _LIVE])
        self._frequency = np.cumsum(population.frequency)
        self._ready: list[tuple[int, int, float]] = []
        self._last_us = 0

    def next(self, now: datetime) -> dict[str, Any]:
        """The fields of `POST /v1/scores`, ready for JSON, for a transaction that happens `now` (aware).

        Ids rise with every call, also if the clock stands still.
        """
        if not self._ready:
            self._fill()
        customer, merchant, amount = self._ready.pop()
        moment = now.astimezone(UTC)
        self._last_us = max((moment - _EPOCH) // timedelta(microseconds=1), self._last_us + 1)
        return {
            "transaction_id": f"L{self._seed}-{self._last_us}",
            "occurred_at": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "customer_id": self._population.customer_ids[customer],
            "merchant_id": self._population.merchant_ids[merchant],
            "amount": amount,
            "currency": "EUR",
        }

    def _fill(self) -> None:
        population, random = self._population, self._random
        customers = _draw(self._frequency, random.random(self.BLOCK))
        merchants = population.choose_merchants(customers, random)
        amounts = population.draw_amounts(customers, merchants, random)
        large = random.random(self.BLOCK) < fraud.LARGE_SHARE
        amounts[large] = cents(fraud.large_amounts(population.usual_amount[customers[large]], random))
        self._ready = list(zip(customers.tolist(), merchants.tolist(), amounts.tolist(), strict=True))
