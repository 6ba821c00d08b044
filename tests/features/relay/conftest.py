"""A relay on real servers, with an empty journal and an empty cache, and writers that it is to tell of."""

import random
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import psycopg
import pytest
import redis
from django.db import connection

from features.journal import Journal
from features.relay import Relay
from mlserve.cache import codec
from mlserve.cache.clock import SystemClock
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.tiers.batches import Answer, Applied, Batches, Step
from mlserve.cache.watermark import Watermark, name_of, parse
from tests.cache.wire_contract import wire_to_l2
from tests.features.sessions import conninfo
from tests.fixtures.waiting import until

GROUP = "merchant_risk"


WM = name_of(0)


WRITE = """
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
    execute("DELETE FROM features_journal")
    execute("DELETE FROM features_cachepartition")
    yield redis_client
    execute("DELETE FROM features_cachepartition")


def make_relay(batches: Batches | None = None, partitions: int = 1) -> Relay:
    clock = SystemClock()
    return Relay(journal=Journal(), batches=batches or Batches(wire_to_l2(clock)), partitions=partitions, clock=clock)


def execute(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


def fetch(sql: str, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall()


def write(entity_id: str) -> int:
    ((version,),) = fetch(WRITE, entity_id)
    return int(version)


def hold(client: redis.Redis, entity_id: str, version: int) -> bytes:
    """A copy of the value, as a reader puts it there."""
    names = names_of("merchant", entity_id, 1)
    record = codec.encode(Key("merchant", entity_id, GROUP), names.digest, 1, Entry(version, 1.0, time.time(), (1.0,)))
    client.hset(names.record, GROUP, record)
    return record


def copy_of(client: redis.Redis, entity_id: str) -> bytes | None:
    return cast("bytes | None", client.hget(names_of("merchant", entity_id, 1).record, GROUP))


def is_tombstone(client: redis.Redis, entity_id: str, version: int) -> bool:
    record = copy_of(client, entity_id)
    return record is not None and record[8:9] == b"T" and record[:8] == version.to_bytes(8, "big")


def mark_in(client: redis.Redis, partition: int = 0) -> Watermark:
    mark = parse(client.get(name_of(partition)) or b"")
    assert mark is not None
    return mark


def keep_writing(number: int, stopped: threading.Event, committed: list[str], rolled_back: list[str]) -> None:
    random_source = random.Random(number)
    with psycopg.connect(conninfo()) as session:
        place = 0
        while not stopped.is_set():
            place += 1
            name = f"w{number}-{place}"
            session.execute(WRITE, (name,))
            if random_source.random() < 0.1:  # a long one: several ticks pass
                stopped.wait(random_source.uniform(0.0, 0.3))
            if random_source.random() < 0.2:
                session.execute("SAVEPOINT inner_one")
                session.execute(WRITE, (f"{name}-taken-back",))
                rolled_back.append(f"{name}-taken-back")
                session.execute("ROLLBACK TO inner_one")
            if random_source.random() < 0.25:
                session.rollback()
                rolled_back.append(name)
            else:
                session.commit()
                committed.append(name)


@pytest.fixture
def running(empty: redis.Redis) -> Iterator[Relay]:
    """A relay in a thread of its own."""
    relay, stopped = make_relay(), threading.Event()
    thread = threading.Thread(target=relay.run, args=(stopped,), kwargs={"tick_s": 0.01})
    thread.start()
    yield relay
    stopped.set()
    thread.join()


def is_fresh(client: redis.Redis, since: float) -> bool:
    """Whether the watermark was moved on after `since`."""
    try:
        mark = parse(client.get(WM) or b"")
    except redis.RedisError:
        return False
    return mark is not None and mark.safe_time > since


def wait_until_it_goes_on(client: redis.Redis) -> None:
    now = time.time()
    until(lambda: is_fresh(client, now), within_s=60)
