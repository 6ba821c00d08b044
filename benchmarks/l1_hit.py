"""`l1`: a group of 50 features out of this process's memory, against Django's LocMemCache with the same values."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random

from django.core.cache.backends.locmem import LocMemCache

from benchmarks.contest import BenchmarkFailed, Contest, Progress, per_call
from benchmarks.ratio import Compare, Target
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.null import NullTier
from mlserve.cache.tiers.request import RequestTier
from mlserve.observability.recorder import Recorder

FEATURES = 50
_GROUP = "bench_group"
_BUDGET_S = 0.05
_A_DAY_S = 86_400.0


def _never(keys: Sequence[Key]) -> Mapping[Key, Entry]:
    raise BenchmarkFailed("l1: a look-up went to the source, so it was no L1 hit")


@contextmanager
def open_l1(_progress: Progress) -> Iterator[list[Contest]]:
    """Touches no server."""
    random, clock, recorder = Random(1), SystemClock(), Recorder()
    values = tuple(random.uniform(0, 1000) for _ in range(FEATURES))
    key = Key("customer", "C000001", _GROUP)
    policies = {_GROUP: Policy(namespace=_GROUP, schema=1, fresh_for_s=_A_DAY_S, grace_s=0, negative_ttl_s=0)}
    l2 = NullTier(Tier.L2)
    l1 = L1Tier(BoundedStore(100_000, 256 * 1024 * 1024))
    cascade = Cascade(l1=l1, l2=l2, filler=Filler(l2, recorder), stats=recorder, clock=clock)
    now = clock.now()
    l1.put_many({key: Entry(1, now, now, values)}, policies)

    def ours() -> object:
        # A request makes its own memo and budget: they belong to the price.
        return cascade.read_many(
            [key], policies=policies, loader=_never, request=RequestTier(), budget=Budget(clock, _BUDGET_S)
        )

    locmem = LocMemCache("mlserve-bench", {"TIMEOUT": None})
    locmem.set("C000001:bench_group", values)

    def other() -> object:
        return locmem.get("C000001:bench_group")

    def check() -> None:
        reading = cascade.read_many(
            [key], policies=policies, loader=_never, request=RequestTier(), budget=Budget(clock, _BUDGET_S)
        )
        if reading.outcomes[key].tier is not Tier.L1 or reading.outcomes[key].values != other():
            raise BenchmarkFailed("l1: the two sides did not return the same values")

    yield [
        Contest(
            name="l1",
            ours_is=f"Cascade.read_many of one group of {FEATURES} features in L1: policy, counters, provenance",
            other_is="LocMemCache.get of the same values",
            unit="us/call",
            compare=Compare.OTHER_OVER_OURS,
            target=Target(10),
            ours=per_call(ours),
            other=per_call(other),
            check=check,
        )
    ]
    locmem.clear()
