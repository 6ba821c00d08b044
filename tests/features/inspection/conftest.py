"""A cache to be inspected: the population's world, a relay, a writer nobody hears of, and time that passes at will."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings
from django.db import connection

from features.inspection.inspector import Inspector
from features.inspection.wiring import make_inspector
from features.models import InspectionCount, InspectionCursor, InspectionFinding, InspectionMark
from features.policies import policies_in_force
from features.vectors import read_groups
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason, Outcome
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from tests.features.sessions import conninfo
from tests.fixtures.population import World
from tests.fixtures.relaying import relaying
from tests.fixtures.waiting import until

GROUP = "merchant_risk"
_WRITE = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES (%s, %s, %s, now())
ON CONFLICT ("group", entity_id) DO UPDATE SET "values" = excluded."values", as_of = excluded.as_of RETURNING version
"""
_numbers = count(1)


class Bench:
    """`key` is new in every test; `client` speaks to L2 behind the engine's back."""

    def __init__(self, world: World, client: redis.Redis, session: "psycopg.Connection[Any]") -> None:
        self.world = world
        self.client = client
        self.session = session
        self.key = Key("merchant", f"inspected-{next(_numbers)}", GROUP)

    @property
    def inspector(self) -> Inspector:
        return make_inspector()

    def other_key(self) -> Key:
        return Key("merchant", f"inspected-{next(_numbers)}", GROUP)

    def write(self, number: float, key: Key | None = None) -> int:
        """Changes the row as psql does; returns its version once it is acknowledged."""
        key = key or self.key
        row = self.session.execute(_WRITE, (key.group, key.id, [number] * 6)).fetchone()
        assert row is not None
        return int(row[0])

    def read(self, key: Key | None = None) -> Outcome:
        """As a score does; what was loaded is in L2 when this returns."""
        key = key or self.key
        reading = read_groups(
            {key.group: key}, book=policies_in_force(), request=RequestTier(), budget=engine().budget()
        )
        self.world.settle()
        return reading.outcomes[key]

    def plant(self, version: int, number: float, key: Key | None = None) -> None:
        """A record in L2 that is good in every way but for what it says."""
        key = key or self.key
        cache, policies = engine(), policies_in_force().policies
        self.client.hdel(self.record(key), key.group)
        leases = cache.l2.lease_for_write([key.entity], timeout_s=5.0)
        now = cache.clock.now()
        assert cache.l2.fill_many({key: Entry(version, now, now, (float(number),) * 6, 0.0, now)}, policies, leases)
        assert isinstance(cache.l2.peek_many([key], policies)[key], Entry)

    def record(self, key: Key | None = None) -> bytes:
        key = key or self.key
        return names_of(key.kind, key.id, settings.CACHE_PARTITIONS).record

    def in_l2(self, key: Key | None = None) -> Entry | MissReason:
        key = key or self.key
        return engine().l2.peek_many([key], policies_in_force().policies)[key]

    def in_l1(self, key: Key | None = None) -> Entry | None:
        found: Entry | None = engine().l1.store.peek(key or self.key)
        return found

    def told(self, version: int, key: Key | None = None) -> None:
        """Returns when the relay has told L2 of this version, and what is vouched for covers it."""
        self.settled(key)
        until(lambda: not isinstance(held := self.in_l2(key), Entry) or held.version >= version)

    def settled(self, key: Key | None = None) -> None:
        """Returns when the watermark sees all that has been committed by now."""
        (now,) = self.session.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone() or (0.0,)
        until(lambda: _safe_time(self.client) > now)

    def grow_old(self, seconds: float) -> None:
        """As if all that was written and looked at until now had been so much earlier."""
        for table in ("features_journal", "features_inspectioncursor", "features_inspectionmark"):
            self.session.execute(f"UPDATE {table} SET at = at - %s * interval '1 second'", (seconds,))

    def look_after(self, seconds: float, inspector: Inspector | None = None) -> Inspector:
        """A look at what is due when what was written has become so old."""
        inspector = inspector or self.inspector
        inspector.look()  # leaves a mark behind the writes
        self.grow_old(seconds)
        inspector.look()
        return inspector


def _safe_time(client: redis.Redis) -> float:
    held = client.get(names_of("merchant", "", 1).watermark)
    return float(held.split(b"|")[2]) if isinstance(held, bytes) else 0.0


@pytest.fixture
def bench(world: World, redis_client: redis.Redis) -> Iterator[Bench]:
    """Nothing was ever inspected; freshness goes by age."""
    _forget()
    with closing(psycopg.connect(conninfo(), autocommit=True)) as session:
        found = Bench(world, redis_client, session)
        found.inspector.look()  # the cursors begin here
        yield found
    _forget()


@pytest.fixture
def proven(bench: Bench) -> Iterator[Bench]:
    """A relay runs, and the group's freshness is proven."""
    bench.world.edit_policy(GROUP, freshness="proven")
    with relaying():
        yield bench


def _forget() -> None:
    for model in (InspectionMark, InspectionCursor, InspectionCount, InspectionFinding):
        model.objects.all().delete()


def fetch(sql: str, *parameters: Any) -> Sequence[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return list(cursor.fetchall())
