"""Copies of one moment, under a simulated clock: everything here is certain, nothing is timed."""

from benchmarks import contest
from benchmarks.avalanche import FRESH_FOR_S, contests, loads_by_second, open_avalanche
from benchmarks.ratio import Verdict
from features.progress import silent
from mlserve.cache.keys import JITTER_SHARE, Key, life_share

KEYS = [Key("merchant", f"m{number}", "merchant_risk") for number in range(2_000)]


def test_the_avalanche_benchmark_runs() -> None:
    """Every round has other keys, so the spread is that of names."""
    (one,) = contests(keys=2_000)
    result = contest.run(one, seconds=0.01, progress=silent, rounds=3)
    assert (result.name, result.unit, result.other) == ("avalanche", "reloads/s", 2_000)
    assert result.verdict is Verdict.HOLDS
    assert result.ratio.min < result.ratio.max


def test_without_a_share_of_their_own_all_keys_are_reloaded_in_one_second() -> None:
    assert loads_by_second(KEYS, lambda _key: 1.0) == {FRESH_FOR_S + 1: len(KEYS)}


def test_with_it_reloads_are_spread_over_a_tenth_of_the_limit() -> None:
    """None before, none after, and every second of it gets about the mean."""
    loads = loads_by_second(KEYS, life_share)
    first = round(FRESH_FOR_S * (1 - JITTER_SHARE)) + 1
    assert sorted(loads) == list(range(first, FRESH_FOR_S + 1))
    assert loads.total() == len(KEYS)
    assert max(loads.values()) < 1.25 * len(KEYS) / len(loads)


def test_the_benchmark_of_the_catalogue_has_ten_thousand_keys() -> None:
    with open_avalanche(silent) as (one,):
        assert one.ours_is.startswith("10,000 keys")
