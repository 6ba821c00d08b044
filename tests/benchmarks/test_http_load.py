"""The client that loads the server, against a small real one."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from benchmarks.contest import BenchmarkFailed
from benchmarks.http_load import Connection, post, throughput

HOST = "127.0.0.1"
BODY = b'{"amount": 1}'


class _Handler(BaseHTTPRequestHandler):
    """Answers with what it got; /broken with a 500."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.headers["Authorization"], body))
        answer = body * 10_000
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest's output is for results."""


@pytest.fixture
def port() -> Iterator[int]:
    _Handler.seen = []
    with ThreadingHTTPServer((HOST, 0), _Handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_one_connection_asks_again_and_again(port: int) -> None:
    """The whole body comes back, in however many pieces it arrives."""
    connection = Connection(HOST, port)
    request = post(path="/echo", host=HOST, key="k1", body=BODY)
    answers = [connection.ask(request) for _ in range(3)]
    connection.close()
    assert answers == [BODY * 10_000] * 3
    assert _Handler.seen == [("Bearer k1", BODY)] * 3


def test_every_connection_asks_at_least_once(port: int) -> None:
    """However short the time; each with its own requests."""
    bodies = [b"0", b"1", b"2"]
    rate = throughput(
        HOST,
        port,
        connections=3,
        seconds=0.0,
        next_request=lambda number: post(path="/", host=HOST, key="k", body=bodies[number]),
    )
    assert rate > 0
    assert sorted(body for _, body in _Handler.seen) == bodies


def test_an_error_of_the_server_is_no_throughput(port: int) -> None:
    """Fast errors would make a fast server."""
    with pytest.raises(BenchmarkFailed, match="500"):
        throughput(
            HOST,
            port,
            connections=2,
            seconds=60.0,
            next_request=lambda _: post(path="/broken", host=HOST, key="k", body=BODY),
        )


def test_a_server_that_is_not_there_is_said(port: int) -> None:
    """As a failed benchmark, not as a traceback."""
    with pytest.raises(BenchmarkFailed, match="ConnectionRefusedError"):
        throughput(HOST, 1, connections=2, seconds=60.0, next_request=lambda _: b"")
