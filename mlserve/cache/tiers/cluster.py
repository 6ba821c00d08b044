"""The wire to a Redis Cluster: every node that owns one of the keys is asked at the same time.

What a node answers with MOVED or ASK is asked again, at once, at the node that it names. Where the cluster cannot say
(it is down, or the keys of one command are split between two nodes) a new map is waited for, within the time there is.
Whatever is left has the reason `TIMEOUT`: nobody answered.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from django.core.cache import caches
from django_redis import get_redis_connection
from django_redis.cache import RedisCache
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from mlserve.cache.breaker import Breaker, State
from mlserve.cache.clock import Clock
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.cluster_alias import ClusterFactory
from mlserve.cache.tiers.cluster_map import ClusterMap, Node
from mlserve.cache.tiers.sentinel import SentinelFactory, SentinelWire
from mlserve.cache.tiers.wire import PING, SINGLE_NODE, Command, Exchange, SingleNodeWire, Wire, ask_node, pack

ROUNDS = 4
"""MOVED and then ASK is what a slot on the move takes; the rest is for a map that is older still."""
PROBE_PATIENCE_S = 1.0
_ASKING = Command(b"", pack(b"ASKING"))


def make_wire(alias: str, *, new_breaker: Callable[[str], Breaker], clock: Clock) -> Wire:
    """The wire to the servers of a django-redis alias; connects to none of them yet."""
    factory = cast(RedisCache, caches[alias]).client.connection_factory
    match factory:
        case ClusterFactory():
            cluster_map = ClusterMap(factory.cluster, seeds=factory.seeds, new_breaker=new_breaker, clock=clock)
            return ClusterWire(cluster_map, timeout_s=factory.timeout_s)
        case SentinelFactory():
            return SentinelWire(lambda: get_redis_connection(alias), new_breaker(SINGLE_NODE), clock)
        case _:
            return SingleNodeWire(lambda: get_redis_connection(alias), new_breaker(SINGLE_NODE))


class _Item(NamedTuple):
    """One command that wants a reply. `at`: its place among them. `asking`: its slot is on the way to `node`."""

    at: int
    command: Command
    node: Node
    asking: bool = False


class ClusterWire:
    """To the primaries of a cluster. `timeout_s`: the longest that `ask` takes, but for a connection to be made."""

    def __init__(self, cluster_map: ClusterMap, *, timeout_s: float) -> None:
        self._map = cluster_map
        self._timeout_s = timeout_s

    @property
    def breakers(self) -> Mapping[str, Breaker]:
        return self._map.breakers

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s))
        if not self._map.known:
            if shed and not self._map.discovery.allow():
                return [MissReason.BREAKER] * len(commands)
            self._discover(deadline)
        replies: list[Any] = [MissReason.TIMEOUT] * len(commands)
        items = self._assign(enumerate(commands))
        for _ in range(ROUNDS):
            if items:
                items = self._round(items, replies, deadline, shed=shed)
        return replies

    def probe(self) -> None:
        """Also looks whether the cluster has changed, as long as one of its nodes does not answer."""
        if not self._map.known:
            if self._map.discovery.state is State.CLOSED or self._map.discovery.allow_probe():
                self._discover(time.monotonic() + PROBE_PATIENCE_S)
            return
        for node in self._map.nodes:
            if node.breaker.allow_probe():
                ask_node(node.pool, [PING], node.breaker)
        if any(node.breaker.state is not State.CLOSED for node in self._map.nodes) and self._map.begin_refresh():
            self._map.wait(PROBE_PATIENCE_S)

    def _discover(self, deadline: float) -> None:
        self._map.begin_refresh()
        self._map.wait(deadline - time.monotonic())
        if not self._map.known:
            self._map.discovery.failure(timed_out=True)

    def _assign(self, commands: Iterable[tuple[int, Command]]) -> list[_Item]:
        """Each command at the node that owns its key; without those whose slot nobody owns."""
        items = []
        for at, command in commands:
            node = self._map.owner(command.name)
            if node is not None:
                items.append(_Item(at, command, node))
            else:
                self._map.begin_refresh()
        return items

    def _round(self, items: Sequence[_Item], replies: list[Any], deadline: float, *, shed: bool) -> list[_Item]:
        """One round trip to all nodes concerned, at the same time. Returns what is to be asked again."""
        redirected: list[_Item] = []
        undecided: list[_Item] = []
        moved: dict[int, Node] = {}
        for item, reply in self._exchange(items, deadline, shed=shed):
            match reply:
                case AskError():
                    to = self._redirect(item, reply)
                    redirected += to
                    if to and isinstance(reply, MovedError):
                        moved[key_slot(item.command.name)] = to[0].node
                case ClusterDownError() | TryAgainError():
                    undecided.append(item)
                case _:
                    replies[item.at] = reply
        # Waits for no refresh that another request has begun: where there is one after the other, all would wait.
        if undecided and self._map.begin_refresh():
            self._map.wait(deadline - time.monotonic())
            redirected += self._assign((item.at, item.command) for item in undecided)
        # What the former owner of a slot said of it holds of its own history, and not of the new owner's.
        bound = [item for item in items if item.command.of_slot and key_slot(item.command.name) in moved]
        again = [item._replace(node=moved[key_slot(item.command.name)], asking=False) for item in bound]
        for item in again:
            replies[item.at] = MissReason.TIMEOUT
        places = {item.at for item in again}
        redirected = again + [item for item in redirected if item.at not in places]
        return redirected if time.monotonic() < deadline else []

    def _redirect(self, item: _Item, error: AskError) -> list[_Item]:
        node = self._map.redirected(error, answered=item.node)
        if node is None:
            return []
        moved = isinstance(error, MovedError)
        if moved:
            self._map.move(error.slot_id, node)
            self._map.begin_refresh()
        return [item._replace(node=node, asking=not moved)]

    def _exchange(self, items: Sequence[_Item], deadline: float, *, shed: bool) -> list[tuple[_Item, Any]]:
        """All are sent before the first reply is read, so that several nodes cost the time of the slowest."""
        replies: list[tuple[_Item, Any]] = []
        under_way: list[tuple[Node, list[_Item], Exchange]] = []
        try:
            for node, of_node in _by_node(items):
                if shed and not node.breaker.allow():
                    replies += [(item, MissReason.BREAKER) for item in of_node]
                elif node.answers or time.monotonic() < deadline:
                    exchange = Exchange(node.pool, _batch(of_node), node.breaker)
                    under_way.append((node, of_node, exchange))
                    exchange.send()
            for node, of_node, exchange in under_way:
                found = iter(exchange.receive(deadline))
                replies += [(item, _reply_to(item, found)) for item in of_node]
                node.answers = not exchange.failed
                if exchange.failed:
                    self._map.begin_refresh()
        finally:
            for _, _, exchange in under_way:
                exchange.close()
        return replies


def _by_node(items: Sequence[_Item]) -> list[tuple[Node, list[_Item]]]:
    """Those that answered last time first: a connection that has to be made, or that hangs, delays nobody else."""
    grouped: dict[str, tuple[Node, list[_Item]]] = {}
    for item in items:
        grouped.setdefault(item.node.name, (item.node, []))[1].append(item)
    return sorted(grouped.values(), key=lambda group: not group[0].answers)


def _batch(items: Sequence[_Item]) -> list[Command]:
    return [command for item in items for command in ((_ASKING, item.command) if item.asking else (item.command,))]


def _reply_to(item: _Item, replies: Iterator[Any]) -> Any:
    if item.asking:
        next(replies)  # to ASKING itself
    return next(replies)
