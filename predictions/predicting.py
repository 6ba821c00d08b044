"""Predictions that nobody has yet are computed here and now: what most scores need.

What the cascade does for keys that L1 does not hold and whose policy bypasses L2, without a walk down the tiers,
which takes longer than the model; a test holds both to the same outcomes, trace, counts and copies.
"""

from collections.abc import Callable, Sequence
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
    keys: Sequence[Key],
    *,
    policy: Policy,
    compute: Callable[[], Sequence[float]],
    cache: Engine,
    leave_no_trace: bool,
) -> Reading | None:
    """`compute` gives the scores of all keys, which are of one group and differ.

    None where the cascade has more to do: L1 holds one of them, or policy lets L2 take part or L1 not.
    """
    l1, clock, group = cache.l1, cache.clock, keys[0].group
    if policy.use_l2 or not policy.use_l1:
        return None
    for key in keys:
        if l1.peek(key) is not None:
            return None
    stats: Stats = _SILENT if leave_no_trace else cache.recorder
    for key in keys:
        stats.miss(_L1, group, l1.why_missing(key))
    since, now, began = l1.begin(), clock.now(), clock.monotonic()
    entries = {key: Entry(1, now, now, (score,)) for key, score in zip(keys, compute(), strict=True)}
    elapsed_s = clock.monotonic() - began
    stats.hits(_COMPUTED)[group].extend([0.0] * len(keys))
    stats.latency(_COMPUTED, (group,), elapsed_s)
    if not leave_no_trace:
        l1.put_many(entries, {group: policy}, since=since)
    fresh_for_s = policy.fresh_for_s
    return Reading(
        {key: Outcome(key, entry, _COMPUTED, 0.0, fresh_for_s) for key, entry in entries.items()},
        [TierTrace(_L1, len(keys)), TierTrace(_COMPUTED, len(keys), len(keys), elapsed_s * 1000)],
        _NOTHING_WRONG,
    )
