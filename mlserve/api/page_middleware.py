"""Django's middleware for what people open in a browser; requests of the API pass it by.

A request with a key has no session, no user of the admin, no messages, and its policy header is always the same
(`observability/middleware.py`). Making all these for it would cost more than its look-ups in the cache.

Pages live on PostgreSQL: session, user and content come from there. So none of them waits for it without a limit, and
where it fails the answer is a page that says so and asks nothing of it (`unavailable_page`).
"""

from collections.abc import Callable
from typing import Any, Final

import structlog
from csp.middleware import CSPMiddleware
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from mlserve.api.admission import Refusal
from mlserve.api.database_time import database_within
from mlserve.api.problems import ADMIN, unavailable_page
from mlserve.api.source_errors import AWAY, SourceError, source_error_of
from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from mlserve.postgres.sessions import Kind

API: Final = "/v1/"
REFUSED: Final = "mlserve.refused"
"""Where the gate leaves in the WSGI environment why it has no slot for a page."""
ALTOGETHER_S: Final = 6.0
"""For all statements of a page: people give up not much later."""
_BUSY: Final = {
    Refusal.FULL: "As many pages are made at the moment, and wait for that, as may.",
    Refusal.LATE: "As many pages are made at the moment as may, and none was finished in time.",
}
_log = structlog.get_logger(__name__)


class _OfPages:
    get_response: Any

    def __call__(self, request: HttpRequest) -> Any:
        if request.path_info.startswith(API):
            return self.get_response(request)
        try:
            return super().__call__(request)  # type: ignore[misc]  # the middleware that this is mixed into
        except (DatabaseError, InterfaceError, SessionInterrupted) as error:  # its own: what is inside has answered
            page = _page_of(request, _of_the_database(error))
            if page is None:
                raise
            return page


class PagePolicy(_OfPages, CSPMiddleware):
    """`Content-Security-Policy` of pages."""


class PageSessions(_OfPages, SessionMiddleware):
    """`request.session`."""


class PageUsers(_OfPages, AuthenticationMiddleware):
    """`request.user`."""


class PageMessages(_OfPages, MessageMiddleware):
    """What a page tells once after something was done."""


class PageOutages:
    """Around all that asks PostgreSQL for a page: a bound for each wait, and an answer in words where it fails."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        path = request.path_info
        if path.startswith(API):
            return self._get_response(request)
        refusal = request.META.get(REFUSED)
        if refusal is not None:
            return _busy_page(request, refusal)
        if not path.startswith(ADMIN):
            return self._get_response(request)
        if engine().l3_breaker.state is not State.CLOSED:  # found out already, and its prober tries again
            return _unavailable(request, AWAY, stored="Nothing was done.")
        with database_within(ALTOGETHER_S, kind=Kind.PAGE):
            return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Django calls it for what a view raised, or the rendering of its template."""
        return None if request.path_info.startswith(API) else _page_of(request, exception)


def _of_the_database(error: Exception) -> Exception:
    """Whatever keeps a session from being saved, Django says that it was deleted; the reason stands behind that."""
    seen: BaseException | None = error
    while isinstance(seen, SessionInterrupted | UpdateError):
        seen = seen.__context__
    return seen if isinstance(seen, DatabaseError | InterfaceError) else error


def _page_of(request: HttpRequest, error: Exception) -> HttpResponse | None:
    answer = source_error_of(error)
    if answer is None:
        return None
    _log.warning("page_failed", code=str(answer.code), error=f"{type(error).__name__}: {error}")
    return _unavailable(request, answer, stored=answer.stored)


def _unavailable(request: HttpRequest, answer: SourceError, *, stored: str) -> HttpResponse:
    return unavailable_page(request, title=answer.title, why=answer.why, stored=stored)


def _busy_page(request: HttpRequest, refusal: Refusal) -> HttpResponse:
    return unavailable_page(
        request, title="Too many pages at once", why=_BUSY[refusal], stored="Nothing was done for this request."
    )
