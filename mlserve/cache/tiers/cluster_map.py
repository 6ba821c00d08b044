"""Which node of a Redis Cluster owns which slot, as this process knows it.

redis-py asks for the map (CLUSTER SLOTS) and keeps a pool of connections per node. Here it is asked in the background,
by one thread at a time and at most every `REFRESH_INTERVAL_S`: during a failover every process of every host wants to
know. Requests read the map that is there, without a lock; one slot is corrected at once when a node says MOVED.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, RedisClusterException

from mlserve.cache.breaker import Breaker
from mlserve.cache.clock import Clock
from mlserve.cache.tiers.wire import SINGLE_NODE, UNREACHABLE

REFRESH_INTERVAL_S = 0.5
"""A refresh takes some 10 ms of Python; a failover takes a second at least."""
_SAME_HOST = ("", "?")
"""What a node answers for its own host if it does not know how it is called."""
_NO_MAP = (*UNREACHABLE, RedisClusterException, LookupError, TypeError)
"""RedisClusterException is no RedisError; the last two: an answer that is no map."""
_log = structlog.get_logger(__name__)


class Node:
    """A primary, named `l2:host:port`."""

    __slots__ = ("answers", "breaker", "host", "name", "pool")

    def __init__(self, host: str, pool: Any, breaker: Breaker) -> None:
        self.name = breaker.name
        self.host = host
        self.pool = pool
        self.breaker = breaker
        self.answers = False
        """Whether it answered when it was last asked; others are not kept waiting for one that did not."""


class _Map(NamedTuple):
    """Replaced as a whole, never changed. `owners`: the node of each slot, None where no node has it."""

    owners: Sequence[Node | None]
    nodes: Mapping[str, Node]


class ClusterMap:
    """Thread-safe; nothing here raises. `cluster` returns redis-py's client and asks the seeds if it has to."""

    def __init__(
        self,
        cluster: Callable[[], RedisCluster],
        *,
        seeds: Sequence[tuple[str, int]],
        new_breaker: Callable[[str], Breaker],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._seeds = list(seeds)
        self._new_breaker = new_breaker
        self._clock = clock
        self._lock = threading.Lock()
        self._client: RedisCluster | None = None
        self._map: _Map | None = None
        self._refresh_at = float("-inf")
        self._done: threading.Event | None = None
        """Set when the refresh that is under way, or was last, is over."""
        self._failing = False
        self.discovery = new_breaker(SINGLE_NODE)
        """Closed by the first map; the only breaker until then."""

    @property
    def known(self) -> bool:
        return self._map is not None

    @property
    def nodes(self) -> Sequence[Node]:
        return [] if self._map is None else list(self._map.nodes.values())

    @property
    def breakers(self) -> Mapping[str, Breaker]:
        if self._map is None:
            return {SINGLE_NODE: self.discovery}
        return {node.name: node.breaker for node in self._map.nodes.values()}

    def owner(self, key: bytes) -> Node | None:
        return None if self._map is None else self._map.owners[key_slot(key)]

    def redirected(self, error: AskError, answered: Node) -> Node | None:
        """The node that a MOVED or ASK names; None before the first map."""
        host = answered.host if error.host in _SAME_HOST else error.host
        with self._lock:
            if self._map is None or self._client is None:
                return None
            node = self._map.nodes.get(_name(host, error.port))
            if node is None:
                pool = _pool(self._client, ClusterNode(host, error.port))
                node = self._node(_name(host, error.port), host, pool, None)
                self._map = self._map._replace(nodes={**self._map.nodes, node.name: node})
            return node

    def move(self, slot: int, node: Node) -> None:
        """What a MOVED says. The map that comes next overrules it."""
        with self._lock:
            if self._map is not None and 0 <= slot < len(self._map.owners):
                owners = list(self._map.owners)
                owners[slot] = node
                self._map = self._map._replace(owners=owners)

    def begin_refresh(self) -> bool:
        """Asks for a new map in the background, unless that was done a moment ago. Whether it was begun now."""
        with self._lock:
            now = self._clock.monotonic()
            if now < self._refresh_at or (self._done is not None and not self._done.is_set()):
                return False
            self._refresh_at = now + REFRESH_INTERVAL_S
            self._done = threading.Event()
            thread = threading.Thread(target=self._refresh, args=(self._done,), name="l2-cluster-map", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process ends, or has no room for a thread
                self._done.set()
                return False
            return True

    def wait(self, timeout_s: float) -> None:
        """Returns when the refresh that is under way is over, or the time is."""
        done = self._done
        if done is not None:
            done.wait(max(0.0, timeout_s))

    def _refresh(self, done: threading.Event) -> None:
        try:
            self._install(self._ask())
        except _NO_MAP as error:
            if not self._failing:
                _log.warning("cluster_map_unavailable", error=f"{type(error).__name__}: {error}")
            self._failing = True
        else:
            self._failing = False
        finally:
            done.set()

    def _ask(self) -> RedisCluster:
        if self._client is None:
            return self._cluster()
        # The seeds too: all nodes that were ever found may have been replaced. Connections in use stay as they are.
        self._client.nodes_manager.initialize(
            additional_startup_nodes_info=self._seeds, disconnect_startup_nodes_pools=False
        )
        return self._client

    def _install(self, client: RedisCluster) -> None:
        found = dict(client.nodes_manager.slots_cache)
        with self._lock:
            known = {} if self._map is None else self._map.nodes
            nodes: dict[str, Node] = {}
            owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for slot, (primary, *_) in found.items():
                name = _name(primary.host, primary.port)
                if name not in nodes:
                    nodes[name] = self._node(name, primary.host, _pool(client, primary), known.get(name))
                owners[slot] = nodes[name]
            if not nodes:
                raise LookupError("no node owns a slot")
            self._client = client
            self._map = _Map(owners, nodes)
        self.discovery.success()

    def _node(self, name: str, host: str, pool: Any, before: Node | None) -> Node:
        if before is not None and before.pool is pool:
            return before
        return Node(host, pool, self._new_breaker(name) if before is None else before.breaker)


def _name(host: str, port: int) -> str:
    return f"{SINGLE_NODE}:{host}:{port}"


def _pool(client: RedisCluster, node: ClusterNode) -> Any:
    if node.redis_connection is None:  # redis-py has it from a MOVED and has not used it yet
        client.nodes_manager.create_redis_connections([node])
    return node.redis_connection.connection_pool
