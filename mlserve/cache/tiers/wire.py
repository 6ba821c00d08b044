"""How commands reach Redis: any number of them in one round trip per node, each with its reply or the reason why not.

redis-py supplies the connections, their pool, the discovery of nodes and the parser; its pipelines are left out, since
their bookkeeping costs more than the server does (a look-up of two hashes: 109 us through a pipeline, 82 us here, a
bare MGET of the same bytes 81 us).

Errors of the network are translated here, once, per node: into a reason, and a report to that node's breaker. A reply
that is an error of the server (WRONGTYPE: somebody else's value under our name) is handed on as a value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import redis
from redis.exceptions import MaxConnectionsError, ResponseError

from mlserve.cache.breaker import Breaker
from mlserve.cache.outcome import MissReason

SINGLE_NODE = "l2"
"""Name of the one breaker where there is one node: standalone, and whoever Sentinel says is primary."""


class Command(NamedTuple):
    """`name`: the key that decides the node. `packed`: the whole command in the Redis protocol."""

    name: bytes
    packed: bytes


def pack(*parts: bytes) -> bytes:
    """A command in the Redis protocol (RESP)."""
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


class Wire(Protocol):
    """Never raises. Thread-safe."""

    breakers: Mapping[str, Breaker]
    """One per node, by the node's name; nodes come and go."""

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        """A reply per command, in order: a value, a `ResponseError`, or `TIMEOUT` or `BREAKER` where nobody answered.

        `shed`: a node whose breaker is open is not asked; without it (invalidations) it is. `timeout_s` shortens the
        connection's own timeout.
        """
        ...

    def probe(self) -> None:
        """Ask every node whose breaker is open and wants a probe now."""
        ...


class SingleNodeWire:
    """To one server: standalone, or the primary that Sentinel names. `connect` returns the redis-py client."""

    def __init__(self, connect: Callable[[], "redis.Redis"], breaker: Breaker) -> None:
        self._connect = connect
        self._breaker = breaker
        self.breakers: Mapping[str, Breaker] = {breaker.name: breaker}

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        if shed and not self._breaker.allow():
            return [MissReason.BREAKER] * len(commands)
        return ask_node(self._connect().connection_pool, commands, self._breaker, timeout_s=timeout_s)

    def probe(self) -> None:
        if self._breaker.allow_probe():
            ask_node(self._connect().connection_pool, [PING], self._breaker)


PING = Command(b"", pack(b"PING"))


def ask_node(pool: Any, commands: Sequence[Command], breaker: Breaker, *, timeout_s: float | None = None) -> list[Any]:
    """One round trip to one node over a connection of its `pool`."""
    try:
        connection = pool.get_connection()
    except MaxConnectionsError:
        # Our own pool is exhausted: load, not death. The keys go without L2; the breaker stays as it is.
        return [MissReason.TIMEOUT] * len(commands)
    except (redis.RedisError, OSError) as error:
        breaker.failure(timed_out=isinstance(error, redis.TimeoutError))
        return [MissReason.TIMEOUT] * len(commands)
    options = {} if timeout_s is None else {"timeout": timeout_s}
    try:
        connection.send_packed_command([b"".join([command.packed for command in commands])])
        replies = [_reply(connection, options) for _ in commands]
    except (redis.RedisError, OSError) as error:
        connection.disconnect()  # replies may still be under way: they must not answer the next request
        breaker.failure(timed_out=isinstance(error, redis.TimeoutError))
        return [MissReason.TIMEOUT] * len(commands)
    finally:
        pool.release(connection)
    breaker.success()
    return replies


def _reply(connection: Any, options: Mapping[str, float]) -> Any:
    try:
        return connection.read_response(**options)
    except ResponseError as error:
        return error
