"""Which servers stand behind the `l2` alias, and what each of them says about itself.

Asked on connections of its own, not through the engine's: a doctor must not find what the engine has in its pools.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mlserve.platform import redis_facts
from mlserve.platform.redis_facts import RedisFacts
from mlserve.settings.redis_url import Mode

T = TypeVar("T")
_UNUSABLE = frozenset({"fail", "handshake", "noaddr"})
"""Flags of a node that the others do not count on. `fail?` is one node's suspicion alone."""


class Role(StrEnum):
    PRIMARY = "primary"
    REPLICA = "replica"
    SENTINEL = "sentinel"


@dataclass(frozen=True, kw_only=True)
class L2Node:
    """`facts` is None where it does not answer, or must not be counted on; `problem` says why."""

    address: str
    role: Role
    facts: RedisFacts | None = None
    problem: str = ""


def mode_of(alias: Mapping[str, Any]) -> Mode:
    options = alias.get("OPTIONS", {})
    if "SENTINELS" in options:
        return Mode.SENTINEL
    return Mode.CLUSTER if "CLUSTER_NODES" in options else Mode.STANDALONE


def configured(alias: Mapping[str, Any]) -> list[str]:
    """The addresses in the settings: the server, the Sentinels or the seeds of the cluster."""
    listed = alias.get("OPTIONS", {}).get("SENTINELS") or alias.get("OPTIONS", {}).get("CLUSTER_NODES")
    if listed:
        return [_address(host, port) for host, port in listed]
    return [redis_facts.address(url) for url in _locations(alias)]


def survey(alias: Mapping[str, Any], *, timeout_s: float = redis_facts.TIMEOUT_S) -> list[L2Node]:
    """Every server that the settings or the servers themselves name; `timeout_s` for each. Never raises.

    No primary among them means that nobody could name one.
    """
    match mode_of(alias):
        case Mode.SENTINEL:
            return _behind_sentinels(alias["OPTIONS"], timeout_s)
        case Mode.CLUSTER:
            return _of_cluster(alias["OPTIONS"], timeout_s)
        case _:
            return [_of_url(url) for url in _locations(alias)]


def require_answer(alias: Mapping[str, Any], *, timeout_s: float) -> None:
    """Raises redis.RedisError unless L2 works: its primary answers, or its cluster says that it is up.

    `timeout_s` is for all servers together.
    """
    options = alias.get("OPTIONS", {})
    share_s = timeout_s / (len(configured(alias)) + 1)
    match mode_of(alias):
        case Mode.SENTINEL:
            host, port = _first(options["SENTINELS"], lambda node: _primary(options, node, share_s))
            with _server(options, host, port, share_s) as primary:
                primary.ping()
        case Mode.CLUSTER:
            _first(options["CLUSTER_NODES"], lambda node: _require_cluster(options, node, share_s))
        case _:
            url = _locations(alias)[0]
            with redis.Redis.from_url(
                url, socket_timeout=share_s, socket_connect_timeout=share_s, retry=None
            ) as server:
                server.ping()


def _locations(alias: Mapping[str, Any]) -> list[str]:
    location = alias["LOCATION"]
    return [location] if isinstance(location, str) else list(location)


def _of_url(url: str) -> L2Node:
    address = redis_facts.address(url)
    try:
        return L2Node(address=address, role=Role.PRIMARY, facts=redis_facts.ask(url))
    except redis.RedisError as error:
        return L2Node(address=address, role=Role.PRIMARY, problem=f"does not answer: {error}")


def _behind_sentinels(options: Mapping[str, Any], timeout_s: float) -> list[L2Node]:
    """The Sentinels first; then the servers as the first one that knows the service names them."""
    service = options["SENTINEL_SERVICE"]
    nodes: list[L2Node] = []
    servers: list[L2Node] = []
    for host, port in options["SENTINELS"]:
        try:
            with _sentinel(options, host, port, timeout_s) as sentinel:
                facts = redis_facts.facts_of(sentinel)
                primary = sentinel.sentinel_master(service)
                replicas = sentinel.sentinel_slaves(service)
        except redis.RedisError as error:
            nodes.append(L2Node(address=_address(host, port), role=Role.SENTINEL, problem=str(error)))
            continue
        nodes.append(L2Node(address=_address(host, port), role=Role.SENTINEL, facts=facts))
        if not servers:
            servers.append(_data_node(options, primary["ip"], primary["port"], Role.PRIMARY, timeout_s))
            servers += [_data_node(options, found["ip"], found["port"], Role.REPLICA, timeout_s) for found in replicas]
    return nodes + servers


def _of_cluster(options: Mapping[str, Any], timeout_s: float) -> list[L2Node]:
    try:
        nodes = _first(options["CLUSTER_NODES"], lambda node: _cluster_nodes(options, node, timeout_s))
    except redis.RedisError as error:
        return [
            L2Node(address=_address(host, port), role=Role.PRIMARY, problem=f"no node names the others: {error}")
            for host, port in options["CLUSTER_NODES"]
        ]
    found = []
    for address, details in nodes.items():
        flags = set(details["flags"].split(","))
        role = Role.PRIMARY if "master" in flags else Role.REPLICA
        host, _, port = address.rpartition(":")
        if flags & _UNUSABLE:
            found.append(L2Node(address=address, role=role, problem=f"the others hold it for {details['flags']}"))
        else:
            found.append(_data_node(options, host, int(port), role, timeout_s))
    return found


def _data_node(options: Mapping[str, Any], host: str, port: int, role: Role, timeout_s: float) -> L2Node:
    address = _address(host, port)
    try:
        with _server(options, host, port, timeout_s) as server:
            return L2Node(address=address, role=role, facts=redis_facts.facts_of(server))
    except redis.RedisError as error:
        return L2Node(address=address, role=role, problem=f"does not answer: {error}")


def _primary(options: Mapping[str, Any], node: tuple[str, int], timeout_s: float) -> tuple[str, int]:
    with _sentinel(options, *node, timeout_s) as sentinel:
        found = sentinel.sentinel_get_master_addr_by_name(options["SENTINEL_SERVICE"])
    if found is None:
        raise redis.ResponseError(f"the Sentinel does not know the service {options['SENTINEL_SERVICE']}")
    host, port = found
    return host, int(port)


def _require_cluster(options: Mapping[str, Any], node: tuple[str, int], timeout_s: float) -> None:
    with _server(options, *node, timeout_s) as server:
        state = server.execute_command("CLUSTER INFO")["cluster_state"]
    if state != "ok":
        raise redis.ResponseError(f"the cluster's state is {state}")


def _cluster_nodes(options: Mapping[str, Any], node: tuple[str, int], timeout_s: float) -> dict[str, Any]:
    with _server(options, *node, timeout_s) as server:
        found: dict[str, Any] = server.execute_command("CLUSTER NODES")
    return found


def _first(nodes: Sequence[tuple[str, int]], ask: Callable[[tuple[str, int]], T]) -> T:
    """What the first node that answers says; raises what the last one raised."""
    problem: redis.RedisError = redis.ConnectionError("no server is configured")
    for node in nodes:
        try:
            return ask(node)
        except redis.RedisError as error:
            problem = error
    raise problem


def _sentinel(options: Mapping[str, Any], host: str, port: int, timeout_s: float) -> Any:
    own = {name: value for name, value in options["SENTINEL_KWARGS"].items() if not name.startswith("socket_")}
    return _client(host, port, timeout_s, **own)


def _server(options: Mapping[str, Any], host: str, port: int, timeout_s: float) -> Any:
    ssl = options.get("CONNECTION_POOL_KWARGS", {}).get("ssl", False)
    return _client(host, port, timeout_s, username=options.get("USERNAME"), password=options.get("PASSWORD"), ssl=ssl)


def _client(host: str, port: int, timeout_s: float, **options: Any) -> Any:
    options |= {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": Retry(NoBackoff(), 0)}
    return redis.Redis(host, port, decode_responses=True, **options)


def _address(host: str, port: int | str) -> str:
    return f"{host}:{port}"
