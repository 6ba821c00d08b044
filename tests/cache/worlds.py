"""A whole cascade over tiers in memory, for tests of what its parts do together."""

import random
import threading
from collections.abc import Callable, Mapping, Sequence

from mlserve.cache.bloom import Membership, NullMembership
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade, Reading
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key, life_share
from mlserve.cache.loading import CoordinatedLoading, Loader
from mlserve.cache.negatives import NegativeQuota
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.cache.refresher import NullRefresher, Refresher
from mlserve.cache.singleflight import Flights
from mlserve.cache.tiers.base import SharedTier
from mlserve.cache.tiers.request import RequestTier
from tests.cache.doubles import KeptStats, MemorySource, MemoryTier
from tests.fixtures.clock import ManualClock

PATIENCE_S = 20.0
_EVERYBODY = NullMembership()


class World:
    """`gate` closed holds the source up, and `reading` then says that somebody is at it."""

    def __init__(
        self,
        policies: Mapping[str, Policy],
        *,
        clock: ManualClock | None = None,
        l2: SharedTier | None = None,
        stats: KeptStats | None = None,
        refresher: NullRefresher | None = None,
        life_share: Callable[[Key], float] = life_share,
        seed: int = 0,
    ) -> None:
        self.clock = clock or ManualClock()
        self.policies = dict(policies)
        self.budget_s = 1.0
        self.l1, self.memory = MemoryTier(Tier.L1), MemoryTier(Tier.L2)
        self.l2 = l2 or self.memory
        self.stats = stats or KeptStats()
        self.source = MemorySource(self.clock)
        self.gate, self.reading = threading.Event(), threading.Event()
        self.gate.set()
        self.flights = Flights()
        self.filler = Filler(self.l2, self.stats)
        self.refresher = Refresher(l1=self.l1, l2=self.l2, stats=self.stats, clock=self.clock)
        self.loading = CoordinatedLoading(
            l2=self.l2,
            filler=self.filler,
            negatives=NegativeQuota(self.clock, 1_000),
            stats=self.stats,
            clock=self.clock,
            source_tier=Tier.L3,
        )
        self.cascade = Cascade(
            l1=self.l1,
            l2=self.l2,
            loading=self.loading,
            stats=self.stats,
            clock=self.clock,
            source_tier=Tier.L3,
            refresher=refresher or self.refresher,
            flights=self.flights,
            random_source=random.Random(seed),
            life_share=life_share,
        )

    def load(self, keys: Sequence[Key]) -> Mapping[Key, Entry]:
        self.reading.set()
        assert self.gate.wait(PATIENCE_S)
        return self.source.load(keys)

    def read(
        self,
        *keys: Key,
        max_age_s: float | None = None,
        at_least: Mapping[Key, int] | None = None,
        leave_no_trace: bool = False,
        loader: Loader | None = None,
        request: RequestTier | None = None,
        membership: Membership = _EVERYBODY,
    ) -> Reading:
        """Of a request of its own if none is given. Fills may be under way when it returns."""
        return self.cascade.read_many(
            keys,
            policies=self.policies,
            loader=loader or self.load,
            request=request or RequestTier(),
            budget=Budget(self.clock, self.budget_s),
            max_age_s=max_age_s,
            at_least=at_least,
            leave_no_trace=leave_no_trace,
            membership=membership,
        )

    def settle(self) -> None:
        """Returns when all fills and refreshes that were asked for have been tried."""
        self.filler.flush()
        self.refresher.flush()
