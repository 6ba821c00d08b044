"""Brings the batches of the write-behind stream into Postgres, each of them exactly once.

The stream delivers at least once: a worker that dies with a batch in hand leaves it pending, and another one claims it.
So the batch's id goes into a table in the same database transaction as its numbers, and a batch whose id is there
already changes nothing. Copies are dropped before the batch is acknowledged: a worker that dies in between finds the
batch once more, as a duplicate, and drops them then.

    read -> one database transaction: id, numbers -> drop the copies -> acknowledge and delete

What lies in the stream is not believed. An entry that is no batch of ours is counted, acknowledged and deleted; it
never stops the entries behind it.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import cast

import msgspec
import redis
import structlog
from django.conf import settings
from django.db import connection, transaction
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.definitions import MERCHANT_TRAFFIC
from features.existence import announce
from features.models import FlushedBatch
from features.write_behind import FIELD, STREAM, Batch
from features.writes import drop_copies
from mlserve.cache.keys import Key
from mlserve.observability import metrics
from mlserve.postgres.retries import retry_contention
from mlserve.postgres.sessions import Kind, session_of

GROUP = "flush"
_CONSUMER = "worker"
"""One name for all workers: the server hands each entry to one of them, and names would only pile up."""
CLAIM_AFTER_S = 30.0
"""A batch that was read so long ago and not acknowledged belonged to a worker that is gone."""
KEPT = timedelta(days=1)
"""How long an id is known. A batch that was read before and comes back later than that may have been counted."""
MOST_BYTES = 256_000
MOST_PER_RUN = 2_000
_PER_TRIP = 20
_BROKER_TIMEOUT_S = 5.0
_CLOCK_SKEW_S = 60.0
_log = structlog.get_logger(__name__)
_decoder = msgspec.msgpack.Decoder(Batch)


class FlushReport(msgspec.Struct, kw_only=True):
    """What a run found in the stream, in batches. `dropped`: entries that are no batch, or too late to tell."""

    applied: int = 0
    duplicates: int = 0
    dropped: int = 0


class _Entry(msgspec.Struct, frozen=True):
    """`claimed`: somebody has read it before, and may have counted it."""

    id: bytes
    fields: dict[bytes, bytes]
    claimed: bool

    @property
    def appended_at(self) -> float:
        """Seconds since 1970, by the broker's clock."""
        return int(self.id.partition(b"-")[0]) / 1000


class _Unacceptable(Exception):
    """`reason` becomes a metric label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def flush_write_behind(*, now: datetime, claim_after_s: float = CLAIM_AFTER_S) -> FlushReport:
    """Flushes what is in the stream, at most `MOST_PER_RUN` batches.

    Safe to repeat and to run several times at once. Raises RedisError or Django's database errors; what was not
    acknowledged by then is found again by a run after `claim_after_s`.
    """
    report = FlushReport()
    with _client() as client, session_of(Kind.BACKGROUND):
        _ensure_group(client)
        for entry in _entries(client, claim_after_s):
            try:
                _flush(entry, now, report)
            except _Unacceptable as refusal:
                metrics.WRITE_BEHIND_DROPPED.labels(refusal.reason).inc()
                report.dropped += 1
            client.pipeline(transaction=False).xack(STREAM, GROUP, entry.id).xdel(STREAM, entry.id).execute()
        # After reading: as long as a batch may lie in the stream twice, its id must be known.
        FlushedBatch.objects.filter(flushed_at__lt=now - KEPT).delete()
    if report.dropped:
        _log.warning("write_behind_refused", entries=report.dropped)
    return report


def _client() -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_BROKER_URL,
        socket_timeout=_BROKER_TIMEOUT_S,
        socket_connect_timeout=_BROKER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def _ensure_group(client: redis.Redis) -> None:
    try:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if str(error).startswith("BUSYGROUP"):
            return
        # No stream: somebody else's value under our name, which would stop all writing.
        client.unlink(STREAM)
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)


def _entries(client: redis.Redis, claim_after_s: float) -> Iterator[_Entry]:
    """First what other workers left, then what is new. An entry that is not acknowledged before the next is left."""
    found = 0
    cursor: bytes | str = "0-0"
    while found < MOST_PER_RUN:
        reply = client.xautoclaim(
            STREAM, GROUP, _CONSUMER, min_idle_time=int(claim_after_s * 1000), start_id=cursor, count=_PER_TRIP
        )
        cursor, claimed, *_ = cast("tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]", reply)
        found += len(claimed)
        yield from (_Entry(entry_id, fields, True) for entry_id, fields in claimed)
        if cursor == b"0-0":
            break
    while found < MOST_PER_RUN:
        streams = client.xreadgroup(GROUP, _CONSUMER, {STREAM: ">"}, count=_PER_TRIP)
        new = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", streams)
        if not new:
            return
        found += len(new[0][1])
        yield from (_Entry(entry_id, fields, False) for entry_id, fields in new[0][1])


def _flush(entry: _Entry, now: datetime, report: FlushReport) -> None:
    if entry.claimed and entry.appended_at < (now - KEPT).timestamp():
        raise _Unacceptable("expired")
    batch = _decode(entry.fields, now)
    applied = retry_contention(partial(_apply, batch, now), what="flush of the write-behind stream")
    drop_copies([Key(MERCHANT_TRAFFIC.entity, delta.merchant_id, MERCHANT_TRAFFIC.name) for delta in batch.deltas])
    metrics.WRITE_BEHIND_FLUSHED.labels("applied" if applied else "duplicate").inc()
    if applied:
        report.applied += 1
    else:
        report.duplicates += 1


def _decode(fields: dict[bytes, bytes], now: datetime) -> Batch:
    payload = fields.get(FIELD.encode())
    if payload is None:
        raise _Unacceptable("malformed")
    if len(payload) > MOST_BYTES:
        raise _Unacceptable("too_large")
    try:
        batch = _decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise _Unacceptable("invalid") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Unacceptable("malformed") from error
    # The newest moment is kept for good; one of the future would never be replaced.
    if max(delta.last_at for delta in batch.deltas) > now.timestamp() + _CLOCK_SKEW_S:
        raise _Unacceptable("invalid")
    return batch


def _apply(batch: Batch, now: datetime) -> bool:
    """One database transaction. False if the batch was applied before. Merchants that the ledger lacks get no row."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_REMEMBER, (batch.id, now))
        if not cursor.rowcount:
            return False
        cursor.execute(
            _ADD,
            {
                "ids": [delta.merchant_id for delta in batch.deltas],
                "scores": [float(delta.scores) for delta in batch.deltas],
                "moments": [delta.last_at for delta in batch.deltas],
                "amounts": [delta.amount for delta in batch.deltas],
                "now": now,
            },
        )
        written = cursor.fetchall()
        announce({MERCHANT_TRAFFIC.entity: [merchant_id for merchant_id, inserted in written if inserted]})
    unknown = len({delta.merchant_id for delta in batch.deltas}) - len(written)
    if unknown:
        metrics.WRITE_BEHIND_DROPPED.labels("unknown_merchant").inc(unknown)
    return True


_REMEMBER = "INSERT INTO features_flushedbatch (id, flushed_at) VALUES (%s, %s) ON CONFLICT (id) DO NOTHING"


def _held(place: int) -> str:
    """One of the stored numbers; a soft-deleted row comes back to life and begins anew."""
    return f'CASE WHEN stored.deleted_at IS NULL THEN coalesce(stored."values"[{place}], 0) ELSE 0 END'


# In key order, so that two workers never wait for each other in a circle. A row that was there before has the lock of
# ON CONFLICT in its xmax.
_ADD = f"""
INSERT INTO features_featurerow AS stored ("group", entity_id, "values", version, as_of, deleted_at)
SELECT '{MERCHANT_TRAFFIC.name}', delta.merchant_id, ARRAY[sum(delta.scores), max(delta.moment), sum(delta.amount)],
       0, %(now)s::timestamptz, NULL
FROM unnest(%(ids)s::text[], %(scores)s::float8[], %(moments)s::float8[], %(amounts)s::float8[])
     AS delta (merchant_id, scores, moment, amount)
WHERE EXISTS (SELECT FROM features_transaction WHERE merchant_id = delta.merchant_id)
GROUP BY delta.merchant_id
ORDER BY delta.merchant_id COLLATE "C"
ON CONFLICT ("group", entity_id)
DO UPDATE SET "values" = ARRAY[
                  {_held(1)} + excluded."values"[1],
                  greatest({_held(2)}, excluded."values"[2]),
                  {_held(3)} + excluded."values"[3]
              ],
              as_of = greatest(stored.as_of, excluded.as_of), deleted_at = NULL
RETURNING entity_id, stored.xmax = 0
"""
