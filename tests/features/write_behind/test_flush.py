"""Batches in the stream, rows in Postgres: each score once, and no hostile entry stops the others."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import redis
from django.db import connection

from features import existence, flush, write_behind
from features.definitions import MERCHANT_TRAFFIC
from features.flush import FlushReport, flush_write_behind
from features.models import FeatureRow, FlushedBatch
from features.policies import policies_in_force
from features.source import read_source
from features.write_behind import FIELD, STREAM, Batch
from features.writes import write_leases, write_through
from mlserve.cache import wiring
from mlserve.cache.bloom_redis import STREAM as ANNOUNCED
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from tests.features.ledgers import START, payment, record
from tests.features.write_behind.conftest import (
    AT,
    NOW,
    batch_of,
    dropped,
    encode,
    in_parallel,
    put,
    rows,
)


def test_a_flush_adds_to_the_rows(broker: redis.Redis, merchants: None) -> None:
    """Counts and amounts add up, the newest moment stays; the rows are as old as the flush."""
    put(broker, batch_of(["m1", 2, 10.5, AT - 5], ["m2", 1, 1.0, AT - 9]), batch_of(["m1", 1, 2.0, AT - 7]))
    assert flush_write_behind(now=NOW) == FlushReport(applied=2)
    assert rows() == {"m1": [3, AT - 5, 12.5], "m2": [1, AT - 9, 1]}
    assert broker.xlen(STREAM) == 0
    version = FeatureRow.objects.get(group=MERCHANT_TRAFFIC.name, entity_id="m1").version
    put(broker, batch_of(["m1", 1, 0.5, AT - 1]))
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
    put(broker, batch_of(["m1", 1, 1.0, AT]))
    flush_write_behind(now=NOW)
    assert _held(keys) == {keys[1]}


def _held(keys: Sequence[Key]) -> set[Key]:
    found = wiring.engine().l2.peek_many(keys, policies_in_force().policies)
    return {key for key, entry in found.items() if isinstance(entry, Entry)}


def test_a_worker_that_dies_before_it_acknowledges_counts_nothing_twice(broker: redis.Redis, merchants: None) -> None:
    """Its batch is found again, is known, and only its copies are dropped once more."""
    put(broker, payload := batch_of(["m1", 1, 1.0, AT]))
    flush._ensure_group(broker)
    assert broker.xreadgroup(flush.GROUP, flush._CONSUMER, {STREAM: ">"})
    assert flush._apply(msgspec.msgpack.decode(payload, type=Batch), NOW)
    key = Key("merchant", "m1", MERCHANT_TRAFFIC.name)
    write_through({key: Entry(1, AT, wiring.engine().clock.now(), (0.0, 0.0, 0.0))}, write_leases([key]))
    assert flush_write_behind(now=NOW) == FlushReport(), "it may still be at work"
    assert flush_write_behind(now=NOW, claim_after_s=0) == FlushReport(duplicates=1)
    assert rows() == {"m1": [1, AT, 1]}
    assert _held([key]) == set()
    assert (broker.xlen(STREAM), broker.xpending(STREAM, flush.GROUP)["pending"]) == (0, 0)


def test_a_worker_that_dies_before_it_commits_loses_nothing(broker: redis.Redis, merchants: None) -> None:
    """The next one does the work."""
    put(broker, batch_of(["m1", 1, 1.0, AT]))
    flush._ensure_group(broker)
    broker.xreadgroup(flush.GROUP, flush._CONSUMER, {STREAM: ">"})
    assert flush_write_behind(now=NOW, claim_after_s=0) == FlushReport(applied=1)
    assert rows() == {"m1": [1, AT, 1]}


def test_flushes_at_the_same_time_count_each_batch_once(broker: redis.Redis, merchants: None) -> None:
    """Also when they take each other's batches away."""
    for number in range(60):
        put(broker, batch_of(*([f"m{place}", 1, 2.0, AT + number] for place in range(9, -1, -1))))
    in_parallel(*[lambda: flush_write_behind(now=NOW + timedelta(minutes=5), claim_after_s=0)] * 3)
    assert rows() == {f"m{place}": [60, AT + 59, 120] for place in range(10)}
    assert FlushedBatch.objects.count() == 60


_GOOD = ["m1", 1, 1.0, AT]


HOSTILE: dict[str, tuple[dict[Any, Any], str]] = {
    "no batch": ({"other": b"x"}, "malformed"),
    "no msgpack": ({FIELD: b"\xc1\xff"}, "malformed"),
    "torn": ({FIELD: batch_of(["m1", 1, 1.0, AT])[:-3]}, "malformed"),
    "too deep": ({FIELD: b"\x91" * 5_000}, "invalid"),
    "a megabyte": ({FIELD: b"\x00" * 1_000_000}, "too_large"),
    "not an array": ({FIELD: encode(7)}, "invalid"),
    "no id": ({FIELD: encode(["nobody", [_GOOD]])}, "invalid"),
    "no deltas": ({FIELD: batch_of()}, "invalid"),
    "more deltas than one batch has": ({FIELD: batch_of(*[_GOOD] * (write_behind.MERCHANTS_PER_BATCH + 1))}, "invalid"),
    "amount is no number": ({FIELD: batch_of(["m1", 1, float("nan"), AT])}, "invalid"),
    "amount without end": ({FIELD: batch_of(["m1", 1, float("inf"), AT])}, "invalid"),
    "negative amount": ({FIELD: batch_of(["m1", 1, -5.0, AT])}, "invalid"),
    "negative count": ({FIELD: batch_of(["m1", -1, 5.0, AT])}, "invalid"),
    "count is text": ({FIELD: batch_of(["m1", "1", 5.0, AT])}, "invalid"),
    "moment is no number": ({FIELD: batch_of(["m1", 1, 5.0, float("nan")])}, "invalid"),
    "moment in the future": ({FIELD: batch_of(["m1", 1, 5.0, AT + 3_600])}, "invalid"),
    "id that text in Postgres cannot hold": ({FIELD: batch_of(["m\x00", 1, 5.0, AT])}, "invalid"),
    "id that no merchant has": ({FIELD: batch_of(["m" * 65, 1, 5.0, AT])}, "invalid"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_entry_that_is_no_batch_is_counted_and_stops_nobody(broker: redis.Redis, merchants: None, what: str) -> None:
    """It is acknowledged and gone; the batches around it are applied."""
    fields, reason = HOSTILE[what]
    before = dropped(reason)
    put(broker, batch_of(_GOOD))
    broker.xadd(STREAM, fields)
    put(broker, batch_of(_GOOD))
    assert flush_write_behind(now=NOW) == FlushReport(applied=2, dropped=1)
    assert rows() == {"m1": [2, AT, 2]}
    assert dropped(reason) - before == 1
    assert (broker.xlen(STREAM), broker.xpending(STREAM, flush.GROUP)["pending"]) == (0, 0)


def test_a_merchant_that_the_ledger_lacks_gets_no_row(broker: redis.Redis, merchants: None) -> None:
    """Whoever can write to the stream cannot fill Postgres with ids; the others of the batch are counted."""
    before = dropped("unknown_merchant")
    put(broker, batch_of(["nobody", 1, 1.0, AT], ["m3", 1, 1.0, AT]))
    assert flush_write_behind(now=NOW) == FlushReport(applied=1)
    assert rows() == {"m3": [1, AT, 1]}
    assert dropped("unknown_merchant") - before == 1


def test_rows_are_locked_in_key_order(broker: redis.Redis, merchants: None) -> None:
    """Bytewise and whatever the batch's order, so that two workers never wait for each other in a circle."""
    names = [f"{letter}{number}" for number in range(60) for letter in "bAZa"]
    record([payment(f"p-{name}", START, merchant=name) for name in names])
    put(broker, batch_of(*([name, 1, 1.0, AT] for name in names)))
    flush_write_behind(now=NOW)
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT entity_id FROM features_featurerow WHERE "group" = %s ORDER BY ctid', ["merchant_traffic"]
        )
        assert [name for (name,) in cursor.fetchall()] == sorted(names)


def test_a_merchants_first_row_is_announced(broker: redis.Redis, merchants: None) -> None:
    """To the filters of existing ids, once."""
    existence.forget()  # with what an earlier test could not announce
    existence.build(clock=SystemClock())
    before = wiring.l2_client().xlen(ANNOUNCED)
    for _ in range(2):
        put(broker, batch_of(["m1", 1, 1.0, AT], ["m2", 1, 1.0, AT]))
        flush_write_behind(now=NOW)
    assert wiring.l2_client().xlen(ANNOUNCED) == before + 1
    existence.forget()


def test_a_merchant_twice_in_one_batch_adds_up(broker: redis.Redis, merchants: None) -> None:
    """No process of ours does that."""
    put(broker, batch_of(["m1", 1, 1.0, AT], ["m1", 2, 3.0, AT - 1]))
    flush_write_behind(now=NOW)
    assert rows() == {"m1": [3, AT, 4]}


def test_a_deleted_or_torn_row_begins_anew(broker: redis.Redis, merchants: None) -> None:
    """Numbers that are missing count as 0."""
    FeatureRow.objects.create(
        group=MERCHANT_TRAFFIC.name, entity_id="m1", values=[9.0, AT, 9.0], as_of=NOW, deleted_at=NOW
    )
    FeatureRow.objects.create(group=MERCHANT_TRAFFIC.name, entity_id="m2", values=[4.0], as_of=NOW)
    put(broker, batch_of(["m1", 1, 1.0, AT], ["m2", 1, 1.0, AT]))
    flush_write_behind(now=NOW)
    assert rows() == {"m1": [1, AT, 1], "m2": [5, AT, 1]}


def test_a_batch_that_was_read_once_and_is_a_day_old_is_dropped(broker: redis.Redis, merchants: None) -> None:
    """Its id is forgotten, so nobody knows whether it was counted; one that nobody has read is counted at any age."""
    old = int((NOW - flush.KEPT - timedelta(seconds=1)).timestamp() * 1000)
    broker.xadd(STREAM, {FIELD: batch_of(_GOOD)}, id=f"{old}-1")
    flush._ensure_group(broker)
    broker.xreadgroup(flush.GROUP, flush._CONSUMER, {STREAM: ">"})
    broker.xadd(STREAM, {FIELD: batch_of(_GOOD)}, id=f"{old}-2")
    before = dropped("expired")
    assert flush_write_behind(now=NOW, claim_after_s=0) == FlushReport(applied=1, dropped=1)
    assert rows() == {"m1": [1, AT, 1]}
    assert dropped("expired") - before == 1


def test_ids_are_forgotten_after_a_day(broker: redis.Redis, merchants: None) -> None:
    """And not before."""
    put(broker, batch_of(_GOOD))
    flush_write_behind(now=NOW)
    flush_write_behind(now=NOW + flush.KEPT)
    assert FlushedBatch.objects.count() == 1
    flush_write_behind(now=NOW + flush.KEPT + timedelta(seconds=1))
    assert FlushedBatch.objects.count() == 0
