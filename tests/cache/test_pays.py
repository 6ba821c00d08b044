"""Whether a tier pays for predictions. Arithmetic only."""

import pytest

from mlserve.cache.pays import LEAST_SAMPLES, Pays, TierPays, Timed, tier_pays


def _l2(*, look_up_us: float, computed_us: float, hits: int, misses: int) -> TierPays:
    def timed(mean_us: float) -> Timed:
        return Timed(1_000, 1_000 * mean_us / 1e6)

    return tier_pays(tier="l2", look_ups=timed(look_up_us), computed=timed(computed_us), hits=hits, misses=misses)


@pytest.mark.parametrize(
    ("hits", "misses", "pays"), [(600, 400, Pays.YES), (500, 500, Pays.NO), (400, 600, Pays.NO), (0, 1000, Pays.NO)]
)
def test_a_tier_pays_above_the_hit_rate_at_which_it_saves_what_it_takes(hits: int, misses: int, pays: Pays) -> None:
    """A look-up of half the time of computing must hit in more than half of the cases."""
    found = _l2(look_up_us=100, computed_us=200, hits=hits, misses=misses)
    assert (found.pays, found.hit_share) == (pays, hits / 1000)
    assert found.needed_share == pytest.approx(0.5)


def test_a_look_up_that_takes_longer_than_computing_pays_at_no_hit_rate() -> None:
    """Known without a single hit."""
    assert _l2(look_up_us=100, computed_us=10, hits=1000, misses=0).pays is Pays.NO
    assert _l2(look_up_us=100, computed_us=10, hits=0, misses=0).pays is Pays.NO
    assert _l2(look_up_us=10, computed_us=10, hits=1000, misses=0).pays is Pays.NO


@pytest.mark.parametrize("few", ["look_ups", "computed", "keys"])
def test_too_few_samples_of_any_kind_tell_nothing(few: str) -> None:
    """One less than is needed; with as many it is known."""

    def verdict(count: int) -> TierPays:
        enough = {"look_ups": LEAST_SAMPLES, "computed": LEAST_SAMPLES, "keys": LEAST_SAMPLES} | {few: count}
        return tier_pays(
            tier="l1",
            look_ups=Timed(enough["look_ups"], enough["look_ups"] * 1e-6),
            computed=Timed(enough["computed"], enough["computed"] * 1e-3),
            hits=enough["keys"],
            misses=0,
        )

    assert verdict(LEAST_SAMPLES - 1).pays is Pays.UNKNOWN
    assert verdict(LEAST_SAMPLES).pays is Pays.YES


def test_nothing_at_all_is_unknown() -> None:
    """A tier that policy bypasses was never asked; a clock that saw no time divides nothing."""
    nothing = tier_pays(tier="l2", look_ups=Timed(0, 0.0), computed=Timed(0, 0.0), hits=0, misses=0)
    assert nothing == TierPays(
        tier="l2", pays=Pays.UNKNOWN, look_up_s=None, computed_s=None, hit_share=None, needed_share=None
    )
    no_time = tier_pays(tier="l1", look_ups=Timed(500, 0.0), computed=Timed(500, 0.0), hits=500, misses=0)
    assert no_time.pays is Pays.UNKNOWN
