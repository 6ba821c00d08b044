"""Who pays whom: simulated customers and merchants, or those that the ledger knows.

Customers have a usual amount, a deviation, a frequency and a home; merchants a place, a ticket level and a popularity
that follows Zipf's law. The chance that a customer chooses a merchant is its popularity times its nearness. Homes are
gathered in regions, so that one distribution over the merchants per region serves all customers of it: 64 regions of
50,000 merchants take 26 MB where 300,000 customers would take 120 GB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from django.db.backends.base.base import BaseDatabaseWrapper
from numpy.typing import NDArray

from features.transactions.load import LEDGER

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

REGIONS_PER_SIDE = 8
NEAR = 0.12
"""Distance, in sides of the square that everybody lives in, at which a merchant has lost 63 % of its pull."""
ANYWHERE = 0.02
"""Pull of a merchant at any distance: people travel."""
ONLINE_SHARE = 0.1
"""Of merchants, equally near to everybody."""
ONLINE_PULL = 0.25
ZIPF_EXPONENT = 1.0
ZIPF_SHIFT = 2.0
"""Mandelbrot's: without it the first merchant takes a fifth of everything."""
TICKET_LEVELS = (0.4, 0.7, 1.0, 1.4, 2.5)
"""Coffee, groceries, clothes, restaurants, electronics: what an amount is multiplied with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Arrays by customer or by merchant number.

    `usual_amount` is the customer's median at an average merchant, in currency; `spread` the deviation of the amount's
    logarithm; `frequency` the customer's share of all transactions, `popularity` the merchant's, each with sum 1;
    `choice` has a row per region: the cumulative distribution over the merchants.
    """

    customer_ids: Sequence[str]
    usual_amount: Floats
    spread: Floats
    frequency: Floats
    region: Integers
    merchant_ids: Sequence[str]
    ticket_level: Floats
    popularity: Floats
    choice: Floats

    def choose_merchants(self, customers: Integers, random: np.random.Generator) -> Integers:
        """A merchant for each customer number."""
        draws = random.random(len(customers))
        chosen = np.empty(len(customers), dtype=np.int64)
        regions = self.region[customers]
        for region in np.unique(regions):
            there = regions == region
            chosen[there] = np.searchsorted(self.choice[region], draws[there], side="right")
        return np.minimum(chosen, len(self.merchant_ids) - 1)

    def draw_amounts(self, customers: Integers, merchants: Integers, random: np.random.Generator) -> Floats:
        """Amounts in currency with two decimals, at least 0.01."""
        median = self.usual_amount[customers] * self.ticket_level[merchants]
        return cents(median * np.exp(self.spread[customers] * random.standard_normal(len(customers))))


def cents(amounts: Floats) -> Floats:
    return np.maximum(np.round(amounts, 2), 0.01)


def simulated_population(*, customers: int, merchants: int, seed: int) -> Population:
    """The same for the same arguments: customers C000000, C000001, ... and merchants M00000, M00001, ..."""
    if customers < 1 or merchants < 1:
        raise ValueError("a population needs at least one customer and one merchant")
    random = np.random.default_rng([seed, 1])
    homes = random.random((customers, 2))
    cell = np.minimum((homes * REGIONS_PER_SIDE).astype(np.int64), REGIONS_PER_SIDE - 1)
    frequency = random.gamma(2.0, 1.0, customers)
    usual_amount = np.exp(random.normal(3.4, 0.6, customers))
    spread = random.uniform(0.2, 0.6, customers)

    random = np.random.default_rng([seed, 2])
    places = random.random((merchants, 2))
    popularity = (1.0 + ZIPF_SHIFT + random.permutation(merchants)) ** -ZIPF_EXPONENT
    centres = (np.indices((REGIONS_PER_SIDE, REGIONS_PER_SIDE)).reshape(2, -1).T + 0.5) / REGIONS_PER_SIDE
    distances = np.linalg.norm(centres[:, None, :] - places[None, :, :], axis=2)
    nearness = ANYWHERE + np.exp(-distances / NEAR)
    nearness[:, random.random(merchants) < ONLINE_SHARE] = ONLINE_PULL
    weights = popularity * nearness
    region = cell[:, 0] * REGIONS_PER_SIDE + cell[:, 1]
    frequency /= frequency.sum()
    share_of_region = np.bincount(region, weights=frequency, minlength=len(centres))
    weights /= weights.sum(axis=1, keepdims=True)
    return Population(
        customer_ids=[f"C{number:06d}" for number in range(customers)],
        usual_amount=usual_amount,
        spread=spread,
        frequency=frequency,
        region=region,
        merchant_ids=[f"M{number:05d}" for number in range(merchants)],
        ticket_level=random.choice(TICKET_LEVELS, merchants),
        popularity=share_of_region @ weights,
        choice=np.cumsum(weights, axis=1),
    )


def population_from_ledger(connection: BaseDatabaseWrapper, *, sample_rows: int = 200_000) -> Population:
    """Customers and merchants of the newest `sample_rows` transactions, as often and as dear as they are there.

    Nobody has a place: all choose by popularity. Raises ValueError if the ledger is empty.
    """
    sample = f"WITH sample AS (SELECT * FROM {LEDGER} ORDER BY occurred_at DESC LIMIT %s) "
    with connection.cursor() as cursor:
        cursor.execute(
            sample + "SELECT customer_id, count(*), avg(ln(amount + 0.01))::float8,"
            " coalesce(stddev_samp(ln(amount + 0.01)), 0.4)::float8 FROM sample GROUP BY 1 ORDER BY 1",
            [sample_rows],
        )
        customers = cursor.fetchall()
        cursor.execute(sample + "SELECT merchant_id, count(*) FROM sample GROUP BY 1 ORDER BY 1", [sample_rows])
        merchants = cursor.fetchall()
    if not customers:
        raise ValueError("the ledger is empty; import or simulate transactions first")
    counts = np.array([row[1] for row in customers], dtype=np.float64)
    visits = np.array([row[1] for row in merchants], dtype=np.float64)
    popularity = visits / visits.sum()
    return Population(
        customer_ids=[row[0] for row in customers],
        usual_amount=np.exp(np.array([row[2] for row in customers], dtype=np.float64)),
        spread=np.clip(np.array([row[3] for row in customers], dtype=np.float64), 0.05, 1.0),
        frequency=counts / counts.sum(),
        region=np.zeros(len(customers), dtype=np.int64),
        merchant_ids=[row[0] for row in merchants],
        ticket_level=np.ones(len(merchants)),
        popularity=popularity,
        choice=np.cumsum(popularity)[None, :],
    )
