"""Threads of one process that want what none of them has: one looks, the others wait for what it brings."""

import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mlserve.cache import following
from mlserve.cache.cascade import Reading
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.loading import Loader, SourceUnavailable
from mlserve.cache.outcome import Degradation, Outcome, Tier
from mlserve.cache.singleflight import JOINED_UP_TO_S
from tests.cache.doubles import policy
from tests.cache.worlds import PATIENCE_S, World
from tests.fixtures.waiting import until

POLICIES = {"group": policy()}
A, B, C = (Key("customer", name, "group") for name in "abc")
HERD = 50


@pytest.fixture
def world() -> World:
    """Its source is held up until a test opens the gate."""
    world = World(POLICIES)
    world.gate.clear()
    return world


def _until_joined(world: World, count: int) -> None:
    until(lambda: world.stats.events["flight_joined"] == count)


def _nothing_in_the_air(world: World) -> bool:
    world.settle()
    return not world.flights._in_air and not world.memory.leases


def _failing(world: World, error: Exception) -> Loader:
    def load(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        world.load(keys)
        raise error

    return load


def _first(threads: ThreadPoolExecutor, world: World, *keys: Key, loader: Loader | None = None) -> Future[Reading]:
    """A thread that is held up in the source with these keys."""
    first = threads.submit(world.read, *keys, loader=loader)
    assert world.reading.wait(PATIENCE_S)
    return first


def _only(reading: Reading) -> Outcome:
    (outcome,) = reading.outcomes.values()
    return outcome


def test_a_herd_is_one_load(world: World) -> None:
    """Fifty threads in the same moment: L2 and the source are asked once, and everybody gets the answer."""
    newest = world.source.write(A)
    barrier = threading.Barrier(HERD)

    def read() -> Reading:
        barrier.wait()
        return world.read(A)

    with ThreadPoolExecutor(HERD) as threads:
        readings = [threads.submit(read) for _ in range(HERD)]
        _until_joined(world, HERD - 1)
        world.gate.set()
        outcomes = [_only(reading.result()) for reading in readings]
    assert world.source.asked == [[A]]
    assert world.memory.calls.count("get") == 1
    assert {(outcome.version, outcome.tier, outcome.stale) for outcome in outcomes} == {
        (newest.version, Tier.L3, False)
    }
    assert len(world.stats.ages[Tier.L3]["group"]) == 1
    assert len(world.stats.ages["late"]["group"]) == HERD - 1
    assert _nothing_in_the_air(world)


def test_what_nobody_loads_yet_is_loaded_besides(world: World) -> None:
    """A thread that wants two keys loads the one and waits for the other."""
    world.source.write(A)
    world.source.write(B)
    with ThreadPoolExecutor(2) as threads:
        first = _first(threads, world, A)
        second = threads.submit(world.read, A, B, loader=world.source.load)
        until(lambda: [B] in world.source.asked)
        world.gate.set()
        assert _only(first.result()).tier is Tier.L3
        assert {key: outcome.version for key, outcome in second.result().outcomes.items()} == {A: 1, B: 2}
    assert sorted(world.source.asked) == [[A], [B]]
    assert _nothing_in_the_air(world)


@pytest.mark.parametrize("error", [SourceUnavailable("database"), ZeroDivisionError()])
def test_a_load_that_fails_reaches_nobody_else_as_an_exception(world: World, error: Exception) -> None:
    """Who waited has no value, says why, and has not asked the source in turn."""
    with ThreadPoolExecutor(10) as threads:
        first = _first(threads, world, A, loader=_failing(world, error))
        others = [threads.submit(world.read, A) for _ in range(9)]
        _until_joined(world, 9)
        world.gate.set()
        for other in others:
            reading = other.result()
            assert _only(reading).tier is Tier.DEFAULT
            assert reading.degradations == {Degradation.SOURCE_UNAVAILABLE}
        assert first.exception() == (None if isinstance(error, SourceUnavailable) else error)
    assert world.source.asked == [[A]]
    assert _nothing_in_the_air(world)


def test_after_a_load_that_fails_old_copies_serve_all_who_waited(world: World) -> None:
    """The copy that the first one found in L2, past its limit: flagged, for the reason that it is."""
    old = world.source.write(A)
    world.memory.held[A] = old
    world.clock.advance(90)
    failing = _failing(world, SourceUnavailable("database"))
    with ThreadPoolExecutor(5) as threads:
        readings = [_first(threads, world, A, loader=failing), *(threads.submit(world.read, A) for _ in range(4))]
        _until_joined(world, 4)
        world.gate.set()
        for reading in readings:
            assert (_only(reading.result()).version, _only(reading.result()).stale) == (old.version, True)
            assert reading.result().degradations == {Degradation.STALE, Degradation.STALE_SOURCE_UNAVAILABLE}
    assert _nothing_in_the_air(world)


@pytest.mark.quiet
def test_who_has_an_old_copy_does_not_wait_for_long(world: World) -> None:
    """It serves, flagged, while another thread is loading; the source is not asked a second time."""
    old = world.source.write(A)
    world.l1.held[A] = old
    world.clock.advance(90)
    with ThreadPoolExecutor(1) as threads:
        first = _first(threads, world, A)
        began = time.monotonic()
        reading = world.read(A)
        assert time.monotonic() - began < following.FOLLOW_S / 2
        assert (_only(reading).version, _only(reading).tier) == (old.version, Tier.L1)
        assert reading.degradations == {Degradation.STALE, Degradation.STALE_REFRESHING}
        assert world.stats.ages["late"]["group"] == [90]
        world.gate.set()
        first.result()
    assert world.source.asked == [[A]]
    assert _nothing_in_the_air(world)


def test_who_has_waited_in_vain_looks_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is stuck in the source holds nobody up for ever."""
    monkeypatch.setattr(following, "FOLLOW_S", 0.02)
    world.source.write(A)
    with ThreadPoolExecutor(1) as threads:
        first = _first(threads, world, A)
        assert _only(world.read(A, loader=world.source.load)).tier is Tier.L3
        world.gate.set()
        first.result()
    assert world.source.asked == [[A], [A]]
    assert _nothing_in_the_air(world)


def test_a_request_for_fresher_values_is_not_content_with_what_another_got(world: World) -> None:
    """Thirty seconds old is fresh by the policy and too old for a request that allows ten: it looks for itself."""
    world.source.write(A)
    world.source.write(B)
    world.memory.held[A] = world.source.rows[A]
    world.clock.advance(30)
    newest = world.source.write(A)
    with ThreadPoolExecutor(2) as threads:
        first = _first(threads, world, A, B)
        second = threads.submit(world.read, A, max_age_s=10, loader=world.source.load)
        _until_joined(world, 1)
        world.gate.set()
        assert first.result().outcomes[A].version == 1
        outcome = _only(second.result())
    assert (outcome.version, outcome.tier, outcome.stale) == (newest.version, Tier.L3, False)
    assert second.result().degradations == set()
    assert _nothing_in_the_air(world)


def test_a_request_for_the_source_joins_nobody(world: World) -> None:
    """What is being read was asked for before; a request of age 0 wants what is there now."""
    world.source.write(A)
    with ThreadPoolExecutor(1) as threads:
        first = _first(threads, world, A)
        newest = world.source.write(A)
        assert _only(world.read(A, max_age_s=0, loader=world.source.load)).version == newest.version
        world.gate.set()
        first.result()
    assert world.stats.events["flight_joined"] == 0


def test_a_look_that_takes_too_long_is_not_joined_any_more(world: World) -> None:
    """What it reads may be older than the new request by as much."""
    world.source.write(A)
    with ThreadPoolExecutor(1) as threads:
        first = _first(threads, world, A)
        world.clock.advance(JOINED_UP_TO_S + 0.001)
        world.memory.leases.clear()
        assert _only(world.read(A, loader=world.source.load)).tier is Tier.L3
        world.gate.set()
        first.result()
    assert world.stats.events["flight_joined"] == 0
    assert _nothing_in_the_air(world)


def test_threads_that_want_each_others_keys_all_get_them(world: World) -> None:
    """Whatever they overlap in: nobody waits for somebody who waits for him."""
    world.gate.set()
    for key in (A, B, C):
        world.source.write(key)
    chance, barrier = random.Random(1), threading.Barrier(8)
    orders = [chance.sample([A, B, C], chance.randint(1, 3)) for _ in range(8)]

    def read(keys: list[Key]) -> set[Key]:
        barrier.wait()
        return {key for key, outcome in world.read(*keys).outcomes.items() if outcome.values is not None}

    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            found = list(threads.map(read, orders))
            assert found == [set(order) for order in orders]
            assert _nothing_in_the_air(world)
            world.l1.held.clear()
            world.memory.held.clear()
