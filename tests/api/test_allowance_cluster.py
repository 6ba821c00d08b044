"""A key's limit where L2 is a cluster: each bucket lies on one node, and goes where its slot goes."""

from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from mlserve.api.allowance import Allowances, Taken
from mlserve.api.limit import Limit
from mlserve.api.shared_bucket import SharedBuckets, name_of
from tests.cache.wire_contract import l2_at, wire_to_l2
from tests.fixtures.clock import ManualClock
from tests.fixtures.topologies import PRIMARIES, ClusterTopology

LIMIT = Limit(per_s=1, burst=60)
"""Large enough for units to be held ahead: one."""
HOUR_US = 3_600_000_000
KEYS = [f"mls_key{number}" for number in range(12)]


class _Process:
    """What one process has of the limiter, with a wire and a map of its own."""

    def __init__(self, clock: ManualClock, holder: str) -> None:
        self.wire = wire_to_l2(clock)
        self.wire.probe()
        self.allowances = Allowances(SharedBuckets(lambda: self.wire, holder), clock)

    def take(self, key: str, units: int = 1) -> Taken:
        return self.allowances.take(key, LIMIT, units=units)

    def take_all(self, key: str) -> int:
        """As many single units as there are; each was decided by the cluster."""
        taken = 0
        while (one := self.take(key)).allowed:
            assert not one.alone
            taken += 1
        assert not one.alone
        return taken


@pytest.fixture
def two(cluster_topology: ClusterTopology) -> Iterator[list[_Process]]:
    cluster_topology.set_patience(30_000)
    with l2_at(cluster_topology.url):
        yield [_Process(ManualClock(), holder) for holder in ("one", "two")]


def _stop_inflow(topology: ClusterTopology, key: str) -> None:
    """The node's clock goes on while a test runs: what it wrote is put an hour ahead, and a clock cannot go back."""
    topology.owner(name_of(key)).client.hincrby(name_of(key).decode(), "at", HOUR_US)


def test_every_key_gets_its_burst_on_whatever_node(two: list[_Process], cluster_topology: ClusterTopology) -> None:
    """Two processes together, exactly; what is renewed in the background is asked of all nodes at once."""
    one, other = two
    assert len({cluster_topology.owner(name_of(key)).port for key in KEYS}) == PRIMARIES
    for key in KEYS:
        assert one.take(key).allowed
        _stop_inflow(cluster_topology, key)
    one.allowances.poll()
    for key in KEYS:
        assert 1 + one.take_all(key) == LIMIT.burst
        assert not other.take(key).allowed


@pytest.mark.parametrize("halfway", [False, True])
def test_a_limit_goes_on_where_its_slot_goes(
    two: list[_Process], cluster_topology: ClusterTopology, halfway: bool
) -> None:
    """Nothing is lost or made by a move of the bucket, nor while it is under way (ASK) and after it (MOVED)."""
    one, other = two
    key = KEYS[0]
    slot, source = key_slot(name_of(key)), cluster_topology.owner(name_of(key))
    target = next(node for node in cluster_topology.primaries() if node is not source)
    assert one.take(key, 10).allowed
    _stop_inflow(cluster_topology, key)
    assert other.take(key, 10).allowed
    cluster_topology.begin_move(slot, source, target)
    taken = 0
    cluster_topology.migrate([name_of(key).decode()], source, target)
    if halfway:
        assert one.take(key, 15).allowed and not other.take(key, 60).alone
        taken = 15
    cluster_topology.end_move(slot, source, target)
    try:
        assert cluster_topology.owner(name_of(key)) is target
        taken += other.take_all(key) + one.take_all(key)
        assert taken == LIMIT.burst - 20
    finally:
        cluster_topology.reshard([slot], target, source)
