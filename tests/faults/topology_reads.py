"""Reading a handful of entities again and again, and knowing what each read must return."""

from django.db import close_old_connections

from features.definitions import BUILT_GROUPS
from features.policies import policies_in_force
from features.vectors import keys_of, read_groups
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Outcome, Tier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from tests.fixtures.population import World
from tests.fixtures.waiting import until

PAIRS = [(f"C{number}", f"M{number % 25}") for number in range(40)]
"""Customers and merchants of the population; enough to lie on every node of a small cluster."""


def read_pair(customer_id: str, merchant_id: str) -> dict[Key, Outcome]:
    """Past L1, as a process would that has just started."""
    engine().l1.store.clear()
    close_old_connections()
    keys = keys_of(groups=BUILT_GROUPS, customer_id=customer_id, merchant_id=merchant_id)
    return read_groups(keys, book=policies_in_force(), request=RequestTier(), budget=engine().budget()).outcomes


class Reads:
    """Every read is compared with what the source said when nothing was broken."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.expected: dict[Key, tuple[float, ...] | None] = {}
        self.slowest_s = 0.0

    def warm(self) -> None:
        """L2 has every group of every pair when this returns."""
        for pair in PAIRS:
            self.expected.update({key: outcome.values for key, outcome in read_pair(*pair).items()})
        until(self._all_in_l2)

    def _all_in_l2(self) -> bool:
        self._world.settle()
        return self.tiers() == {Tier.L2}

    def check(self, pair: tuple[str, str]) -> set[Tier]:
        """The tiers that answered. Fails if a value is not the right one, or missing."""
        began = engine().clock.monotonic()
        outcomes = read_pair(*pair)
        self.slowest_s = max(self.slowest_s, engine().clock.monotonic() - began)
        for key, outcome in outcomes.items():
            assert outcome.values == self.expected[key], (key, outcome)
        return {outcome.tier for outcome in outcomes.values()}

    def tiers(self) -> set[Tier]:
        """Of all pairs."""
        return set().union(*map(self.check, PAIRS))
