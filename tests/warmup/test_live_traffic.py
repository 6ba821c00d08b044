import json
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from warmup.live_traffic import KeyNotAccepted, drive
from warmup.service_client import ServiceClient

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class _Numbered:
    """Transactions that are only numbers."""

    def __init__(self) -> None:
        self.number = 0

    def next(self, now: datetime) -> dict[str, object]:
        self.number += 1
        return {"transaction_id": str(self.number), "occurred_at": now.isoformat()}


class _Service:
    """An HTTP server that answers every transaction with the next of `statuses`, the last for ever."""

    def __init__(self, *statuses: int, port: int = 0) -> None:
        self.seen: list[tuple[str, str]] = []
        self.connections = 0
        remaining = list(statuses)
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                service.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.seen.append((body["transaction_id"], self.headers["Authorization"]))
                status = remaining.pop(0) if len(remaining) > 1 else remaining[0]
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[_Service]:
    started = _Service(200, 422, 503, 200)
    yield started
    started.stop()


def _drive(client: ServiceClient, *, most: int, stopped: Event | None = None):
    return drive(
        client=client,
        traffic=_Numbered(),
        per_second=200.0,
        stopped=stopped or Event(),
        now=lambda: NOW,
        most=most,
    )


def test_transactions_go_over_one_connection_with_the_key(service: _Service) -> None:
    """Answers that are no scores are counted and do not end the traffic."""
    tally = _drive(ServiceClient(f"http://127.0.0.1:{service.port}", api_key="the-key"), most=5)
    assert (tally.scored, tally.refused, tally.unreachable) == (3, 2, 0)
    assert service.seen == [(str(number), "Bearer the-key") for number in range(1, 6)]
    assert service.connections == 1


def test_traffic_survives_a_restart_of_the_service() -> None:
    """Nobody listens at first; when the service comes, the traffic goes on."""
    vacant = _Service(200)
    vacant.stop()
    arrived: list[_Service] = []

    class Arriving(_Numbered):
        def next(self, now: datetime) -> dict[str, object]:
            if self.number == 1:  # the first found nobody
                arrived.append(_Service(200, port=vacant.port))
            return super().next(now)

    tally = drive(
        client=ServiceClient(f"http://127.0.0.1:{vacant.port}"),
        traffic=Arriving(),
        per_second=100.0,
        stopped=Event(),
        now=lambda: NOW,
        most=2,
    )
    arrived[0].stop()
    assert (tally.unreachable, tally.scored) == (1, 2)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_ends_the_traffic(status: int) -> None:
    """It would be refused for ever."""
    service = _Service(status)
    with pytest.raises(KeyNotAccepted, match="score"):
        _drive(ServiceClient(f"http://127.0.0.1:{service.port}", api_key="wrong"), most=5)
    service.stop()
    assert len(service.seen) == 1


def test_a_stop_that_was_asked_for_sends_nothing_more(service: _Service) -> None:
    """Also before the first transaction."""
    stopped = Event()
    stopped.set()
    tally = _drive(ServiceClient(f"http://127.0.0.1:{service.port}"), most=5, stopped=stopped)
    assert tally.scored == 0
    assert service.seen == []


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http:///v1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """With an example of one."""
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8000"):
        ServiceClient(url)
