"""Every error that leaves the API: RFC 9457 problem details, whether Django, REST framework or the domain raised it.

Nothing of an unforeseen exception leaves but the request id, under which the log has its traceback.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.template.loader import render_to_string
from django.views import csrf, defaults
from rest_framework import exceptions
from rest_framework.request import Request

from mlserve.api.source_errors import retry_after, source_error_of
from mlserve.errors import STATUS_OF, TITLE_OF, ErrorCode, FieldError, MlserveError
from mlserve.observability.request_id import request_id_of

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:mlserve:error:"
ADMIN: Final = "/admin/"
_PAGES: Final = (ADMIN, "/static/", "/docs")
"""What people open in a browser gets Django's own error pages."""
_READING: Final = ("GET", "HEAD", "OPTIONS")
_REPEATED_CHARACTERS: Final = 200


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an error. `errors` names each wrong field or parameter."""

    type: str
    title: str
    status: int
    detail: str
    code: ErrorCode
    request_id: str
    errors: tuple[FieldError, ...] = ()


_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger(__name__)


def problem_response(
    request: HttpRequest | Request,
    code: ErrorCode,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """The problem as a response."""
    problem = make_problem(request, code, detail, errors=errors)
    return HttpResponse(_encode(problem), status=problem.status, content_type=CONTENT_TYPE, headers=dict(headers or {}))


def make_problem(
    request: HttpRequest | Request, code: ErrorCode, detail: str, *, errors: Sequence[FieldError] = ()
) -> Problem:
    """The problem, its status from the table in `mlserve.errors`."""
    return Problem(
        type=f"{TYPE_PREFIX}{code}",
        title=TITLE_OF[code],
        status=int(STATUS_OF[code]),
        detail=detail,
        code=code,
        request_id=request_id_of(request),
        errors=tuple(errors),
    )


def problem_of_item(request: Request, error: MlserveError) -> Problem:
    """What is wrong with one item of a list whose other items are answered."""
    if STATUS_OF[error.code] >= 500:
        _log.warning("item_failed", code=str(error.code), detail=error.detail)
    return make_problem(request, error.code, error.detail, errors=error.errors)


def exception_handler(error: Exception, context: Mapping[str, Any]) -> HttpResponse | None:
    """REST framework's `EXCEPTION_HANDLER`. None for what nobody foresaw: Django logs it and calls `server_error`."""
    request: Request = context["request"]
    match error:
        case MlserveError():
            if STATUS_OF[error.code] >= 500:
                _log.warning("request_failed", code=str(error.code), detail=error.detail)
            return problem_response(
                request, error.code, error.detail, errors=error.errors, headers=_retry_header(error)
            )
        case _ if (answer := source_error_of(error)) is not None:
            _log.warning("request_failed", code=str(answer.code), detail=str(error))
            return problem_response(request, answer.code, answer.detail, headers={"Retry-After": retry_after()})
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            challenge = getattr(error, "challenge", None) or 'Bearer realm="mlserve"'
            return problem_response(
                request, ErrorCode.UNAUTHENTICATED, str(error.detail), headers={"WWW-Authenticate": challenge}
            )
        case exceptions.PermissionDenied():
            return problem_response(request, ErrorCode.FORBIDDEN, str(error.detail))
        case PermissionDenied():
            return problem_response(request, ErrorCode.FORBIDDEN, "This is not allowed.")
        case Http404() | exceptions.NotFound():
            return problem_response(request, ErrorCode.NOT_FOUND, f"Nothing is at {_short(request.path)}.")
        case exceptions.MethodNotAllowed():
            allowed = ", ".join(context["view"].allowed_methods)
            return problem_response(
                request,
                ErrorCode.METHOD_NOT_ALLOWED,
                f"{_short(str(request.method))} is not allowed here; allowed: {allowed}.",
                headers={"Allow": allowed},
            )
        case exceptions.NotAcceptable():
            served = getattr(context["view"], "produces", None) or "application/json"
            return problem_response(request, ErrorCode.NOT_ACCEPTABLE, f"Only {served} is served here.")
        case exceptions.UnsupportedMediaType():
            return problem_response(request, ErrorCode.UNSUPPORTED_MEDIA_TYPE, str(error.detail))
        case RequestDataTooBig():
            return problem_response(request, ErrorCode.BODY_TOO_LARGE, "The body is too large.")
        case exceptions.ParseError() | SuspiciousOperation() | UnreadablePostError():
            return problem_response(request, ErrorCode.MALFORMED_REQUEST, "The request cannot be read.")
    return None


def _retry_header(error: MlserveError) -> dict[str, str]:
    """A limit says to the second when there is more. Whoever meets an outage comes back a little later by lot."""
    if error.retry_after_s is None:
        return {}
    exact = STATUS_OF[error.code] < 500
    return {"Retry-After": str(error.retry_after_s) if exact else retry_after(error.retry_after_s)}


def is_page(path: str) -> bool:
    """Whether people open it in a browser, and get errors in words."""
    return path.startswith(_PAGES)


def unavailable_page(request: HttpRequest, *, title: str, why: str, stored: str) -> HttpResponse:
    """503 in words, with `Retry-After`; for what is no page, a problem. Asks neither session nor user nor database.

    `stored` is what became of a form, and is left out where nothing was sent.
    """
    seconds = retry_after()
    words = (why, stored) if request.method not in _READING else (why,)
    if not is_page(request.path_info):
        return problem_response(
            request, ErrorCode.SOURCE_UNAVAILABLE, " ".join(words), headers={"Retry-After": seconds}
        )
    context = {"title": title, "words": words, "again_s": seconds, "request_id": request_id_of(request)}
    content = render_to_string("503.html", context)  # without the request: nothing of it is looked up
    return HttpResponse(content, status=503, headers={"Retry-After": seconds, "Cache-Control": "no-store"})


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler400`: a wrong Host header, a body that Django itself refuses."""
    if is_page(request.path_info):
        return defaults.bad_request(request, exception)
    if isinstance(exception, RequestDataTooBig):
        return problem_response(request, ErrorCode.BODY_TOO_LARGE, "The body is too large.")
    return problem_response(request, ErrorCode.MALFORMED_REQUEST, "The request cannot be read; is the host right?")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler403`."""
    if is_page(request.path_info):
        return defaults.permission_denied(request, exception)
    return problem_response(request, ErrorCode.FORBIDDEN, "This is not allowed.")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's `CSRF_FAILURE_VIEW`: also for what is posted to an address that is only there to be looked at."""
    if is_page(request.path_info):
        return csrf.csrf_failure(request, reason)
    if "HTTP_AUTHORIZATION" not in request.META:
        return problem_response(
            request,
            ErrorCode.UNAUTHENTICATED,
            "Nothing can be sent here without an API key; the API's addresses are below /v1/.",
            headers={"WWW-Authenticate": 'Bearer realm="mlserve"'},
        )
    return problem_response(
        request,
        ErrorCode.METHOD_NOT_ALLOWED,
        f"{_short(str(request.method))} is not allowed here; allowed: GET, HEAD.",
        headers={"Allow": "GET, HEAD"},
    )


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler404`."""
    if is_page(request.path_info):
        return defaults.page_not_found(request, exception)
    return problem_response(request, ErrorCode.NOT_FOUND, f"Nothing is at {_short(request.path_info)}.")


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`, called after the traceback was logged."""
    if is_page(request.path_info):
        return defaults.server_error(request)
    return problem_response(
        request, ErrorCode.INTERNAL, "An error that nobody foresaw; the log has it under this request id."
    )


def _short(text: str) -> str:
    """What a problem repeats of an address or a method that may have thousands of characters."""
    return text if len(text) <= _REPEATED_CHARACTERS else f"{text[:_REPEATED_CHARACTERS]}…"
