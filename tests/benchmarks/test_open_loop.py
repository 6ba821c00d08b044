"""The open loop against a small real server."""

from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, pairwise
from random import Random
from socket import MSG_PEEK, SHUT_WR, socket
from threading import Event, Thread, Timer
from time import perf_counter

import pytest

from benchmarks.contest import BenchmarkFailed
from benchmarks.http_load import post
from benchmarks.open_loop import OpenLoop
from tests.fixtures.waiting import until

HOST = "127.0.0.1"


class _Handler(BaseHTTPRequestHandler):
    """Says what the path says; /held not before it is let go."""

    protocol_version = "HTTP/1.1"
    let_go = Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/held":
            self.let_go.wait(20)
        self.send_response(int(self.path.strip("/")) if self.path != "/held" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest's output is for results."""


@pytest.fixture
def loop() -> Iterator[OpenLoop]:
    _Handler.let_go = Event()
    with ThreadingHTTPServer((HOST, 0), _Handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever)
        thread.start()
        opened = OpenLoop(HOST, server.server_port, connections=8)
        try:
            yield opened
        finally:
            opened.close()
            _Handler.let_go.set()
            server.shutdown()
            thread.join()


def _request(path: str) -> bytes:
    return post(path=path, host=HOST, key="k", body=b"{}")


def _is_closed(peer: socket) -> bool:
    try:
        return peer.recv(1, MSG_PEEK) == b""
    except BlockingIOError:
        return False


def test_answers_are_counted_by_what_they_say(loop: OpenLoop) -> None:
    """A score, a refusal, an error; each has its time."""
    paths = cycle(["/200", "/503", "/200", "/500", "/429"])
    outcome = loop.run(rate_per_s=100, seconds=0.5, next_request=lambda: _request(next(paths)))
    assert outcome.offered >= 20
    assert len(outcome.answered_s) + len(outcome.refused_s) + outcome.failed == outcome.offered
    assert len(outcome.answered_s) > outcome.failed > 0 and len(outcome.refused_s) > 0
    assert min(outcome.answered_s) > 0


def test_the_rate_does_not_wait_for_answers(loop: OpenLoop) -> None:
    """Requests are sent while none is answered, as long as there are connections; their time goes on."""
    timer = Timer(0.4, _Handler.let_go.set)
    timer.start()
    outcome = loop.run(rate_per_s=100, seconds=0.3, next_request=lambda: _request("/held"))
    timer.join()
    assert outcome.offered == 8
    assert max(outcome.answered_s) > 0.25


def test_requests_may_come_by_chance(loop: OpenLoop) -> None:
    """As many as the rate says, at the moments of a Poisson process: often close together, sometimes far apart."""
    moments: list[float] = []

    def request() -> bytes:
        moments.append(perf_counter())
        return _request("/200")

    outcome = loop.run(rate_per_s=200, seconds=1.0, next_request=request, random=Random(1))
    assert 120 < outcome.offered == len(outcome.answered_s) < 280
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert min(gaps) < 0.001 and max(gaps) > 0.015


def test_a_connection_that_the_server_gave_up_is_replaced(loop: OpenLoop) -> None:
    """While it is idle; the next run has as many as before."""
    for connection in list(loop._free)[:3]:
        connection.socket.shutdown(SHUT_WR)  # which the server answers with its own end
        until(partial(_is_closed, connection.socket))
    outcome = loop.run(rate_per_s=100, seconds=0.3, next_request=lambda: _request("/200"))
    assert len(outcome.answered_s) == outcome.offered > 0
    assert len(loop._free) == 8


def test_requests_without_an_answer_are_said(loop: OpenLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a failed benchmark."""
    monkeypatch.setattr("benchmarks.open_loop._DRAIN_S", 0.1)
    with pytest.raises(BenchmarkFailed, match="no answer"):
        loop.run(rate_per_s=100, seconds=0.1, next_request=lambda: _request("/held"))
