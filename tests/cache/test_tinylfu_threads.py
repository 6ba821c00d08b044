"""The store under threads, and against a plain model of it."""

import random
import threading
from collections.abc import Callable
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.l1_locmem import BoundedStore
from mlserve.cache.tinylfu import TinyLfuStore
from tests.cache.stores import make_store


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
    store, errors, start = make_store(50, 2_000), list[BaseException](), threading.Barrier(8)

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
    store, start = make_store(1_000), threading.Barrier(8)

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
