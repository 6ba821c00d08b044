"""Freshness that is proven, on real servers: writers nobody hears of, a relay, readers through the real cascade."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec
import psycopg
import pytest
from django.conf import settings
from django.db import connections

from features.policies import policies_in_force
from features.vectors import read_groups
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Outcome, Tier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.wiring import engine
from tests.features.sessions import conninfo
from tests.fixtures.population import World
from tests.fixtures.relaying import relaying
from tests.fixtures.waiting import until

GROUP = "merchant_risk"
ENTITIES = [f"proof-{number}" for number in range(6)]
_WRITE = """
INSERT INTO features_featurerow ("group", entity_id, "values", as_of) VALUES (%s, %s, %s, now())
ON CONFLICT ("group", entity_id) DO UPDATE SET "values" = excluded."values", as_of = excluded.as_of RETURNING version
"""
Write = Callable[[str, float], int]


@pytest.fixture
def write(world: World) -> Iterator[Write]:
    """Changes a row behind the application's back, as psql does; returns the version once it is acknowledged."""
    with closing(psycopg.connect(conninfo(), autocommit=True)) as connection:

        def write(entity_id: str, number: float) -> int:
            row = connection.execute(_WRITE, (GROUP, entity_id, [number] * 6)).fetchone()
            assert row is not None
            return int(row[0])

        yield write


def _read(entity_id: str) -> Outcome:
    key = Key("merchant", entity_id, GROUP)
    reading = read_groups({GROUP: key}, book=policies_in_force(), request=RequestTier(), budget=engine().budget())
    return reading.outcomes[key]


def test_a_change_behind_the_applications_back_is_seen_within_the_bound(world: World, write: Write) -> None:
    """Whatever tier answers: once the bound has passed, no copy of before is served as fresh."""
    world.edit_policy(GROUP, freshness="proven")
    with relaying():
        write(ENTITIES[0], 1)
        until(lambda: _read(ENTITIES[0]).tier in (Tier.L1, Tier.L2))
        version = write(ENTITIES[0], 2)
        acknowledged = time.monotonic()
        while time.monotonic() < acknowledged + 1.5 * settings.FRESHNESS_BOUND_S:
            began = time.monotonic()
            outcome = _read(ENTITIES[0])
            assert outcome.version == version or began <= acknowledged + settings.FRESHNESS_BOUND_S
            assert outcome.values == ((2.0,) * 6 if outcome.version == version else (1.0,) * 6)
        assert _read(ENTITIES[0]).version == version
        until(lambda: _read(ENTITIES[0]).tier in (Tier.L1, Tier.L2))


def test_without_a_relay_postgres_answers(world: World, write: Write) -> None:
    """Nothing is flagged, since nothing is stale. L2's copies do not count any more; what was read from PostgreSQL
    counts in this process for as long as the bound."""
    world.edit_policy(GROUP, freshness="proven")
    with relaying():
        write(ENTITIES[1], 1)
        until(lambda: _read(ENTITIES[1]).tier in (Tier.L1, Tier.L2))
    until(lambda: _read(ENTITIES[1]).tier is Tier.L3)
    version = write(ENTITIES[1], 2)
    acknowledged = time.monotonic()
    tiers = set()
    while time.monotonic() < acknowledged + 1.5 * settings.FRESHNESS_BOUND_S:
        began = time.monotonic()
        outcome = _read(ENTITIES[1])
        tiers.add(outcome.tier)
        assert not outcome.stale
        assert outcome.version == version or began <= acknowledged + settings.FRESHNESS_BOUND_S
    assert tiers == {Tier.L1, Tier.L3}


@pytest.mark.quiet
def test_a_score_finds_its_customers_activity_in_l2(world: World) -> None:
    """It was written through with the writer's lease: the next score need not read Postgres."""
    world.edit_policy("customer_activity", freshness="proven")
    customer = world.newcomer()
    with relaying():
        world.score(customer_id=customer)
        world.settle()
        second = world.score(customer_id=customer)
        assert second.values["customer_count_1d"] == 2
        assert second.tiers["customer_count_1d"] == "l2"


class Seen(msgspec.Struct):
    """What a reader was told, unflagged: when it began to ask, and the version."""

    entity_id: str
    began: float
    version: int
    value: float
    tier: Tier


class Written(msgspec.Struct):
    version: int
    value: float
    acknowledged: float


def _contend(seconds: float) -> tuple[list[Seen], dict[str, list[Written]]]:
    """Two writers and three readers at once; the history of both."""
    seen: list[Seen] = []
    written: dict[str, list[Written]] = {entity_id: [] for entity_id in ENTITIES}
    ends = time.monotonic() + seconds

    def writing(seed: int) -> None:
        source = random.Random(seed)
        mine = ENTITIES[seed::2]
        with closing(psycopg.connect(conninfo(), autocommit=True)) as connection:
            while time.monotonic() < ends:
                entity_id, value = source.choice(mine), float(source.getrandbits(32))
                row = connection.execute(_WRITE, (GROUP, entity_id, [value] * 6)).fetchone()
                assert row is not None
                written[entity_id].append(Written(int(row[0]), value, time.monotonic()))
                time.sleep(source.uniform(0, 0.1))

    def reading(seed: int) -> None:
        source = random.Random(seed)
        try:
            while time.monotonic() < ends:
                entity_id, began = source.choice(ENTITIES), time.monotonic()
                outcome = _read(entity_id)
                if outcome.values is not None and not outcome.stale:
                    seen.append(Seen(entity_id, began, outcome.version, outcome.values[0], outcome.tier))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=writing, args=(seed,)) for seed in (0, 1)]
    threads += [threading.Thread(target=reading, args=(seed,)) for seed in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen, written


def _over_bound(seen: list[Seen], written: dict[str, list[Written]], bound_s: float) -> int:
    """Unflagged reads that missed a write which was acknowledged longer than the bound before they began."""
    count = 0
    for read in seen:
        count += any(
            write.version > read.version and write.acknowledged < read.began - bound_s
            for write in written[read.entity_id]
        )
    return count


@pytest.mark.quiet
def test_no_unflagged_read_is_older_than_the_bound(world: World, write: Write) -> None:
    """Under writers whom the application does not hear of; with wrong values none at all.

    The same readers without proof, whom only their TTL protects, are over the bound: the check can fail.
    """
    for number, entity_id in enumerate(ENTITIES):
        write(entity_id, number)
    world.edit_policy(GROUP, freshness="ttl")
    seen, written = _contend(2.5)
    assert _over_bound(seen, written, settings.FRESHNESS_BOUND_S) > 0
    world.edit_policy(GROUP, freshness="proven")
    with relaying():
        seen, written = _contend(5.0)
    assert _over_bound(seen, written, settings.FRESHNESS_BOUND_S) == 0
    values = {(entity_id, each.version): each.value for entity_id in ENTITIES for each in written[entity_id]}
    assert all(values.get((read.entity_id, read.version), read.value) == read.value for read in seen)
    tiers = {tier: sum(read.tier is tier for read in seen) for tier in (Tier.L1, Tier.L2, Tier.L3)}
    assert tiers[Tier.L1] + tiers[Tier.L2] > len(seen) / 2


def test_l1_follows_the_batches_and_needs_nobody_else(world: World, write: Write) -> None:
    """Beyond the bound a copy in this process still serves; a change takes it out; a fork's child begins anew."""
    world.edit_policy(GROUP, freshness="proven")
    with relaying():
        write(ENTITIES[2], 1)
        until(lambda: _read(ENTITIES[2]).tier is Tier.L1)
        filled, ends = time.monotonic(), time.monotonic() + 2 * settings.FRESHNESS_BOUND_S
        tiers = []
        while time.monotonic() < ends:
            tiers.append(_read(ENTITIES[2]).tier)
        beyond = tiers[len(tiers) // 2 :]
        assert beyond.count(Tier.L1) > 0.9 * len(beyond), (filled, Counter(tiers))
        key = Key("merchant", ENTITIES[2], GROUP)
        parent = engine()
        assert _in_a_forked_child(lambda: engine().chain is not parent.chain and engine().l1.store.peek(key) is None)
        version = write(ENTITIES[2], 2)
        until(lambda: engine().l1.store.peek(key) is None or engine().l1.store.peek(key).version == version)
        assert _read(ENTITIES[2]).version == version


def _in_a_forked_child(holds: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if holds() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
