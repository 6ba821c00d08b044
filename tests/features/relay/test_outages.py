"""The relay while servers go away and change places."""

import pytest
import redis
from django.db import connections

from features.relay import Relay
from mlserve.cache.keys import names_of
from mlserve.cache.watermark import parse
from tests.cache.wire_contract import l2_at
from tests.features.relay.conftest import (
    GROUP,
    WM,
    fetch,
    is_fresh,
    is_tombstone,
    make_relay,
    mark_in,
    wait_until_it_goes_on,
    write,
)
from tests.fixtures.servers import ServerHandle
from tests.fixtures.topologies import ClusterTopology, SentinelTopology
from tests.fixtures.waiting import until


@pytest.mark.quiet
def test_a_restart_of_postgres_is_waited_for(empty: redis.Redis, running: Relay, postgres: ServerHandle) -> None:
    """kill -9 of the server: the chain goes on where it was, with the same epoch."""
    until(lambda: is_fresh(empty, 0))
    epoch = mark_in(empty).epoch
    connections.close_all()
    postgres.restart()
    wait_until_it_goes_on(empty)
    version = write("m1")
    until(lambda: is_tombstone(empty, "m1", version))
    assert mark_in(empty).epoch == epoch


def test_a_restart_of_the_cache_is_waited_for(empty: redis.Redis, running: Relay, valkey_cache: ServerHandle) -> None:
    """It comes back empty: a new epoch."""
    until(lambda: is_fresh(empty, 0))
    epoch = mark_in(empty).epoch
    valkey_cache.restart()
    wait_until_it_goes_on(empty)
    assert mark_in(empty).epoch > epoch


def test_a_frozen_cache_is_waited_for(empty: redis.Redis, running: Relay, valkey_cache: ServerHandle) -> None:
    """The step that was under way may have arrived or not; both are continued."""
    until(lambda: is_fresh(empty, 0))
    epoch = mark_in(empty).epoch
    valkey_cache.freeze()
    version = write("m1")
    steps = running.tally.ticks
    until(lambda: running.tally.ticks > steps + 5)
    valkey_cache.thaw()
    until(lambda: is_tombstone(empty, "m1", version))
    assert mark_in(empty).epoch == epoch


def test_a_cluster_is_told_through_its_nodes(empty: redis.Redis, cluster_topology: ClusterTopology) -> None:
    """Every partition has a watermark on the node of its records; a failover is followed."""
    partitions = 16
    with l2_at(cluster_topology.url):
        relay = make_relay(partitions=partitions)
        until(lambda: len(relay.tick()) == partitions)
        version = write("m1")
        until(lambda: relay.tick() == set(range(partitions)))
        names = names_of("merchant", "m1", partitions)
        owner = cluster_topology.owner(names.record)
        held = redis.Redis("127.0.0.1", owner.port, password=owner.client.connection_pool.connection_kwargs["password"])
        record = held.hget(names.record, GROUP)
        assert record is not None and record[:9] == version.to_bytes(8, "big") + b"T"
        epochs = {_fetch_epoch(partition) for partition in range(partitions)}
        cluster_topology.wait_for_replicas()
        cluster_topology.failover(cluster_topology.replica_of(owner))
        until(lambda: relay.tick() == set(range(partitions)))
        assert {_fetch_epoch(partition) for partition in range(partitions)} == epochs


def _fetch_epoch(partition: int) -> tuple[int, int]:
    ((epoch,),) = fetch("SELECT epoch FROM features_cachepartition WHERE partition = %s", partition)
    return partition, epoch


def test_a_primary_that_sentinel_replaces_is_followed(empty: redis.Redis, sentinel_topology: SentinelTopology) -> None:
    """What the new primary has not heard is told again."""
    with l2_at(sentinel_topology.url):
        relay = make_relay()
        until(lambda: relay.tick() == {0})
        sentinel_topology.wait_for_replica()
        sentinel_topology.kill_primary()
        version = write("m1")
        until(lambda: relay.tick() == {0} and relay.tally.keys > 0, within_s=40)
        text = sentinel_topology.primary.client.get(WM.decode())
        mark = parse(text.encode())
        assert mark is not None and version
