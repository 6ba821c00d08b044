"""TCP proxies on the loopback interface whose link can be cut, made deaf or slow: faults of a network, on purpose.

All proxies of a `ProxyThread` share its event loop. What is on its way when a link is cut is lost, as in a network.
"""

import asyncio
import threading
from enum import Enum

from mlserve.servers.process import LOOPBACK

_ANSWER_S = 5.0
_HEAD_BYTES = 4_096
"""Within which a replica has asked to follow."""
_REPLICATION = b"PSYNC"


class Link(Enum):
    WHOLE = "whole"
    CUT = "cut"
    """Connections are closed, new ones as soon as they are made."""
    DEAF = "deaf"
    """Connections stay open, new ones too, and nothing passes."""
    NO_REPLICATION = "no replication"
    """Only the connection over which a Valkey replica follows its primary is cut."""


class ProxyThread:
    """Runs proxies until it is closed, with all their connections."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="tcp-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_ANSWER_S)


class TcpProxy:
    """Before one port of this host. Its own port stays the same; `target_port` may change."""

    def __init__(self, thread: ProxyThread, target_port: int) -> None:
        self.target_port = target_port
        self.link = Link.WHOLE
        self.delay_s = 0.0
        self.cut_connections = 0
        self.delayed_chunks = 0
        self._loop = thread.loop
        self._clients: set[_Client] = set()
        listening = asyncio.run_coroutine_threadsafe(
            self._loop.create_server(lambda: _Client(self), LOOPBACK, 0), self._loop
        )
        self._server = listening.result(_ANSWER_S)
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        return len(self._clients)

    def set_link(self, link: Link) -> None:
        """In force for all connections when it returns. Connections that were deaf are closed when they are no more."""

        async def change() -> None:
            was, self.link = self.link, link
            for client in list(self._clients):
                if link is Link.CUT or was is Link.DEAF or (link is Link.NO_REPLICATION and client.replicates):
                    client.cut()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(_ANSWER_S)

    def mend(self) -> None:
        self.delay_s = 0.0
        self.set_link(Link.WHOLE)


class _Client(asyncio.Protocol):
    """A connection from outside, with its own one to the server behind."""

    def __init__(self, proxy: TcpProxy) -> None:
        self.replicates = False
        self._proxy = proxy
        self._transport: asyncio.Transport | None = None
        self._server: _Server | None = None
        self._waiting = bytearray()
        """What came before the server was reached."""
        self._head = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._proxy._clients.add(self)
        if self._proxy.link is Link.CUT:
            self.cut()
        else:
            # The loop keeps only weak references to its tasks.
            self._reaching = asyncio.ensure_future(self._reach())

    async def _reach(self) -> None:
        loop = self._proxy._loop
        try:
            _, server = await loop.create_connection(lambda: _Server(self), LOOPBACK, self._proxy.target_port)
        except OSError:
            self.close()
            return
        if self._transport is None:
            server.close()
            return
        self._server = server
        if self._waiting:
            self._forward(bytes(self._waiting), server)
            self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if not self.replicates and len(self._head) < _HEAD_BYTES:
            self._head += data
            self.replicates = _REPLICATION in self._head
        if self.replicates and self._proxy.link is Link.NO_REPLICATION:
            self.cut()
        elif self._server is None:
            self._waiting += data
        else:
            self._forward(data, self._server)

    def answered(self, data: bytes) -> None:
        self._forward(data, self)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _forward(self, data: bytes, to: "_Client | _Server") -> None:
        proxy = self._proxy
        if proxy.link is Link.DEAF:
            return
        if proxy.delay_s:
            proxy.delayed_chunks += 1
            proxy._loop.call_later(proxy.delay_s, to.write, data)
        else:
            to.write(data)

    def cut(self) -> None:
        self._proxy.cut_connections += 1
        if self._transport is not None:
            self._transport.abort()
        self.close()

    def close(self) -> None:
        self._proxy._clients.discard(self)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        if self._server is not None:
            self._server.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.close()


class _Server(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._client.answered(data)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.close()
        self._client.close()
