"""`avalanche`: ten thousand copies that were written in one moment, read until the last of them has expired.

The real cascade under a clock that is set by hand: every simulated second each key is read once. What is compared is
the worst second's reads of the source, with each key's own share of the limit (`keys.life_share`) and without.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

from benchmarks.contest import BenchmarkFailed, Contest, Progress
from benchmarks.ratio import Compare, Target
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key, life_share
from mlserve.cache.loading import DirectLoading
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.cache.stats import NullStats
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.null import NullTier
from mlserve.cache.tiers.request import RequestTier

KEYS = 10_000
FRESH_FOR_S = 60
_WRITTEN_AT = 1_700_000_000.0
_GROUP = "merchant_risk"
_AT_ONCE = 100
_BUDGET_S = 0.05


class SetByHand:
    """A clock that stands still but for `advance`."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    monotonic = now

    def sleep(self, seconds: float, /) -> None:
        self._now += seconds

    advance = sleep


def loads_by_second(keys: Sequence[Key], share: Callable[[Key], float]) -> Counter[int]:
    """Reads of the source in each second after the writing, up to and including the second of the limit."""
    clock, stats, l2 = SetByHand(_WRITTEN_AT), NullStats(), NullTier(Tier.L2)
    policies = {
        _GROUP: Policy(namespace=_GROUP, schema=1, fresh_for_s=FRESH_FOR_S, grace_s=0, negative_ttl_s=0, use_l2=False)
    }
    loads: Counter[int] = Counter()

    def load(wanted: Sequence[Key]) -> Mapping[Key, Entry]:
        now = clock.now()
        loads[int(now - _WRITTEN_AT)] += len(wanted)
        return {key: Entry(1, now, now, (1.0,)) for key in wanted}

    l1 = L1Tier(BoundedStore(2 * len(keys), 256 * 1024 * 1024))
    cascade = Cascade(
        l1=l1,
        l2=l2,
        loading=DirectLoading(filler=Filler(l2, stats), stats=stats, source_tier=Tier.L3),
        stats=stats,
        clock=clock,
        life_share=share,
    )
    l1.put_many({key: Entry(1, _WRITTEN_AT, _WRITTEN_AT, (1.0,)) for key in keys}, policies)
    for _ in range(FRESH_FOR_S + 1):
        clock.advance(1.0)
        for start in range(0, len(keys), _AT_ONCE):
            reading = cascade.read_many(
                keys[start : start + _AT_ONCE],
                policies=policies,
                loader=load,
                request=RequestTier(),
                budget=Budget(clock, _BUDGET_S),
            )
            if any(outcome.stale or outcome.values is None for outcome in reading.outcomes.values()):
                raise BenchmarkFailed("avalanche: a read was answered with no fresh value")
    if loads.total() != len(keys):
        raise BenchmarkFailed(f"avalanche: {loads.total()} reloads of {len(keys)} keys")
    return loads


class _Rounds:
    """Other keys in every round: which of them expire together is a matter of their names."""

    def __init__(self, count_of_keys: int) -> None:
        self._count = count_of_keys
        self._numbers = count()
        self._keys: list[Key] = []

    def next(self) -> None:
        number = next(self._numbers)
        self._keys = [Key("merchant", f"{number}-{place}", _GROUP) for place in range(self._count)]

    def peak(self, share: Callable[[Key], float]) -> Callable[[float], float]:
        return lambda _seconds: float(max(loads_by_second(self._keys, share).values()))


def _whole_life(_key: Key) -> float:
    return 1.0


def contests(*, keys: int = KEYS) -> list[Contest]:
    rounds = _Rounds(keys)
    return [
        Contest(
            name="avalanche",
            ours_is=f"{keys:,} keys written together, each with its own share of {FRESH_FOR_S} s: the worst second",
            other_is="the same cascade and keys without that share: all expire in one moment",
            unit="reloads/s",
            compare=Compare.OURS_OVER_OTHER,
            target=Target(0.2, at_most=True),
            ours=rounds.peak(life_share),
            other=rounds.peak(_whole_life),
            prepare=rounds.next,
        )
    ]


@contextmanager
def open_avalanche(_progress: Progress) -> Iterator[list[Contest]]:
    """Touches no server. Time is simulated."""
    yield contests()
