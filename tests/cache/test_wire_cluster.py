"""The wire to a cluster: several nodes at once, slots that move, nodes that come and go."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.core.cache import caches
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import MovedError

from mlserve.cache.breaker import FIRST_INTERVAL_S, LONGEST_INTERVAL_S, State
from mlserve.cache.clock import SystemClock
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.cluster import ClusterWire
from mlserve.cache.tiers.cluster_map import REFRESH_INTERVAL_S
from mlserve.cache.wiring import l2_client
from tests.cache.wire_contract import (
    KEY,
    TIMEOUT_S,
    Scene,
    WireContract,
    command,
    connections,
    get,
    key,
    l2_at,
    put,
    states,
    timed,
    wire_to_l2,
)
from tests.fixtures.clock import ManualClock
from tests.fixtures.topologies import PASSWORD, PRIMARIES, ClusterTopology, Load, ValkeyNode
from tests.fixtures.waiting import until

KEYS = range(64)


@pytest.fixture
def scene(cluster_topology: ClusterTopology) -> Iterator[Scene]:
    """Nodes may be frozen without being replaced."""
    clock = ManualClock()
    cluster_topology.set_patience(30_000)
    with l2_at(cluster_topology.url):
        wire = wire_to_l2(clock)
        wire.probe()  # as the prober does before the first request, if that leaves it the time

        def pool() -> Any:
            name = f"l2:{cluster_topology.owner(KEY).address}"
            return next(node.pool for node in wire._map.nodes if node.name == name)  # type: ignore[attr-defined]

        yield Scene(wire, clock, cluster_topology.owner(KEY), pool)


def _of(topology: ClusterTopology, node: ValkeyNode) -> list[int]:
    """The numbers of KEYS that a node owns."""
    return [number for number in KEYS if topology.owner(key(number)) is node]


class TestCluster(WireContract):
    @pytest.fixture
    def scene(self, scene: Scene) -> Scene:
        return scene


def test_several_nodes_cost_the_time_of_one(scene: Scene, cluster_topology: ClusterTopology) -> None:
    """All nodes are at work before the first reply is read."""
    owners = {number % 16: cluster_topology.owner(key(number)) for number in KEYS}
    one_each = {node.port: number for number, node in owners.items()}.values()
    assert len(one_each) == PRIMARIES
    scene.wire.ask([get(number) for number in KEYS])
    waiting = [command(b"BLPOP", key(number) + b"list", b"0.1") for number in one_each]
    replies, took_s = timed(lambda: scene.wire.ask(waiting))
    assert replies == [None] * PRIMARIES
    assert 0.1 <= took_s < 0.1 * PRIMARIES


@pytest.mark.quiet
def test_a_frozen_node_costs_one_timeout_and_the_others_answer(scene: Scene, cluster_topology: ClusterTopology) -> None:
    """In the call that finds out, too; each node has a breaker of its own."""
    scene.wire.ask([put(number) for number in KEYS])
    lost = _of(cluster_topology, scene.victim)  # type: ignore[arg-type]
    assert 0 < len(lost) < len(KEYS)
    scene.victim.freeze()
    replies, took_s = timed(lambda: scene.wire.ask([get(number) for number in KEYS]))
    assert took_s < 2 * TIMEOUT_S
    for expected_reason in (MissReason.TIMEOUT, MissReason.BREAKER):
        expected = [expected_reason if number in lost else b"value-%d" % number for number in KEYS]
        assert replies == expected
        replies = scene.wire.ask([get(number) for number in KEYS])
    opened = [breaker.name for breaker in scene.wire.breakers.values() if breaker.state is State.OPEN]
    assert opened == [f"l2:{scene.victim.address}"]  # type: ignore[attr-defined]
    assert len(scene.wire.breakers) == PRIMARIES


def test_a_node_that_cannot_be_connected_to_is_not_waited_for_before_others(
    scene: Scene, cluster_topology: ClusterTopology
) -> None:
    """Those that are known to answer are at work while it uses up the time."""
    victims = {number for number in KEYS if cluster_topology.owner(key(number)) is scene.victim}
    others = [number for number in KEYS if number not in victims][:4]
    scene.wire.ask([put(number) for number in others])
    scene.pool().disconnect()
    scene.victim.freeze()
    at_work = [command(b"BLPOP", key(number) + b"list", b"0.02") for number in others[:1]]
    assert scene.wire.ask([get(min(victims)), *at_work]) == [MissReason.TIMEOUT, None]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_nothing_is_raised_before_the_first_map(cluster_topology: ClusterTopology) -> None:
    """All seeds frozen: one call waits, the others are refused, a probe finds the cluster when it is back."""
    clock = ManualClock()
    for node in cluster_topology.nodes:
        node.freeze()
    with l2_at(cluster_topology.url, timeout_s=0.1):
        wire = wire_to_l2(clock)
        assert wire.ask([get(1)]) == [MissReason.TIMEOUT]
        assert wire.ask([get(1)]) == [MissReason.BREAKER]
        assert wire.ask([get(1)], shed=False) == [MissReason.TIMEOUT]
        assert list(wire.breakers) == ["l2"]
        wire.probe()
        clock.advance(LONGEST_INTERVAL_S)
        wire.probe()
        assert states(wire.breakers) == {State.OPEN}
        for node in cluster_topology.nodes:
            node.thaw()
        until(lambda: all(node.answers() for node in cluster_topology.nodes))
        clock.advance(2 * LONGEST_INTERVAL_S)
        wire.probe()
        assert len(wire.breakers) == PRIMARIES
        assert wire.ask([put(1), get(1)]) == [b"OK", b"value-1"]


def test_no_seed_is_no_error_of_the_engine_but_one_of_djangos_api(cluster_topology: ClusterTopology) -> None:
    """The engine counts it; who uses the plain alias gets a ConnectionError without the password."""
    with l2_at(cluster_topology.url):
        assert caches["l2"].get("anything") is None
    for node in cluster_topology.nodes:
        node.kill()
    found_before, never_found = l2_at(cluster_topology.url), l2_at(cluster_topology.url, timeout_s=0.123)
    for alias in (found_before, never_found):
        with alias:
            assert wire_to_l2(ManualClock()).ask([get(1)]) == [MissReason.TIMEOUT]
            with pytest.raises(redis.ConnectionError) as raised:
                caches["l2"].get("anything")
        assert PASSWORD not in str(raised.value)


def test_a_moved_slot_is_followed_at_once(scene: Scene, cluster_topology: ClusterTopology) -> None:
    """The call that meets MOVED has its right answer; the next one asks the new owner, without a new map."""
    scene.wire.ask([command(b"SET", KEY, b"1")])
    source = cluster_topology.owner(KEY)
    target = next(node for node in cluster_topology.primaries() if node is not source)
    slot = key_slot(KEY)
    cluster_topology.reshard([slot], source, target)
    try:
        assert scene.wire.ask([command(b"GET", KEY), get(1)]) == [b"1", None]
        rejected = _errors(source, "MOVED")
        assert scene.wire.ask([command(b"GET", KEY)]) == [b"1"]
        assert _errors(source, "MOVED") == rejected == 1
    finally:
        cluster_topology.reshard([slot], target, source)


def test_what_a_former_owner_said_of_a_slot_is_asked_again_where_it_sends_others(
    scene: Scene, cluster_topology: ClusterTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is demoted between two commands: its watermark would vouch for records of the new owner's history.

    What is bound to no other command keeps its answer, since it may have been a write.
    """
    scene.wire.ask([command(b"SET", KEY, b"new"), command(b"SET", KEY + b":record", b"record")])
    owner = cluster_topology.owner(KEY)
    exchange, rounds = ClusterWire._exchange, 0

    def demoted_in_between(self: ClusterWire, items: list[Any], deadline: float, *, shed: bool) -> list[Any]:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            return exchange(self, items, deadline, shed=shed)
        moved = MovedError(f"{key_slot(KEY)} {owner.address}")
        return list(zip(items, [b"old", b"old", moved], strict=True))

    monkeypatch.setattr(ClusterWire, "_exchange", demoted_in_between)
    bound = command(b"GET", KEY)._replace(of_slot=True)
    asked = [bound, command(b"GET", KEY), command(b"GET", KEY + b":record")]
    assert scene.wire.ask(asked) == [b"new", b"old", b"record"]
    assert rounds == 2


def test_a_slot_on_the_move_answers_from_both_sides(scene: Scene, cluster_topology: ClusterTopology) -> None:
    """A key that has gone is found with ASK, one that has not where it was; new ones go to the new owner."""
    names = [KEY + b":%d" % number for number in range(4)]
    scene.wire.ask([command(b"SET", name, name) for name in names])
    source = cluster_topology.owner(KEY)
    target = next(node for node in cluster_topology.primaries() if node is not source)
    slot = key_slot(KEY)
    cluster_topology.begin_move(slot, source, target)
    try:
        cluster_topology.migrate([name.decode() for name in names[:2]], source, target)
        asked = [command(b"GET", name) for name in names]
        assert scene.wire.ask(asked) == names
        # Of two keys in one command one is here and one there: nobody can answer, which is no failure of a node.
        both = command(b"MGET", names[0], names[3])
        assert scene.wire.ask([both, asked[1]]) == [MissReason.TIMEOUT, names[1]]
        assert scene.wire.ask([command(b"SET", KEY + b":new", b"1")]) == [b"OK"]
        assert scene.wire.ask([command(b"DEL", names[0])], shed=False) == [1]
        assert states(scene.wire.breakers) == {State.CLOSED}
        cluster_topology.migrate(cluster_topology.keys_in(slot, source), source, target)
        cluster_topology.end_move(slot, source, target)
        assert scene.wire.ask([both, *asked]) == [[None, names[3]], None, *names[1:]]
    finally:
        cluster_topology.reshard([slot], target, source)


def test_a_node_that_joins_is_met_by_a_redirect(scene: Scene, cluster_topology: ClusterTopology) -> None:
    """It owned no slot when the map was made: its connections and its breaker come with the first ASK or MOVED."""
    scene.wire.ask([command(b"SET", KEY, b"1")])
    source = cluster_topology.owner(KEY)
    slot = key_slot(KEY)
    target = cluster_topology.add_primary()
    name = f"l2:{target.address}"
    assert name not in scene.wire.breakers
    cluster_topology.begin_move(slot, source, target)
    cluster_topology.migrate([KEY.decode()], source, target)
    assert scene.wire.ask([command(b"GET", KEY)]) == [b"1"]
    assert name in scene.wire.breakers
    cluster_topology.end_move(slot, source, target)
    assert scene.wire.ask([command(b"GET", KEY)]) == [b"1"]
    cluster_topology.reshard([slot], target, source)
    assert scene.wire.ask([command(b"GET", KEY)]) == [b"1"]
    scene.clock.advance(REFRESH_INTERVAL_S)
    scene.wire._map.begin_refresh()  # type: ignore[attr-defined]
    scene.wire._map.wait(1.0)  # type: ignore[attr-defined]
    assert name not in scene.wire.breakers
    assert len(scene.wire.breakers) == PRIMARIES


def test_the_wire_follows_a_failover_of_a_dead_node(cluster_topology: ClusterTopology) -> None:
    """Its replica answers as soon as the cluster has chosen it; the dead node's breaker is gone."""
    clock = ManualClock()
    with l2_at(cluster_topology.url):
        wire = wire_to_l2(clock)
        wire.ask([put(number) for number in KEYS])
        victim = cluster_topology.owner(KEY)
        cluster_topology.wait_for_replicas()
        victim.kill()

        def all_answer() -> bool:
            clock.advance(FIRST_INTERVAL_S)
            wire.probe()
            replies = wire.ask([get(number) for number in KEYS])
            assert all(reply == b"value-%d" % at or isinstance(reply, MissReason) for at, reply in enumerate(replies))
            return MissReason.TIMEOUT not in replies and MissReason.BREAKER not in replies

        until(all_answer)
        assert f"l2:{victim.address}" not in wire.breakers
        assert len(wire.breakers) == PRIMARIES


def test_an_orderly_failover_under_load_loses_nothing(cluster_topology: ClusterTopology) -> None:
    """Every read has its value while a replica takes over."""
    with l2_at(cluster_topology.url, timeout_s=1.0):
        wire = wire_to_l2(SystemClock())
        wire.ask([put(number) for number in KEYS])
        expected = [b"value-%d" % number for number in KEYS]
        replica = cluster_topology.replica_of(cluster_topology.owner(KEY))

        def read() -> None:
            assert wire.ask([get(number) for number in KEYS]) == expected

        with Load(read) as load:
            until(lambda: load.calls > 20)
            cluster_topology.failover(replica)
            seen = load.calls
            until(lambda: load.calls > seen + 20)


def test_the_map_is_asked_for_once_in_an_interval(scene: Scene) -> None:
    """However many calls find a node away."""
    scene.wire.ask([put(number) for number in KEYS])
    begun: list[bool] = []
    cluster_map = scene.wire._map  # type: ignore[attr-defined]
    scene.clock.advance(REFRESH_INTERVAL_S)
    threads = [threading.Thread(target=lambda: begun.append(cluster_map.begin_refresh())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster_map.wait(1.0)
    assert begun.count(True) == 1
    assert not cluster_map.begin_refresh()
    scene.clock.advance(REFRESH_INTERVAL_S)
    assert cluster_map.begin_refresh()


def test_a_refresh_asks_the_seeds_too_and_breaks_no_connection(scene: Scene) -> None:
    """All nodes that were found may have been replaced; a refresh in the middle of the traffic is not felt."""
    scene.wire.ask([put(number) for number in KEYS])
    cluster_map = scene.wire._map  # type: ignore[attr-defined]
    held = _held(scene)
    nowhere = ClusterNode("127.0.0.1", 1)
    before, cluster_map._map = cluster_map._map, None
    cluster_map._client.nodes_manager.startup_nodes = {nowhere.name: nowhere}
    scene.clock.advance(REFRESH_INTERVAL_S)
    assert cluster_map.begin_refresh()
    cluster_map.wait(1.0)
    assert cluster_map.known
    scene.clock.advance(REFRESH_INTERVAL_S)
    assert cluster_map.begin_refresh()
    cluster_map.wait(1.0)
    assert {node.pool for node in cluster_map.nodes} == {node.pool for node in before.nodes.values()}
    assert all(connection.is_connected for connection in held)


def test_a_node_that_has_left_is_no_longer_asked(scene: Scene, cluster_topology: ClusterTopology) -> None:
    """It says that the cluster is down; a new map names its successor, and the same call has the right answer."""
    scene.wire.ask([command(b"SET", KEY, b"1")])
    leaver = cluster_topology.owner(KEY)
    successor = cluster_topology.replica_of(leaver)
    cluster_topology.wait_for_replicas()
    cluster_topology.failover(successor)
    until(lambda: leaver.info("replication").get("role") == "slave")
    cluster_topology.expel(leaver)
    try:
        until(lambda: cluster_topology.owner(KEY) is successor)
        scene.clock.advance(REFRESH_INTERVAL_S)
        assert scene.wire.ask([command(b"GET", KEY), get(1)]) == [b"1", None]
        assert f"l2:{leaver.address}" not in scene.wire.breakers
    finally:
        cluster_topology.readmit(leaver, successor)


def test_a_fork_shares_no_connection(scene: Scene, cluster_topology: ClusterTopology) -> None:
    """The child makes a client of its own, also for the alias object that it has inherited."""
    scene.wire.ask([put(number) for number in KEYS])
    cache = caches["l2"]
    cache.set("parent", 1)
    ours = {"{}:{}".format(*connection._sock.getsockname()) for connection in _held(scene)}
    parents_client = l2_client()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"failed"
        try:
            fresh = l2_client() is not parents_client and cache.get("parent") == 1
            value = wire_to_l2(ManualClock()).ask([get(1)]) == [b"value-1"]
            answer = b"good" if fresh and value else b"bad"
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"good"
    os.waitpid(child, 0)
    assert ours <= connections([node.client for node in cluster_topology.primaries()])
    assert scene.wire.ask([get(number) for number in KEYS]) == [b"value-%d" % number for number in KEYS]


def _held(scene: Scene) -> list[Any]:
    """The connections in the wire's pools."""
    nodes = scene.wire._map.nodes  # type: ignore[attr-defined]
    held = [connection for node in nodes for connection in node.pool._available_connections]
    assert len(held) >= PRIMARIES
    return held


def _errors(node: ValkeyNode, prefix: str) -> int:
    found = node.info("errorstats").get(f"errorstat_{prefix}", {"count": 0})
    return int(found["count"])
