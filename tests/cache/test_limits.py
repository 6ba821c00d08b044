"""What keeps the source from being read too often at a time, and the cache from filling with ids that nobody has."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlserve.cache.limiter import ConcurrencyLimiter, Saturated
from mlserve.cache.negatives import NegativeQuota
from tests.fixtures.clock import ManualClock

PATIENCE_S = 20.0


def test_never_more_than_the_limit_are_at_it() -> None:
    """Twenty threads in the same moment, three places: all get one in time, three are taken at most."""
    limiter, barrier = ConcurrencyLimiter(3, wait_s=PATIENCE_S), threading.Barrier(20)
    full, inside, lock = threading.Event(), [0, 0], threading.Lock()

    def read() -> None:
        barrier.wait()
        with limiter.place():
            with lock:
                inside[0] += 1
                inside[1] = max(inside)
                if limiter.in_use == 3:
                    full.set()
            assert full.wait(PATIENCE_S)
            with lock:
                inside[0] -= 1

    with ThreadPoolExecutor(20) as threads:
        for done in [threads.submit(read) for _ in range(20)]:
            done.result()
    assert inside == [0, 3]
    assert (limiter.most_in_use, limiter.in_use, limiter.refused) == (3, 0, 0)


def test_who_finds_no_place_in_time_is_refused() -> None:
    """And counted; the next one that comes when a place is free has it."""
    limiter = ConcurrencyLimiter(1, wait_s=0.01)
    with limiter.place():
        for _ in range(2):
            with pytest.raises(Saturated), limiter.place():
                pytest.fail("two in one place")
    with limiter.place():
        assert limiter.in_use == 1
    assert (limiter.most_in_use, limiter.refused) == (1, 2)


def test_who_waits_gets_the_place_of_who_leaves() -> None:
    limiter = ConcurrencyLimiter(1, wait_s=PATIENCE_S)

    def read() -> int:
        with limiter.place():
            return limiter.in_use

    with ThreadPoolExecutor(1) as threads, limiter.place():
        waiting = threads.submit(read)
        assert limiter.refused == 0
        assert not waiting.done()
    assert waiting.result() == 1


def test_an_exception_gives_the_place_back() -> None:
    """However often: the limit is what it was."""
    limiter = ConcurrencyLimiter(2, wait_s=0.01)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), limiter.place():
            raise ZeroDivisionError
    with limiter.place(), limiter.place():
        assert limiter.in_use == 2


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_only_so_many_negative_entries_are_alive(clock: ManualClock) -> None:
    """Each for the time it is kept for; then its place is free."""
    quota = NegativeQuota(clock, 2)
    assert [quota.grant(5), quota.grant(5), quota.grant(5)] == [True, True, False]
    clock.advance(4.999)
    assert not quota.grant(5)
    clock.advance(0.001)
    assert [quota.grant(5), quota.grant(5), quota.grant(5)] == [True, True, False]


def test_a_longer_life_in_front_never_lets_too_many_in(clock: ManualClock) -> None:
    """Groups have different ones: the shorter behind waits for it, no more than that."""
    quota = NegativeQuota(clock, 2)
    assert quota.grant(60)
    assert quota.grant(1)
    clock.advance(1)
    assert not quota.grant(1)
    clock.advance(59)
    assert [quota.grant(1), quota.grant(1), quota.grant(1)] == [True, True, False]


def test_a_quota_of_nothing_keeps_nothing(clock: ManualClock) -> None:
    assert not NegativeQuota(clock, 0).grant(5)


def test_threads_together_get_what_the_quota_has(clock: ManualClock) -> None:
    quota, barrier = NegativeQuota(clock, 100), threading.Barrier(8)

    def ask() -> int:
        barrier.wait()
        return sum(quota.grant(5) for _ in range(50))

    with ThreadPoolExecutor(8) as threads:
        granted = [asked.result() for asked in [threads.submit(ask) for _ in range(8)]]
    assert sum(granted) == 100
