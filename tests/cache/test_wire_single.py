"""The wire to one server: standalone, and the primary that Sentinels name."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from django.core.cache import caches

from mlserve.cache.breaker import Breaker, State
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.sentinel import FOLLOW_INTERVAL_S
from mlserve.cache.tiers.wire import SINGLE_NODE, ask_node
from mlserve.cache.wiring import l2_client
from tests.cache.wire_contract import KEY, TIMEOUT_S, Scene, WireContract, command, l2_at, timed, wire_to_l2
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle
from tests.fixtures.topologies import SentinelTopology


def _pool() -> Any:
    return l2_client().connection_pool


class TestStandalone(WireContract):
    @pytest.fixture
    def scene(self, valkey_cache: ServerHandle) -> Iterator[Scene]:
        clock = ManualClock()
        with l2_at(valkey_cache.url):
            yield Scene(wire_to_l2(clock), clock, valkey_cache, _pool)


class TestSentinel(WireContract):
    @pytest.fixture
    def scene(self, sentinel_topology: SentinelTopology) -> Iterator[Scene]:
        clock = ManualClock()
        sentinel_topology.set_patience(30_000)
        with l2_at(sentinel_topology.url):
            yield Scene(wire_to_l2(clock), clock, sentinel_topology.primary, _pool)

    def test_the_wire_follows_the_primary(self, sentinel_topology: SentinelTopology) -> None:
        """An operator replaces one that works, and goes on working; the next look at the Sentinels leaves it."""
        clock = ManualClock()
        with l2_at(sentinel_topology.url):
            wire = wire_to_l2(clock)
            wire.probe()
            assert wire.ask([command(b"SET", KEY, b"1")]) == [b"OK"]
            sentinel_topology.failover()
            clock.advance(FOLLOW_INTERVAL_S)
            wire.probe()
            assert wire.ask([command(b"SET", KEY, b"2")]) == [b"OK"]
            assert sentinel_topology.primary.client.get(KEY) == "2"

    @pytest.mark.parametrize("answering", range(3))
    def test_dead_and_frozen_sentinels_are_passed_over(
        self, sentinel_topology: SentinelTopology, answering: int
    ) -> None:
        """One that answers is enough; the others are asked once each, and cost less than one timeout together."""
        dead, frozen = (sentinel for at, sentinel in enumerate(sentinel_topology.sentinels) if at != answering)
        dead.kill()
        frozen.freeze()
        with l2_at(sentinel_topology.url):
            _pool().disconnect()
            wire = wire_to_l2(ManualClock())
            replies, took_s = timed(lambda: wire.ask([command(b"SET", KEY, b"1")]))
        assert replies == [b"OK"]
        assert took_s < TIMEOUT_S

    def test_no_sentinel_at_all_is_a_dead_node(self, sentinel_topology: SentinelTopology) -> None:
        """Nothing is raised; an open connection to the primary goes on working."""
        with l2_at(sentinel_topology.url):
            wire = wire_to_l2(ManualClock())
            assert wire.ask([command(b"SET", KEY, b"1")]) == [b"OK"]
            for sentinel in sentinel_topology.sentinels:
                sentinel.kill()
            assert wire.ask([command(b"GET", KEY)]) == [b"1"]
            l2_client().connection_pool.disconnect()
            assert wire.ask([command(b"GET", KEY)]) == [MissReason.TIMEOUT]

    def test_a_discovery_changes_no_list_that_another_thread_goes_through(
        self, sentinel_topology: SentinelTopology
    ) -> None:
        """The Sentinel that answered is asked first the next time; none is ever lost."""
        sentinel_topology.sentinels[0].kill()
        with l2_at(sentinel_topology.url):
            pool = _pool()
            before = pool.sentinel_manager._latest.sentinels
            order = list(before)
            pool.get_master_address()
            after = pool.sentinel_manager._latest.sentinels
        assert before == order
        assert after is not before
        assert set(after) == set(before)


def test_nothing_is_read_from_a_replica(sentinel_topology: SentinelTopology) -> None:
    """Plain Django reads go to the primary too: a replica can still have what was deleted."""
    replica = next(server for server in sentinel_topology.servers if server is not sentinel_topology.primary)
    with l2_at(sentinel_topology.url):
        caches["l2"].set("name", 1)
        replica.client.config_resetstat()
        assert [caches["l2"].get("name") for _ in range(10)] == [1] * 10
        assert caches["l2"].get_many(["name"]) == {"name": 1}
    assert not {"cmdstat_get", "cmdstat_mget"} & replica.info("commandstats").keys()


def test_two_installations_with_one_service_name_have_two_pools() -> None:
    """A pool belongs to its Sentinels; the name of the service is theirs to the letter."""
    pools = []
    for host in ("one", "other"):
        with l2_at(f"redis+sentinel://{host}.example.com/My.Service/0"):
            pools.append(_pool())
    assert pools[0] is not pools[1]
    assert pools[0].service_name == pools[0].proxy.service_name == "My.Service"


@pytest.mark.parametrize("reply", [b"-ASK nonsense\r\n", b"?\r\n", b"*1\r\n$-7\r\n", b"-LOADING wait\r\n", b"$5\r\nab"])
def test_an_answer_that_is_no_redis_is_a_reason(reply: bytes) -> None:
    """Whatever stands at the port; the breaker knows, and the connection is not used again."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=_answer_once, args=(server, reply))
        thread.start()
        port = server.getsockname()[1]
        pool = redis.ConnectionPool(port=port, protocol=2, driver_info=None, socket_timeout=0.1)
        breaker = Breaker(SINGLE_NODE, ManualClock())
        assert ask_node(pool, [command(b"GET", KEY)], breaker) == [MissReason.TIMEOUT]
        thread.join()
        pool.disconnect()
    breaker.failure(timed_out=False)
    assert breaker.state is State.OPEN


def _answer_once(server: socket.socket, reply: bytes) -> None:
    peer, _ = server.accept()
    with peer:
        peer.recv(4096)
        peer.sendall(reply)
        peer.recv(1)  # the other side hangs up


@pytest.mark.parametrize("topology", ["standalone", "sentinel_topology", "cluster_topology"])
def test_djangos_cache_api_works_on_the_alias(request: pytest.FixtureRequest, topology: str) -> None:
    """Plain get, set, many, delete, incr and clear, wherever the keys lie."""
    url = os.environ["REDIS_CACHE_URL"] if topology == "standalone" else request.getfixturevalue(topology).url
    with l2_at(url):
        cache = caches["l2"]
        many = {f"key-{number}": {"number": number} for number in range(50)}
        cache.set_many(many)
        assert cache.get_many([*many, "absent"]) == many
        assert cache.get_many([]) == {}
        cache.set("counter", 1)
        assert cache.incr("counter", 2) == 3
        assert cache.decr("counter") == 2
        assert cache.get("counter") == 2
        assert cache.add("counter", 7) is False
        assert cache.touch("counter", 60)
        assert cache.has_key("counter")
        assert cache.delete("counter")
        assert cache.get("counter", "gone") == "gone"
        with pytest.raises(ValueError, match="not found"):
            cache.incr("counter")
        cache.delete_many(["key-1", "key-2"])
        assert len(cache.get_many(many)) == 48
        cache.clear()
        assert cache.get_many(many) == {}
        cache.close()
