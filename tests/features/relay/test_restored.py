"""Postgres is another one than before: each partition gets one epoch, and then all goes on as ever."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from features.journal import EPOCHS_SKIPPED, Journal
from features.relay import Relay, Unjournaled
from mlserve.cache.clock import SystemClock
from mlserve.cache.tiers.batches import Answer, Batches, Step, Unanswered
from mlserve.cache.watermark import Watermark, name_of
from mlserve.embedded import Servers
from tests.cache.wire_contract import wire_to_l2
from tests.features.relay.conftest import Told, copy_of, execute, hold, is_tombstone, make_relay, mark_in, write
from tests.features.relay.elsewhere import Elsewhere, database_on, dump, here, recovered_copy, restore

TICKS = 40
OLDER_BY = 30_000
"""Transactions that the tests' server is ahead of the younger one."""


@pytest.fixture(scope="module")
def younger_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("younger"), durable=False)
    servers.up(["postgres"])
    yield servers
    servers.destroy()


@pytest.fixture
def younger(younger_server: Servers, empty: redis.Redis) -> Elsewhere:
    """An empty database on a server whose numbers lie far behind those of the tests' server."""
    url = younger_server.running().get("postgres")
    assert url is not None
    database = database_on(url, "restored")
    here().use_up_numbers(database.next_number + OLDER_BY)
    return database


@pytest.fixture
def reads(settings: Any) -> Any:
    """Relays that are made afterwards ask this database."""

    def ask(database: Elsewhere) -> None:
        settings.DATABASE_DIRECT_URL = database.url

    return ask


def _relay(batches: Batches | None = None, **options: Any) -> Relay:
    clock = SystemClock()
    batches = batches or Batches(wire_to_l2(clock))
    return Relay(journal=Journal(), batches=batches, clock=clock, **{"partitions": 1, **options})


def _tick(relay: Relay, times: int = TICKS) -> None:
    for _ in range(times):
        relay.tick()


@pytest.mark.parametrize("trimmed", [True, False], ids=["trimmed", "never trimmed"])
def test_a_dump_in_a_younger_server_costs_one_epoch(
    empty: redis.Redis, younger: Elsewhere, reads: Any, trimmed: bool
) -> None:
    """The old server's numbers lie in the new one's future: they are told once at most, by the epoch."""
    _tick(make_relay(), 2)
    for number in range(5):
        write(f"m{number}")
    _tick(make_relay(), 2)
    if trimmed:
        execute("UPDATE features_cachepartition SET trimmed = (pg_current_xact_id()::text::bigint - 3)::text::xid8")
    execute("INSERT INTO features_inspectioncursor SELECT 1, pg_current_snapshot()::text, now()")
    before, version = mark_in(empty).epoch, write("late")
    restore(dump(), younger)
    execute("DELETE FROM features_inspectioncursor")

    reads(younger)
    told = Told(wire_to_l2(SystemClock()))
    relay = _relay(told)
    _tick(relay)
    assert (relay.tally.epochs_raised, mark_in(empty).epoch, told.keys) == (1, before + 1, [])
    assert younger.epochs() == [before + 1]
    assert younger.one("SELECT count(*) FROM features_journal") == 0
    assert younger.one("SELECT count(*) FROM features_inspectioncursor") == 0
    assert younger.one("SELECT trimmed::text FROM features_cachepartition") == "0"

    hold(empty, "late", version)
    changed = younger.write("late")
    assert changed > version + 1_000_000, "no version is given twice"
    _tick(relay, 2)
    assert is_tombstone(empty, "late", changed)
    assert relay.tally.epochs_raised == 1


def test_numbers_that_are_caught_up_with_are_told_no_more(empty: redis.Redis, younger: Elsewhere, reads: Any) -> None:
    """The young server comes to give the numbers itself that lines of the old one carried."""
    _tick(make_relay(), 2)
    write("m1")
    old = here().next_number
    restore(dump(), younger)
    reads(younger)
    told = Told(wire_to_l2(SystemClock()))
    relay = _relay(told)
    _tick(relay, 3)
    younger.use_up_numbers(old + 100)
    changed = younger.write("m2")
    _tick(relay)
    assert {version for _, _, version in told.keys} == {changed}
    assert relay.tally.epochs_raised == 1


def test_lines_that_come_from_elsewhere_later_are_not_told(empty: redis.Redis, younger: Elsewhere, reads: Any) -> None:
    """A replication that still delivers: neither again with every tick nor as too many to tell."""
    _tick(make_relay(), 2)
    restore(dump(), younger)
    reads(younger)
    told = Told(wire_to_l2(SystemClock()))
    relay = _relay(told)
    _tick(relay, 3)
    younger.fetch(
        """INSERT INTO features_journal (xid, "group", entity_ids, versions)
        VALUES ('900000000', 'merchant_risk', '{m1}', '{7}')"""
    )
    _tick(relay)
    assert (told.keys, relay.tally.epochs_raised) == ([], 1)
    changed = younger.write("m1")
    _tick(relay, 2)
    assert [version for _, _, version in told.keys] == [changed]


def test_a_dump_that_is_restored_beside_the_original_costs_one_epoch(empty: redis.Redis, reads: Any) -> None:
    """The same server and history, the same numbers: that the rows were not written there tells."""
    _tick(make_relay(), 2)
    write("m1")
    dumped = dump()
    version = write("m1")  # is lost
    _tick(make_relay(), 2)
    before = mark_in(empty).epoch
    database = database_on(here().url, "beside")
    try:
        restore(dumped, database)
        reads(database)
        relay = _relay()
        _tick(relay)
        assert (relay.tally.epochs_raised, mark_in(empty).epoch) == (1, before + 1)
        assert database.write("m1") > version
    finally:
        here().fetch("DROP DATABASE beside WITH (FORCE)")


def test_rows_that_somebody_changes_stay_those_of_elsewhere(empty: redis.Redis, younger: Elsewhere, reads: Any) -> None:
    """Upkeep and TRUNCATE come before the first tick of a relay, and do not make them this server's."""
    _tick(make_relay(), 2)
    before = mark_in(empty).epoch
    restore(dump(), younger)
    younger.fetch("UPDATE features_cachepartition SET trimmed = trimmed")
    younger.fetch("SET mlserve.purge = on; TRUNCATE features_featurerow")
    reads(younger)
    relay = _relay()
    _tick(relay)
    assert (relay.tally.epochs_raised, mark_in(empty).epoch) == (1, before + 2)
    younger.fetch("UPDATE features_cachepartition SET trimmed = trimmed")
    _tick(relay)
    assert relay.tally.epochs_raised == 1


def test_a_recovery_to_the_end_of_the_log_costs_one_epoch(
    empty: redis.Redis, younger: Elsewhere, younger_server: Servers, reads: Any, tmp_path: Path
) -> None:
    """The same files on a new timeline: numbers of transactions that were lost are given again."""
    _tick(make_relay(), 2)
    restore(dump(), younger)
    reads(younger)
    relay = _relay()
    _tick(relay, 3)
    younger.write("m1")
    _tick(relay, 2)
    younger_server.down(["postgres"])
    recovered = recovered_copy(younger_server, tmp_path / "recovered")
    try:
        url = recovered.running().get("postgres")
        assert url is not None
        database = Elsewhere(psycopg.conninfo.make_conninfo(url, dbname="restored"))
        # The mark knows a transaction that the recovered server has not seen.
        mark = mark_in(empty)
        ahead = mark.next_xid + 1_000
        empty.set(name_of(0), Watermark(mark.epoch, f"{ahead}:{ahead}:", mark.safe_time, mark.relay).pack())
        reads(database)
        relay = _relay()
        _tick(relay)
        assert (relay.tally.epochs_raised, mark_in(empty).epoch) == (1, mark.epoch + 1)
        changed = database.write("m1")
        _tick(relay, 2)
        assert is_tombstone(empty, "m1", changed)
    finally:
        recovered.destroy()
        younger_server.up(["postgres"])


def test_files_that_are_upgraded_cost_one_epoch(empty: redis.Redis) -> None:
    """`pg_upgrade`: numbers go on, and the server has another identity."""
    relay = make_relay()
    _tick(relay, 2)
    before = mark_in(empty).epoch
    execute("UPDATE features_cachepartition SET system_identifier = system_identifier + 1, timeline = 7")
    _tick(relay)
    assert mark_in(empty).epoch == before + 1


def test_two_relays_raise_one_epoch(empty: redis.Redis, younger: Elsewhere, reads: Any) -> None:
    """Whoever comes second finds all of it done."""
    _tick(make_relay(), 2)
    before = mark_in(empty).epoch
    restore(dump(), younger)
    reads(younger)
    relays, barrier = [_relay() for _ in range(2)], threading.Barrier(2)

    def work(relay: Relay) -> None:
        barrier.wait()
        _tick(relay)

    threads = [threading.Thread(target=work, args=(relay,)) for relay in relays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mark_in(empty).epoch == before + 1
    assert sum(relay.tally.epochs_raised for relay in relays) == 1


class _HalfAway(Batches):
    """Partition 1 does not answer as long as it is `away`."""

    away = False

    def read(self, partitions: Any) -> dict[int, Answer]:
        return self._without(super().read([at for at in partitions if at != 1 or not self.away]), partitions)

    def apply(self, steps: Mapping[int, Step], *, batch: str) -> dict[int, Answer]:
        going = {at: step for at, step in steps.items() if at != 1 or not self.away}
        return self._without(super().apply(going, batch=batch), steps)

    def _without(self, answers: dict[int, Answer], asked: Sequence[int] | Mapping[int, Step]) -> dict[int, Answer]:
        return {**answers, **{at: Unanswered("away") for at in asked if at not in answers}}


def test_a_node_that_is_away_meanwhile_gets_the_epoch_that_was_raised(
    empty: redis.Redis, younger: Elsewhere, reads: Any
) -> None:
    """Its watermark is of the other server as before, and no further epoch is raised for it."""
    _tick(_relay(partitions=2), 2)
    before = [mark_in(empty, at).epoch for at in range(2)]
    restore(dump(), younger)
    reads(younger)
    batches = _HalfAway(wire_to_l2(SystemClock()))
    batches.away = True
    _tick(_relay(batches, partitions=2), 3)
    assert [mark_in(empty, at).epoch for at in range(2)] == [before[0] + 1, before[1]]
    _tick(_relay(partitions=2))
    assert [mark_in(empty, at).epoch for at in range(2)] == [epoch + 1 for epoch in before]
    assert younger.epochs() == [epoch + 1 for epoch in before]


def test_a_step_that_is_lost_after_the_epoch_was_raised_raises_no_other(
    empty: redis.Redis, younger: Elsewhere, reads: Any
) -> None:
    """A relay that is killed between Postgres and the cache."""
    _tick(make_relay(), 2)
    before = mark_in(empty).epoch
    restore(dump(), younger)
    reads(younger)

    class Killed(Batches):
        def apply(self, steps: Mapping[int, Step], *, batch: str) -> dict[int, Answer]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _relay(Killed(wire_to_l2(SystemClock()))).tick()
    assert (younger.epochs(), mark_in(empty).epoch) == ([before + 1], before)
    relay = _relay()
    _tick(relay)
    assert (younger.epochs(), mark_in(empty).epoch, relay.tally.epochs_raised) == ([before + 1], before + 1, 0)


def test_without_a_watermark_the_new_epoch_is_above_any_that_was_lost(
    empty: redis.Redis, younger: Elsewhere, reads: Any
) -> None:
    """The dump is older than some epochs, and copies of those may be left in the cache."""
    _tick(make_relay(), 2)
    before = mark_in(empty).epoch
    restore(dump(), younger)
    empty.delete(name_of(0))
    reads(younger)
    relay = _relay()
    _tick(relay)
    assert mark_in(empty).epoch > before + EPOCHS_SKIPPED
    assert relay.tally.epochs_raised == 1


def test_what_else_was_made_of_the_other_postgres_goes_first(
    empty: redis.Redis, younger: Elsewhere, reads: Any
) -> None:
    """If it cannot go, nothing is promised of the new one."""
    _tick(make_relay(), 2)
    before = mark_in(empty)
    restore(dump(), younger)
    reads(younger)
    tries: list[int] = []

    def away() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("the cache is away")

    relay = _relay(before_anew=away)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            relay.tick()
    assert mark_in(empty) == before
    _tick(relay)
    assert (len(tries), mark_in(empty).epoch) == (3, before.epoch + 1)


def test_nothing_is_promised_while_the_journal_is_not_written(empty: redis.Redis) -> None:
    """In the middle of a restore, or where somebody has switched a trigger off; afterwards one epoch voids all."""
    relay = make_relay()
    _tick(relay, 2)
    before, copy = mark_in(empty), hold(empty, "m1", 1)
    execute("ALTER TABLE features_featurerow DISABLE TRIGGER features_journal_insert")
    try:
        write("m1")
        for _ in range(3):
            with pytest.raises(Unjournaled, match="doctor"):
                relay.tick()
        assert mark_in(empty) == before
        assert copy_of(empty, "m1") == copy
    finally:
        execute("ALTER TABLE features_featurerow ENABLE ALWAYS TRIGGER features_journal_insert")
    relay = make_relay()
    _tick(relay)
    assert (mark_in(empty).epoch, relay.tally.epochs_raised) == (before.epoch + 1, 1)


def test_a_journal_that_is_in_use_is_emptied_all_the_same(empty: redis.Redis, younger: Elsewhere, reads: Any) -> None:
    """A writer that has not committed keeps its lines; they are told when it does."""
    _tick(make_relay(), 2)
    write("m1")
    restore(dump(), younger)
    reads(younger)
    told = Told(wire_to_l2(SystemClock()))
    relay = _relay(told)
    with psycopg.connect(younger.url) as writer:
        ((version,),) = writer.execute(
            """UPDATE features_featurerow SET as_of = now() WHERE entity_id = 'm1' RETURNING version"""
        ).fetchall()
        _tick(relay, 3)
        assert (relay.tally.epochs_raised, told.keys) == (1, [])
        writer.commit()
    _tick(relay, 3)
    assert [told_version for _, _, told_version in told.keys] == [version]
    assert younger.one("SELECT count(*) FROM features_journal") == 1
