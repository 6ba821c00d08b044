"""Which ids exist: built from Postgres, announced before commits, followed by every process."""

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction

from features import existence, ingest, tasks
from features.existence import BuildFailed
from features.ingest import NewTransaction
from features.models import FeatureRow
from features.refresh import build as build_features
from mlserve.cache.bloom import BloomMembership
from mlserve.cache.bloom_follower import Event, Follower
from mlserve.cache.bloom_redis import FILTERS, STREAM, BloomStore
from mlserve.cache.clock import SystemClock
from mlserve.cache.wiring import l2_client
from mlserve.observability import metrics
from tests.features.ledgers import START, payment, record
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

NOW = datetime(2026, 6, 1, tzinfo=UTC)
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh(redis_client: redis.Redis) -> Iterator[None]:
    existence.forget()
    yield
    existence.forget()


def _build() -> existence.Built:
    return existence.build(clock=SystemClock())


def _another_process() -> Follower:
    """That polls when it is told to, and for which time stands still."""
    clock = ManualClock()
    return Follower(
        membership=BloomMembership(clock), store=BloomStore(l2_client), clock=clock, secret=existence._secret()
    )


def _knows(follower: Follower, kind: str, entity_id: str) -> bool:
    """After a poll, and only if it would say no of an id that nobody has."""
    follower.poll()
    assert not follower.membership.may_exist(kind, "nobody"), follower.problem
    return follower.membership.may_exist(kind, entity_id)


def _transaction(name: str, customer: str = "c1") -> NewTransaction:
    return NewTransaction(name, START, customer, "m1", 10.0, "EUR")


def _score(name: str, customer: str) -> None:
    """Records as the journal does."""
    with transaction.atomic():
        ingest.record(connection.connection, [_transaction(name, customer)], now=NOW)


def _row(group: str, entity_id: str, **fields: Any) -> None:
    FeatureRow.objects.create(group=group, entity_id=entity_id, values=[1.0], as_of=NOW, **fields)


def test_an_entity_exists_if_it_has_a_row_or_is_in_the_ledger() -> None:
    """Also with a deleted row; the kinds are apart."""
    record([payment("1", START, customer="paying", merchant="paid")])
    _row("customer_profile", "built")
    _row("customer_embedding", "built")
    _row("customer_activity", "deleted", deleted_at=NOW)
    _row("merchant_risk", "risky")
    built = _build()
    assert built.counts == {"customer": 3, "merchant": 2}
    process = _another_process()
    assert all(_knows(process, "customer", entity_id) for entity_id in ("paying", "built", "deleted"))
    assert all(_knows(process, "merchant", entity_id) for entity_id in ("paid", "risky"))
    assert not _knows(process, "customer", "risky") and not _knows(process, "merchant", "built")


def test_all_ids_are_read_however_many_trips_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count that sizes the filter is that of the ids in it."""
    monkeypatch.setattr(existence, "_IDS_PER_TRIP", 7)
    record([payment(str(number), START, customer=f"c{number}") for number in range(50)])
    assert _build().counts["customer"] == 50
    process = _another_process()
    assert all(_knows(process, "customer", f"c{number}") for number in range(50))


def test_a_database_without_entities_has_filters_too() -> None:
    """They deny everybody, and are as small as filters get."""
    assert _build().counts == {"customer": 0, "merchant": 0}
    assert not _knows(_another_process(), "customer", "c1")


def test_a_scored_newcomer_is_announced_before_the_commit() -> None:
    """Nobody can read the row yet, and everybody may already ask for it."""
    _build()
    process = _another_process()
    assert not _knows(process, "customer", "new")
    with transaction.atomic():
        ingest.record(connection.connection, [_transaction("t1", "new")], now=NOW)
        assert _knows(process, "customer", "new")
    _score("t2", "new")
    _score("t1", "new")
    assert l2_client().xlen(STREAM) == 2  # the beginning, and one newcomer


def test_a_customer_who_comes_back_is_not_announced() -> None:
    """Neither one with a row, nor one with a deleted row: they are in every filter. It would cost a trip per score."""
    for entity_id, deleted_at in (("old", None), ("deleted", NOW)):
        _row("customer_activity", entity_id, deleted_at=deleted_at)
    _build()
    _score("t1", "old")
    _score("t2", "deleted")
    assert l2_client().xlen(STREAM) == 1


def test_a_build_of_features_announces_entities_that_had_no_row() -> None:
    """Of every group, before its commit; a second build announces nobody."""
    _build()
    process = _another_process()
    record([payment("1", START, customer="c1", merchant="m1"), payment("2", START, customer="c2", merchant="m1")])
    report = build_features(["customer_profile", "merchant_risk"], as_of=NOW, now=NOW)
    assert report.rows == {"customer_profile": 2, "merchant_risk": 1}
    assert _knows(process, "customer", "c1") and _knows(process, "customer", "c2") and _knows(process, "merchant", "m1")
    announced = l2_client().xlen(STREAM)
    build_features(["customer_activity"], as_of=NOW, now=NOW)
    assert l2_client().xlen(STREAM) == announced + 1
    for _ in range(2):
        build_features(["customer_activity", "customer_profile", "merchant_risk"], as_of=NOW, now=NOW)
    assert l2_client().xlen(STREAM) == announced + 1


def test_a_build_waits_for_writers_that_announced_before_it() -> None:
    """Their ids are neither behind its position nor, as long as they have not committed, in any snapshot."""
    _build()
    announced, commit = threading.Event(), threading.Event()

    def write() -> None:
        try:
            with transaction.atomic():
                ingest.record(connection.connection, [_transaction("t1", "slow")], now=NOW)
                announced.set()
                assert commit.wait(20)
        finally:
            connections.close_all()

    writer = threading.Thread(target=write)
    writer.start()
    assert announced.wait(20)
    clock = _CommitsWhenWaitedFor(commit)
    built = existence.build(clock=clock)
    writer.join()
    assert clock.waits > 0 and built.waited_s > 0
    assert _knows(_another_process(), "customer", "slow")


class _CommitsWhenWaitedFor(SystemClock):
    """The build's clock: the writer may commit as soon as the build waits."""

    def __init__(self, commit: threading.Event) -> None:
        self.waits = 0
        self._commit = commit

    def sleep(self, seconds: Any, /) -> None:
        self.waits += 1
        self._commit.set()
        SystemClock.sleep(seconds)


def test_a_writer_that_never_ends_makes_the_build_fail_in_time() -> None:
    """The filters in use stay, and stay right: they follow the announcements."""
    _build()
    process = _another_process()
    process.poll()
    written, finish = threading.Event(), threading.Event()

    def write() -> None:
        try:
            with transaction.atomic():
                ingest.record(connection.connection, [_transaction("t1", "endless")], now=NOW)
                written.set()
                assert finish.wait(20)
        finally:
            connections.close_all()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(20)
        with pytest.raises(BuildFailed, match="pg_stat_activity"):
            existence.build(clock=SystemClock(), writers_wait_s=0.05)
        assert _knows(process, "customer", "endless")
        assert process.events == {Event.LOADED: 1}
    finally:
        finish.set()
        writer.join()


def test_a_build_is_no_part_of_a_transaction() -> None:
    """It would wait for the end of its own."""
    with transaction.atomic(), pytest.raises(BuildFailed, match="transaction"):
        _build()


def test_newcomers_are_never_denied_while_filters_are_built() -> None:
    """Scores of newcomers meet builds at a barrier, again and again: who is committed may exist after the next poll."""
    _build()
    process = _another_process()
    process.poll()
    rounds, writers = 8, 2
    meet = threading.Barrier(writers + 1, timeout=30)
    denied: list[str] = []

    def write(number: int) -> None:
        try:
            for round_number in range(rounds):
                meet.wait()
                for place in range(5):
                    _score(f"{number}-{round_number}-{place}", f"w{number}-{round_number}-{place}")
                meet.wait()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        meet.wait()
        _build()
        meet.wait()
        process.poll()
        newcomer = _another_process()
        committed = FeatureRow.objects.filter(group="customer_activity").values_list("entity_id", flat=True)
        denied += [
            entity_id
            for follower in (process, newcomer)
            for entity_id in committed
            if not _knows(follower, "customer", entity_id)
        ]
    for thread in threads:
        thread.join()
    assert denied == []
    assert process.events == {Event.LOADED: rounds + 1}


def test_a_score_commits_with_redis_away_and_the_announcement_follows(valkey_cache: ServerHandle) -> None:
    """Frozen: the filters that others have become unusable by themselves, and know the newcomer once it is thawed."""
    _build()
    process = _another_process()
    process.poll()
    valkey_cache.freeze()
    _score("t1", "new")
    assert FeatureRow.objects.filter(entity_id="new").exists()
    valkey_cache.thaw()
    until(lambda: existence._of_this_process().follower.undelivered == 0)
    assert _knows(process, "customer", "new")


def test_the_membership_of_a_process_is_polled() -> None:
    """It finds generations and newcomers by itself, and says what it did in the metrics."""
    record([payment("1", START, customer="c1")])
    membership = existence.membership()
    assert membership.may_exist("customer", "nobody")
    answers = metrics.BLOOM_ANSWERS.labels("customer", "no")
    before = answers._value.get()
    _build()
    until(lambda: not membership.may_exist("customer", "nobody"))
    assert membership.may_exist("customer", "c1") and existence.problem() is None
    _score("t1", "new")
    assert membership.may_exist("customer", "new")
    until(lambda: answers._value.get() > before and metrics.BLOOM_USABLE._value.get() == 1)
    assert existence.membership() is membership


def test_filters_of_another_database_answer_nobody_until_the_next_build() -> None:
    """What was restored may hold ids that they deny."""
    record([payment("1", START, customer="c1")])
    _build()
    membership = existence.membership()
    until(lambda: not membership.may_exist("customer", "nobody"))
    existence.distrust()
    until(lambda: membership.may_exist("customer", "nobody"))
    _build()
    until(lambda: not membership.may_exist("customer", "nobody"))


def test_forgotten_filters_are_gone_and_their_poller_too() -> None:
    """The next `membership()` begins with nothing."""
    _build()
    membership = existence.membership()
    until(lambda: membership.usable)
    existence.forget()
    assert "poll-bloom" not in [thread.name for thread in threading.enumerate()]
    assert existence.membership() is not membership


def test_a_forked_child_has_a_membership_of_its_own() -> None:
    """The parent's thread does not poll for it."""
    _build()
    membership = existence.membership()
    until(lambda: membership.usable)
    pid = os.fork()
    if pid == 0:
        ended_with = 1
        try:
            own = existence.membership()
            until(lambda: own.usable)
            ended_with = 0 if own is not membership else 2
        finally:
            os._exit(ended_with)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_scheduled_task_builds() -> None:
    """Without arguments, as beat sends it."""
    tasks.build_bloom_filters()
    header = existence.newest_generation()
    assert header is not None and {record.kind for record in header.filters} == {"customer", "merchant"}


def test_a_build_that_redis_does_not_take_is_left_to_the_next(
    valkey_cache: ServerHandle, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in a line; nothing that serves is harmed."""
    valkey_cache.stop()
    tasks.build_bloom_filters()
    assert [record.msg["event"] for record in caplog.records if "why" in record.msg] == ["filters_not_built"]  # type: ignore[index]
    valkey_cache.start()
    tasks.build_bloom_filters()
    assert existence.newest_generation() is not None


def _command(action: str) -> dict[str, Any]:
    out = StringIO()
    call_command("bloom", action, "--json", stdout=out)
    answer: dict[str, Any] = json.loads(out.getvalue())
    return answer


def test_the_command_builds_and_shows() -> None:
    """As JSON and for people."""
    assert _command("status") == {"filters": None}
    record([payment("1", START), payment("2", START + timedelta(days=1), customer="c2")])
    built = _command("build")
    assert built["ids"] == {"customer": 2, "merchant": 1}
    filters = _command("status")["filters"]
    assert filters["generation"] == built["generation"] and filters["age_s"] < 60
    assert filters["kinds"]["customer"]["ids"] == 2
    for action, word in (("build", "ids"), ("status", "ago")):
        out = StringIO()
        call_command("bloom", action, stdout=out)
        assert word in out.getvalue()


def test_the_command_says_what_is_wrong(valkey_cache: ServerHandle) -> None:
    """With exit code 1."""
    l2_client().hset(FILTERS, mapping={"name": "x", "header": b"x", "code": b"y"})
    with pytest.raises(CommandError, match="no filter of ours"):
        call_command("bloom", "status")
    valkey_cache.kill()
    for action in ("build", "status"):
        with pytest.raises(CommandError, match="Redis"):
            call_command("bloom", action)
