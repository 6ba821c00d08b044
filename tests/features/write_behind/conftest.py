"""The stream of batches, a ledger with merchants, and what lies in both."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import redis
from django.db import connection
from prometheus_client import Counter

from features import policies
from features.definitions import MERCHANT_TRAFFIC
from features.models import FeatureRow
from features.write_behind import FIELD, STREAM, Batch
from mlserve.cache import wiring
from mlserve.console.figures import broker_client
from mlserve.observability import metrics
from tests.features.ledgers import START, payment, record

NOW = datetime(2026, 6, 1, tzinfo=UTC)


AT = NOW.timestamp()


encode = msgspec.msgpack.encode


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


def rows() -> dict[str, list[float]]:
    rows = FeatureRow.objects.filter(group=MERCHANT_TRAFFIC.name, deleted_at=None)
    return dict(rows.values_list("entity_id", "values"))


def batch_of(*deltas: list[Any], batch_id: UUID | None = None) -> bytes:
    return encode([str(batch_id or uuid4()), list(deltas)])


def put(broker: redis.Redis, *payloads: bytes) -> None:
    for payload in payloads:
        broker.xadd(STREAM, {FIELD: payload})


def batches_in(broker: redis.Redis) -> list[Batch]:
    entries: Any = broker.xrange(STREAM)
    return [msgspec.msgpack.decode(fields[FIELD.encode()], type=Batch) for _, fields in entries]


def dropped(reason: str) -> float:
    return _count(metrics.WRITE_BEHIND_DROPPED.labels(reason))


def _count(counter: Counter) -> float:
    return counter._value.get()


def in_parallel(*calls: Any) -> None:
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
