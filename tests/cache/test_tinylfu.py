"""The store: bounds, versions, reasons and threads; what it evicts is held against LRU on many kinds of traffic."""

import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.segments import Node, Segments, Sketch, spread
from mlserve.cache.tiers.l1_locmem import BoundedStore
from mlserve.cache.tinylfu import TinyLfuStore
from tests.cache import traces

_FLAT = 100


def _store(max_entries: int, max_bytes: int | None = None) -> TinyLfuStore:
    """Of strings that weigh their length, and 100 at least where no bound in bytes is given."""
    return TinyLfuStore(max_entries, max_bytes or max_entries * _FLAT, weigh=len, random_source=random.Random(0))


def _hit_rate(trace: list[int], capacity: int) -> float:
    store, hits = _store(capacity), 0
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


@pytest.mark.parametrize("capacity", LENGTHS)
@pytest.mark.parametrize("name", FREQUENCY)
def test_scans_and_loops_gain_five_points_on_lru(name: str, capacity: int) -> None:
    """The cold start is counted in."""
    trace = FREQUENCY[name](LENGTHS[capacity], capacity)
    assert _hit_rate(trace, capacity) >= _lru_hit_rate(trace, capacity) + 5


@pytest.mark.parametrize("capacity", LENGTHS)
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


def test_the_same_requests_evict_the_same_keys() -> None:
    """With the same random source there is no chance in it."""
    trace = traces.scans(5_000, 50, 3)
    kept = []
    for _ in range(2):
        store = _store(50)
        for key in trace:
            if store.get(key) is None:
                store.put(key, "x")
        kept.append([key for key in range(max(trace)) if store.peek(key) is not None])
    assert kept[0] == kept[1] and len(kept[0]) == 50


def test_a_count_is_never_too_low_and_fades() -> None:
    """Up to 15; collisions only add; after halving it is half."""
    sketch = Sketch(100)
    for asked, code in enumerate(map(spread, range(100))):
        for _ in range(asked % 20):
            sketch.add(code)
    counts = [sketch.count(spread(key)) for key in range(100)]
    assert all(count >= min(key % 20, 15) for key, count in enumerate(counts))
    assert max(counts) == 15
    sketch.halve()
    assert [sketch.count(spread(key)) for key in range(100)] == [count // 2 for count in counts]


def _in_loop(store: TinyLfuStore, keys: int) -> None:
    """Ask in a loop until the window is small."""
    for _ in range(20):
        for key in range(keys):
            if store.get(key) is None:
                store.put(key, "x")


class _Luck(random.Random):
    """Draws what the test says."""

    drawn = 1.0

    def random(self) -> float:
        return self.drawn


@pytest.mark.parametrize(("asked", "drawn", "gets_in"), [(12, 0.99, False), (12, 0.0, True), (3, 0.0, False)])
def test_a_warm_candidate_is_let_in_now_and_then(asked: int, drawn: float, gets_in: bool) -> None:
    """Against an opponent who keeps the counters of victims high: asked for often, it enters by luck alone."""
    luck, sketch = _Luck(), Sketch(100)
    luck.drawn = drawn
    segments = Segments(max_entries=10, max_weight=10, sketch=sketch, random_source=luck, window_share=0.1)
    held = [Node(number, "x", 1, spread(number)) for number in range(10)]
    for node in held:
        for _ in range(15):
            sketch.add(node.code)
        segments.add(node)
        assert segments.make_room() == []
    warm, newest = Node("warm", "x", 1, spread("warm")), Node("newest", "x", 1, spread("newest"))
    for _ in range(asked):
        sketch.add(warm.code)
    segments.add(warm)
    segments.make_room()
    segments.add(newest)
    (evicted,) = segments.make_room()
    assert (evicted is not warm) is gets_in


def test_what_was_just_put_is_there() -> None:
    """Whatever the window, and if it takes all of the memory; also when the put makes an entry larger."""
    store = _store(100, 1_000)
    _in_loop(store, 150)
    for length in (5, 500, 990, 1_000, 7):
        assert store.put("large", "x" * length)
        assert store.get("large") == "x" * length
        assert store.weight_bytes <= 1_000


def test_an_entry_weighs_what_its_value_weighs_now() -> None:
    """Put again under its key, larger or smaller, it counts with its new size."""
    store = _store(10, 1_000)
    for length, weight in ((10, 100), (700, 700), (900, 900), (300, 300), (0, 100)):
        store.put("key", "x" * length)
        assert store.weight_bytes == weight


def test_fame_fades() -> None:
    """What was asked for often is forgotten when enough else was asked for since."""
    store = _store(100)
    for key in [*["famous"] * 20, *range(5_000)]:
        store.put(key, "x")
    assert store._sketch.count(spread("famous")) <= 5
    assert store._sketch.added <= 10 * 100


def test_more_entries_than_allowed_are_never_held() -> None:
    """Though the least weight is rounded down, and though entries weigh nothing."""
    store = _store(7, 10)
    for key in range(50):
        store.put(key, "")
        assert len(store) <= 7
    assert (len(store), store.evictions) == (7, 43)
    assert store.evictions_of == {"django": 43}


def test_a_value_larger_than_the_store_leaves_nothing_behind() -> None:
    """It is refused, what was held under its key is gone, and the reason is that it was pushed out."""
    store = _store(10, 1_000)
    store.put("key", "x")
    assert not store.put("key", "x" * 1_001)
    assert store.get("key") is None
    assert (store.why_missing("key"), len(store), store.weight_bytes, store.evictions) == (MissReason.EVICTED, 0, 0, 0)


@pytest.mark.parametrize(("max_entries", "max_bytes"), [(0, 100), (100, 0), (-1, -1)])
def test_a_store_without_room_is_refused(max_entries: int, max_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"max_entries {max_entries}, max_bytes {max_bytes}"):
        BoundedStore(max_entries, max_bytes)


def test_every_miss_has_a_reason() -> None:
    """Never there, pushed out, dropped, cleared; what is only asked for stays cold."""
    store = _store(2)
    assert store.get("a") is None and store.why_missing("a") is MissReason.COLD
    for key in "abc":
        store.put(key, "x")
    (evicted,) = [key for key in "abc" if store.peek(key) is None]
    assert store.why_missing(evicted) is MissReason.EVICTED
    store.pop("never there")
    assert store.why_missing("never there") is MissReason.COLD
    store.pop(evicted)
    assert store.why_missing(evicted) is MissReason.EVICTED
    store.put(evicted, "x")
    assert store.pop(evicted) == "x"
    assert store.why_missing(evicted) is MissReason.INVALIDATED
    store.put("last", "x")
    store.clear()
    assert store.why_missing("last") is MissReason.INVALIDATED


def test_reasons_are_remembered_for_about_as_many_keys_as_are_held() -> None:
    """For the last half as many at least, for as many at most; before that a key is cold again."""
    store = _store(100)
    for key in range(1_000):
        store.put(key, "x")
    reasons = [store.why_missing(key) for key in range(1_000) if store.peek(key) is None]
    assert 50 <= reasons.count(MissReason.EVICTED) <= 100
    assert reasons.count(MissReason.COLD) == 900 - reasons.count(MissReason.EVICTED)
    for key in range(1_000):
        store.pop(key)
    assert 50 <= [store.why_missing(key) for key in range(1_000)].count(MissReason.INVALIDATED) <= 100


def test_a_pure_read_load_leaves_a_bounded_trace() -> None:
    """Reads that no write replays are forgotten, oldest first."""
    store = _store(10)
    store.put("key", "x")
    for _ in range(10_000):
        store.get("key")
    assert len(store._reads) == store._reads.maxlen == 128
    store.put("other", "x")
    assert len(store._reads) == 0


def test_a_read_that_a_clear_overtook_is_harmless() -> None:
    """A reader may have found an entry before it was cleared and record it afterwards."""
    store = _store(10)
    store.put("key", "x")
    found = store._nodes["key"]
    store.clear()
    store._reads.append(found)
    store.put("key", "y")
    assert (store.get("key"), len(store), store.weight_bytes) == ("y", 1, 100)


def test_a_peek_is_no_request() -> None:
    """Of two stores with the same puts, the one that was peeked into keeps the same keys; read, it keeps others."""
    kept = []
    for look in (None, "peek", "get"):
        store = _store(20)
        for key in range(200):
            store.put(key, "x")
            for seen in range(0, 20, 2):
                if look is not None:
                    getattr(store, look)(seen)
        kept.append({key for key in range(200) if store.peek(key) is not None})
    assert kept[0] == kept[1] != kept[2]
    assert kept[2] >= set(range(0, 20, 2))


def _check_consistent(store: TinyLfuStore) -> None:
    segments = store._segments
    listed = [node for part in segments._lists for node in part]
    assert {id(node) for node in listed} == {id(node) for node in store._nodes.values()}
    assert len(listed) == len(store) == segments._entries <= store.max_entries
    assert sum(node.weight for node in listed) == sum(segments._weights) == store.weight_bytes <= store.max_bytes
    for place, part in enumerate(segments._lists):
        assert all(node.place == place for node in part)
        assert sum(node.weight for node in part) == segments._weights[place]


def test_threads_leave_a_consistent_store() -> None:
    """Eight of them get, put, pop and clear at once: no error, bounds and weights hold, no value under a wrong key."""
    store, errors, start = _store(50, 2_000), list[BaseException](), threading.Barrier(8)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        start.wait()
        try:
            for step in range(4_000):
                key = rng.randrange(120)
                value = store.get(key)
                if value is None:
                    store.put(key, f"{key} " + "x" * rng.randrange(60))
                else:
                    assert value.split()[0] == str(key)
                if step % 7 == 0:
                    store.pop(rng.randrange(120))
                if step % 1_000 == 999:
                    store.clear()
                store.why_missing(key)
                assert len(store) <= 50
        except BaseException as error:
            errors.append(error)

    _in_threads([partial(work, seed) for seed in range(8)])
    assert errors == []
    _check_consistent(store)


def test_no_put_is_lost() -> None:
    """Where there is room for all, what each thread put last is there when all are done."""
    store, start = _store(1_000), threading.Barrier(8)

    def work(name: int) -> None:
        start.wait()
        for round_number in range(5):
            for number in range(100):
                store.put((name, number), f"{round_number}")
                store.get((name - 1, number))

    _in_threads([partial(work, name) for name in range(8)])
    assert [store.get((name, number)) for name in range(8) for number in range(100)] == ["4"] * 800
    _check_consistent(store)


def test_versions_never_go_back_between_threads() -> None:
    """All put versions of one key in any order: the newest stands, and no reader sees a version after a newer one."""
    store, start, key = BoundedStore(10, 10_000), threading.Barrier(6), Key("customer", "c1", "profile")
    went_back: list[tuple[int, int]] = []

    def write(seed: int) -> None:
        versions = random.Random(seed).sample(range(2_000), 2_000)
        start.wait()
        for version in versions:
            store.put_newer(key, Entry(version, 0.0, 0.0, (1.0,)))

    def read() -> None:
        last = 0
        start.wait()
        for _ in range(20_000):
            held = store.get(key)
            if held is not None:
                if held.version < last:
                    went_back.append((last, held.version))
                last = held.version

    _in_threads([*(partial(write, seed) for seed in range(4)), read, read])
    assert went_back == []
    assert store.peek(key).version == 1_999


def _in_threads(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


class AgainstAPlainModel(RuleBasedStateMachine):
    """What the store holds is what was put last under the key, or it has a reason for not holding it."""

    KEYS = [Key("customer", str(number), "profile") for number in range(12)]

    def __init__(self) -> None:
        super().__init__()
        self.store = BoundedStore(6, 6_000, random_source=random.Random(0))
        self.model: dict[Key, Entry] = {}
        self.gone: dict[Key, set[MissReason]] = {}
        self.put_count = 0

    def _put(self, key: Key, entry: Entry) -> None:
        self.model[key] = entry
        self.gone[key] = {MissReason.EVICTED}

    @rule(key=st.sampled_from(KEYS), version=st.integers(0, 5), values=st.integers(0, 250))
    def put(self, key: Key, version: int, values: int) -> None:
        entry = Entry(version, 0.0, 0.0, (0.5,) * values)
        assert self.store.put(key, entry) is (entry.size_bytes <= 6_000)
        self._put(key, entry)
        assert self.store.peek(key) is (entry if entry.size_bytes <= 6_000 else None)

    @rule(key=st.sampled_from(KEYS), version=st.integers(0, 5), values=st.integers(0, 100))
    def put_newer(self, key: Key, version: int, values: int) -> None:
        held, entry = self.store.peek(key), Entry(version, 0.0, 0.0, (0.5,) * values)
        self.store.put_newer(key, entry)
        if held is None or held.version <= version:
            self._put(key, entry)
            assert self.store.peek(key) is entry
        else:
            assert self.store.peek(key) is held

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: Key) -> None:
        assert self.store.get(key) in (None, self.model.get(key))

    @rule(key=st.sampled_from(KEYS))
    def pop(self, key: Key) -> None:
        held = self.store.peek(key)
        assert self.store.pop(key) is held
        assert self.store.peek(key) is None
        if held is not None:
            assert self.store.why_missing(key) is MissReason.INVALIDATED
        if self.model.pop(key, None) is not None:
            self.gone[key] = {MissReason.EVICTED, MissReason.INVALIDATED}

    @precondition(lambda self: len(self.model) > 3)
    @rule()
    def clear(self) -> None:
        self.store.clear()
        assert (len(self.store), self.store.weight_bytes) == (0, 0)
        for key in self.model:
            self.gone[key] = {MissReason.EVICTED, MissReason.INVALIDATED}
        self.model.clear()

    @invariant()
    def holds(self) -> None:
        _check_consistent(self.store)
        for key in self.KEYS:
            held = self.store.peek(key)
            if held is None:
                assert self.store.why_missing(key) in self.gone.get(key, set()) | {MissReason.COLD}
            else:
                assert held is self.model[key]


TestAgainstAPlainModel = AgainstAPlainModel.TestCase
TestAgainstAPlainModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
