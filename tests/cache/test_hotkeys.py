import threading

import numpy as np
import pytest
import redis

from mlserve.cache import hotkeys
from mlserve.cache.hotkeys import (
    HOT_PER_MINUTE,
    HOT_SHARE,
    MAX_MEMBERS,
    MAX_REMOVED,
    MINUTES,
    HotKey,
    HotKeyCounter,
    HotReplicas,
    read_hot_keys,
)

NOON = 1_700_000_000.0 - 1_700_000_000.0 % 60


def _count(counter: HotKeyCounter, entity_id: str, times: int) -> None:
    for _ in range(times):
        counter.count("customer", entity_id)


def test_the_hottest_come_first_over_all_processes(redis_client: redis.Redis) -> None:
    """What two processes counted adds up; kind and id come back as they were, whatever characters they have."""
    mine, other = HotKeyCounter(), HotKeyCounter()
    _count(mine, "a", 2)
    _count(other, "a", 2)
    _count(other, "b:ü ", 3)
    mine.count("merchant", "a")
    for counter in (mine, other):
        counter.publish(redis_client, now=NOON)
    hot = read_hot_keys(redis_client, limit=2, now=NOON)
    assert [(key.kind, key.id) for key in hot] == [("customer", "a"), ("customer", "b:ü ")]
    assert hot[0].per_minute / hot[1].per_minute == pytest.approx(4 / 3)


def test_a_publication_starts_the_counting_anew(redis_client: redis.Redis) -> None:
    counter = HotKeyCounter()
    _count(counter, "a", 2)
    for _ in range(3):
        counter.publish(redis_client, now=NOON)
    _count(counter, "b", 3)
    counter.publish(redis_client, now=NOON)
    assert [key.id for key in read_hot_keys(redis_client, limit=9, now=NOON)] == ["b", "a"]


def test_what_was_hot_cools_down_by_itself(redis_client: redis.Redis) -> None:
    """Each minute a count weighs less, after some it is gone, and Redis forgets the set by itself."""
    counter = HotKeyCounter()
    _count(counter, "old", 10)
    counter.publish(redis_client, now=NOON)
    _count(counter, "new", 8)
    counter.publish(redis_client, now=NOON + 60)
    assert [key.id for key in read_hot_keys(redis_client, limit=9, now=NOON + 60)] == ["new", "old"]
    assert [key.id for key in read_hot_keys(redis_client, limit=9, now=NOON + 60 * MINUTES)] == ["new"]
    assert read_hot_keys(redis_client, limit=9, now=NOON + 60 * (MINUTES + 1)) == []
    assert all(redis_client.ttl(name) > 0 for name in redis_client.scan_iter())


def test_the_counter_is_bounded_and_keeps_the_hot(redis_client: redis.Redis) -> None:
    """Ten thousand ids that come once do not push out one that comes often; not all are published either."""
    counter = HotKeyCounter()
    for number in range(10_000):
        counter.count("customer", str(number))
        if number % 100 == 0:
            counter.count("customer", "hot")
    assert len(counter._counts) <= 4_000
    counter.publish(redis_client, now=NOON)
    assert read_hot_keys(redis_client, limit=1, now=NOON)[0].id == "hot"
    assert redis_client.zcard(redis_client.keys()[0]) == 500


def test_members_that_are_not_ours_are_passed_over(redis_client: redis.Redis) -> None:
    """Broken UTF-8, no separator, empty parts: they neither raise nor take a place."""
    counter = HotKeyCounter()
    _count(counter, "a", 1)
    counter.publish(redis_client, now=NOON)
    name = redis_client.keys()[0]
    redis_client.zadd(name, {b"\xff\xfe": 9, b"": 8, b"customer": 7, b"\x1fx": 6, b"customer\x1f": 5})
    assert [(key.kind, key.id) for key in read_hot_keys(redis_client, limit=1, now=NOON)] == [("customer", "a")]


def test_no_count_is_lost_between_threads(redis_client: redis.Redis) -> None:
    """Counting goes on while another thread publishes."""
    counter, barrier = HotKeyCounter(), threading.Barrier(4)

    def count() -> None:
        barrier.wait()
        _count(counter, "a", 500)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    barrier.wait()
    while any(thread.is_alive() for thread in threads):
        counter.publish(redis_client, now=NOON)
    for thread in threads:
        thread.join()
    counter.publish(redis_client, now=NOON)
    (member,) = redis_client.zrange(redis_client.keys()[0], 0, -1, withscores=True)
    assert member[1] == 1_500


def test_processes_read_different_copies_of_what_is_hot() -> None:
    """By their place, evenly; everything else, and everything before anything was measured, from its own partition."""
    hot = HotKey("customer", "hot", HOT_PER_MINUTE)
    places = [HotReplicas(3, place=place) for place in range(6)]
    assert {replicas.replica_of("customer", "hot") for replicas in places} == {0}
    for replicas in places:
        replicas.choose([hot])
    assert [replicas.replica_of("customer", "hot") for replicas in places] == [0, 1, 2, 0, 1, 2]
    assert {replicas.replica_of("merchant", "hot") for replicas in places} == {0}


@pytest.mark.parametrize(
    ("per_minute", "others", "hot"),
    [
        (HOT_PER_MINUTE, 0, True),
        (HOT_PER_MINUTE - 1, 0, False),
        (HOT_PER_MINUTE, HOT_PER_MINUTE / HOT_SHARE - HOT_PER_MINUTE, True),
        (HOT_PER_MINUTE, HOT_PER_MINUTE / HOT_SHARE, False),
    ],
)
def test_hot_is_what_is_asked_for_often_and_by_a_good_share(per_minute: float, others: float, hot: bool) -> None:
    """Of what was measured; what was hot and is not any more is read from its own partition again."""
    replicas = HotReplicas(3, place=1)
    replicas.choose([HotKey("customer", "a", HOT_PER_MINUTE)])
    replicas.choose([HotKey("customer", "a", per_minute), HotKey("customer", "rest", others)])
    assert replicas.replica_of("customer", "a") == hot


def _rows(count: int, *, start: int = 0) -> dict[str, float]:
    return {f"customer\x1f{start + number}": 1.0 + number % 7 for number in range(count)}


def _milliseconds_of_redis(client: redis.Redis) -> float:
    """That it has spent on commands since they were last counted anew."""
    return float(sum(each["usec"] for each in client.info("commandstats").values())) / 1000


def test_what_redis_does_for_it_is_bounded_whatever_the_sets_hold(redis_client: redis.Redis) -> None:
    """Sets of 70,000 members, left by another version: 929 ms to read all of them at once."""
    for minute in range(MINUTES):
        name = hotkeys._minute_name(int(NOON // 60) - minute)
        for start in range(0, 70_000, 10_000):
            redis_client.zadd(name, _rows(10_000, start=start))
    counter = HotKeyCounter()
    for number in range(20):
        _count(counter, f"hot-{number}", 100 + number)
    redis_client.config_resetstat()
    counter.publish(redis_client, now=NOON)
    hot = read_hot_keys(redis_client, limit=1_000, now=NOON)
    spent_ms = _milliseconds_of_redis(redis_client)
    assert [key.id for key in hot[:20]] == [f"hot-{number}" for number in reversed(range(20))]
    assert spent_ms < 50, "the budget of one request"
    stats = redis_client.info("commandstats")
    assert stats["cmdstat_zrevrange"]["calls"] == MINUTES


def test_a_minutes_set_is_bounded_and_keeps_the_hottest(redis_client: redis.Redis) -> None:
    """Processes that have no entity in common; what one adds at once never exceeds what is taken away."""
    name = hotkeys._minute_name(int(NOON // 60))
    hottest = HotKeyCounter()
    _count(hottest, "hot", 3)
    for process in range(MAX_MEMBERS // 500 + 3):
        counter = HotKeyCounter()
        for number in range(500):
            counter.count("merchant", f"{process}-{number}")
        counter.publish(redis_client, now=NOON)
        if process == 0:
            hottest.publish(redis_client, now=NOON)
        assert redis_client.zcard(name) <= MAX_MEMBERS
    assert redis_client.zcard(name) == MAX_MEMBERS
    assert read_hot_keys(redis_client, limit=1, now=NOON)[0].id == "hot"
    redis_client.zadd(name, _rows(3 * MAX_REMOVED))
    before = redis_client.zcard(name)
    hottest.count("customer", "hot")
    hottest.publish(redis_client, now=NOON)
    assert redis_client.zcard(name) == before - MAX_REMOVED


def test_the_top_twenty_of_a_skewed_traffic_are_found(redis_client: redis.Redis) -> None:
    """Zipf with exponent 0.99 over 50,000 entities, counted by eight processes: precision and recall of 0.99."""
    random_source = np.random.default_rng(7)
    weights = 1.0 / np.arange(1, 50_001) ** 0.99
    chosen = random_source.choice(50_000, size=400_000, p=weights / weights.sum())
    for minute, of_minute in enumerate(np.split(chosen, 5)):
        for of_process in np.split(of_minute, 8):
            counter = HotKeyCounter()
            for number in of_process.tolist():
                counter.count("customer", str(number))
            counter.publish(redis_client, now=NOON + 60 * minute)
    hot = read_hot_keys(redis_client, limit=20, now=NOON + 240)
    counted = np.bincount(chosen, weights=np.repeat([0.7 ** (4 - minute) for minute in range(5)], 80_000))
    assert [int(key.id) for key in hot] == np.argsort(-counted)[:20].tolist()
