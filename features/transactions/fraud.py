"""Which simulated transactions are fraud: three kinds, about 0.8 % together.

1. An unusually large amount. 2. A compromised merchant: for some days a share of what is paid there is fraud.
3. A compromised customer: for some days there are additional and larger transactions, anywhere.

Whether an entity is compromised on a day depends only on the seed and on the day on which that began, so every day can
be generated alone.
"""

import numpy as np

from features.transactions.population import Floats, Integers, Population

LARGE_SHARE = 0.003
LARGE_FACTOR = (5.0, 12.0)
"""Times the customer's usual amount."""
MERCHANT_FRAUD_SHARE = 0.0025
"""Aimed at, of all transactions."""
MERCHANT_DAYS = 14
MERCHANT_HIT_SHARE = 0.3
"""Of the transactions at a compromised merchant."""
CUSTOMER_FRAUD_SHARE = 0.0025
"""Aimed at, of all transactions."""
CUSTOMER_DAYS = 7
CUSTOMER_EXTRA_PER_DAY = 4.0
CUSTOMER_FACTOR = (2.0, 5.0)
"""Times what the customer would have paid there."""
_POPULARITY_QUANTILE = 0.9
"""Merchants above it are never compromised: one of them would carry more fraud than all the others together."""
_MERCHANTS, _CUSTOMERS = 3, 4  # streams of the seed


def compromised_merchants(population: Population, *, seed: int, day: int) -> Integers:
    """Merchant numbers, those compromised on this day (days since 1970)."""
    popularity = population.popularity
    eligible = np.flatnonzero(popularity <= np.quantile(popularity, _POPULARITY_QUANTILE))
    per_merchant = float(popularity[eligible].mean()) * MERCHANT_HIT_SHARE * MERCHANT_DAYS
    return _begun(eligible, MERCHANT_FRAUD_SHARE / per_merchant, MERCHANT_DAYS, seed=seed, stream=_MERCHANTS, day=day)


def compromised_customers(population: Population, *, seed: int, day: int, per_day: float) -> Integers:
    """Customer numbers, those compromised on this day, where `per_day` transactions are expected."""
    everybody = np.arange(len(population.customer_ids))
    starts = CUSTOMER_FRAUD_SHARE * per_day / (CUSTOMER_DAYS * CUSTOMER_EXTRA_PER_DAY)
    return _begun(everybody, starts, CUSTOMER_DAYS, seed=seed, stream=_CUSTOMERS, day=day)


def _begun(candidates: Integers, starts_per_day: float, days: int, *, seed: int, stream: int, day: int) -> Integers:
    chosen = []
    for start in range(max(0, day - days + 1), day + 1):
        random = np.random.default_rng([seed, stream, start])
        chosen.append(random.choice(candidates, min(len(candidates), random.poisson(starts_per_day))))
    return np.unique(np.concatenate(chosen)).astype(np.int64)


def large_amounts(usual: Floats, random: np.random.Generator) -> Floats:
    """What fraud of the first kind asks for, given the customers' usual amounts."""
    return usual * random.uniform(*LARGE_FACTOR, len(usual))
