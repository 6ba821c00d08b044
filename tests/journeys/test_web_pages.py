"""Whatever hangs behind pages and calls of the API: scores, health and metrics are answered, and so is everybody."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import pytest

from mlserve.health import ROUND_S
from tests.fixtures.population import API_KEY, World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.fixtures.web_process import Reply, WebProcess, web_process

_CLIENTS = 80
_AT_ONCE_S = 5.0
"""For what waits for nothing, on a machine that does other things as well."""
_BOUND_S = 12.0
"""For what waits for a slot, a connection and a statement."""
_numbers = count(1)


@pytest.fixture(scope="module")
def _process(_population: object) -> Iterator[WebProcess]:
    """With the threads that it has if nobody says."""
    with web_process(GRANIAN_BLOCKING_THREADS="26") as process:
        yield process


@pytest.fixture
def web(world: World, _process: WebProcess) -> WebProcess:
    """Nothing of an earlier test is left: it scores from PostgreSQL and shows pages. It knows the tests' key."""
    until(lambda: _process.ask("POST", "/v1/scores", world.request()).json["degraded_reasons"] == [], within_s=30)
    until(lambda: _process.fetch("GET", "/admin/login/", headers={}).status == 200)
    until(lambda: _process.ask("GET", "/v1/models").status == 200)
    return _process


def _cookie() -> dict[str, str]:
    return {"Cookie": f"sessionid=madeup{next(_numbers):026}"}


def _unknown_key() -> dict[str, str]:
    return {"Authorization": f"Bearer mls_made_up_key_number_{next(_numbers)}"}


def _known_key() -> dict[str, str]:
    return {"Authorization": f"Bearer {API_KEY}"}


def _none() -> dict[str, str]:
    return {}


@contextmanager
def _storm(
    web: WebProcess, method: str, path: str, headers: Callable[[], dict[str, str]]
) -> Iterator[list[Future[Reply]]]:
    """All clients at once, each on a connection of its own; they have been answered when it ends."""
    with ThreadPoolExecutor(_CLIENTS) as pool:
        yield [pool.submit(web.fetch, method, path, headers=headers()) for _ in range(_CLIENTS)]


def _others_are_answered(web: WebProcess, world: World) -> None:
    for _ in range(3):
        for path in ("/healthz/live", "/metrics", "/static/console/console.css"):
            reply = web.fetch("GET", path, headers={})
            assert (reply.status, reply.seconds < _AT_ONCE_S) == (200, True), (path, reply.seconds)
        score = web.ask("POST", "/v1/scores", world.request())
        assert score.status == 200 and score.seconds < _BOUND_S


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/admin/", _cookie),
        pytest.param("HEAD", "/admin/cache/", _cookie, marks=pytest.mark.torture),
        ("GET", "/v1/models", _unknown_key),
        pytest.param("GET", "/v1/scores/t-none", _known_key, marks=pytest.mark.torture),
        pytest.param("GET", "/metrics", _unknown_key, marks=pytest.mark.torture),
    ],
)
def test_a_frozen_postgres_behind_one_kind_stops_no_other(
    web: WebProcess, world: World, postgres: ServerHandle, method: str, path: str, headers: Any
) -> None:
    """Eighty who wait for it take no thread that others need; all get 503 with `Retry-After`, in bounded time."""
    postgres.freeze()
    with _storm(web, method, path, headers) as storm:
        until(lambda: any(each.done() for each in storm), within_s=_BOUND_S)
        _others_are_answered(web, world)
        replies = [each.result() for each in storm]
    refused = [reply for reply in replies if reply.status == 503]
    assert len(refused) >= _CLIENTS - 2  # what was under way may have been answered
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert max(reply.seconds for reply in replies) < _BOUND_S


_EVERYWHERE = [
    ("GET", "/admin/", _cookie),
    ("GET", "/admin/cache/", _cookie),
    ("POST", "/admin/login/", _cookie),
    ("OPTIONS", "/admin/", _cookie),
    ("GET", "/admin/nothing/", _cookie),
    ("GET", "/", _none),
    ("GET", "/docs", _cookie),
    ("GET", "/openapi.json", _none),
    ("GET", "/nothing", _cookie),
    ("GET", "/favicon.ico", _none),
    ("GET", "/healthz/ready", _none),
    ("GET", "/v1/models", _known_key),
    ("GET", "/v1/policies", _unknown_key),
    ("GET", "/v1/features/customer/C1", _known_key),
    ("DELETE", "/v1/features/customer/C1", _known_key),
    ("OPTIONS", "/v1/models", _unknown_key),
    ("HEAD", "/v1/models", _unknown_key),
    ("GET", "/v1/nothing", _unknown_key),
    ("GET", "/v1/scores/t-none", _known_key),
    ("GET", "/metrics", _unknown_key),
]


def test_everything_frozen_and_asked_for_at_once(
    web: WebProcess,
    world: World,
    postgres: ServerHandle,
    valkey_cache: ServerHandle,
    valkey_broker: ServerHandle,
) -> None:
    """PostgreSQL, cache and broker, behind every address: nobody hangs, nothing is a 500, and scores go on."""
    for server in (postgres, valkey_cache, valkey_broker):
        server.freeze()
    with ThreadPoolExecutor(_CLIENTS) as pool:
        storm = [
            pool.submit(web.fetch, method, path, headers=headers())
            for _ in range(_CLIENTS // len(_EVERYWHERE))
            for method, path, headers in _EVERYWHERE
        ]
        _others_are_answered(web, world)
        replies = [each.result() for each in storm]
    for reply, (method, path, _) in zip(replies, _EVERYWHERE * (_CLIENTS // len(_EVERYWHERE)), strict=True):
        assert reply.status < 500 or reply.status == 503, (method, path, reply)
        assert reply.status != 503 or int(reply.headers["retry-after"]) >= 1, (method, path)
        assert reply.seconds < _BOUND_S, (method, path, reply.seconds)
    for server in (postgres, valkey_cache, valkey_broker):
        server.thaw()
    until(lambda: web.fetch("GET", "/admin/login/", headers={}).status == 200)
    until(lambda: web.fetch("GET", "/healthz/ready", headers={}).status == 200)


def test_readiness_is_found_out_once_for_all_who_ask(
    web: WebProcess, world: World, postgres: ServerHandle, valkey_cache: ServerHandle, valkey_broker: ServerHandle
) -> None:
    """Eighty at once are shown one result while all is well, and are answered in the time of one while all hangs."""
    with _storm(web, "GET", "/healthz/ready", _none) as storm:
        replies = [each.result() for each in storm]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) <= 3  # each round has times of its own
    for server in (postgres, valkey_cache, valkey_broker):
        server.freeze()
    with _storm(web, "GET", "/healthz/ready", _none) as storm:
        _others_are_answered(web, world)
        replies = [each.result() for each in storm]
    assert max(reply.seconds for reply in replies) < ROUND_S + _AT_ONCE_S
    until(lambda: web.fetch("GET", "/healthz/ready", headers={}).json["status"] == "degraded")
    checks = web.fetch("GET", "/healthz/ready", headers={}).json["checks"]
    assert {name for name, check in checks.items() if check["status"] == "failed"} >= {"postgres", "cache", "broker"}


def test_slow_forms_leave_pages_to_others(web: WebProcess, world: World) -> None:
    """Twenty log-ins that never end: pages, calls, labels and scores are answered; more forms are refused in words."""
    head = (
        b"POST /admin/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Cookie: csrftoken=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nContent-Length: 200\r\n\r\nusername="
    )
    with ExitStack() as slow:
        for _ in range(20):
            connection = slow.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            connection.sendall(head)
        until(lambda: web.fetch("POST", "/admin/login/", headers={}, body="username=x").status == 503)
        until(lambda: web.fetch("GET", "/admin/login/", headers={}).status == 200)  # those beyond the slots are refused
        for _ in range(3):
            assert web.fetch("GET", "/admin/login/", headers={}).status == 200
            assert web.ask("GET", "/v1/models").status == 200
            report = {"labels": [{"transaction_id": "t-none", "is_fraud": True}]}
            assert web.ask("POST", "/v1/labels", report).status == 200
        _others_are_answered(web, world)
        refused = web.fetch("POST", "/admin/login/", headers={}, body="username=x")
    assert "Too many pages at once" in refused.body.decode()


def test_slow_readers_of_files_take_no_threads(web: WebProcess, world: World) -> None:
    """More of them than there are threads, each with a file that is larger than what lies between them and us."""
    file = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
    whole = web.fetch("GET", file, headers={})
    assert whole.status == 200 and len(whole.body) > 1_000_000
    head = web.fetch("HEAD", file, headers={})
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(whole.body)), b"")
    with ExitStack() as slow:
        for _ in range(60):
            connection = slow.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", web.port))
            connection.sendall(f"GET {file} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        _others_are_answered(web, world)


def test_a_page_waits_while_another_is_made(web: WebProcess, world: World) -> None:
    """A browser that asks for five at once is shown them all."""
    with ThreadPoolExecutor(5) as pool:
        for _ in range(5):
            pages = [pool.submit(web.fetch, "GET", "/admin/login/", headers={}) for _ in range(5)]
            assert {page.result().status for page in pages} == {200}
