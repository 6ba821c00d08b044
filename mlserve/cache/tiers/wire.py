"""How commands reach Redis: any number of them in one round trip per node, each with its reply or the reason why not.

redis-py supplies the connections, their pool, the discovery of nodes and the parser; its pipelines are left out, since
their bookkeeping costs more than the server does (a look-up of two hashes: 109 us through a pipeline, 82 us here, a
bare MGET of the same bytes 81 us).

Errors of the network are translated here, once, per node: into a reason, and a report to that node's breaker. A reply
that is an error of the server (WRONGTYPE: somebody else's value under our name) is handed on as a value.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import redis
from redis.exceptions import MaxConnectionsError, ResponseError

from mlserve.cache.breaker import Breaker, State
from mlserve.cache.outcome import MissReason

SINGLE_NODE = "l2"
"""Name of the one breaker where there is one node: standalone, and whoever Sentinel says is primary."""
LAST_LOOK_S = 0.005
"""For replies that are here or about to be when the time is up: what another node has used of it is not their fault."""
FAIR_CHANCE_S = 0.02
"""A node that was given less time than this and did not answer is not held to be away."""

UNREACHABLE = (redis.RedisError, OSError, ValueError)
"""What a connection can raise. ValueError: a reply that redis-py's parser does not understand."""


class Command(NamedTuple):
    """`name`: the key that decides the node. `packed`: the whole command in the Redis protocol.

    `of_slot`: its reply is only worth something if it is of the node that answers the other commands of its slot. It is
    asked again where one of them is sent elsewhere, so it must only read.
    """

    name: bytes
    packed: bytes
    of_slot: bool = False


def pack(*parts: bytes) -> bytes:
    """A command in the Redis protocol (RESP)."""
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


PING = Command(b"", pack(b"PING"))


class Wire(Protocol):
    """Never raises. Thread-safe."""

    @property
    def breakers(self) -> Mapping[str, Breaker]:
        """One per node, by the node's name; nodes come and go."""
        ...

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
        self._known_pool: Any = None
        self._breaker = breaker
        self.breakers: Mapping[str, Breaker] = {breaker.name: breaker}

    def ask(self, commands: Sequence[Command], *, timeout_s: float | None = None, shed: bool = True) -> list[Any]:
        if shed and not self._breaker.allow():
            return [MissReason.BREAKER] * len(commands)
        return ask_node(self._pool(), commands, self._breaker, timeout_s=timeout_s)

    def probe(self) -> None:
        if self._breaker.allow_probe():
            ask_node(self._pool(), [PING], self._breaker)

    def _pool(self) -> Any:
        """Looked up once: on the way through Django's alias it takes a tenth of what Redis takes to answer."""
        if self._known_pool is None:
            self._known_pool = self._connect().connection_pool
        return self._known_pool


def ask_node(pool: Any, commands: Sequence[Command], breaker: Breaker, *, timeout_s: float | None = None) -> list[Any]:
    """One round trip to one node over a connection of its `pool`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    exchange = Exchange(pool, commands, breaker)
    try:
        exchange.send()
        return exchange.receive(deadline)
    finally:
        exchange.close()


class Exchange:
    """Commands on their way to one node and back, in two steps, so that several nodes can work at the same time.

    Whoever makes one closes it, whatever happens in between.
    """

    def __init__(self, pool: Any, commands: Sequence[Command], breaker: Breaker) -> None:
        self._pool = pool
        self._commands = commands
        self._breaker = breaker
        self._connection: Any = None
        self._awaited = False
        self.failed = False
        """Whether the node could not be reached or did not answer, which its breaker knows."""

    def send(self) -> None:
        """Hands all commands to the network; may have to connect first."""
        try:
            self._connection = self._pool.get_connection()
            self._awaited = True
            self._connection.send_packed_command([b"".join([command.packed for command in self._commands])])
        except MaxConnectionsError:
            # Our own pool is exhausted: load, not death. The keys go without L2; the breaker stays as it is.
            pass
        except UNREACHABLE as error:
            self._fail(error)

    def receive(self, deadline: float | None) -> list[Any]:
        """The replies, or `TIMEOUT` for each command. `deadline` on the scale of `time.monotonic`.

        Without one, each read takes no longer than the connection's timeout.
        """
        if self._connection is None:
            return [MissReason.TIMEOUT] * len(self._commands)
        # A request that has used up its budget elsewhere (many threads, few processors) proves nothing about the node.
        hurried = deadline is not None and deadline - time.monotonic() < FAIR_CHANCE_S
        try:
            replies = [self._reply(deadline) for _ in self._commands]
        except redis.TimeoutError as error:
            if hurried and self._breaker.state is State.CLOSED:  # whoever was let through to probe must report
                self.close()
            else:
                self._fail(error)
            return [MissReason.TIMEOUT] * len(self._commands)
        except UNREACHABLE as error:
            self._fail(error)
            return [MissReason.TIMEOUT] * len(self._commands)
        self._awaited = False
        self._breaker.success()
        return replies

    def close(self) -> None:
        """Gives the connection back; without replies under way, which would answer the next request."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._awaited:
                connection.disconnect()
            self._pool.release(connection)

    def _fail(self, error: Exception) -> None:
        self.close()
        self.failed = True
        self._breaker.failure(timed_out=isinstance(error, redis.TimeoutError))

    def _reply(self, deadline: float | None) -> Any:
        try:
            if deadline is None:
                return self._connection.read_response()
            # Socket timeouts pass in real time, whatever clock the engine has.
            return self._connection.read_response(timeout=max(LAST_LOOK_S, deadline - time.monotonic()))
        except ResponseError as error:
            return error
