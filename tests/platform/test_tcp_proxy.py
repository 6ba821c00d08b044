"""The proxy before a server of one line: whole, cut, deaf, slow."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mlserve.servers.tcp_proxy import Link, ProxyThread, TcpProxy
from tests.fixtures.waiting import until


class Echo:
    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while data := client.recv(65_536):
                client.sendall(data)


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    echo, thread = Echo(), ProxyThread()
    yield TcpProxy(thread, echo.port)
    thread.close()
    echo.close()


def _connect(proxy: TcpProxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port))
    connection.settimeout(5)
    return connection


def _asks(connection: socket.socket, data: bytes = b"hello") -> bytes:
    connection.sendall(data)
    return connection.recv(65_536)


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_whole_link_passes_everything(proxy: TcpProxy) -> None:
    """In both directions and in order, also more than fits into one message."""
    with _connect(proxy) as connection:
        sent = bytes(range(256)) * 4_000
        threading.Thread(target=connection.sendall, args=(sent,)).start()
        received = b""
        while len(received) < len(sent):
            received += connection.recv(65_536)
        assert received == sent


def test_a_cut_link_closes_connections_and_refuses_new_ones(proxy: TcpProxy) -> None:
    """Until it is mended."""
    with _connect(proxy) as old:
        assert _asks(old) == b"hello"
        proxy.set_link(Link.CUT)
        assert _is_closed(old)
        with _connect(proxy) as new:
            assert _is_closed(new)
        assert proxy.cut_connections == 2
    proxy.mend()
    with _connect(proxy) as connection:
        assert _asks(connection) == b"hello"


def test_a_deaf_link_keeps_connections_and_loses_what_is_sent(proxy: TcpProxy) -> None:
    """Nothing of it arrives later: the connection is closed when the link is mended."""
    with _connect(proxy) as connection:
        assert _asks(connection) == b"hello"
        proxy.set_link(Link.DEAF)
        connection.sendall(b"lost")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(5)
        proxy.mend()
        assert _is_closed(connection)


def test_replication_alone_can_be_cut(proxy: TcpProxy) -> None:
    """By the command with which a replica asks to follow; whoever asks for it again is cut again."""
    with _connect(proxy) as client, _connect(proxy) as replica:
        assert _asks(client) == b"hello"
        assert _asks(replica, b"PSYNC ? -1\r\n") == b"PSYNC ? -1\r\n"
        proxy.set_link(Link.NO_REPLICATION)
        assert _is_closed(replica)
        assert _asks(client) == b"hello"
        with _connect(proxy) as again:
            again.sendall(b"PSYNC ? -1\r\n")
            assert _is_closed(again)


def test_a_slow_link_delays_each_message(proxy: TcpProxy) -> None:
    """On the way there and on the way back."""
    with _connect(proxy) as connection:
        assert _asks(connection) == b"hello"
        proxy.delay_s = 0.05
        began = time.monotonic()
        assert _asks(connection) == b"hello"
        assert time.monotonic() - began >= 0.1
        assert proxy.delayed_chunks == 2


def test_a_server_that_is_gone_is_a_closed_connection() -> None:
    """Not a hang."""
    thread = ProxyThread()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    try:
        proxy = TcpProxy(thread, port)
        with _connect(proxy) as connection:
            assert _is_closed(connection)
        until(lambda: not proxy.connections)
    finally:
        thread.close()
