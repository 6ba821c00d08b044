"""What surrounds every request: its id, its time, its line in the log, its counters and its safe headers."""

from collections.abc import Callable
from time import perf_counter
from typing import Final

import structlog
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch
from prometheus_client import Counter, Histogram
from structlog.contextvars import bind_contextvars, clear_contextvars

from mlserve.observability.metrics import HTTP_LATENCY, HTTP_REQUESTS
from mlserve.observability.request_id import assign_request_id

_log = structlog.get_logger(__name__)

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_API_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
"""Nothing of the API is a page. What pages are told is `api/page_middleware.py`'s matter."""
_STATIC: Final = "/static/"
_QUIET: Final = ("/v1/scores", _STATIC)
"""Logged at DEBUG unless they fail: a line for each score would cost more than the cache saves."""


class RequestContextMiddleware:
    """First in the chain, so that even a request that Django refuses has an id, a line and a count."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        started = perf_counter()
        request_id = assign_request_id(request)
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        response = self._get_response(request)
        _add_headers(request=request, response=response, request_id=request_id)
        _record(request=request, status=response.status_code, elapsed_s=perf_counter() - started)
        return response


def _add_headers(*, request: HttpRequest, response: HttpResponseBase, request_id: str) -> None:
    response.headers["Request-Id"] = request_id
    if request.path_info.startswith(("/v1/", "/healthz/", "/metrics")):
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = _API_POLICY


def _record(*, request: HttpRequest, status: int, elapsed_s: float) -> None:
    route = route_of(request.path_info, request.resolver_match)
    method = count_request(route=route, method=request.method or "", status=status, elapsed_s=elapsed_s)
    write = _log.debug if route.startswith(_QUIET) and status < 500 else _log.info
    write("request", method=method, route=route, status=status, ms=round(elapsed_s * 1000, 2))


def count_request(*, route: str, method: str, status: int, elapsed_s: float) -> str:
    """For the counters of every request, one that Django never saw included. The method under which it was counted."""
    known = method if method in _METHODS else "other"
    _requests(route, known, str(status)).inc()
    _latency(route).observe(elapsed_s)
    return known


_templates: dict[str, str] = {}


def route_of(path: str, match: ResolverMatch | None) -> str:
    """The address's template, never the address: labels stay few, and ids stay out of logs and metrics."""
    if match is None:
        return _STATIC if path.startswith(_STATIC) else "unmatched"
    known = _templates.get(match.route)
    if known is None:
        template = match.route.replace("<str:", "{").replace("<", "{").replace(">", "}").lstrip("^")
        known = _templates[match.route] = f"/{template}"
    return known


_request_children: dict[tuple[str, str, str], Counter] = {}
_latency_children: dict[str, Histogram] = {}


def _requests(route: str, method: str, status: str) -> Counter:
    """`labels()` costs more than `inc()`, so its few results are kept."""
    key = (route, method, status)
    child = _request_children.get(key)
    if child is None:
        child = _request_children[key] = HTTP_REQUESTS.labels(route, method, status)
    return child


def _latency(route: str) -> Histogram:
    child = _latency_children.get(route)
    if child is None:
        child = _latency_children[route] = HTTP_LATENCY.labels(route)
    return child
