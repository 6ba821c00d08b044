"""What reads cost: the arithmetic, and that each tier can be measured; no time and no price is asserted."""

import pytest

from benchmarks import contest
from benchmarks.cost import READS_PER_HOUR, USD_PER_GB_HOUR, USD_PER_VCPU_HOUR, contests, open_meter, usd_per_million
from benchmarks.ratio import Compare
from features.progress import silent
from mlserve.cache.outcome import Tier


def test_a_million_reads_of_a_millisecond_take_a_thousand_seconds_of_processor() -> None:
    assert usd_per_million(cpu_s=0.001) == pytest.approx(1000 / 3600 * USD_PER_VCPU_HOUR)


def test_a_copy_is_paid_by_the_reads_of_its_hour() -> None:
    """A gigabyte that is read so often an hour costs each read that part of its hour."""
    assert usd_per_million(cpu_s=0.0, held_bytes=1e9) == pytest.approx(USD_PER_GB_HOUR / READS_PER_HOUR * 1e6)


def test_the_cost_benchmark_measures_every_tier() -> None:
    """Each read is answered by the tier that is meant, or the benchmark fails; copies take memory, the source none."""
    with open_meter(silent) as meter:
        results = [contest.run(each, seconds=0.1, progress=silent, rounds=2) for each in contests(meter)]
        spent, _servers_s = meter.spend("features", Tier.L3, 0.01)
    assert [result.name for result in results] == ["cost-l1", "cost-l2", "cost-prediction-l1", "cost-prediction-l2"]
    assert [result.compare is Compare.OTHER_OVER_OURS for result in results] == [False, False, False, True]
    assert all(result.ours > 0 and result.other > 0 for result in results)
    assert spent.reads > 0 and spent.cpu_s > 0
    features, prediction = (meter.held_bytes[what, Tier.L2] for what in ("features", "prediction"))
    assert features > 1_000 > prediction > 50
    assert set(meter.held_bytes) == {(what, tier) for what in ("features", "prediction") for tier in (Tier.L1, Tier.L2)}
