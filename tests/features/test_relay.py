"""The relay on real servers: what it tells, what it refuses to promise, and how it waits."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from typing import Any, cast

import msgspec
import psycopg
import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import connection, connections

from features import journal as journal_module
from features.diagnosis import diagnose_relay
from features.journal import Incarnation, Journal, KeptPartition, Span
from features.relay import Lost, Relay, judge
from mlserve.cache import codec, wiring
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.tiers.batches import Answer, Applied, Batches, Step
from mlserve.cache.watermark import Watermark, name_of, parse
from mlserve.platform.diagnosis import Level
from mlserve.settings.base import BASE_DIR
from tests.cache.wire_contract import l2_at, wire_to_l2
from tests.features.sessions import conninfo
from tests.fixtures.servers import ServerHandle
from tests.fixtures.topologies import ClusterTopology, SentinelTopology
from tests.fixtures.waiting import until

GROUP = "merchant_risk"
WM = name_of(0)
_WRITE = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES ('merchant_risk', %s, '{1}', now())
ON CONFLICT ("group", entity_id) DO UPDATE SET as_of = now() RETURNING version
"""


class Told(Batches):
    """Keeps what was told, by record and field."""

    def __init__(self, wire: Any) -> None:
        super().__init__(wire)
        self.keys: list[tuple[bytes, bytes, int]] = []

    def apply(self, steps: Mapping[int, Step], *, batch: str) -> dict[int, Answer]:
        answers = super().apply(steps, batch=batch)
        for partition, answer in answers.items():
            if isinstance(answer, Applied):
                self.keys += [
                    (change.record, field, int.from_bytes(version, "big"))
                    for change in steps[partition].changes
                    for field, version in change.versions
                ]
        return answers


@pytest.fixture
def empty(transactional_db: None, redis_client: redis.Redis) -> Iterator[redis.Redis]:
    """No journal, no epochs, an empty cache."""
    _execute("DELETE FROM features_journal")
    _execute("DELETE FROM features_cachepartition")
    yield redis_client
    _execute("DELETE FROM features_cachepartition")


def _relay(batches: Batches | None = None, partitions: int = 1) -> Relay:
    clock = SystemClock()
    return Relay(journal=Journal(), batches=batches or Batches(wire_to_l2(clock)), partitions=partitions, clock=clock)


def _execute(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


def _fetch(sql: str, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall()


def _write(entity_id: str) -> int:
    ((version,),) = _fetch(_WRITE, entity_id)
    return int(version)


def _hold(client: redis.Redis, entity_id: str, version: int) -> bytes:
    """A copy of the value, as a reader puts it there."""
    names = names_of("merchant", entity_id, 1)
    record = codec.encode(Key("merchant", entity_id, GROUP), names.digest, 1, Entry(version, 1.0, time.time(), (1.0,)))
    client.hset(names.record, GROUP, record)
    return record


def _copy(client: redis.Redis, entity_id: str) -> bytes | None:
    return cast("bytes | None", client.hget(names_of("merchant", entity_id, 1).record, GROUP))


def _is_tombstone(client: redis.Redis, entity_id: str, version: int) -> bool:
    record = _copy(client, entity_id)
    return record is not None and record[8:9] == b"T" and record[:8] == version.to_bytes(8, "big")


def _mark(client: redis.Redis, partition: int = 0) -> Watermark:
    mark = parse(client.get(name_of(partition)) or b"")
    assert mark is not None
    return mark


# --- exactness ---


def test_a_commit_is_told_by_the_next_tick(empty: redis.Redis) -> None:
    """A tombstone with its version; the watermark sees its transaction."""
    relay = _relay()
    relay.tick()
    version = _write("m1")
    _hold(empty, "m1", version - 1)
    assert relay.tick() == {0}
    assert _is_tombstone(empty, "m1", version)
    assert relay.tally.keys == 1
    assert 0 <= (relay.lag_s or 0) < 5
    seen = "SELECT bool_and(pg_visible_in_snapshot(xid, %s::pg_snapshot)) FROM features_journal"
    assert _fetch(seen, _mark(empty).snapshot) == [(True,)]


def test_an_idle_tick_still_moves_the_moment_on(empty: redis.Redis) -> None:
    """Silence would be no promise."""
    relay = _relay()
    relay.tick()
    before = _mark(empty)
    relay.tick()
    assert _mark(empty).safe_time > before.safe_time
    assert relay.tally.keys == 0


def test_a_write_that_is_not_committed_is_told_when_it_is(empty: redis.Redis) -> None:
    """However many ticks lie in between, and although younger transactions were told before it."""
    relay = _relay()
    relay.tick()
    with psycopg.connect(conninfo()) as slow:
        slow.execute(_WRITE, ("slow",))
        for number in range(3):
            _write(f"quick-{number}")
            relay.tick()
        assert relay.tally.keys == 3
        assert _copy(empty, "slow") is None
        slow.commit()
    relay.tick()
    assert relay.tally.keys == 4
    assert _copy(empty, "slow") is not None


def _writer(number: int, stopped: threading.Event, committed: list[str], rolled_back: list[str]) -> None:
    random_source = random.Random(number)
    with psycopg.connect(conninfo()) as session:
        place = 0
        while not stopped.is_set():
            place += 1
            name = f"w{number}-{place}"
            session.execute(_WRITE, (name,))
            if random_source.random() < 0.1:  # a long one: several ticks pass
                stopped.wait(random_source.uniform(0.0, 0.3))
            if random_source.random() < 0.2:
                session.execute("SAVEPOINT inner_one")
                session.execute(_WRITE, (f"{name}-taken-back",))
                rolled_back.append(f"{name}-taken-back")
                session.execute("ROLLBACK TO inner_one")
            if random_source.random() < 0.25:
                session.rollback()
                rolled_back.append(name)
            else:
                session.commit()
                committed.append(name)


def test_every_commit_is_told_exactly_once(empty: redis.Redis) -> None:
    """Under concurrent writers, long transactions, rollbacks and savepoints: no gap, nothing twice, nothing else."""
    told = Told(wire_to_l2(SystemClock()))
    relay = _relay(told)
    relay.tick()
    stopped = threading.Event()
    committed: list[str] = []
    rolled_back: list[str] = []
    writers = [threading.Thread(target=_writer, args=(number, stopped, committed, rolled_back)) for number in range(4)]
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
    relays = [_relay(of) for of in told]
    relays[0].tick()
    stopped, done = threading.Event(), threading.Event()
    committed: list[str] = []
    writers = [threading.Thread(target=_writer, args=(number, stopped, committed, [])) for number in range(2)]
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
    relay = _relay()
    relay.tick()
    _execute(
        """INSERT INTO features_featurerow ("group", entity_id, "values", as_of)
        SELECT 'merchant_risk', 'm' || number, '{1}', now() FROM generate_series(1, 2000) AS number"""
    )
    relay.tick()
    assert relay.tally.keys == relay.tally.tombstones == 2000
    assert _mark(empty).relay == relay.name


def test_a_group_of_a_newer_release_is_told_for_every_kind(empty: redis.Redis) -> None:
    """This process cannot know whom it describes."""
    relay = _relay()
    relay.tick()
    _execute(
        """INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES ('new', 'x', '{1}', now())"""
    )
    relay.tick()
    for kind in ("customer", "merchant"):
        assert empty.hget(names_of(kind, "x", 1).record, "new") is not None


# --- what cannot be continued ---


def test_a_lost_watermark_voids_all_copies(empty: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """FLUSHALL: a new epoch, durable in Postgres, before the watermark says it."""
    relay = _relay()
    relay.tick()
    before = _mark(empty).epoch
    empty.flushall()
    relay.tick()  # is refused, and learns why
    relay.tick()
    assert _mark(empty).epoch > before
    assert _fetch("SELECT epoch FROM features_cachepartition WHERE partition = 0") == [(_mark(empty).epoch,)]
    _write("m1")
    relay.tick()
    assert _copy(empty, "m1") is not None, "it goes on from there"


@pytest.mark.parametrize("foreign", [b"", b"nonsense", b"1|4294967296:4294967296:|1700000000.000000|x"])
def test_an_unreadable_watermark_voids_all_copies(empty: redis.Redis, foreign: bytes) -> None:
    """Whatever somebody put there, also a snapshot that Postgres would not read."""
    relay = _relay()
    relay.tick()
    before = _mark(empty).epoch
    empty.set(WM, foreign)
    relay.tick()
    relay.tick()
    assert _mark(empty).epoch > before


def test_an_older_history_of_the_cache_is_told_again(empty: redis.Redis) -> None:
    """A failover that lost acknowledged writes: watermark and copies are old, and the span between is replayed."""
    relay = _relay()
    relay.tick()
    versions = {name: _write(name) for name in ("m1", "m2")}
    old_mark = empty.get(WM)
    old_copies = {name: _hold(empty, name, version - 1) for name, version in versions.items()}
    relay.tick()
    versions["m2"] = _write("m2")
    relay.tick()
    epoch = _mark(empty).epoch

    assert old_mark is not None
    empty.flushall()
    empty.set(WM, old_mark)
    for name, record in old_copies.items():
        empty.hset(names_of("merchant", name, 1).record, GROUP, record)
    relay.tick()
    relay.tick()

    assert _mark(empty).epoch == epoch, "no copy but those of the span is lost"
    assert all(_is_tombstone(empty, name, version) for name, version in versions.items())


def test_a_trimmed_journal_voids_all_copies(empty: redis.Redis) -> None:
    """A watermark that came back from long ago asks for lines that are gone."""
    relay = _relay()
    relay.tick()
    old = _mark(empty)
    _write("m1")
    relay.tick()
    assert _mark(empty).epoch == old.epoch
    _execute("DELETE FROM features_journal")
    ((last,),) = _fetch("SELECT pg_current_xact_id()::text")
    _execute("UPDATE features_cachepartition SET trimmed = %s::xid8", str(int(last) - 1))
    empty.set(WM, old.pack())
    relay.tick()
    relay.tick()
    assert _mark(empty).epoch > old.epoch


def test_another_incarnation_of_postgres_voids_all_copies(empty: redis.Redis) -> None:
    """A promoted standby: what was lost may be in the cache, so its versions are never given again."""
    relay = _relay()
    relay.tick()
    before, version = _mark(empty).epoch, _write("m1")
    _execute("UPDATE features_cachepartition SET timeline = timeline + 1")
    relay.tick()
    assert _mark(empty).epoch == before + 1
    assert _write("m1") > version + journal_module.VERSIONS_SKIPPED
    relay.tick()
    assert _mark(empty).epoch == before + 1


def test_a_watermark_of_the_future_voids_all_copies(empty: redis.Redis) -> None:
    """A database that was restored has not seen what the cache was told."""
    relay = _relay()
    relay.tick()
    mark = _mark(empty)
    empty.set(WM, Watermark(mark.epoch + 5, "900000000:900000000:", mark.safe_time, "other").pack())
    relay.tick()
    relay.tick()
    assert _mark(empty).epoch > mark.epoch + 5


def test_more_changes_than_are_worth_telling_void_all_copies(
    empty: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and time of a tick are bounded."""
    monkeypatch.setattr(journal_module, "MOST_CHANGES", 3)
    relay = _relay()
    relay.tick()
    before = _mark(empty).epoch
    for number in range(3):
        _write(f"m{number}")
    relay.tick()
    assert (_mark(empty).epoch, relay.tally.keys) == (before, 3)
    for number in range(4):
        _write(f"m{number}")
    relay.tick()
    assert (_mark(empty).epoch, relay.tally.keys) == (before + 1, 3)


def test_an_epoch_that_somebody_raised_is_taken_over(empty: redis.Redis) -> None:
    """TRUNCATE does that, and an operator can."""
    relay = _relay()
    relay.tick()
    before = _mark(empty).epoch
    _execute("TRUNCATE features_featurerow")
    relay.tick()
    assert _mark(empty).epoch == before + 1


def test_an_epoch_is_raised_once_by_two_relays(empty: redis.Redis) -> None:
    """Whoever comes second finds it raised."""
    journal = Journal()
    _relay().tick()
    kept = journal.kept()
    first = kept.partitions[0].epoch
    journal.raise_epochs({0: first}, kept)
    journal.raise_epochs({0: first}, kept)
    assert journal.kept().partitions[0].epoch == first + 1
    journal.close()


_HERE = Incarnation(1, 1)
_HELD = Watermark(3, "100:110:105", 1.0, "r")


@pytest.mark.parametrize(
    ("why", "held", "kept", "span"),
    [
        (None, _HELD, KeptPartition(3, 99, _HERE), Span("120:120:", 2.0, ())),
        (None, _HELD, KeptPartition(4, 99, _HERE), Span("120:120:", 2.0, ())),
        (Lost.NEW_PARTITION, _HELD, None, Span("120:120:", 2.0, ())),
        (Lost.OTHER_POSTGRES, _HELD, KeptPartition(3, 99, Incarnation(1, 2)), Span("120:120:", 2.0, ())),
        (Lost.OTHER_POSTGRES, _HELD, KeptPartition(2, 99, _HERE), Span("120:120:", 2.0, ())),
        (Lost.OTHER_POSTGRES, _HELD, KeptPartition(3, 99, _HERE), Span("109:109:", 2.0, ())),
        (Lost.NO_WATERMARK, None, KeptPartition(3, 99, _HERE), None),
        (Lost.JOURNAL_TRIMMED, _HELD, KeptPartition(3, 100, _HERE), Span("120:120:", 2.0, ())),
        (Lost.TOO_MANY_CHANGES, _HELD, KeptPartition(3, 99, _HERE), Span("120:120:", 2.0, None)),
    ],
)
def test_a_span_continues_a_watermark_or_does_not(
    why: Lost | None, held: Watermark | None, kept: KeptPartition | None, span: Span | None
) -> None:
    """By epoch, incarnation, trimmed lines and size."""
    assert judge(held, kept, _HERE, span) is why


# --- servers that go away ---


@pytest.fixture
def running(empty: redis.Redis) -> Iterator[Relay]:
    """A relay in a thread of its own."""
    relay, stopped = _relay(), threading.Event()
    thread = threading.Thread(target=relay.run, args=(stopped,), kwargs={"tick_s": 0.01})
    thread.start()
    yield relay
    stopped.set()
    thread.join()


def _fresh(client: redis.Redis, since: float) -> bool:
    """Whether the watermark was moved on after `since`."""
    try:
        mark = parse(client.get(WM) or b"")
    except redis.RedisError:
        return False
    return mark is not None and mark.safe_time > since


def _wait_until_it_goes_on(client: redis.Redis) -> None:
    now = time.time()
    until(lambda: _fresh(client, now), within_s=60)


@pytest.mark.quiet
def test_a_restart_of_postgres_is_waited_for(empty: redis.Redis, running: Relay, postgres: ServerHandle) -> None:
    """kill -9 of the server: the chain goes on where it was, with the same epoch."""
    until(lambda: _fresh(empty, 0))
    epoch = _mark(empty).epoch
    connections.close_all()
    postgres.restart()
    _wait_until_it_goes_on(empty)
    version = _write("m1")
    until(lambda: _is_tombstone(empty, "m1", version))
    assert _mark(empty).epoch == epoch


def test_a_restart_of_the_cache_is_waited_for(empty: redis.Redis, running: Relay, valkey_cache: ServerHandle) -> None:
    """It comes back empty: a new epoch."""
    until(lambda: _fresh(empty, 0))
    epoch = _mark(empty).epoch
    valkey_cache.restart()
    _wait_until_it_goes_on(empty)
    assert _mark(empty).epoch > epoch


def test_a_frozen_cache_is_waited_for(empty: redis.Redis, running: Relay, valkey_cache: ServerHandle) -> None:
    """The step that was under way may have arrived or not; both are continued."""
    until(lambda: _fresh(empty, 0))
    epoch = _mark(empty).epoch
    valkey_cache.freeze()
    version = _write("m1")
    steps = running.tally.ticks
    until(lambda: running.tally.ticks > steps + 5)
    valkey_cache.thaw()
    until(lambda: _is_tombstone(empty, "m1", version))
    assert _mark(empty).epoch == epoch


def test_a_cluster_is_told_through_its_nodes(empty: redis.Redis, cluster_topology: ClusterTopology) -> None:
    """Every partition has a watermark on the node of its records; a failover is followed."""
    partitions = 16
    with l2_at(cluster_topology.url):
        relay = _relay(partitions=partitions)
        until(lambda: len(relay.tick()) == partitions)
        version = _write("m1")
        until(lambda: relay.tick() == set(range(partitions)))
        names = names_of("merchant", "m1", partitions)
        owner = cluster_topology.owner(names.record)
        held = redis.Redis("127.0.0.1", owner.port, password=owner.client.connection_pool.connection_kwargs["password"])
        record = held.hget(names.record, GROUP)
        assert record is not None and record[:9] == version.to_bytes(8, "big") + b"T"
        epochs = {_fetch_epoch(partition) for partition in range(partitions)}
        cluster_topology.wait_for_replicas()
        cluster_topology.failover(cluster_topology.replica_of(owner))
        until(lambda: relay.tick() == set(range(partitions)))
        assert {_fetch_epoch(partition) for partition in range(partitions)} == epochs


def _fetch_epoch(partition: int) -> tuple[int, int]:
    ((epoch,),) = _fetch("SELECT epoch FROM features_cachepartition WHERE partition = %s", partition)
    return partition, epoch


def test_a_primary_that_sentinel_replaces_is_followed(empty: redis.Redis, sentinel_topology: SentinelTopology) -> None:
    """What the new primary has not heard is told again."""
    with l2_at(sentinel_topology.url):
        relay = _relay()
        until(lambda: relay.tick() == {0})
        sentinel_topology.wait_for_replica()
        sentinel_topology.kill_primary()
        version = _write("m1")
        until(lambda: relay.tick() == {0} and relay.tally.keys > 0, within_s=40)
        text = sentinel_topology.primary.client.get(WM.decode())
        mark = parse(text.encode())
        assert mark is not None and version


# --- the command ---


def _command(*options: str) -> "subprocess.Popen[str]":
    known = connection.get_connection_params()
    url = f"postgresql://{known['user']}:{known['password']}@{known['host']}:{known['port']}/{known['dbname']}"
    return subprocess.Popen(
        [sys.executable, str(BASE_DIR / "manage.py"), "relay", *options],
        env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "mlserve.settings.test"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("frozen", ["nobody", "cache", "postgres"])
@pytest.mark.quiet
def test_sigterm_ends_it_within_a_second(
    frozen: str, empty: redis.Redis, valkey_cache: ServerHandle, postgres: ServerHandle
) -> None:
    """Also while a server hangs; it says what it has done."""
    with _command("--tick-ms", "10", "--json") as process:
        _wait_until_it_goes_on(empty)
        if frozen != "nobody":
            (valkey_cache if frozen == "cache" else postgres).freeze()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        took = time.monotonic() - began
        valkey_cache.thaw()
        postgres.thaw()
    assert process.returncode == 0
    assert took < 1.0
    assert json.loads(out)["steps"] > 0


def test_kill_9_leaves_a_watermark_that_is_true(empty: redis.Redis) -> None:
    """Another relay goes on from it; every commit of the time between is told."""
    with _command("--tick-ms", "10") as process:
        until(lambda: _fresh(empty, 0), within_s=60)
        epoch = _mark(empty).epoch
        stopped = threading.Event()
        committed: list[str] = []
        writer = threading.Thread(target=_writer, args=(1, stopped, committed, []))
        writer.start()
        until(lambda: len(committed) > 100)
        process.kill()
        process.wait()
    until(lambda: len(committed) > 200)
    stopped.set()
    writer.join()
    relay = _relay()
    relay.tick()
    assert relay.tally.keys >= 100
    assert _mark(empty).epoch == epoch
    assert [name for name in committed if _copy(empty, name) is None] == []


def test_once_tells_what_was_committed_until_now(empty: redis.Redis) -> None:
    """And says what it did."""
    call_command("relay", "--once", stdout=StringIO())
    version = _write("m1")
    out = StringIO()
    call_command("relay", "--once", "--json", stdout=out)
    assert _is_tombstone(empty, "m1", version)
    said = json.loads(out.getvalue())
    assert (said["steps"], said["keys"], said["epochs_raised"]) == (1, 1, 0)
    assert 0 <= said["lag_s"] < 5


def test_once_fails_without_the_cache(empty: redis.Redis, valkey_cache: ServerHandle) -> None:
    """Exit code 1 and the partitions that were not told."""
    valkey_cache.kill()
    with pytest.raises(CommandError, match="cache does not take part"):
        call_command("relay", "--once", stdout=StringIO())


@pytest.mark.parametrize("tick", ["0", "10001"])
def test_a_wrong_tick_is_wrong_usage(tick: str) -> None:
    """Exit code 2."""
    with pytest.raises(CommandError) as refused:
        call_command("relay", "--tick-ms", tick)
    assert refused.value.returncode == 2


def test_the_lag_is_a_fraction_of_the_bound(empty: redis.Redis, record_property: Callable[[str, object], None]) -> None:
    """From the commit's acknowledgement to the tombstone, and the age of the watermark that readers see."""
    relay, stopped = _relay(), threading.Event()
    thread = threading.Thread(target=relay.run, args=(stopped,))
    thread.start()
    until(lambda: _fresh(empty, 0))
    lags, ages = [], []
    for number in range(60):
        version = _write(f"m{number}")
        acknowledged = time.monotonic()
        while not _is_tombstone(empty, f"m{number}", version):
            assert time.monotonic() - acknowledged < 5
        lags.append(time.monotonic() - acknowledged)
        ages.append(time.time() - _mark(empty).safe_time)
        stopped.wait(random.uniform(0, 0.03))
    stopped.set()
    thread.join()
    lags.sort(), ages.sort()
    figures = {"lag p50": lags[30], "lag p99": lags[59], "age p50": ages[30], "age p99": ages[59]}
    record_property("relay_lag_ms", {name: round(value * 1000, 1) for name, value in figures.items()})
    print({name: f"{value * 1000:.1f} ms" for name, value in figures.items()})
    assert lags[30] < 0.5


# --- the doctor ---


def test_the_doctor_sees_whether_a_relay_runs(empty: redis.Redis, valkey_cache: ServerHandle) -> None:
    """By the watermark: none, a new one, one that is two seconds old, a cache that does not answer."""
    wiring.reset()

    def finding() -> tuple[Level, str]:
        (found,) = diagnose_relay()
        return found.level, found.detail

    assert finding() == (Level.WARN, "1 of 1 watermarks are missing")
    relay = _relay()
    relay.tick()
    level, detail = finding()
    assert (level, f"by relay {relay.name}" in detail) == (Level.OK, True)
    old = msgspec.structs.replace(_mark(empty), safe_time=time.time() - 2)
    empty.set(WM, old.pack())
    assert finding()[0] is Level.WARN
    valkey_cache.kill()
    assert finding() == (Level.WARN, "not examined: the cache does not answer")
    wiring.reset()
