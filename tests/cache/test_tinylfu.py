"""W-TinyLFU in single steps: who gets in, who goes, and why a key is missing."""

import random

import pytest

from mlserve.cache.outcome import MissReason
from mlserve.cache.segments import Node, Segments, Sketch, spread
from mlserve.cache.tiers.l1_locmem import BoundedStore
from mlserve.cache.tinylfu import TinyLfuStore
from tests.cache import traces
from tests.cache.stores import make_store


def test_the_same_requests_evict_the_same_keys() -> None:
    """With the same random source there is no chance in it."""
    trace = traces.scans(5_000, 50, 3)
    kept = []
    for _ in range(2):
        store = make_store(50)
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
    store = make_store(100, 1_000)
    _in_loop(store, 150)
    for length in (5, 500, 990, 1_000, 7):
        assert store.put("large", "x" * length)
        assert store.get("large") == "x" * length
        assert store.weight_bytes <= 1_000


def test_an_entry_weighs_what_its_value_weighs_now() -> None:
    """Put again under its key, larger or smaller, it counts with its new size."""
    store = make_store(10, 1_000)
    for length, weight in ((10, 100), (700, 700), (900, 900), (300, 300), (0, 100)):
        store.put("key", "x" * length)
        assert store.weight_bytes == weight


def test_fame_fades() -> None:
    """What was asked for often is forgotten when enough else was asked for since."""
    store = make_store(100)
    for key in [*["famous"] * 20, *range(5_000)]:
        store.put(key, "x")
    assert store._sketch.count(spread("famous")) <= 5
    assert store._sketch.added <= 10 * 100


def test_more_entries_than_allowed_are_never_held() -> None:
    """Though the least weight is rounded down, and though entries weigh nothing."""
    store = make_store(7, 10)
    for key in range(50):
        store.put(key, "")
        assert len(store) <= 7
    assert (len(store), store.evictions) == (7, 43)
    assert store.evictions_of == {"django": 43}


def test_a_value_larger_than_the_store_leaves_nothing_behind() -> None:
    """It is refused, what was held under its key is gone, and the reason is that it was pushed out."""
    store = make_store(10, 1_000)
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
    store = make_store(2)
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
    store = make_store(100)
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
    store = make_store(10)
    store.put("key", "x")
    for _ in range(10_000):
        store.get("key")
    assert len(store._reads) == store._reads.maxlen == 128
    store.put("other", "x")
    assert len(store._reads) == 0


def test_a_read_that_a_clear_overtook_is_harmless() -> None:
    """A reader may have found an entry before it was cleared and record it afterwards."""
    store = make_store(10)
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
        store = make_store(20)
        for key in range(200):
            store.put(key, "x")
            for seen in range(0, 20, 2):
                if look is not None:
                    getattr(store, look)(seen)
        kept.append({key for key in range(200) if store.peek(key) is not None})
    assert kept[0] == kept[1] != kept[2]
    assert kept[2] >= set(range(0, 20, 2))
