"""L2 on a cluster: slots move, primaries die, and every read has the right values."""

import time
from collections.abc import Iterator
from itertools import cycle

import pytest
from django.test import override_settings
from redis.crc import key_slot

from features.vectors import invalidate_entity
from mlserve.cache.keys import names_of
from mlserve.cache.outcome import Tier
from mlserve.cache.wiring import engine
from mlserve.settings.redis_url import CLUSTER_PARTITIONS
from tests.cache.wire_contract import l2_at
from tests.faults.topology_reads import PAIRS, Reads
from tests.fixtures.population import World
from tests.fixtures.topologies import PRIMARIES, ClusterTopology, Load, ValkeyNode
from tests.fixtures.waiting import until

FAILOVER_LIMIT_S = 10.0
"""Silence of 0.5 s and an election take one to two."""


@pytest.fixture
def reads(world: World, cluster_topology: ClusterTopology) -> Iterator[Reads]:
    """L2 has every pair, on the replicas as well."""
    with override_settings(CACHE_PARTITIONS=CLUSTER_PARTITIONS), l2_at(cluster_topology.url, timeout_s=0.05):
        reads = Reads(world)
        reads.warm()
        cluster_topology.wait_for_replicas()
        yield reads


def _record(kind: str, entity_id: str) -> bytes:
    return names_of(kind, entity_id, CLUSTER_PARTITIONS).record


def _slots_of(topology: ClusterTopology, node: ValkeyNode) -> list[int]:
    """Of the partitions that a node owns."""
    tags = [b"{%d}" % partition for partition in range(CLUSTER_PARTITIONS)]
    return [key_slot(tag) for tag in tags if topology.owner(tag) is node]


def test_entities_are_spread_over_all_primaries(reads: Reads, cluster_topology: ClusterTopology) -> None:
    """Each node has some of them; the wire has a breaker for each."""
    owners = {cluster_topology.owner(_record("customer", customer)).port for customer, _ in PAIRS}
    assert len(owners) == PRIMARIES
    assert len(engine().wire.breakers) == PRIMARIES


def test_reads_go_on_while_slots_move(reads: Reads, cluster_topology: ClusterTopology) -> None:
    """All partitions of one node go to another and back, with their keys; no read fails or returns another value."""
    source, target = cluster_topology.primaries()[:2]
    slots = _slots_of(cluster_topology, source)
    assert slots
    pairs = cycle(PAIRS)
    with Load(lambda: reads.check(next(pairs))) as load:
        until(lambda: load.calls > 20)
        cluster_topology.reshard(slots, source, target)
        seen = load.calls
        until(lambda: load.calls > seen + 20)
        cluster_topology.reshard(slots, target, source)
    until(lambda: reads.tiers() == {Tier.L2})


@pytest.mark.parametrize("loss", ["kill", "freeze"])
def test_reads_go_on_while_a_replica_takes_over(reads: Reads, cluster_topology: ClusterTopology, loss: str) -> None:
    """What the lost primary held is read from the source, and from L2 again once its replica is primary."""
    victim = cluster_topology.owner(_record("customer", PAIRS[0][0]))
    pairs = cycle(PAIRS)
    with Load(lambda: reads.check(next(pairs))) as load:
        until(lambda: load.calls > 20)
        lost_at = time.monotonic()
        getattr(victim, loss)()
        until(lambda: Tier.L3 in reads.check(PAIRS[0]))
        until(lambda: reads.tiers() == {Tier.L2}, within_s=FAILOVER_LIMIT_S)
        print(f"\nCluster, {loss}: L2 back after {time.monotonic() - lost_at:.1f} s, slowest {reads.slowest_s:.3f} s")
    assert f"l2:{victim.address}" not in engine().wire.breakers


def test_a_primary_without_a_replica_takes_only_its_own_part(reads: Reads, cluster_topology: ClusterTopology) -> None:
    """The other nodes go on answering; when it comes back, empty, it is filled again."""
    victim = cluster_topology.owner(_record("customer", PAIRS[0][0]))
    cluster_topology.replica_of(victim).kill()
    victim.kill()
    until(lambda: reads.check(PAIRS[0]) and f"l2:{victim.address}" in _open())
    tiers = [reads.check(pair) for pair in PAIRS]
    assert {Tier.L2, Tier.L3} == set().union(*tiers)
    assert _open() == {f"l2:{victim.address}"}
    cluster_topology.mend()
    until(lambda: reads.tiers() == {Tier.L2})
    assert not _open()


def test_an_invalidation_during_the_failover_reaches_the_new_primary(
    reads: Reads, cluster_topology: ClusterTopology
) -> None:
    """The replica has the copy that must go; it is gone once nothing is pending."""
    customer, merchant = PAIRS[0]
    cluster_topology.owner(_record("customer", customer)).kill()
    assert not invalidate_entity(entity="customer", entity_id=customer)["delivered"]
    until(lambda: len(engine().pending) == 0, within_s=FAILOVER_LIMIT_S)
    assert Tier.L3 in reads.check((customer, merchant))


def _open() -> set[str]:
    return {breaker.name for breaker in engine().wire.breakers.values() if breaker.state.value}
