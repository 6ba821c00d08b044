"""What every wire promises, whatever stands behind it. A subclass supplies the wire and the servers."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import pytest
import redis
from django.conf import settings
from django.test import override_settings
from django_redis.pool import ConnectionFactory
from redis.exceptions import ResponseError

from mlserve.cache.breaker import FAILURES_TO_OPEN, LONGEST_INTERVAL_S, Breaker, State
from mlserve.cache.clock import Clock
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.cluster import make_wire
from mlserve.cache.tiers.wire import Command, Wire, pack
from mlserve.settings.redis_url import l2_alias
from tests.fixtures.clock import ManualClock

TIMEOUT_S = 0.25
"""Of the connections in these tests: long enough that two busy cores do not look like a dead server."""


class Server(Protocol):
    """What `ServerHandle` and `ValkeyNode` have in common."""

    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


@dataclass(frozen=True)
class Scene:
    """A wire to servers that can be broken. `victim`: the one that owns `KEY`. `pools`: of the connections in use."""

    wire: Wire
    clock: ManualClock
    victim: Server
    pool: Callable[[], Any]

    @property
    def breaker(self) -> Breaker:
        """The victim's."""
        breakers = list(self.wire.breakers.values())
        return max(breakers, key=lambda breaker: breaker.state.value)


KEY = b"ml2:{0}:v:contract"


def command(*parts: bytes) -> Command:
    """Its second part is the key."""
    return Command(parts[1], pack(*parts))


def put(number: int) -> Command:
    return command(b"SET", key(number), b"value-%d" % number)


def get(number: int) -> Command:
    return command(b"GET", key(number))


def key(number: int) -> bytes:
    return b"ml2:{%d}:v:%d" % (number % 16, number)


@contextmanager
def l2_at(url: str, *, timeout_s: float = TIMEOUT_S, **options: Any) -> Iterator[None]:
    """The `l2` alias leads to `url`."""
    caches = deepcopy(settings.CACHES)
    caches["l2"] = l2_alias(url, timeout_s=timeout_s)
    caches["l2"]["OPTIONS"].update(options)
    # django-redis keeps one pool for each URL, with the timeouts of whoever came first.
    pools, location = ConnectionFactory._pools, caches["l2"]["LOCATION"]
    others = pools.pop(location, None)
    try:
        with override_settings(CACHES=caches):
            yield
    finally:
        ours = pools.pop(location, None)
        if ours is not None:
            ours.disconnect()
        if others is not None:
            pools[location] = others


def wire_to_l2(clock: Clock) -> Wire:
    return make_wire("l2", new_breaker=lambda name: Breaker(name, clock), clock=clock)


def timed(work: Callable[[], list[Any]]) -> tuple[list[Any], float]:
    """The replies, and the seconds that they took."""
    began = time.monotonic()
    replies = work()
    return replies, time.monotonic() - began


def states(breakers: Mapping[str, Breaker]) -> set[State]:
    return {breaker.state for breaker in breakers.values()}


class WireContract:
    @pytest.fixture
    def scene(self) -> Scene:
        raise NotImplementedError

    def test_replies_come_in_the_order_of_the_commands(self, scene: Scene) -> None:
        """A hundred keys, wherever they lie, in one call."""
        numbers = range(100)
        assert scene.wire.ask([put(number) for number in numbers]) == [b"OK"] * 100
        backwards = list(reversed(numbers))
        assert scene.wire.ask([get(number) for number in backwards]) == [b"value-%d" % number for number in backwards]
        assert scene.wire.ask([]) == []

    def test_an_error_of_the_server_is_a_value(self, scene: Scene) -> None:
        """WRONGTYPE stands in its place among the replies; the others have theirs, and the breaker stays closed."""
        asked = [put(1), command(b"HGET", key(1), b"field"), get(1)]
        first, second, third = scene.wire.ask(asked)
        assert (first, third) == (b"OK", b"value-1")
        assert isinstance(second, ResponseError)
        assert "WRONGTYPE" in str(second)
        assert states(scene.wire.breakers) == {State.CLOSED}

    def test_values_of_any_bytes_and_size_arrive(self, scene: Scene) -> None:
        """Two megabytes, line ends, nothing at all."""
        for value in (bytes(range(256)) * 8192, b"\r\n", b""):
            assert scene.wire.ask([command(b"SET", KEY, value), command(b"GET", KEY)], timeout_s=TIMEOUT_S) == [
                b"OK",
                value,
            ]
        assert scene.wire.ask([command(b"GET", KEY + b"nothing")]) == [None]

    def test_a_dead_node_is_a_reason_and_then_a_breaker(self, scene: Scene) -> None:
        """Refused connections open it at the second; after that nothing is asked but what must not be shed."""
        assert scene.wire.ask([command(b"SET", KEY, b"1")]) == [b"OK"]
        scene.victim.kill()
        for _ in range(FAILURES_TO_OPEN):
            assert scene.wire.ask([command(b"GET", KEY)] * 3) == [MissReason.TIMEOUT] * 3
        assert scene.breaker.state is State.OPEN
        assert scene.wire.ask([command(b"GET", KEY)]) == [MissReason.BREAKER]
        assert scene.wire.ask([command(b"DEL", KEY)], shed=False) == [MissReason.TIMEOUT]

    @pytest.mark.quiet
    def test_a_frozen_node_costs_one_timeout(self, scene: Scene) -> None:
        """The first call waits once for all its commands, the next ones do not wait."""
        scene.wire.ask([command(b"SET", KEY, b"1")])
        scene.victim.freeze()
        _, took_s = timed(lambda: scene.wire.ask([command(b"GET", KEY)] * 20))
        assert TIMEOUT_S * 0.9 < took_s < 10 * TIMEOUT_S  # one for each of the commands would be twenty
        assert scene.breaker.state is State.OPEN
        replies, took_s = timed(lambda: scene.wire.ask([command(b"GET", KEY)]))
        assert replies == [MissReason.BREAKER]
        assert took_s < 0.1

    @pytest.mark.quiet
    def test_the_caller_can_give_it_less_time(self, scene: Scene) -> None:
        """`timeout_s` is for all commands together."""
        scene.wire.ask([command(b"SET", KEY, b"1")])
        scene.victim.freeze()
        _, took_s = timed(lambda: scene.wire.ask([command(b"GET", KEY)] * 20, timeout_s=0.05))
        assert 0.04 < took_s < TIMEOUT_S * 0.9

    def test_what_must_not_be_shed_is_sent_through_an_open_breaker(self, scene: Scene) -> None:
        """An invalidation reaches a node that is back before any probe has noticed."""
        scene.wire.ask([command(b"SET", KEY, b"1")])
        scene.victim.freeze()
        scene.wire.ask([command(b"GET", KEY)])
        scene.victim.thaw()
        assert scene.wire.ask([command(b"GET", KEY)]) == [MissReason.BREAKER]
        assert scene.wire.ask([command(b"DEL", KEY)], shed=False) == [1]
        assert states(scene.wire.breakers) == {State.CLOSED}

    def test_a_probe_closes_the_breaker_of_a_node_that_is_back(self, scene: Scene) -> None:
        """Not before its interval is over, and not while the node is away."""
        scene.wire.ask([command(b"SET", KEY, b"1")])
        scene.victim.freeze()
        scene.wire.ask([command(b"GET", KEY)])
        scene.clock.advance(LONGEST_INTERVAL_S)
        scene.wire.probe()
        assert scene.breaker.state is State.OPEN
        scene.victim.thaw()
        scene.wire.probe()
        assert scene.breaker.state is State.OPEN
        scene.clock.advance(2 * LONGEST_INTERVAL_S)
        scene.wire.probe()
        assert states(scene.wire.breakers) == {State.CLOSED}
        assert scene.wire.ask([command(b"GET", KEY)]) == [b"1"]

    def test_an_exhausted_pool_is_load_and_not_death(self, scene: Scene) -> None:
        """The keys go without L2; the breaker stays closed, and the next call has its connection."""
        scene.wire.ask([command(b"SET", KEY, b"1")])
        pool = scene.pool()
        taken = [pool.get_connection() for _ in range(pool.max_connections)]
        try:
            for _ in range(2 * FAILURES_TO_OPEN):
                assert scene.wire.ask([command(b"GET", KEY)]) == [MissReason.TIMEOUT]
        finally:
            for connection in taken:
                pool.release(connection)
        assert states(scene.wire.breakers) == {State.CLOSED}
        assert scene.wire.ask([command(b"GET", KEY)]) == [b"1"]

    def test_a_late_reply_answers_nobody(self, scene: Scene) -> None:
        """What a call gave up on is not read as the reply of the next one on the same connection."""
        scene.wire.ask([command(b"SET", KEY, b"old"), command(b"SET", KEY + b"2", b"right")])
        scene.victim.freeze()
        scene.wire.ask([command(b"GET", KEY)])
        scene.victim.thaw()
        assert scene.wire.ask([command(b"GET", KEY + b"2")], shed=False) == [b"right"]

    def test_an_interrupted_call_leaves_no_reply_behind(self, scene: Scene) -> None:
        """An exception out of a signal handler, as Celery's time limit is one, in the middle of waiting."""
        scene.wire.ask([command(b"SET", KEY, b"old"), command(b"SET", KEY + b"2", b"right")])
        pool = scene.pool()
        scene.victim.freeze()
        with pytest.raises(_Interrupted), _interrupted_after(TIMEOUT_S / 3):
            scene.wire.ask([command(b"GET", KEY)])
        assert not pool._in_use_connections
        scene.victim.thaw()
        assert scene.wire.ask([command(b"GET", KEY + b"2")]) == [b"right"]


class _Interrupted(Exception):
    pass


@contextmanager
def _interrupted_after(delay_s: float) -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, delay_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def connections(clients: Sequence[redis.Redis]) -> set[str]:
    """Where all that these servers know of come from."""
    return {client["addr"] for server in clients for client in server.client_list()}
