"""Differences between snapshots, and quantiles from buckets."""

from itertools import pairwise
from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.definitions import GROUPS
from mlserve.console.figures import Figures, L2Figures
from mlserve.console.samples import CounterKey
from mlserve.console.window import Buckets, between, look_back, since_start
from mlserve.observability.metrics import AGE_BUCKETS_S

_LOADS = ("mlserve_source_loads_total", "merchant_risk")
_BOUNDS = (0.001, 0.01, 0.1, 1.0, inf)


def _figures(at: float, **loads: float) -> Figures:
    counters: dict[CounterKey, float] = {("mlserve_source_loads_total", group): value for group, value in loads.items()}
    return Figures(at=at, counters=counters, breakers=(), l1_entries=0, l1_bytes=0, l2=L2Figures(reachable=True))


def test_a_rate_is_a_difference_over_time() -> None:
    """Counters of before the window do not matter; a label seen for the first time counts from zero."""
    window = between(_figures(100, merchant_risk=50), _figures(110, merchant_risk=70, customer_profile=5))
    assert window.by_label("mlserve_source_loads_total") == {"merchant_risk": 20, "customer_profile": 5}
    assert window.per_second(window.total("mlserve_source_loads_total")) == 2.5


def test_a_counter_that_fell_began_anew() -> None:
    """After a restart that wiped the files, what stands there now is what has happened, in every counter."""
    earlier, later = {"merchant_risk": 50, "customer_profile": 1}, {"merchant_risk": 4, "customer_profile": 9}
    window = between(_figures(100, **earlier), _figures(110, **later))
    assert window.by_label("mlserve_source_loads_total") == {"merchant_risk": 4, "customer_profile": 9}


def test_a_counter_that_vanished_is_a_restart_too() -> None:
    """Wiped files hold no trace of what was counted before."""
    window = between(_figures(100, merchant_risk=50, customer_profile=1), _figures(110, customer_profile=9))
    assert window.by_label("mlserve_source_loads_total") == {"customer_profile": 9}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6))
def test_nothing_ever_happens_a_negative_number_of_times(totals: list[tuple[int, int]]) -> None:
    """Whatever the counters did between two snapshots."""
    moments = [_figures(at, merchant_risk=a, customer_profile=b) for at, (a, b) in enumerate(totals)]
    for earlier, later in pairwise(moments):
        window = between(earlier, later)
        assert all(value >= 0 for value in window.counters.values())


def test_looking_back_takes_what_the_series_covers() -> None:
    """The oldest snapshot within the span is the beginning, however short that makes it."""
    series = [_figures(at, merchant_risk=at) for at in (10.0, 60.0, 80.0)]
    window = look_back(series, _figures(100, merchant_risk=100), seconds=50)
    assert (window.seconds, window.counters[_LOADS]) == (40, 40)


def test_without_an_earlier_snapshot_everything_counts() -> None:
    """Then there are totals, and no rate is made up."""
    window = look_back([_figures(10.0)], _figures(100, merchant_risk=7), seconds=50)
    assert window == since_start(_figures(100, merchant_risk=7))
    assert window.per_second(7) is None


def _cumulative(values: list[float]) -> dict[str, float]:
    return {str(bound): sum(value <= bound for value in values) for bound in _BOUNDS}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    """The straight line inside a bucket is an estimate; the bucket is not."""
    buckets = Buckets.from_cumulative(_cumulative(values))
    estimate = buckets.quantile(q)
    assert estimate is not None
    at_or_below = sum(count for _low, high, count in buckets.ranges() if high <= estimate)
    below_upper = sum(count for low, _high, count in buckets.ranges() if low < estimate or low == 0)
    assert at_or_below <= q * len(values) + 1e-9
    assert below_upper >= q * len(values) - 1e-9


def test_a_quantile_beyond_the_last_bound_is_not_invented() -> None:
    """All that is known is that it is larger."""
    assert Buckets.from_cumulative(_cumulative([5.0, 6.0])).quantile(0.5) == inf


def test_without_observations_there_is_no_quantile() -> None:
    """None, not zero: nothing is not fast."""
    empty = Buckets.from_cumulative({})
    assert (empty.quantile(0.5), empty.share_certainly_above(1.0), empty.quantile_span(0.5)) == (None, None, None)


@pytest.mark.parametrize(("limit", "share"), [(0.1, 0.5), (1.0, 0.0), (0.0, 1.0), (0.055, 0.5), (0.5, 0.0)])
def test_only_what_certainly_exceeds_a_limit_counts_as_past_it(limit: float, share: float) -> None:
    """Two of four observations in (0.01, 0.1], two in (0.1, 1]: a bucket that the limit cuts proves nothing."""
    buckets = Buckets.from_cumulative({"0.01": 0, "0.1": 2, "1.0": 4, "+Inf": 4})
    assert buckets.share_certainly_above(limit) == pytest.approx(share)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=50), st.floats(0.01, 1))
def test_the_true_quantile_lies_in_the_span_that_is_named(values: list[float], q: float) -> None:
    """However the values lie in their buckets; nothing narrower is claimed."""
    span = Buckets.from_cumulative(_cumulative(values)).quantile_span(q)
    true = sorted(values)[ceil(q * len(values)) - 1]
    assert span is not None
    assert span.lower < true <= span.upper or true == span.lower == 0
    assert {span.lower, span.upper} <= {0.0, *_BOUNDS}


def test_the_default_limits_are_bounds_of_age_buckets() -> None:
    """So that what is past them is counted exactly; and the buckets stay few enough for every process and group."""
    assert {group.policy.fresh_for_s for group in GROUPS.values()} <= set(AGE_BUCKETS_S)
    assert len(AGE_BUCKETS_S) <= 24
    assert sorted(set(AGE_BUCKETS_S)) == list(AGE_BUCKETS_S)
