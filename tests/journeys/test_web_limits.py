"""Limits, revocation and overload over real HTTP, with the web process as production starts it."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from mlserve.api.keys import issue_key, revoke_key
from mlserve.api.lookup import FRESH_FOR_S
from tests.fixtures.population import API_KEY, World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.fixtures.web_process import Reply, WebProcess, web_process

_CLIENTS = 24
_BOUND_S = 2.0
"""For an answer of a machine that does other things as well: no more than a wait for a place and a score take."""


@pytest.fixture
def two(world: World) -> Iterator[list[WebProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(web_process()) for _ in range(2)]


@pytest.fixture
def narrow(world: World) -> Iterator[WebProcess]:
    """One score at once, two may wait."""
    with web_process(GRANIAN_BLOCKING_THREADS="8", MLSERVE_SCORES_AT_ONCE="1", MLSERVE_SCORES_WAITING="2") as web:
        yield web


def test_a_revoked_key_ends_in_every_process_within_a_second(two: list[WebProcess]) -> None:
    """Both were using it, and neither is told."""
    issued = issue_key(name="to be revoked", scopes=["score"])
    for _ in range(5):
        assert [web.ask("GET", "/v1/models", key=issued.key).status for web in two] == [200, 200]
    assert revoke_key(issued.record, now=datetime.now(UTC))
    over = time.monotonic() + FRESH_FOR_S
    for web in two:
        late = [0]

        def is_refused(web: WebProcess = web, late: list[int] = late) -> bool:
            began = time.monotonic()
            status = web.ask("GET", "/v1/models", key=issued.key).status
            late[0] += status != 401 and began > over
            return status == 401

        until(is_refused, within_s=5)
        assert late == [0]


def test_processes_hold_a_key_to_one_limit(two: list[WebProcess]) -> None:
    """Whichever answers, together they let through no more than burst and inflow, and each says how much is left."""
    rate, burst = 4, 12
    key = issue_key(name="limited", scopes=["score"], rate_per_s=rate, burst=burst).key
    began = time.monotonic()
    replies = [two[number % 2].ask("GET", "/v1/models", key=key) for number in range(40)]
    allowed = sum(reply.status == 200 for reply in replies)
    assert {reply.status for reply in replies} == {200, 429}
    assert allowed <= burst + rate * (time.monotonic() - began)
    assert allowed >= burst - 4
    for reply in replies:
        assert reply.headers["ratelimit-policy"] == '"key";q=12;w=3'
        assert reply.headers["ratelimit"].startswith('"key";r=')
        assert ("retry-after" in reply.headers) == (reply.status == 429)


def _storm(web: WebProcess, world: World, each: int) -> list[Reply]:
    def client(_number: int) -> list[Reply]:
        return [web.ask("POST", "/v1/scores", world.request()) for _ in range(each)]

    with ThreadPoolExecutor(_CLIENTS) as pool:
        return [reply for replies in pool.map(client, range(_CLIENTS)) for reply in replies]


def _total(exposed: str, prefix: str) -> float:
    return sum(float(line.split()[-1]) for line in exposed.splitlines() if line.startswith(prefix))


def test_a_burst_is_answered_in_time_by_scores_and_refusals(narrow: WebProcess, world: World) -> None:
    """Nobody waits longer than the bound, scores go on, and afterwards all is as before. Every answer is counted."""
    narrow.ask("POST", "/v1/scores", world.request())
    before = narrow.ask("GET", "/metrics").body.decode()
    replies = _storm(narrow, world, each=10)
    assert {reply.status for reply in replies} == {200, 503}
    assert max(reply.seconds for reply in replies) < _BOUND_S
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.json["code"] for reply in refused} == {"overloaded"}
    assert {int(reply.headers["retry-after"]) for reply in refused} <= {1, 2, 3, 4}
    assert [narrow.ask("POST", "/v1/scores", world.request()).status for _ in range(5)] == [200] * 5
    counted = narrow.ask("GET", "/metrics").body.decode()
    asked = 'mlserve_http_requests_total{method="POST",route="/v1/scores",status="%d"}'
    for prefix, expected in (
        ("mlserve_admission_refused_total", len(refused)),
        (asked % 503, len(refused)),
        (asked % 200, len(replies) - len(refused) + 5),
    ):
        assert _total(counted, prefix) - _total(before, prefix) == expected


def test_while_postgres_hangs_nobody_queues_up(narrow: WebProcess, world: World, postgres: ServerHandle) -> None:
    """One score waits for it, the others are refused at once or within an interval; health and metrics answer."""
    assert narrow.ask("POST", "/v1/scores", world.request()).status == 200
    postgres.freeze()
    with ThreadPoolExecutor(_CLIENTS + 1) as pool:
        storm = [pool.submit(narrow.ask, "POST", "/v1/scores", world.request()) for _ in range(_CLIENTS)]
        until(lambda: sum(each.done() for each in storm) >= _CLIENTS - 3)
        for _ in range(5):
            assert narrow.ask("GET", "/healthz/live").seconds < _BOUND_S
            assert narrow.ask("GET", "/metrics").seconds < 2 * _BOUND_S  # its key may be due to be asked about
        replies = [each.result() for each in storm]
    refused = [reply for reply in replies if reply.status == 503 and reply.json["code"] == "overloaded"]
    assert len(refused) >= _CLIENTS - 5
    assert max(reply.seconds for reply in refused) < _BOUND_S
    postgres.thaw()
    until(lambda: narrow.ask("POST", "/v1/scores", world.request()).status == 200)


def test_slow_clients_do_not_take_all_threads(world: World) -> None:
    """Twenty that send half a report of labels and then nothing: scores and health are answered as before."""
    head = (
        "POST /v1/labels HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {API_KEY}\r\nContent-Length: 200\r\n\r\n{{"
    ).encode()
    with web_process(GRANIAN_BLOCKING_THREADS="26") as web, ExitStack() as slow:
        assert web.ask("POST", "/v1/scores", world.request()).status == 200
        report = {"labels": [{"transaction_id": "t-1", "is_fraud": True}]}

        def begin() -> None:
            connection = slow.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            connection.sendall(head)

        def are_reports_refused() -> bool:
            begin()  # another one, should those before it have been refused while the process was busy
            return web.ask("POST", "/v1/labels", report).status == 503

        for _ in range(20):
            begin()
        until(are_reports_refused)
        for _ in range(5):
            assert web.ask("POST", "/v1/scores", world.request()).status == 200
            assert web.ask("GET", "/healthz/live").seconds < _BOUND_S
