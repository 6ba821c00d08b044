"""Hit rates of W-TinyLFU against those of LRU, on traces of several kinds."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest

from tests.cache import traces
from tests.cache.stores import make_store


def _hit_rate(trace: list[int], capacity: int) -> float:
    store, hits = make_store(capacity), 0
    for key in trace:
        if store.get(key) is None:
            store.put(key, "x")
        else:
            hits += 1
    return 100 * hits / len(trace)


def _lru_hit_rate(trace: list[int], capacity: int) -> float:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in held:
            held.move_to_end(key)
            hits += 1
        else:
            held[key] = None
            if len(held) > capacity:
                held.popitem(last=False)
    return 100 * hits / len(trace)


Trace = Callable[[int, int], list[int]]


FREQUENCY: dict[str, Trace] = {
    "scans": partial(traces.scans, seed=1, keys_per_capacity=2, exponent=0.8, length=1),
    "frequent scans": partial(traces.scans, seed=1, keys_per_capacity=5, exponent=0.9, length=1),
    "mixed-in scan": partial(traces.mixed_scans, seed=1, keys_per_capacity=5, exponent=0.8, share=0.3),
    "loop of 1.1": partial(traces.loop, factor=1.1),
    "loop of 1.5": partial(traces.loop, factor=1.5),
    "loop of 2": partial(traces.loop, factor=2),
    "loop of 3": partial(traces.loop, factor=3),
}


RECENCY: dict[str, Trace] = {
    "stack distances": partial(traces.stack_distance, seed=1),
    "short stack distances": partial(traces.stack_distance, seed=1, fresh=0.3, spread=1.0),
    "sliding": partial(traces.sliding, seed=1),
    "sliding fast": partial(traces.sliding, seed=1, live=0.95, step=2),
    "sliding, too large": partial(traces.sliding, seed=1, live=1.2, step=4),
    "bursts": partial(traces.bursts, seed=1),
    "long bursts": partial(traces.bursts, seed=1, asks=8, live=0.8),
    "bursts in waves": partial(traces.waves, asks=4, live=0.6),
    "bursts in large waves": partial(traces.waves, asks=4, live=0.9),
    "popularity changes": partial(traces.phases, seed=1),
    "working set changes": partial(traces.working_set_phases, seed=1),
}


LENGTHS = {100: 20_000, 1_000: 50_000, 10_000: 200_000}
CAPACITIES = [100, 1_000, pytest.param(10_000, marks=pytest.mark.torture)]


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("name", FREQUENCY)
def test_scans_and_loops_gain_five_points_on_lru(name: str, capacity: int) -> None:
    """The cold start is counted in."""
    trace = FREQUENCY[name](LENGTHS[capacity], capacity)
    assert _hit_rate(trace, capacity) >= _lru_hit_rate(trace, capacity) + 5


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("name", RECENCY)
def test_recency_costs_less_than_a_point(name: str, capacity: int) -> None:
    """Where LRU is the right thing, the store is hardly behind it."""
    trace = RECENCY[name](LENGTHS[capacity], capacity)
    assert _hit_rate(trace, capacity) >= _lru_hit_rate(trace, capacity) - 1


@pytest.mark.parametrize("capacity", [100, 1_000])
def test_traffic_that_turns_is_followed(capacity: int) -> None:
    """A loop, then bursts, then the loop again: never more than a point behind LRU, far ahead over all."""
    part = 40 * capacity
    loop = traces.loop(part, capacity, 1.5)
    turning = [*loop, *(key + 10**9 for key in traces.bursts(part, capacity, 1)), *loop]
    assert _hit_rate(turning, capacity) >= _lru_hit_rate(turning, capacity) + 20
    bursts = turning[: 2 * part]
    assert _hit_rate(bursts, capacity) >= _lru_hit_rate(bursts, capacity) + 15
