"""L2 behind Sentinels: the primary is lost under load, and scores go on as if nothing were."""

import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest

from features.vectors import invalidate_entity
from mlserve.cache.breaker import State
from mlserve.cache.outcome import Tier
from mlserve.cache.wiring import engine, l2_client
from tests.cache.wire_contract import l2_at
from tests.faults.topology_reads import PAIRS, Reads
from tests.fixtures.population import World
from tests.fixtures.topologies import Load, SentinelTopology
from tests.fixtures.waiting import until

FAILOVER_LIMIT_S = 10.0
"""Silence of 0.5 s, an election and a promotion take two to four; then the next probe finds the new primary."""


@pytest.fixture
def reads(world: World, sentinel_topology: SentinelTopology) -> Iterator[Reads]:
    """L2 has every pair, on the replica as well."""
    with l2_at(sentinel_topology.url, timeout_s=0.05):
        reads = Reads(world)
        reads.warm()
        sentinel_topology.wait_for_replica()
        yield reads


@pytest.mark.parametrize("loss", ["kill", "freeze"])
def test_scores_go_on_while_a_replica_takes_over(
    world: World, reads: Reads, sentinel_topology: SentinelTopology, loss: str
) -> None:
    """Not one fails, each has the values it had before, and L2 answers again after the failover."""
    options = "include=features,trace&dry_run=true"
    expected = world.score(options).values

    def score() -> None:
        world.forget_l1()
        answer = world.score(options)
        assert answer.status == 200
        assert answer.values == pytest.approx(expected, abs=1e-3)
        assert answer.seconds < 2.0

    with Load(score) as load:
        until(lambda: load.calls > 10)
        lost = sentinel_topology.primary
        lost_at = time.monotonic()
        getattr(lost, loss)()
        until(lambda: engine().l2_breaker.state is not State.CLOSED)
        until(lambda: engine().l2_breaker.state is State.CLOSED, within_s=FAILOVER_LIMIT_S)
        print(f"\nSentinel, {loss}: L2 back after {time.monotonic() - lost_at:.1f} s")
        seen = load.calls
        until(lambda: load.calls > seen + 10)
    assert sentinel_topology.primary is not lost
    assert reads.tiers() == {Tier.L2}


def test_an_invalidation_during_the_failover_reaches_the_new_primary(
    reads: Reads, sentinel_topology: SentinelTopology
) -> None:
    """The replica has the copy that must go; it is gone once nothing is pending."""
    customer, merchant = PAIRS[0]
    sentinel_topology.kill_primary()
    assert not invalidate_entity(entity="customer", entity_id=customer)["delivered"]
    until(lambda: len(engine().pending) == 0, within_s=FAILOVER_LIMIT_S)
    assert Tier.L3 in reads.check((customer, merchant))


def test_reads_go_on_while_an_operator_changes_the_primary(reads: Reads, sentinel_topology: SentinelTopology) -> None:
    """The old one works on for a while; within a second or so this process uses the new one."""
    pairs = cycle(PAIRS)
    with Load(lambda: reads.check(next(pairs)), threads=1):
        sentinel_topology.failover()
        port = sentinel_topology.primary.port
        until(lambda: _pool().master_address == ("127.0.0.1", port), within_s=5.0)
    until(lambda: reads.tiers() == {Tier.L2})


def _pool() -> Any:
    return l2_client().connection_pool
