"""Whether a tier pays for predictions: a cache must be cheaper than what it saves.

A look-up that takes `t` is made for every prediction, and saves the `c` that computing takes if it hits. With a hit
rate of `h` the tier pays if `h * c` is more than `t`; where `t` is `c` or more, it pays at no hit rate. Time only: what
it costs in money the benchmark `cost` says.
"""

from enum import StrEnum

import msgspec

LEAST_SAMPLES = 100
"""Fewer times of look-ups or computations, or fewer predictions looked for, tell nothing."""


class Pays(StrEnum):
    YES = "pays"
    NO = "does not pay"
    UNKNOWN = "unknown"


class Timed(msgspec.Struct, frozen=True):
    """Some calls, and how long they took together."""

    count: int
    total_s: float

    @property
    def mean_s(self) -> float | None:
        """None if there were too few to say."""
        return self.total_s / self.count if self.count >= LEAST_SAMPLES else None


class TierPays(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one tier; None is what is not known. `needed_share`: the hit rate above which it would pay."""

    tier: str
    pays: Pays
    look_up_s: float | None
    computed_s: float | None
    hit_share: float | None
    needed_share: float | None


def tier_pays(*, tier: str, look_ups: Timed, computed: Timed, hits: int, misses: int) -> TierPays:
    """`look_ups` may be a sample; `hits` and `misses` count the predictions that the tier was asked for."""
    look_up_s, computed_s = look_ups.mean_s, computed.mean_s
    hit_share = hits / (hits + misses) if hits + misses >= LEAST_SAMPLES else None
    needed_share = look_up_s / computed_s if look_up_s is not None and computed_s else None
    return TierPays(
        tier=tier,
        pays=_verdict(needed_share, hit_share),
        look_up_s=look_up_s,
        computed_s=computed_s,
        hit_share=hit_share,
        needed_share=needed_share,
    )


def _verdict(needed_share: float | None, hit_share: float | None) -> Pays:
    if needed_share is None:
        return Pays.UNKNOWN
    if needed_share >= 1.0:
        return Pays.NO
    if hit_share is None:
        return Pays.UNKNOWN
    return Pays.YES if hit_share > needed_share else Pays.NO
