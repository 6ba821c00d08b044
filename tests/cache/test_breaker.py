import random
import threading

import pytest

from mlserve.cache.breaker import ABANDONED_AFTER_S, FIRST_INTERVAL_S, LONGEST_INTERVAL_S, Breaker, State
from tests.fixtures.clock import ManualClock


class FixedJitter(random.Random):
    """Always the same place between the ends of a range."""

    def __init__(self, place: float) -> None:
        super().__init__(0)
        self._place = place

    def uniform(self, a: float, b: float) -> float:
        return a + self._place * (b - a)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> Breaker:
    return Breaker("l2", clock, random_source=FixedJitter(0.5))


def test_one_timeout_opens_it(breaker: Breaker) -> None:
    """A time-out has cost a request its whole budget already."""
    breaker.failure(timed_out=True)
    assert breaker.state is State.OPEN
    assert breaker.opened_count == 1
    assert not breaker.allow()


def test_two_refused_connections_open_it(breaker: Breaker) -> None:
    breaker.failure(timed_out=False)
    assert breaker.allow()
    breaker.failure(timed_out=False)
    assert not breaker.allow()


def test_a_success_between_two_refusals_keeps_it_closed(breaker: Breaker) -> None:
    """Failures count in a row."""
    for _ in range(5):
        breaker.failure(timed_out=False)
        breaker.success()
    assert breaker.state is State.CLOSED
    assert breaker.opened_count == 0


def test_only_one_probe_is_under_way(breaker: Breaker, clock: ManualClock) -> None:
    """Of many threads that ask at one moment, one gets to try; none before the interval is over."""
    breaker.failure(timed_out=True)
    clock.advance(FIRST_INTERVAL_S - 0.001)
    assert not breaker.allow_probe()
    clock.advance(0.002)
    allowed, barrier = [], threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        allowed.append(breaker.allow_probe())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(allowed) == [False] * 7 + [True]
    assert breaker.state is State.HALF_OPEN
    assert not breaker.allow()


def test_a_successful_probe_closes_it(breaker: Breaker, clock: ManualClock) -> None:
    """With no memory: the next outage begins with the first interval again."""
    for _ in range(2):
        breaker.failure(timed_out=True)
        clock.advance(FIRST_INTERVAL_S)
        assert breaker.allow_probe()
        breaker.success()
        assert breaker.state is State.CLOSED
        assert breaker.allow()
        assert not breaker.allow_probe()
    breaker.failure(timed_out=False)
    assert breaker.state is State.CLOSED


def test_intervals_double_up_to_a_limit(breaker: Breaker, clock: ManualClock) -> None:
    """A dependency that is away for long is asked less and less often, but at least every few seconds."""
    breaker.failure(timed_out=True)
    interval_s = FIRST_INTERVAL_S
    for _ in range(8):
        clock.advance(interval_s - 0.001)
        assert not breaker.allow_probe()
        clock.advance(0.002)
        assert breaker.allow_probe()
        breaker.failure(timed_out=True)
        interval_s = min(2 * interval_s, LONGEST_INTERVAL_S)
    assert interval_s == LONGEST_INTERVAL_S
    assert breaker.opened_count == 1  # one outage, however many probes failed


@pytest.mark.parametrize(("place", "share"), [(0.0, 0.8), (1.0, 1.2)])
def test_jitter_moves_a_probe_by_a_fifth(clock: ManualClock, place: float, share: float) -> None:
    """Processes that opened together do not probe together."""
    breaker = Breaker("l2", clock, random_source=FixedJitter(place))
    breaker.failure(timed_out=True)
    clock.advance(share * FIRST_INTERVAL_S - 0.001)
    assert not breaker.allow_probe()
    clock.advance(0.002)
    assert breaker.allow_probe()


def test_requests_probe_if_nobody_else_does(breaker: Breaker, clock: ManualClock) -> None:
    """A prober that has died must not leave the breaker open for ever; again only one request tries."""
    breaker.failure(timed_out=True)
    clock.advance(FIRST_INTERVAL_S + ABANDONED_AFTER_S - 0.001)
    assert not breaker.allow()
    clock.advance(0.002)
    assert breaker.allow()
    assert not breaker.allow()
    # That request has died as well.
    clock.advance(ABANDONED_AFTER_S + 0.001)
    assert breaker.allow()
    breaker.success()
    assert breaker.state is State.CLOSED


def test_a_late_failure_of_an_earlier_request_does_not_count_as_a_probe(breaker: Breaker, clock: ManualClock) -> None:
    """While open, results of requests that had begun before change neither state nor interval."""
    breaker.failure(timed_out=True)
    breaker.failure(timed_out=True)
    clock.advance(FIRST_INTERVAL_S + 0.001)
    assert breaker.allow_probe()
