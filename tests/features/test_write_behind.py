"""Deltas in memory, batches in the stream, rows in Postgres: each score once, and no hostile entry stops the others."""

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import redis
from django.db import connection
from prometheus_client import Counter

from features import existence, flush, policies, write_behind
from features.definitions import MERCHANT_TRAFFIC
from features.flush import FlushReport, flush_write_behind
from features.models import FeatureRow, FlushedBatch
from features.policies import policies_in_force
from features.source import read_source
from features.write_behind import FIELD, STREAM, Batch, Buffer, Delta
from features.writes import write_leases, write_through
from mlserve.cache import wiring
from mlserve.cache.bloom_redis import STREAM as ANNOUNCED
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.console.figures import broker_client
from mlserve.observability import metrics
from tests.features.ledgers import START, payment, record
from tests.fixtures.clock import ManualClock
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AT = NOW.timestamp()
_encode = msgspec.msgpack.encode


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    """An empty stream, whoever left something in it."""
    with broker_client() as client:
        client.delete(STREAM)
        yield client
        client.delete(STREAM)


@pytest.fixture
def merchants(transactional_db: None, redis_client: redis.Redis) -> Iterator[None]:
    """A ledger with the merchants m0 to m9, an engine and no copies."""
    policies.forget()
    wiring.reset()
    record([payment(str(number), START, merchant=f"m{number}") for number in range(10)])
    yield
    policies.forget()
    wiring.reset()


def _rows() -> dict[str, list[float]]:
    rows = FeatureRow.objects.filter(group=MERCHANT_TRAFFIC.name, deleted_at=None)
    return dict(rows.values_list("entity_id", "values"))


def _batch(*deltas: list[Any], batch_id: UUID | None = None) -> bytes:
    return _encode([str(batch_id or uuid4()), list(deltas)])


def _put(broker: redis.Redis, *payloads: bytes) -> None:
    for payload in payloads:
        broker.xadd(STREAM, {FIELD: payload})


def _batches(broker: redis.Redis) -> list[Batch]:
    entries: Any = broker.xrange(STREAM)
    return [msgspec.msgpack.decode(fields[FIELD.encode()], type=Batch) for _, fields in entries]


def _dropped(reason: str) -> float:
    return _count(metrics.WRITE_BEHIND_DROPPED.labels(reason))


def _count(counter: Counter) -> float:
    return counter._value.get()


def _in_parallel(*calls: Any) -> None:
    barrier = threading.Barrier(len(calls))
    errors: list[BaseException] = []

    def run(call: Any) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# --- the process's side ---


def test_scores_of_a_second_become_one_delta_per_merchant(broker: redis.Redis) -> None:
    """How many, their amounts, the newest moment; in one batch with an id of its own."""
    buffer = Buffer(ManualClock())
    for merchant, amount, at in (("m1", 5.0, AT), ("m2", 1.0, AT), ("m1", 7.0, AT - 3)):
        buffer.note(merchant, amount, at)
    assert broker.xlen(STREAM) == 0, "nothing is sent on the path of a score"
    buffer.poller.poll_now()
    buffer.note("m1", 1.0, AT + 1)
    buffer.poller.poll_now()
    buffer.poller.poll_now()
    first, second = _batches(broker)
    assert first.deltas == (Delta("m1", 2, 12.0, AT), Delta("m2", 1, 1.0, AT))
    assert second.deltas == (Delta("m1", 1, 1.0, AT + 1),)
    assert first.id != second.id
    buffer.close()


def test_no_score_is_lost_between_threads(broker: redis.Redis) -> None:
    """Eight threads note while another appends."""
    buffer = Buffer(ManualClock())

    def note() -> None:
        for number in range(2_000):
            buffer.note(f"m{number % 7}", 1.0, AT)

    def append() -> None:
        for _ in range(50):
            buffer.poller.poll_now()

    _in_parallel(*[note] * 8, append)
    buffer.poller.poll_now()
    assert sum(delta.scores for batch in _batches(broker) for delta in batch.deltas) == 8 * 2_000
    buffer.close()


def test_memory_is_bounded_by_merchants(broker: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is dropped and counted; those that are known go on adding up, and an append makes room."""
    monkeypatch.setattr(write_behind, "MOST_MERCHANTS", 2)
    before = _dropped("buffer_full")
    buffer = Buffer(ManualClock())
    for merchant in ("m1", "m2", "m3", "m3", "m1"):
        buffer.note(merchant, 1.0, AT)
    buffer.poller.poll_now()
    buffer.note("m3", 1.0, AT)
    buffer.poller.poll_now()
    assert [[(delta.merchant_id, delta.scores) for delta in batch.deltas] for batch in _batches(broker)] == [
        [("m1", 2), ("m2", 1)],
        [("m3", 1)],
    ]
    assert _dropped("buffer_full") - before == 2
    buffer.close()


def test_a_large_second_is_several_batches(broker: redis.Redis) -> None:
    """None larger than what a worker accepts, also with the longest ids and the largest numbers."""
    buffer = Buffer(ManualClock())
    for number in range(write_behind.MERCHANTS_PER_BATCH + 1):
        buffer.note(f"{number:064}", 1e14, AT)
    buffer.poller.poll_now()
    entries: Any = broker.xrange(STREAM)
    assert [len(batch.deltas) for batch in _batches(broker)] == [write_behind.MERCHANTS_PER_BATCH, 1]
    assert max(len(fields[FIELD.encode()]) for _, fields in entries) < flush.MOST_BYTES / 4
    buffer.close()


def test_a_broker_that_is_away_loses_nothing(broker: redis.Redis, valkey_broker: ServerHandle) -> None:
    """Deltas stay in the process and add up."""
    buffer = Buffer(ManualClock())
    valkey_broker.kill()
    for _ in range(3):
        buffer.note("m1", 2.0, AT)
        with pytest.raises(redis.RedisError):
            buffer.poller.poll_now()
    valkey_broker.start()
    buffer.poller.poll_now()
    assert sum(delta.scores for batch in _batches(broker) for delta in batch.deltas) == 3
    assert not buffer.has_something()
    buffer.close()


def test_a_full_stream_is_left_alone(broker: redis.Redis, merchants: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a worker it does not grow for ever: what comes later adds up in the process and is not lost."""
    monkeypatch.setattr(write_behind, "MOST_BATCHES", 2)
    buffer = Buffer(ManualClock())
    for _ in range(5):
        buffer.note("m1", 1.0, AT)
        buffer.poller.poll_now()
    assert broker.xlen(STREAM) == 2
    for _ in range(3):
        flush_write_behind(now=NOW)
        buffer.poller.poll_now()
    assert _rows() == {"m1": [5, AT, 5]}
    buffer.close()


class _LosesAnswers(redis.Redis):
    """The server gets the first append, its answer does not arrive."""

    lost = False

    def xadd(self, *args: Any, **kwargs: Any) -> Any:
        added = super().xadd(*args, **kwargs)
        if not self.lost:
            self.lost = True
            raise redis.exceptions.TimeoutError("the answer was lost")
        return added


def test_an_append_whose_answer_was_lost_counts_once(broker: redis.Redis, merchants: None) -> None:
    """It is appended again under the id that it has."""
    buffer = Buffer(ManualClock())
    buffer._client = _LosesAnswers(connection_pool=broker.connection_pool)
    buffer.note("m1", 3.0, AT)
    with pytest.raises(redis.exceptions.TimeoutError):
        buffer.poller.poll_now()
    buffer.note("m1", 4.0, AT)
    buffer.poller.poll_now()
    buffer.poller.poll_now()
    assert broker.xlen(STREAM) == 3
    assert flush_write_behind(now=NOW) == FlushReport(applied=2, duplicates=1)
    assert _rows() == {"m1": [2, AT, 7]}


def test_the_lag_is_the_age_of_the_oldest_batch(broker: redis.Redis) -> None:
    """So it grows as long as no worker flushes, and is 0 when the stream is empty."""
    clock = ManualClock()
    buffer = Buffer(clock)
    buffer.poller.poll_now()
    assert _lag_s() == 0
    broker.xadd(STREAM, {FIELD: b""}, id=f"{int(clock.now() * 1000)}-0")
    clock.advance(90)
    buffer.poller.poll_now()
    assert _lag_s() == pytest.approx(90)
    buffer.close()


def _lag_s() -> float:
    return metrics.WRITE_BEHIND_LAG._value.get()


# --- the worker's side ---


def test_a_flush_adds_to_the_rows(broker: redis.Redis, merchants: None) -> None:
    """Counts and amounts add up, the newest moment stays; the rows are as old as the flush."""
    _put(broker, _batch(["m1", 2, 10.5, AT - 5], ["m2", 1, 1.0, AT - 9]), _batch(["m1", 1, 2.0, AT - 7]))
    assert flush_write_behind(now=NOW) == FlushReport(applied=2)
    assert _rows() == {"m1": [3, AT - 5, 12.5], "m2": [1, AT - 9, 1]}
    assert broker.xlen(STREAM) == 0
    version = FeatureRow.objects.get(group=MERCHANT_TRAFFIC.name, entity_id="m1").version
    _put(broker, _batch(["m1", 1, 0.5, AT - 1]))
    flush_write_behind(now=NOW + timedelta(seconds=5))
    row = FeatureRow.objects.get(group=MERCHANT_TRAFFIC.name, entity_id="m1")
    assert (row.values, row.as_of) == ([4, AT - 1, 13.0], NOW + timedelta(seconds=5))
    assert row.version > version
    key = Key("merchant", "m1", MERCHANT_TRAFFIC.name)
    assert read_source([key])[key].as_of == row.as_of.timestamp(), "the source does not vouch for what may be under way"


def test_a_flush_drops_the_copies_of_what_it_wrote(broker: redis.Redis, merchants: None) -> None:
    """Those of other merchants stay."""
    keys = [Key("merchant", name, MERCHANT_TRAFFIC.name) for name in ("m1", "m2")]
    write_through({key: Entry(1, AT, wiring.engine().clock.now(), (1.0, AT, 1.0)) for key in keys}, write_leases(keys))
    _put(broker, _batch(["m1", 1, 1.0, AT]))
    flush_write_behind(now=NOW)
    assert _held(keys) == {keys[1]}


def _held(keys: Sequence[Key]) -> set[Key]:
    found = wiring.engine().l2.peek_many(keys, policies_in_force().policies)
    return {key for key, entry in found.items() if isinstance(entry, Entry)}


def test_a_worker_that_dies_before_it_acknowledges_counts_nothing_twice(broker: redis.Redis, merchants: None) -> None:
    """Its batch is found again, is known, and only its copies are dropped once more."""
    _put(broker, payload := _batch(["m1", 1, 1.0, AT]))
    flush._ensure_group(broker)
    assert broker.xreadgroup(flush.GROUP, flush._CONSUMER, {STREAM: ">"})
    assert flush._apply(msgspec.msgpack.decode(payload, type=Batch), NOW)
    key = Key("merchant", "m1", MERCHANT_TRAFFIC.name)
    write_through({key: Entry(1, AT, wiring.engine().clock.now(), (0.0, 0.0, 0.0))}, write_leases([key]))
    assert flush_write_behind(now=NOW) == FlushReport(), "it may still be at work"
    assert flush_write_behind(now=NOW, claim_after_s=0) == FlushReport(duplicates=1)
    assert _rows() == {"m1": [1, AT, 1]}
    assert _held([key]) == set()
    assert (broker.xlen(STREAM), broker.xpending(STREAM, flush.GROUP)["pending"]) == (0, 0)


def test_a_worker_that_dies_before_it_commits_loses_nothing(broker: redis.Redis, merchants: None) -> None:
    """The next one does the work."""
    _put(broker, _batch(["m1", 1, 1.0, AT]))
    flush._ensure_group(broker)
    broker.xreadgroup(flush.GROUP, flush._CONSUMER, {STREAM: ">"})
    assert flush_write_behind(now=NOW, claim_after_s=0) == FlushReport(applied=1)
    assert _rows() == {"m1": [1, AT, 1]}


def test_flushes_at_the_same_time_count_each_batch_once(broker: redis.Redis, merchants: None) -> None:
    """Also when they take each other's batches away."""
    for number in range(60):
        _put(broker, _batch(*([f"m{place}", 1, 2.0, AT + number] for place in range(9, -1, -1))))
    _in_parallel(*[lambda: flush_write_behind(now=NOW + timedelta(minutes=5), claim_after_s=0)] * 3)
    assert _rows() == {f"m{place}": [60, AT + 59, 120] for place in range(10)}
    assert FlushedBatch.objects.count() == 60


_GOOD = ["m1", 1, 1.0, AT]
HOSTILE: dict[str, tuple[dict[Any, Any], str]] = {
    "no batch": ({"other": b"x"}, "malformed"),
    "no msgpack": ({FIELD: b"\xc1\xff"}, "malformed"),
    "torn": ({FIELD: _batch(["m1", 1, 1.0, AT])[:-3]}, "malformed"),
    "too deep": ({FIELD: b"\x91" * 5_000}, "invalid"),
    "a megabyte": ({FIELD: b"\x00" * 1_000_000}, "too_large"),
    "not an array": ({FIELD: _encode(7)}, "invalid"),
    "no id": ({FIELD: _encode(["nobody", [_GOOD]])}, "invalid"),
    "no deltas": ({FIELD: _batch()}, "invalid"),
    "more deltas than one batch has": ({FIELD: _batch(*[_GOOD] * (write_behind.MERCHANTS_PER_BATCH + 1))}, "invalid"),
    "amount is no number": ({FIELD: _batch(["m1", 1, float("nan"), AT])}, "invalid"),
    "amount without end": ({FIELD: _batch(["m1", 1, float("inf"), AT])}, "invalid"),
    "negative amount": ({FIELD: _batch(["m1", 1, -5.0, AT])}, "invalid"),
    "negative count": ({FIELD: _batch(["m1", -1, 5.0, AT])}, "invalid"),
    "count is text": ({FIELD: _batch(["m1", "1", 5.0, AT])}, "invalid"),
    "moment is no number": ({FIELD: _batch(["m1", 1, 5.0, float("nan")])}, "invalid"),
    "moment in the future": ({FIELD: _batch(["m1", 1, 5.0, AT + 3_600])}, "invalid"),
    "id that text in Postgres cannot hold": ({FIELD: _batch(["m\x00", 1, 5.0, AT])}, "invalid"),
    "id that no merchant has": ({FIELD: _batch(["m" * 65, 1, 5.0, AT])}, "invalid"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_entry_that_is_no_batch_is_counted_and_stops_nobody(broker: redis.Redis, merchants: None, what: str) -> None:
    """It is acknowledged and gone; the batches around it are applied."""
    fields, reason = HOSTILE[what]
    before = _dropped(reason)
    _put(broker, _batch(_GOOD))
    broker.xadd(STREAM, fields)
    _put(broker, _batch(_GOOD))
    assert flush_write_behind(now=NOW) == FlushReport(applied=2, dropped=1)
    assert _rows() == {"m1": [2, AT, 2]}
    assert _dropped(reason) - before == 1
    assert (broker.xlen(STREAM), broker.xpending(STREAM, flush.GROUP)["pending"]) == (0, 0)


def test_a_merchant_that_the_ledger_lacks_gets_no_row(broker: redis.Redis, merchants: None) -> None:
    """Whoever can write to the stream cannot fill Postgres with ids; the others of the batch are counted."""
    before = _dropped("unknown_merchant")
    _put(broker, _batch(["nobody", 1, 1.0, AT], ["m3", 1, 1.0, AT]))
    assert flush_write_behind(now=NOW) == FlushReport(applied=1)
    assert _rows() == {"m3": [1, AT, 1]}
    assert _dropped("unknown_merchant") - before == 1


def test_rows_are_locked_in_key_order(broker: redis.Redis, merchants: None) -> None:
    """Bytewise and whatever the batch's order, so that two workers never wait for each other in a circle."""
    names = [f"{letter}{number}" for number in range(60) for letter in "bAZa"]
    record([payment(f"p-{name}", START, merchant=name) for name in names])
    _put(broker, _batch(*([name, 1, 1.0, AT] for name in names)))
    flush_write_behind(now=NOW)
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT entity_id FROM features_featurerow WHERE "group" = %s ORDER BY ctid', ["merchant_traffic"]
        )
        assert [name for (name,) in cursor.fetchall()] == sorted(names)


def test_a_merchants_first_row_is_announced(broker: redis.Redis, merchants: None) -> None:
    """To the filters of existing ids, once."""
    existence.build(clock=SystemClock())
    before = wiring.l2_client().xlen(ANNOUNCED)
    for _ in range(2):
        _put(broker, _batch(["m1", 1, 1.0, AT], ["m2", 1, 1.0, AT]))
        flush_write_behind(now=NOW)
    assert wiring.l2_client().xlen(ANNOUNCED) == before + 1
    existence.forget()


def test_a_merchant_twice_in_one_batch_adds_up(broker: redis.Redis, merchants: None) -> None:
    """No process of ours does that."""
    _put(broker, _batch(["m1", 1, 1.0, AT], ["m1", 2, 3.0, AT - 1]))
    flush_write_behind(now=NOW)
    assert _rows() == {"m1": [3, AT, 4]}


def test_a_deleted_or_torn_row_begins_anew(broker: redis.Redis, merchants: None) -> None:
    """Numbers that are missing count as 0."""
    FeatureRow.objects.create(
        group=MERCHANT_TRAFFIC.name, entity_id="m1", values=[9.0, AT, 9.0], as_of=NOW, deleted_at=NOW
    )
    FeatureRow.objects.create(group=MERCHANT_TRAFFIC.name, entity_id="m2", values=[4.0], as_of=NOW)
    _put(broker, _batch(["m1", 1, 1.0, AT], ["m2", 1, 1.0, AT]))
    flush_write_behind(now=NOW)
    assert _rows() == {"m1": [1, AT, 1], "m2": [5, AT, 1]}


def test_a_batch_that_was_read_once_and_is_a_day_old_is_dropped(broker: redis.Redis, merchants: None) -> None:
    """Its id is forgotten, so nobody knows whether it was counted; one that nobody has read is counted at any age."""
    old = int((NOW - flush.KEPT - timedelta(seconds=1)).timestamp() * 1000)
    broker.xadd(STREAM, {FIELD: _batch(_GOOD)}, id=f"{old}-1")
    flush._ensure_group(broker)
    broker.xreadgroup(flush.GROUP, flush._CONSUMER, {STREAM: ">"})
    broker.xadd(STREAM, {FIELD: _batch(_GOOD)}, id=f"{old}-2")
    before = _dropped("expired")
    assert flush_write_behind(now=NOW, claim_after_s=0) == FlushReport(applied=1, dropped=1)
    assert _rows() == {"m1": [1, AT, 1]}
    assert _dropped("expired") - before == 1


def test_ids_are_forgotten_after_a_day(broker: redis.Redis, merchants: None) -> None:
    """And not before."""
    _put(broker, _batch(_GOOD))
    flush_write_behind(now=NOW)
    flush_write_behind(now=NOW + flush.KEPT)
    assert FlushedBatch.objects.count() == 1
    flush_write_behind(now=NOW + flush.KEPT + timedelta(seconds=1))
    assert FlushedBatch.objects.count() == 0


def test_somebody_elses_value_under_the_streams_name_is_replaced(broker: redis.Redis, merchants: None) -> None:
    """Until then the process keeps what it counted."""
    broker.set(STREAM, "mine")
    buffer = Buffer(ManualClock())
    buffer.note("m1", 1.0, AT)
    with pytest.raises(redis.ResponseError):
        buffer.poller.poll_now()
    flush_write_behind(now=NOW)
    buffer.poller.poll_now()
    flush_write_behind(now=NOW)
    assert _rows() == {"m1": [1, AT, 1]}
    buffer.close()


# --- a score and what becomes of it ---


def test_a_score_is_counted_and_a_dry_run_or_a_repetition_is_not(world: World, broker: redis.Redis) -> None:
    """Seconds later, also for a merchant that nobody knew."""
    merchant = world.newcomer("merchant")
    request = world.request(merchant_id=merchant, amount=12.5)
    for options in ("", "", "dry_run=true"):
        assert world.post(request, options).status == 200
    assert world.score(options="", merchant_id=merchant, amount=2.0).status == 200
    assert world.score(options="dry_run=true", merchant_id=merchant).status == 200
    assert merchant not in _rows()
    write_behind.append_now()
    now = datetime.now(UTC)
    flush_write_behind(now=now)
    scores, last_at, amount = _rows()[merchant]
    assert (scores, amount) == (2, 14.5)
    assert now.timestamp() - 20 < last_at <= now.timestamp()


@pytest.mark.quiet
def test_scores_do_not_notice_that_the_broker_is_away(
    world: World, broker: redis.Redis, valkey_broker: ServerHandle
) -> None:
    """Frozen, the worst way to be away: no score waits for it, and all are counted when it is back."""
    merchant = world.newcomer("merchant")
    world.score(options="", merchant_id=merchant)
    valkey_broker.freeze()
    answers = [world.score(options="", merchant_id=merchant) for _ in range(20)]
    assert [answer.status for answer in answers] == [200] * 20
    assert sorted(answer.seconds for answer in answers)[10] < 0.25
    valkey_broker.thaw()
    write_behind.append_now()
    flush_write_behind(now=datetime.now(UTC))
    assert _rows()[merchant][0] == 21


@pytest.mark.quiet
def test_counting_a_score_is_cheap() -> None:
    """Some microseconds at most, on a busy machine; about one on an idle one."""
    buffer, clock = Buffer(ManualClock()), SystemClock()
    started = clock.monotonic()
    for number in range(100_000):
        buffer.note(f"m{number % 100}", 1.0, AT)
    assert (clock.monotonic() - started) / 100_000 < 10e-6
