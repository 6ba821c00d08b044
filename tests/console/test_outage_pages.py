"""What people see while PostgreSQL hangs, is read-only or is held by somebody: a page in words, in bounded time."""

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import DataError, OperationalError, ProgrammingError, connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from features.models import TtlPolicy
from mlserve.api.page_middleware import PageMessages, PageOutages, PageSessions
from mlserve.cache import wiring
from mlserve.cache.breaker import State
from tests.features.sessions import conninfo
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.postgres.server_defaults import drop_sessions, server_default

pytestmark = pytest.mark.usefixtures("metrics_dir")

_BOUND_S = 12.0
_PASSWORD = "a-long-password"
_POLICY = "/admin/features/ttlpolicy/merchant_risk/change/"


@pytest.fixture
def root(world: World) -> Iterator[Client]:
    """A superuser with a session, who sees what is answered and no exception."""
    client = Client(raise_request_exception=False)
    User.objects.filter(username="root").delete()
    user = User.objects.create_superuser("root", password=_PASSWORD)
    client.force_login(user)
    assert client.get("/admin/").status_code == 200
    yield client
    drop_sessions()  # a test client keeps the connection of its thread, broken or not
    until(lambda: _deleted(user))


def _deleted(user: User) -> bool:
    try:
        user.delete()
    except OperationalError:
        drop_sessions()
        return False
    return True


def _words(response: Any, title: str) -> str:
    """The text of a page that says that it cannot be made now."""
    text = response.content.decode()
    assert response.status_code == 503, text
    assert response.headers["Content-Type"].startswith("text/html")
    assert int(response.headers["Retry-After"]) >= 2
    assert f"Try again in {response.headers['Retry-After']} seconds" in text
    assert response.headers["Request-Id"] in text
    assert "script-src 'self'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in response.headers
    assert f"<h1>{title}</h1>" in text
    assert not re.search(r"Traceback|psycopg|127\.0\.0\.1|<script(?![^>]*src=)", text)
    return text


def _changed_policy(client: Client) -> dict[str, Any]:
    """The form as the browser would send it, with another limit."""
    page = client.get(_POLICY)
    form = page.context["adminform"].form
    sent = {name: form.initial.get(name) for name in form.fields}
    return {name: value for name, value in sent.items() if value not in (None, False)} | {"fresh_for_s": 1234}


@contextmanager
def _held(statement: str) -> Iterator[None]:
    with closing(psycopg.connect(conninfo())) as other:
        other.execute(statement)
        yield


def test_a_frozen_postgres(root: Client, postgres: ServerHandle) -> None:
    """Each wait ends, and so does the page; what was sent may have arrived."""
    sent = _changed_policy(root)
    postgres.freeze()
    text = _words(root.get("/admin/"), "The database did not answer in time")
    assert "Whether what you sent" not in text
    drop_sessions()  # as each request of a web process takes a connection of its own
    text = _words(root.post(_POLICY, sent), "The database did not answer in time")
    assert "Whether what you sent was stored is not known" in text
    began = time.monotonic()
    root.get("/admin/auth/user/")
    assert time.monotonic() - began < _BOUND_S


def test_a_postgres_that_is_gone(root: Client, postgres: ServerHandle) -> None:
    """Also for who has no session yet, and for a log-in."""
    postgres.stop()
    drop_sessions()
    anybody = Client(raise_request_exception=False)
    for answer in (root.get(_POLICY), anybody.post("/admin/login/", {"username": "root", "password": _PASSWORD})):
        assert "PostgreSQL" in answer.content.decode()
        assert answer.status_code == 503


def test_while_postgres_is_known_to_be_away_nobody_waits(root: Client, postgres: ServerHandle) -> None:
    """The open breaker of reads answers; its prober finds out when that is over."""
    breaker = wiring.engine().l3_breaker
    postgres.freeze()
    breaker.failure(timed_out=True)
    assert breaker.state is not State.CLOSED
    with connection.execute_wrapper(_not_to_be_called):
        text = _words(root.post(_POLICY, {}), "The database does not answer")
    assert "Nothing was done." in text


def _not_to_be_called(*_: Any) -> None:
    raise AssertionError("PostgreSQL was asked")


def test_a_read_only_postgres_is_read_and_not_written(root: Client) -> None:
    """Pages are shown to who is logged in; nobody logs in, and an edit says that nothing was stored."""
    sent = _changed_policy(root)
    before = TtlPolicy.objects.get(pk="merchant_risk").fresh_for_s
    with server_default("default_transaction_read_only", "on"):
        assert root.get(_POLICY).status_code == 200
        for client, path, form in (
            (root, _POLICY, sent),
            (root, "/admin/logout/", {}),
            (Client(raise_request_exception=False), "/admin/login/", {"username": "root", "password": _PASSWORD}),
        ):
            text = _words(client.post(path, form), "The database is read-only")
            assert "Nothing of what you sent was stored." in text
    assert TtlPolicy.objects.get(pk="merchant_risk").fresh_for_s == before
    assert root.get("/admin/").status_code == 200  # still logged in


@pytest.mark.parametrize("table", ["django_session", "auth_user", "features_ttlpolicy"])
def test_a_table_that_somebody_has_locked(root: Client, table: str) -> None:
    """Whatever the page needs of it: session, user or content."""
    with _held(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"):
        began = time.monotonic()
        _words(root.get("/admin/features/ttlpolicy/"), "Somebody else is changing this")
        assert time.monotonic() - began < _BOUND_S
        assert wiring.engine().l3_breaker.opened_count == 0


def test_a_row_that_somebody_else_is_changing(root: Client) -> None:
    """The edit is refused and not half stored."""
    sent = _changed_policy(root)
    with _held("SELECT FROM features_ttlpolicy WHERE name = 'merchant_risk' FOR UPDATE"):
        text = _words(root.post(_POLICY, sent), "Somebody else is changing this")
    assert "Nothing of what you sent was stored." in text
    assert root.post(_POLICY, sent).status_code == 302


def test_a_session_that_cannot_be_saved(root: Client) -> None:
    """Sessions are saved after the view has answered: that too is a page in words and no error."""
    key = root.cookies["sessionid"].value

    def view(request: HttpRequest) -> HttpResponse:
        request.session["seen"] = True
        return HttpResponse("done")

    request = RequestFactory().post("/admin/")
    request.COOKIES["sessionid"] = key
    with server_default("default_transaction_read_only", "on"):
        response: Any = PageOutages(PageSessions(PageMessages(view)))(request)
    assert response.status_code == 503
    assert b"The database is read-only" in response.content
    assert Session.objects.get(pk=key).get_decoded().get("seen") is None


@pytest.mark.parametrize("error", [DataError("value"), ProgrammingError("no such table"), KeyError("x")])
def test_what_another_try_would_not_mend_is_no_outage(error: Exception) -> None:
    """It stays an error that is logged and looked into."""
    if isinstance(error, DataError | ProgrammingError):
        error.__cause__ = psycopg.errors.lookup("22003" if isinstance(error, DataError) else "42P01")("said")
    request = RequestFactory().get("/admin/")
    assert PageOutages(lambda _request: HttpResponse()).process_exception(request, error) is None


def test_the_page_itself_asks_nothing(root: Client, postgres: ServerHandle) -> None:
    """Neither session nor user: a page that the gate refuses, to somebody with a cookie, while PostgreSQL is frozen."""
    postgres.freeze()
    with connection.execute_wrapper(_not_to_be_called):
        full: dict[str, Any] = {"mlserve.refused": "full"}
        late: dict[str, Any] = {"mlserve.refused": "late"}
        response = root.get("/admin/", **full)
        text = _words(response, "Too many pages at once")
        form = root.post("/admin/login/", {}, **late)
    assert "As many pages are made" in text
    assert "Nothing was done for this request." in form.content.decode()
