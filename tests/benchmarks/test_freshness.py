"""How late a change is everywhere: the arithmetic, and that each side can be measured; only their order is asserted."""

import pytest

from benchmarks.freshness import open_freshness
from benchmarks.freshness_lag import NOTHING, History, Lag, NeverSeen, Stay, Write, lags, spread_of
from features.progress import silent

WRITE = Write(key=1, version=20, acknowledged=5.0)
OLD, NEW, NEWER, GONE = (
    Stay(10, 0.0, 5.125),
    Stay(20, 5.25, 7.0),
    Stay(30, 5.25, 7.0),
    Stay(NOTHING, 5.25, 7.0),
)


@pytest.mark.parametrize(
    ("histories", "lag"),
    [
        ([{1: [OLD, NEW]}], Lag(0.125, 0.25)),
        ([{1: [OLD, NEW]}, {1: [Stay(10, 0.0, 5.25), Stay(20, 5.5, 7.0)]}], Lag(0.25, 0.5)),
        ([{1: [OLD, NEWER]}], Lag(0.125, 0.25)),
        ([{1: [OLD, GONE]}], Lag(0.125, 0.25)),
        ([{1: [OLD, NEW, Stay(10, 7.25, 7.5), Stay(20, 8.0, 8.0)]}], Lag(2.5, 3.0)),
        ([{1: [Stay(10, 0.0, 4.5), Stay(20, 4.75, 7.0)]}], Lag(0.0, 0.0)),
        ([{1: [NEW]}], Lag(0.0, 0.0)),
        ([{2: [OLD]}], Lag(0.0, 0.0)),
    ],
    ids=["seen", "the last one counts", "a newer one", "evicted", "came back", "before the ack", "new", "never read"],
)
def test_a_lag_ends_when_the_last_process_is_past_the_old_version(histories: list[History], lag: Lag) -> None:
    """For good: an old version that comes back counts until it goes again."""
    assert lags([WRITE], histories) == [lag]


def test_an_old_version_at_the_end_is_no_lag() -> None:
    """Nobody knows how long it would have stayed."""
    with pytest.raises(NeverSeen, match="version 10 of key 1 outlived version 20"):
        lags([WRITE], [{1: [OLD]}])


def test_a_spread_is_of_values_that_were_measured() -> None:
    """The 99th percentile of a hundred is the last but one; what took a second is late."""
    spread = spread_of([number / 50 for number in range(100, 0, -1)])
    assert (spread.p50, spread.p99, spread.max, spread.late) == (1.0, 1.98, 2.0, 0.51)
    assert spread_of([0.5]).p99 == 0.5


@pytest.mark.torture
def test_the_freshness_benchmark_measures_its_three_sides() -> None:
    """With a relay a change is everywhere sooner than by a TTL; who answered adds up."""
    with open_freshness(silent) as (by_ttl, by_delete):
        assert (by_ttl.name, by_delete.name) == ("freshness-ttl", "freshness-delete")
        proven, ttl, delete = (side(0.1) for side in (by_ttl.ours, by_ttl.other, by_delete.other))
        figures = by_ttl.figures()
    assert min(proven, ttl, delete) > 0 and proven < ttl
    assert set(figures) == {"proven", "ttl", "delete"}
    for side in figures.values():
        assert side["writes"] >= 50
        assert side["L1 %"] + side["L2 %"] + side["L3 %"] + side["no value %"] == pytest.approx(100)
        for what in ("evicted", "old read", "new read"):
            assert side[f"{what}, p50 ms"] <= side[f"{what}, p99 ms"] <= side[f"{what}, max ms"]
    assert figures["ttl"]["old read, over 1 s %"] > figures["proven"]["old read, over 1 s %"]
