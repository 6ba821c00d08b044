"""When early refreshes start, by the closed form of Vattani et al."""

from collections.abc import Mapping, Sequence
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, expon, kstest

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.loading import Loader
from mlserve.cache.policy import Policy
from mlserve.cache.refresher import NullRefresher
from mlserve.cache.xfetch import HORIZON_COSTS, refreshes_early
from tests.cache.doubles import policy
from tests.cache.worlds import World
from tests.fixtures.clock import ManualClock

KEY = Key("customer", "a", "group")
POLICIES = {"group": policy()}
LIMIT_S = POLICIES["group"].fresh_for_s
COST_S = 2.0
CERTAIN = 1e-4
"""Chance of a test that fails although all is well, were its seed not fixed."""
_gaps = st.floats(1e-6, 1e3)
_costs = st.floats(1e-6, 1e3)
_uniforms = st.floats(1e-12, 1.0)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_the_refresh_moment_is_distributed_as_in_the_paper(beta: float) -> None:
    """The earliest gap at which a coin says "now" is exponential with mean cost * beta."""
    chance = np.random.default_rng(3)
    moments = []
    for uniform in 1.0 - chance.random(3_000):
        low, high = 0.0, 100 * COST_S
        for _ in range(40):
            middle = (low + high) / 2
            refreshes = refreshes_early(gap_s=middle, cost_s=COST_S, uniform=uniform, beta=beta)
            low, high = (middle, high) if refreshes else (low, middle)
        moments.append(low)
    for factor, fits in ((1.0, True), (1.2, False), (1 / 1.2, False)):
        expected = expon(scale=factor * COST_S * beta).cdf
        assert (kstest(moments, expected).pvalue > CERTAIN) == fits


class _Noting(NullRefresher):
    """Notes at which time a refresh was asked for."""

    def __init__(self, clock: ManualClock) -> None:
        self.at: list[float] = []
        self._clock = clock

    def refresh(self, keys: Sequence[Key], policies: Mapping[str, Policy], loader: Loader) -> None:
        self.at.append(self._clock.now())


def test_readers_refresh_as_often_as_the_closed_form_says() -> None:
    """One that comes at `gap` before expiry does with probability exp(-gap / cost), L1 hits included.

    So the first of a stream of readers does at the k-th of them with that one's probability and none before.
    """
    clock = ManualClock()
    noting = _Noting(clock)
    world = World(POLICIES, clock=clock, refresher=noting, life_share=lambda key: 1.0, seed=11)
    step_s, readers, streams = COST_S / 2, 20, 3_000
    first = np.zeros(readers + 1)
    for _ in range(streams):
        made = clock.now()
        world.l1.held[KEY] = Entry(1, made, made, (1.0,), COST_S)
        noting.at.clear()
        clock.advance(LIMIT_S - readers * step_s)
        asked = 0
        while asked < readers and not noting.at:
            world.read(KEY)
            clock.advance(step_s)
            asked += 1
        first[asked - 1 if noting.at else readers] += 1
    for factor, fits in ((1.0, True), (1.2, False), (1 / 1.2, False)):
        chances = [exp(-(readers - k) * step_s / (factor * COST_S)) for k in range(readers)]
        survival = np.cumprod([1.0, *(1 - chance for chance in chances)])
        expected = streams * np.append(survival[:-1] * chances, survival[-1])
        rare = expected < 5
        pooled = [np.append(counts[~rare], counts[rare].sum()) for counts in (first, expected)]
        pooled = [counts[pooled[1] > 0] for counts in pooled]
        assert (chisquare(*pooled).pvalue > CERTAIN) == fits, factor


@given(gap_s=_gaps, cost_s=_costs, uniform=_uniforms, factor=st.floats(1.0, 100.0))
def test_a_larger_cost_or_beta_and_a_smaller_gap_only_refresh_earlier(
    gap_s: float, cost_s: float, uniform: float, factor: float
) -> None:
    if refreshes_early(gap_s=gap_s, cost_s=cost_s, uniform=uniform):
        assert refreshes_early(gap_s=gap_s, cost_s=cost_s, uniform=uniform, beta=factor)
        assert refreshes_early(gap_s=gap_s, cost_s=cost_s * factor, uniform=uniform)
        assert refreshes_early(gap_s=gap_s / factor, cost_s=cost_s, uniform=uniform)


def test_the_coin_is_flipped_where_it_can_fall() -> None:
    """At expiry it always says "now", with a cost of 0 never; beyond the horizon once in 10^13 readers."""
    assert refreshes_early(gap_s=0.0, cost_s=COST_S, uniform=1.0)
    assert not refreshes_early(gap_s=1e-9, cost_s=0.0, uniform=1e-300)
    assert log(1e-14) < -HORIZON_COSTS
    assert exp(-HORIZON_COSTS) < 1e-13
