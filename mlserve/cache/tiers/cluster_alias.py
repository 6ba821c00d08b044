"""django-redis on a Redis Cluster, which it does not know: the connection factory and the client of the alias."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from django_redis.client import DefaultClient
from django_redis.pool import ConnectionFactory
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException

_clients: dict[str, RedisCluster] = {}
_clients_lock = threading.Lock()


class ClusterFactory(ConnectionFactory):
    """`connect` returns the one RedisCluster of this process. OPTIONS: CLUSTER_NODES, (host, port) of each seed."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.seeds: list[tuple[str, int]] = [(host, port) for host, port in options["CLUSTER_NODES"]]
        self.timeout_s: float = options["SOCKET_TIMEOUT"]
        self._parameters = {**self.make_connection_params(""), **self.pool_cls_kwargs}
        del self._parameters["url"]
        self._key = repr((self.seeds, sorted(self._parameters.items(), key=repr)))

    def connect(self, url: str) -> Any:
        """Raises redis.ConnectionError if no seed leads to a cluster."""
        with _as_connection_error():
            return self.cluster()

    def disconnect(self, connection: Any) -> None:
        connection.disconnect_connection_pools()

    def cluster(self) -> RedisCluster:
        """The client of this process; the first call asks the seeds, and raises what redis-py raises."""
        client = _clients.get(self._key)
        if client is None:
            nodes = [ClusterNode(host, port) for host, port in self.seeds]
            # A cache does without the slots that nobody serves.
            made = _Cluster(startup_nodes=nodes, require_full_coverage=False, **self._parameters)
            with _clients_lock:
                client = _clients.setdefault(self._key, made)
        return client


class _Cluster(RedisCluster):
    """Says that it finds no cluster any more in the words that callers of redis-py expect of an outage."""

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        with _as_connection_error():
            return super().execute_command(*args, **kwargs)


@contextmanager
def _as_connection_error() -> Iterator[None]:
    try:
        yield
    except RedisClusterException as error:  # no RedisError
        raise redis.ConnectionError(str(error)) from error


class ClusterClient(DefaultClient):
    """Django's cache API; the keys of one call may lie on several nodes."""

    def get_client(self, write: bool = True, tried: list[int] | None = None) -> Any:
        # Not kept in this object: it survives a fork, and its parent's sockets must not.
        return self.connection_factory.connect(self._server[0])

    def get_client_with_index(self, write: bool = True, tried: list[int] | None = None) -> tuple[Any, int]:
        return self.get_client(), 0

    def get_many(self, keys: Any, version: int | None = None, client: Any = None) -> dict[str, Any]:
        return super().get_many(keys, version=version, client=_ManySlots(client or self.get_client()))


class _ManySlots:
    """`mget` for keys of any slots; not atomic, which a cache need not be."""

    def __init__(self, client: RedisCluster) -> None:
        self._client = client

    def mget(self, *keys: Any) -> list[Any]:
        return self._client.mget_nonatomic(list(keys))


def _forget_after_fork() -> None:
    global _clients, _clients_lock
    _clients, _clients_lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
