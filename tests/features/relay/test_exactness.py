"""What the relay tells: every commit, once, and nothing else."""

import threading
from collections import Counter

import psycopg
import redis

from mlserve.cache.clock import SystemClock
from mlserve.cache.keys import names_of
from tests.cache.wire_contract import wire_to_l2
from tests.features.relay.conftest import (
    WRITE,
    Told,
    copy_of,
    execute,
    fetch,
    hold,
    is_tombstone,
    keep_writing,
    make_relay,
    mark_in,
    write,
)
from tests.features.sessions import conninfo
from tests.fixtures.waiting import until


def test_a_commit_is_told_by_the_next_tick(empty: redis.Redis) -> None:
    """A tombstone with its version; the watermark sees its transaction."""
    relay = make_relay()
    relay.tick()
    version = write("m1")
    hold(empty, "m1", version - 1)
    assert relay.tick() == {0}
    assert is_tombstone(empty, "m1", version)
    assert relay.tally.keys == 1
    assert 0 <= (relay.lag_s or 0) < 5
    seen = "SELECT bool_and(pg_visible_in_snapshot(xid, %s::pg_snapshot)) FROM features_journal"
    assert fetch(seen, mark_in(empty).snapshot) == [(True,)]


def test_an_idle_tick_still_moves_the_moment_on(empty: redis.Redis) -> None:
    """Silence would be no promise."""
    relay = make_relay()
    relay.tick()
    before = mark_in(empty)
    relay.tick()
    assert mark_in(empty).safe_time > before.safe_time
    assert relay.tally.keys == 0


def test_a_write_that_is_not_committed_is_told_when_it_is(empty: redis.Redis) -> None:
    """However many ticks lie in between, and although younger transactions were told before it."""
    relay = make_relay()
    relay.tick()
    with psycopg.connect(conninfo()) as slow:
        slow.execute(WRITE, ("slow",))
        for number in range(3):
            write(f"quick-{number}")
            relay.tick()
        assert relay.tally.keys == 3
        assert copy_of(empty, "slow") is None
        slow.commit()
    relay.tick()
    assert relay.tally.keys == 4
    assert copy_of(empty, "slow") is not None


def test_every_commit_is_told_exactly_once(empty: redis.Redis) -> None:
    """Under concurrent writers, long transactions, rollbacks and savepoints: no gap, nothing twice, nothing else."""
    told = Told(wire_to_l2(SystemClock()))
    relay = make_relay(told)
    relay.tick()
    stopped = threading.Event()
    committed: list[str] = []
    rolled_back: list[str] = []
    writers = [
        threading.Thread(target=keep_writing, args=(number, stopped, committed, rolled_back)) for number in range(4)
    ]
    for writer in writers:
        writer.start()
    while len(committed) < 1_500:
        relay.tick()
    stopped.set()
    for writer in writers:
        writer.join()
    relay.tick()
    counted = Counter(record for record, _, _ in told.keys)
    expected = {names_of("merchant", name, 1).record for name in committed}
    assert set(counted) == expected and set(counted.values()) == {1}
    assert len(expected) == len(committed) and rolled_back
    assert relay.tally.races == 0


def test_two_relays_tell_every_commit(empty: redis.Redis) -> None:
    """They lose races to each other and nothing else: each commit is told exactly once by those that were accepted."""
    told = [Told(wire_to_l2(SystemClock())) for _ in range(2)]
    relays = [make_relay(of) for of in told]
    relays[0].tick()
    stopped, done = threading.Event(), threading.Event()
    committed: list[str] = []
    writers = [threading.Thread(target=keep_writing, args=(number, stopped, committed, [])) for number in range(2)]
    runs = [threading.Thread(target=relay.run, args=(done,), kwargs={"tick_s": 0.002}) for relay in relays]
    for thread in (*writers, *runs):
        thread.start()
    until(lambda: len(committed) > 800 and all(relay.tally.races > 3 for relay in relays))
    stopped.set()
    for thread in writers:
        thread.join()
    keys = relays[0].tally.keys + relays[1].tally.keys
    until(lambda: relays[0].tally.keys + relays[1].tally.keys >= keys and _all_told(told, committed))
    done.set()
    for thread in runs:
        thread.join()
    counted = Counter(record for of in told for record, _, _ in of.keys)
    assert set(counted.values()) == {1}
    assert set(counted) == {names_of("merchant", name, 1).record for name in committed}


def _all_told(told: list[Told], committed: list[str]) -> bool:
    return len({record for of in told for record, _, _ in of.keys}) == len(committed)


def test_a_large_commit_is_told_in_parts(empty: redis.Redis) -> None:
    """A build of 2,000 rows: every copy goes, and only then the watermark says so."""
    relay = make_relay()
    relay.tick()
    execute(
        """INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
        SELECT 'merchant_risk', 'm' || number, '{1}', now() FROM generate_series(1, 2000) AS number"""
    )
    relay.tick()
    assert relay.tally.keys == relay.tally.tombstones == 2000
    assert mark_in(empty).relay == relay.name


def test_a_group_of_a_newer_release_is_told_for_every_kind(empty: redis.Redis) -> None:
    """This process cannot know whom it describes."""
    relay = make_relay()
    relay.tick()
    execute(
        """INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES ('new', 'x', '{1}', now())"""
    )
    relay.tick()
    for kind in ("customer", "merchant"):
        assert empty.hget(names_of(kind, "x", 1).record, "new") is not None
