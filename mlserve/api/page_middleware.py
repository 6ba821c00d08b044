"""Django's middleware for what people open in a browser; requests of the API pass it by.

A request with a key has no session, no user of the admin, no messages, and its policy header is always the same
(`observability/middleware.py`). Making all these for it would cost more than its look-ups in the cache.
"""

from typing import Any, Final

from csp.middleware import CSPMiddleware
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest

API: Final = "/v1/"


class _OfPages:
    get_response: Any

    def __call__(self, request: HttpRequest) -> Any:
        if request.path_info.startswith(API):
            return self.get_response(request)
        return super().__call__(request)  # type: ignore[misc]  # the middleware that this is mixed into


class PagePolicy(_OfPages, CSPMiddleware):
    """`Content-Security-Policy` of pages."""


class PageSessions(_OfPages, SessionMiddleware):
    """`request.session`."""


class PageUsers(_OfPages, AuthenticationMiddleware):
    """`request.user`."""


class PageMessages(_OfPages, MessageMiddleware):
    """What a page tells once after something was done."""
