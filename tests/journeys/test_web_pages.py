"""Whatever hangs behind pages and calls of the API: scores, health and metrics are answered, and so is everybody."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.fixtures.web_process import Reply, WebProcess, web_process

_CLIENTS = 80
_AT_ONCE_S = 2.0
"""For what waits for nothing, on a machine that does other things as well."""
_BOUND_S = 12.0
"""For what waits for a slot, a connection and a statement."""
_numbers = count(1)


@pytest.fixture
def web(world: World) -> Iterator[WebProcess]:
    """With the threads that it has if nobody says; it knows the tests' key, and its caches are warm."""
    with web_process(GRANIAN_BLOCKING_THREADS="26") as process:
        assert process.ask("POST", "/v1/scores", world.request()).status == 200
        yield process


def _cookie() -> dict[str, str]:
    return {"Cookie": f"sessionid=madeup{next(_numbers):026}"}


def _unknown_key() -> dict[str, str]:
    return {"Authorization": f"Bearer mls_made_up_key_number_{next(_numbers)}"}


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
        ("HEAD", "/admin/cache/", _cookie),
        ("GET", "/v1/models", _unknown_key),
        ("GET", "/metrics", _unknown_key),
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
    assert {reply.status for reply in replies} == {503}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies)
    assert max(reply.seconds for reply in replies) < _BOUND_S
