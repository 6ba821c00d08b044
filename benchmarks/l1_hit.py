"""`l1`: what a request needs out of this process's memory, against Django's LocMemCache with the same values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random

from django.core.cache.backends.locmem import LocMemCache

from benchmarks.contest import BenchmarkFailed, Contest, Progress, Side, per_call
from benchmarks.ratio import Compare, Target
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade, Reading
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key
from mlserve.cache.loading import DirectLoading
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.null import NullTier
from mlserve.cache.tiers.request import RequestTier
from mlserve.observability.recorder import Recorder

FEATURES = 50
GROUPS = 6
"""Of a customer and a merchant: what one score reads."""
_BUDGET_S = 0.05
_A_DAY_S = 86_400.0


def _never(keys: Sequence[Key]) -> Mapping[Key, Entry]:
    raise BenchmarkFailed("l1: a look-up went to the source, so it was no L1 hit")


@contextmanager
def open_l1(_progress: Progress) -> Iterator[list[Contest]]:
    """Touches no server."""
    random, clock, recorder = Random(1), SystemClock(), Recorder()
    groups = [f"group_{number}" for number in range(GROUPS)]
    keys = [Key("customer" if number % 2 else "merchant", "000001", group) for number, group in enumerate(groups)]
    policies = {
        group: Policy(namespace=group, schema=1, fresh_for_s=_A_DAY_S, grace_s=0, negative_ttl_s=0) for group in groups
    }
    l2 = NullTier(Tier.L2)
    l1 = L1Tier(BoundedStore(100_000, 256 * 1024 * 1024))
    loading = DirectLoading(filler=Filler(l2, recorder), stats=recorder, source_tier=Tier.L3)
    cascade = Cascade(l1=l1, l2=l2, loading=loading, stats=recorder, clock=clock)
    now = clock.now()
    entries = {key: Entry(1, now, now, tuple(random.uniform(0, 1000) for _ in range(FEATURES))) for key in keys}
    l1.put_many(entries, policies)
    locmem = LocMemCache("mlserve-bench", {"TIMEOUT": None, "OPTIONS": {"MAX_ENTRIES": 100_000}})
    named, whole = "{0.kind}:{0.id}:{0.group}".format, "entry:{0.kind}:{0.id}:{0.group}".format
    for key, entry in entries.items():
        assert entry.values is not None
        locmem.set(named(key), {f"{key.group}_feature_{place}": value for place, value in enumerate(entry.values)})
        locmem.set(whole(key), entry)

    def read() -> Reading:
        # A request makes its own memo and budget: they belong to the price.
        return cascade.read_many(
            keys, policies=policies, loader=_never, request=RequestTier(), budget=Budget(clock, _BUDGET_S)
        )

    def per_group(call: Callable[[], object]) -> Side:
        """Publishes what was counted as often as the service does: that belongs to the price as well."""
        measure = per_call(call)

        def side(seconds: float) -> float:
            microseconds = measure(seconds)
            recorder.publish()
            return microseconds / GROUPS

        return side

    def get_all(names: Sequence[str]) -> Callable[[], object]:
        return lambda: [locmem.get(name) for name in names]

    def check() -> None:
        for key, outcome in read().outcomes.items():
            if outcome.tier is not Tier.L1 or outcome.entry is not entries[key]:
                raise BenchmarkFailed("l1: ours did not return what was put there")
            if (
                list(locmem.get(named(key)).values()) != list(outcome.values or ())
                or locmem.get(whole(key)) != entries[key]
            ):
                raise BenchmarkFailed("l1: the two sides did not return the same values")

    ours_is = (
        f"Cascade.read_many of {GROUPS} groups of {FEATURES} features in L1: policy, counters, provenance; per group"
    )
    yield [
        Contest(
            name=name,
            ours_is=ours_is,
            other_is=other_is,
            unit="us/group",
            compare=Compare.OTHER_OVER_OURS,
            target=Target(bound),
            ours=per_group(read),
            other=per_group(get_all([form(key) for key in keys])),
            check=check,
        )
        for name, form, bound, other_is in (
            (
                "l1",
                named,
                10,
                f"LocMemCache.get of {GROUPS} dictionaries of the same {FEATURES} values by name; per group",
            ),
            (
                "l1-entry",
                whole,
                5,
                f"LocMemCache.get of {GROUPS} entries: the values as a tuple, with version and times",
            ),
        )
    ]
    locmem.clear()
