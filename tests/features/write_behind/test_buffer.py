"""Deltas in memory, batches in the stream: the side of the process that scores."""

from typing import Any

import pytest
import redis

from features import flush, write_behind
from features.flush import FlushReport, flush_write_behind
from features.write_behind import FIELD, STREAM, Buffer, Delta
from mlserve.observability import metrics
from tests.features.write_behind.conftest import AT, NOW, batches_in, dropped, in_parallel, rows
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle


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
    first, second = batches_in(broker)
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

    in_parallel(*[note] * 8, append)
    buffer.poller.poll_now()
    assert sum(delta.scores for batch in batches_in(broker) for delta in batch.deltas) == 8 * 2_000
    buffer.close()


def test_memory_is_bounded_by_merchants(broker: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is dropped and counted; those that are known go on adding up, and an append makes room."""
    monkeypatch.setattr(write_behind, "MOST_MERCHANTS", 2)
    before = dropped("buffer_full")
    buffer = Buffer(ManualClock())
    for merchant in ("m1", "m2", "m3", "m3", "m1"):
        buffer.note(merchant, 1.0, AT)
    buffer.poller.poll_now()
    buffer.note("m3", 1.0, AT)
    buffer.poller.poll_now()
    assert [[(delta.merchant_id, delta.scores) for delta in batch.deltas] for batch in batches_in(broker)] == [
        [("m1", 2), ("m2", 1)],
        [("m3", 1)],
    ]
    assert dropped("buffer_full") - before == 2
    buffer.close()


def test_a_large_second_is_several_batches(broker: redis.Redis) -> None:
    """None larger than what a worker accepts, also with the longest ids and the largest numbers."""
    buffer = Buffer(ManualClock())
    for number in range(write_behind.MERCHANTS_PER_BATCH + 1):
        buffer.note(f"{number:064}", 1e14, AT)
    buffer.poller.poll_now()
    entries: Any = broker.xrange(STREAM)
    assert [len(batch.deltas) for batch in batches_in(broker)] == [write_behind.MERCHANTS_PER_BATCH, 1]
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
    assert sum(delta.scores for batch in batches_in(broker) for delta in batch.deltas) == 3
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
    assert rows() == {"m1": [5, AT, 5]}
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
    assert rows() == {"m1": [2, AT, 7]}


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
    assert rows() == {"m1": [1, AT, 1]}
    buffer.close()
