"""Log lines: where they go, what they carry, and what never stands in them."""

import json
import logging
from collections.abc import Callable, Iterator

import psycopg
import pytest
import redis
import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.test import Client
from kombu import exceptions as kombu

from mlserve.cache.bloom_redis import StoreUnreachable
from mlserve.observability.logging import configure, without_secrets

pytestmark = pytest.mark.django_db


@pytest.fixture
def json_lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[dict[str, object]]]]:
    """Logging as in production; what was written since the last call."""
    configure({"level": "INFO", "format": "json"})
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    configure(settings.LOGGING)


def test_a_request_is_one_line(client: Client, json_lines: Callable[[], list[dict[str, object]]]) -> None:
    """With the route, not the address, so that no id stands in it."""
    json_lines()
    client.get("/v1/features/customer/somebody", headers={"request-id": "r-1"})
    (line,) = json_lines()
    assert line["event"] == "request" and line["level"] == "info"
    assert line["route"] == "/v1/features/{entity}/{entity_id}"
    assert (line["method"], line["status"], line["request_id"]) == ("GET", 401, "r-1")
    assert "somebody" not in json.dumps(line)


def test_a_score_is_no_line(
    client_with: Callable[..., Client], json_lines: Callable[[], list[dict[str, object]]]
) -> None:
    """At INFO: the hot path stays quiet unless it fails."""
    client = client_with("score")
    json_lines()
    client.post("/v1/scores", b"{}", content_type="application/json")
    assert json_lines() == []


def test_the_standard_librarys_lines_look_the_same(json_lines: Callable[[], list[dict[str, object]]]) -> None:
    """Libraries' messages carry the request id as well, exceptions their traceback."""
    with structlog.contextvars.bound_contextvars(request_id="r-2"):
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("a.library").exception("it %s", "failed")
    (line,) = json_lines()
    assert (line["event"], line["request_id"], line["logger"]) == ("it failed", "r-2", "a.library")
    assert "ValueError: broken" in str(line["exception"])


@pytest.mark.parametrize(
    "secret",
    [
        "mls_" + "A" * 43,
        "Authorization: Bearer chosen-by-somebody",
        "{'authorization': 'bearer chosen-by-somebody'}",
        "redis://:chosen-by-somebody@host:6379/0",
        "postgresql://user:chosen-by-somebody@host/db",
    ],
)
def test_secrets_are_struck_out(secret: str, json_lines: Callable[[], list[dict[str, object]]]) -> None:
    """In whatever line they would stand."""
    logging.getLogger("a.library").warning("got %s", secret)
    (line,) = json_lines()
    assert "[hidden]" in str(line["event"])
    assert "chosen" not in str(line) and "AAAA" not in str(line)


def test_other_words_stay() -> None:
    """The pattern takes no innocent text."""
    line = "GET http://localhost:8000/v1/scores?mls_=1 bearer of news"
    assert without_secrets("http://localhost:8000/a@b") == "http://localhost:8000/a@b"
    assert "http://localhost:8000/v1/scores" in without_secrets(line)


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, redis.ConnectionError, kombu.OperationalError])
def test_a_server_that_is_away_is_one_line(
    error: type[Exception], json_lines: Callable[[], list[dict[str, object]]]
) -> None:
    """What it said, without a traceback; Celery's copy of the traceback goes too."""
    try:
        raise error("connection refused\n\tis the server running?")
    except error:
        logging.getLogger("celery.app.trace").exception(
            "Task failed", extra={"data": {"traceback": "Traceback (most recent call last)"}}
        )
        structlog.get_logger("a.library").exception("it_failed")
    for line in json_lines():
        assert line["error"] == f"{error.__name__}: connection refused is the server running?"
        assert "exception" not in line and "Traceback" not in str(line)


@pytest.mark.parametrize("statement", ["CREATE TABLE of_nobody ()", "SET LOCAL lock_timeout = 'for ever'"])
def test_what_postgres_refuses_is_one_line_unless_the_code_is_to_blame(
    statement: str, json_lines: Callable[[], list[dict[str, object]]]
) -> None:
    """A server that takes no writes is an outage, whatever class the error has; a wrong statement shows where it is."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute(statement)
    except DatabaseError as error:
        logging.getLogger("a.library").exception("it failed")
        is_outage = isinstance(error.__cause__, psycopg.errors.ReadOnlySqlTransaction)
    (line,) = json_lines()
    assert ("exception" in line) is not is_outage
    assert is_outage is statement.startswith("CREATE")


def test_an_outage_behind_an_error_of_ours_is_one_line(json_lines: Callable[[], list[dict[str, object]]]) -> None:
    """As the tiers translate a library's errors: what could not be done, and why, without the way there."""
    try:
        try:
            raise redis.ConnectionError("connection refused")
        except redis.ConnectionError as error:
            raise StoreUnreachable(error) from error
    except StoreUnreachable:
        logging.getLogger("celery.app.trace").exception("Task failed")
    (line,) = json_lines()
    assert line["error"] == "StoreUnreachable: ConnectionError: connection refused"
    assert "exception" not in line
