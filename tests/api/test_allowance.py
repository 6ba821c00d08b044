"""What a key may ask for, across processes: against a real Valkey, whose clock is moved by moving what it wrote."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from mlserve.api.allowance import _FORGOTTEN_S, _IDLE_S, HELD_FOR_S, Allowances
from mlserve.api.limit import Limit, limit_in_force, limit_in_words
from mlserve.api.shared_bucket import RESERVED_MS, Grant, SharedBuckets, Wish, name_of
from mlserve.cache.breaker import Breaker
from mlserve.cache.tiers.wire import SingleNodeWire
from mlserve.settings.base import BASE_DIR
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle

LARGE = Limit(per_s=100, burst=80)
"""Large enough for units to be held ahead: 20 at most."""
SMALL = Limit(per_s=1, burst=3)
KEY = "mls_key"
HOUR_US = 3_600_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Process:
    """What one process has of the limiter."""

    def __init__(self, url: str, clock: ManualClock, holder: str) -> None:
        self.client = redis.Redis.from_url(url, socket_timeout=0.05, socket_connect_timeout=0.05)
        self.wire = SingleNodeWire(lambda: self.client, Breaker("l2", clock))
        self.asked = 0
        self._buckets = SharedBuckets(lambda: self.wire, holder)
        self.allowances = Allowances(self, clock)

    def ask(self, wishes: list[Wish]) -> list[Grant | None]:
        self.asked += 1
        return self._buckets.ask(wishes)

    def take(self, limit: Limit, units: int = 1) -> bool:
        return self.allowances.take(KEY, limit, units=units).allowed

    def take_all(self, limit: Limit) -> int:
        """As many single units as there are."""
        taken = 0
        while self.take(limit):
            taken += 1
        return taken


@pytest.fixture
def two(valkey_cache: ServerHandle, redis_client: redis.Redis, clock: ManualClock) -> Iterator[list[Process]]:
    processes = [Process(valkey_cache.url, clock, holder) for holder in ("one", "two")]
    yield processes
    for process in processes:
        process.client.close()


def _stop_inflow(client: redis.Redis) -> None:
    """Valkey's clock goes on while a test runs: what it wrote is put an hour ahead, and a clock cannot go back."""
    client.hincrby(name_of(KEY).decode(), "at", HOUR_US)


def _pass(client: redis.Redis, seconds: float) -> None:
    """For the bucket alone, after `_stop_inflow`."""
    name = name_of(KEY).decode()
    now_s, now_us = client.time()
    client.hset(name, "at", now_s * 1_000_000 + now_us - int(seconds * 1e6))


def test_processes_together_get_the_burst(two: list[Process], redis_client: redis.Redis) -> None:
    """Whoever asks, and however it is spread; then nothing more."""
    one, other = two
    assert one.take(SMALL)
    _stop_inflow(redis_client)
    assert other.take(SMALL) and one.take(SMALL)
    assert not other.take(SMALL) and not one.take(SMALL)


def test_units_flow_in_with_time_up_to_the_burst(
    two: list[Process], redis_client: redis.Redis, clock: ManualClock
) -> None:
    """An hour brings no more than the burst."""
    one, other = two
    assert one.take(SMALL, 3)
    _pass(redis_client, 1.1)
    assert other.take(SMALL) and not other.take(SMALL)
    _pass(redis_client, 3600)
    clock.advance(10)
    assert other.take(SMALL, 3) and not one.take(SMALL)


def test_what_is_held_is_no_addition_to_the_burst(
    two: list[Process], redis_client: redis.Redis, clock: ManualClock
) -> None:
    """A bucket does not fill up beside what processes hold of it."""
    one, other = two
    assert one.take(LARGE)
    _pass(redis_client, 3600)
    assert other.take_all(LARGE) + one.take_all(LARGE) <= LARGE.burst + 1
    assert one.asked + other.asked < LARGE.burst


def test_what_is_held_costs_no_round_trip(two: list[Process], redis_client: redis.Redis) -> None:
    """The first request of a key asks, the next ones do not."""
    one, _ = two
    assert all(one.take(LARGE) for _ in range(20))
    assert one.asked == 1


def test_a_small_limit_is_never_held(two: list[Process]) -> None:
    """A unit that lies in the wrong process would be a refusal that nobody deserves."""
    one, other = two
    assert [one.take(SMALL), other.take(SMALL), one.take(SMALL)] == [True] * 3
    assert one.asked + other.asked == 3


def test_what_is_used_is_renewed_in_the_background(two: list[Process], redis_client: redis.Redis) -> None:
    """So that a client within its limit never waits for Valkey."""
    one, _ = two
    one.take(LARGE)
    asked = one.asked
    for _ in range(4):
        for _ in range(15):
            assert one.take(LARGE)
        one.allowances.poll()
        _pass(redis_client, 3600)
    assert one.asked == asked + 4


def test_an_idle_process_gives_back_what_it_holds(
    two: list[Process], redis_client: redis.Redis, clock: ManualClock
) -> None:
    """All of the burst is then there for another."""
    one, other = two
    one.take(LARGE)
    clock.advance(_IDLE_S + 0.01)
    one.allowances.poll()
    _stop_inflow(redis_client)
    assert other.take(LARGE, LARGE.burst - 1)
    asked = one.asked
    one.allowances.poll()
    assert one.asked == asked


def test_a_dead_process_takes_its_units_with_it_for_a_moment(
    two: list[Process], redis_client: redis.Redis, clock: ManualClock
) -> None:
    """They flow in again once Valkey counts them as void."""
    one, other = two
    one.take(LARGE)
    held = redis_client.hget(name_of(KEY).decode(), "hone")
    assert isinstance(held, bytes) and held.startswith(b"20:")
    _pass(redis_client, 3600)
    assert not other.take(LARGE, LARGE.burst)
    redis_client.hset(name_of(KEY).decode(), "hone", b"20:1")
    _pass(redis_client, 3600)
    clock.advance(10)
    assert other.take(LARGE, LARGE.burst)


def test_nobody_spends_what_was_held_too_long(
    two: list[Process], redis_client: redis.Redis, clock: ManualClock
) -> None:
    """Valkey may have given it to somebody else; a process forgets it well before that."""
    one, _ = two
    one.take(LARGE)
    asked = one.asked
    clock.advance(HELD_FOR_S)
    one.take(LARGE)
    assert one.asked == asked + 1
    assert HELD_FOR_S * 1000 < RESERVED_MS


def test_a_refusal_is_remembered(two: list[Process], redis_client: redis.Redis, clock: ManualClock) -> None:
    """A client that hammers on costs Valkey nothing until a unit is there."""
    one, _ = two
    one.take(SMALL, 3)
    refused = one.allowances.take(KEY, SMALL)
    asked = one.asked
    assert not refused.allowed and 0 < refused.retry_after_s <= 1
    assert one.take_all(SMALL) == 0
    assert one.asked == asked
    clock.advance(1)
    one.take(SMALL)
    assert one.asked == asked + 1


def test_units_are_taken_all_or_none(two: list[Process], redis_client: redis.Redis) -> None:
    """A batch that does not fit leaves what is there to others; one above the burst never fits."""
    one, other = two
    assert one.take(LARGE, 79)
    _stop_inflow(redis_client)
    assert not one.take(LARGE, 10)
    assert other.take(LARGE) and not other.take(LARGE)
    never = one.allowances.take(KEY, LARGE, units=81)
    assert not never.allowed and never.retry_after_s == float("inf")


def test_the_next_unit_is_promised_no_later_than_what_was_asked_for(
    two: list[Process], redis_client: redis.Redis, valkey_cache: ServerHandle, clock: ManualClock
) -> None:
    """So that no answer says: come again before there is more. With Valkey and without it."""
    one, other = two
    assert other.take(LARGE, 10)
    first = one.allowances.take(KEY, LARGE, units=10)
    assert first.allowed and 0 < first.more_in_s <= 1 / LARGE.per_s
    told = [one.allowances.take(KEY, LARGE, units=80)]
    valkey_cache.freeze()
    clock.advance(60)
    assert one.take(LARGE, 79)  # more than its share: a debt
    told += [one.allowances.take(KEY, LARGE, units=units) for units in (1, 80)]
    assert [each.allowed for each in told] == [False] * 3
    assert all(0 < each.more_in_s <= each.retry_after_s for each in told)


def test_what_was_at_hand_stays_at_hand_if_the_rest_is_refused(two: list[Process], redis_client: redis.Redis) -> None:
    """And Valkey knows of it."""
    one, other = two
    one.take(LARGE)
    other.take(LARGE, 39)
    _stop_inflow(redis_client)
    other.take_all(LARGE)
    assert not one.take(LARGE, 60)
    asked = one.asked
    assert one.take(LARGE, 20) and one.asked == asked


def test_what_was_at_hand_is_spent_with_the_rest(two: list[Process], redis_client: redis.Redis) -> None:
    """A batch that takes both leaves neither."""
    one, other = two
    one.take(LARGE)
    assert one.take(LARGE, 50)
    _stop_inflow(redis_client)
    assert one.take_all(LARGE) + other.take_all(LARGE) <= LARGE.burst - 51 + 3  # what flowed in meanwhile


def test_a_changed_limit_counts_at_once(two: list[Process], redis_client: redis.Redis) -> None:
    """A smaller burst is kept from the next request on."""
    one, _ = two
    one.take(LARGE)
    _pass(redis_client, 3600)
    assert one.take_all(SMALL) == 3


def test_processes_forget_keys_that_nobody_uses(two: list[Process], clock: ManualClock) -> None:
    """And Valkey forgets their buckets once they would be full."""
    one, _ = two
    one.take(LARGE)
    clock.advance(_FORGOTTEN_S + 1)
    one.allowances.poll()
    assert one.allowances._of == {}


def test_a_bucket_lives_until_it_would_be_full(two: list[Process], redis_client: redis.Redis) -> None:
    """A bucket that is not there is a full one."""
    two[0].take(SMALL)
    assert 3_000 < redis_client.pttl(name_of(KEY).decode()) <= 3_000 + RESERVED_MS


@pytest.mark.parametrize("fields", [{"left": "nan?", "at": "-"}, {"hx": "what"}, {"left": "1e300", "at": "1e300"}])
def test_foreign_bytes_in_a_bucket_are_no_error(
    two: list[Process], redis_client: redis.Redis, fields: dict[Any, Any]
) -> None:
    """And never more than a full bucket."""
    redis_client.hset(name_of(KEY).decode(), mapping=fields)
    assert 0 < two[0].take_all(SMALL) <= 4


def test_a_value_of_another_type_is_an_outage_of_this_key(two: list[Process], redis_client: redis.Redis) -> None:
    """Nothing is raised; the process lets its share through."""
    redis_client.set(name_of(KEY).decode(), "mine")
    taken = two[0].allowances.take(KEY, SMALL)
    assert taken.allowed and taken.alone


@pytest.mark.parametrize("outage", ["freeze", "kill"])
def test_without_valkey_each_process_lets_its_share_through(
    two: list[Process], valkey_cache: ServerHandle, clock: ManualClock, outage: str
) -> None:
    """Of what was left, and of what flows in: as many parts as there were processes. Then Valkey counts again."""
    one, other = two
    assert other.take(LARGE, 10) and one.take(LARGE, 10)  # the last one has heard of both
    getattr(valkey_cache, outage)()
    clock.advance(HELD_FOR_S)
    assert one.take_all(LARGE) == LARGE.burst // 2
    clock.advance(0.5)
    taken = one.allowances.take(KEY, LARGE)
    assert taken.allowed and taken.alone
    assert one.take_all(LARGE) == 24  # half of what flows in within half a second, less the one above
    clock.advance(60)
    assert one.take(LARGE, 79) and not one.take(LARGE)  # a batch larger than the share leaves a debt
    valkey_cache.mend()
    clock.advance(60)
    one.wire.probe()
    assert not one.allowances.take(KEY, LARGE).alone


def test_in_no_span_of_time_do_processes_get_more_than_the_limit(
    valkey_cache: ServerHandle, redis_client: redis.Redis
) -> None:
    """Three processes with two threads each take what they get: for every two moments, burst and inflow are the most.

    And nearly all of it is given.
    """
    limit, seconds = Limit(per_s=300, burst=60), 1.5
    command = [sys.executable, "-m", "tests.fixtures.spender", valkey_cache.url, KEY]
    command += [str(part) for part in (limit.per_s, limit.burst, 2, seconds)]
    spenders = [
        subprocess.Popen(command, cwd=BASE_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    got: list[tuple[float, float]] = []
    try:
        for spender in spenders:
            assert spender.stdout is not None and spender.stdout.readline() == "ready\n"
        for spender in spenders:
            assert spender.stdin is not None
            spender.stdin.write("go\n")
            spender.stdin.flush()
        for spender in spenders:
            assert spender.stdout is not None
            got += [(asked, given) for asked, given in json.loads(spender.stdout.readline())]
    finally:
        for spender in spenders:
            with closing(spender.stdin or sys.stdin), closing(spender.stdout or sys.stdin):
                spender.kill()
                spender.wait()
    got.sort(key=lambda each: each[1])
    for begin in [asked for asked, _ in got]:
        inside = 0
        for asked, given in got:
            if asked < begin:
                continue
            inside += 1
            assert inside <= limit.burst + limit.per_s * (given - begin) + 1e-3, (inside, given - begin)
    span_s = got[-1][1] - min(asked for asked, _ in got)
    assert len(got) >= 0.8 * (limit.burst + limit.per_s * span_s)


def test_empty_fields_take_the_settings(settings: object) -> None:
    """0 is as much as one likes, whatever the settings say; a burst that nobody names is one second's worth."""
    from django.test import override_settings

    assert limit_in_force(per_s=None, burst=None) is None
    assert limit_in_force(per_s=5, burst=None) == Limit(5, 5)
    assert limit_in_force(per_s=5, burst=20) == Limit(5, 20)
    with override_settings(RATE_LIMIT_PER_S=10, RATE_LIMIT_BURST=30):
        assert limit_in_force(per_s=None, burst=None) == Limit(10, 30)
        assert limit_in_force(per_s=None, burst=7) == Limit(10, 7)
        assert limit_in_force(per_s=5, burst=None) == Limit(5, 5)
        assert limit_in_force(per_s=0, burst=7) is None
        assert limit_in_words(rate_per_s=None, burst=None) == "10/s, 30 at once by default"
    assert limit_in_words(rate_per_s=0, burst=None) == "none"
