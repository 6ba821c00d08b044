"""A prediction that nobody has yet is computed here and now: what most scores need.

What the cascade does for one key that L1 does not hold and whose policy bypasses L2, without a walk down the tiers,
which takes longer than the model; a test holds both to the same outcome, trace, counts and copies.
"""

from collections.abc import Callable
from typing import Final

from mlserve.cache.cascade import Reading
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Degradation, Outcome, Tier, TierTrace
from mlserve.cache.policy import Policy
from mlserve.cache.stats import NullStats, Stats
from mlserve.cache.wiring import Engine

_NOTHING_WRONG: Final = frozenset[Degradation]()
_SILENT: Final = NullStats()
_L1: Final = Tier.L1
_COMPUTED: Final = Tier.COMPUTED


def compute_if_unknown(
    key: Key, *, policy: Policy, compute: Callable[[], float], cache: Engine, leave_no_trace: bool
) -> Reading | None:
    """None where the cascade has more to do: L1 holds a copy, or policy lets L2 take part or L1 not."""
    l1, clock, group = cache.l1, cache.clock, key.group
    if policy.use_l2 or not policy.use_l1 or l1.peek(key) is not None:
        return None
    stats: Stats = _SILENT if leave_no_trace else cache.recorder
    stats.miss(_L1, group, l1.why_missing(key))
    since, now, began = l1.begin(), clock.now(), clock.monotonic()
    entry = Entry(1, now, now, (compute(),))
    elapsed_s = clock.monotonic() - began
    stats.hits(_COMPUTED)[group].append(0.0)
    stats.latency(_COMPUTED, (group,), elapsed_s)
    if not leave_no_trace:
        l1.put_many({key: entry}, {group: policy}, since=since)
    return Reading(
        {key: Outcome(key, entry, _COMPUTED, 0.0, policy.fresh_for_s)},
        [TierTrace(_L1, 1), TierTrace(_COMPUTED, 1, 1, elapsed_s * 1000)],
        _NOTHING_WRONG,
    )
