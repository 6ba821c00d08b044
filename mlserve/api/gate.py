"""The gate in front of Django: scores are admitted (`admission.py`) or refused before anything else is done for them.

Refused is what nothing has been done for: its key was not looked up, its body not read. What is no score and has no
body passes: health and metrics, because who watches must see an overloaded process; the admin and the other addresses
of the API, because operators must be able to act on it.

A batch takes many times as long as a score. So batches have no more than some of the places for scores: the others are
left to single scores, which would hardly get one among many batches.

Whatever else comes with a body has a few places of its own. A body is read by the thread of its request, and the server
waits for a slow client without a limit: without places those would take all threads, and nobody would be answered.

In overload most requests are refused, on the processors that the others are scored on: what a refusal says is made
beforehand, but for the request's id.
"""

from collections.abc import Callable, Iterable
from random import randrange
from time import perf_counter
from typing import Any, Final

import msgspec
from django.http import HttpResponse
from django.urls import Resolver404, resolve

from mlserve.api.admission import Admission, Refusal, Visit
from mlserve.api.problems import CONTENT_TYPE, TYPE_PREFIX, Problem
from mlserve.errors import STATUS_OF, TITLE_OF, ErrorCode
from mlserve.observability.metrics import ADMISSION_REFUSED, ADMISSION_WAIT
from mlserve.observability.middleware import count_request, route_of
from mlserve.observability.request_id import assign_request_id

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

GATED: Final = "/v1/scores"
_BATCH: Final = f"{GATED}/batch"
RETRY_AFTER_S: Final = (1, 4)
"""From and to: all who are refused at one moment must not come back at one moment."""
_WAITED_S: Final = 0.0001
"""Less is no wait, but the time that it takes to find a place free."""
_CODE: Final = ErrorCode.OVERLOADED
_STATUS: Final = f"{int(STATUS_OF[_CODE])} {STATUS_OF[_CODE].phrase}"
_DETAIL: Final = {
    Refusal.FULL: "As many requests wait here as may; nothing was done for this one. Send it again later.",
    Refusal.LATE: "No place became free in time; nothing was done for this one. Send it again later.",
}
_HEADERS: Final = [
    [
        ("Content-Type", CONTENT_TYPE),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
        ("X-Content-Type-Options", "nosniff"),
        ("Retry-After", str(seconds)),
    ]
    for seconds in range(RETRY_AFTER_S[0], RETRY_AFTER_S[1] + 1)
]
_REQUEST_ID: Final = "\0"
"""Where the id of the request goes in what is made beforehand; no id holds it, nor what JSON would escape."""


class Gate:
    """A WSGI application around another one."""

    def __init__(
        self, application: Application, *, scores: Admission, batches: Admission, other_bodies: Admission
    ) -> None:
        self._application = application
        self._scores = (scores,)
        self._batches = (batches, scores)
        self._other_bodies = (other_bodies,)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        wanted = self._wanted(environ)
        if not wanted:
            return self._application(environ, start_response)
        arrived = perf_counter()
        visit = Visit()
        try:
            for admission in wanted:
                refusal = visit.enter(admission)
                if refusal is not None:
                    _count(environ, perf_counter() - arrived)
                    return _refuse(environ, start_response, refusal)
            waited_s = perf_counter() - arrived
            if waited_s > _WAITED_S:
                ADMISSION_WAIT.observe(waited_s)
            return _finished(self._application(environ, start_response))
        finally:
            visit.leave()

    def _wanted(self, environ: Environ) -> tuple[Admission, ...]:
        """Where a place is needed, in this order, so that nobody waits for somebody who waits for him."""
        path = environ.get("PATH_INFO", "")
        if path.startswith(GATED):
            return self._batches if path == _BATCH else self._scores
        if environ.get("CONTENT_LENGTH", "0") in ("", "0"):  # nothing that comes in chunks is read
            return ()
        return self._other_bodies


def _finished(response: Iterable[bytes]) -> Iterable[bytes]:
    """The body, once all that the request holds is given back: its connection to Postgres too.

    A server closes a response after it was sent. The next request on that connection would then begin beside the end of
    this one, on another thread, and both would fight for the interpreter.
    """
    if not isinstance(response, HttpResponse):
        return response
    body = response.content
    response.close()
    return [body]


def _count(environ: Environ, elapsed_s: float) -> None:
    """As the middleware would have."""
    method, status = environ.get("REQUEST_METHOD", ""), int(STATUS_OF[_CODE])
    count_request(route=_route_of(environ["PATH_INFO"]), method=method, status=status, elapsed_s=elapsed_s)


def _route_of(path: str) -> str:
    if path == GATED:  # the most, in overload
        return path
    try:
        return route_of(path, resolve(path))
    except Resolver404:
        return route_of(path, None)


class _Meta:
    """What a request id is looked for in."""

    def __init__(self, environ: Environ) -> None:
        self.META = environ


def _refuse(environ: Environ, start_response: StartResponse, refusal: Refusal) -> list[bytes]:
    _refused[refusal].inc()
    request_id = assign_request_id(_Meta(environ))
    before, after = _BODY[refusal]
    body = b"%b%b%b" % (before, request_id.encode(), after)
    headers = _HEADERS[randrange(len(_HEADERS))]
    start_response(_STATUS, [*headers, ("Content-Length", str(len(body))), ("Request-Id", request_id)])
    return [body]


def _prepared_body(refusal: Refusal) -> tuple[bytes, bytes]:
    """What stands before and after the request's id."""
    problem = Problem(
        type=f"{TYPE_PREFIX}{_CODE}",
        title=TITLE_OF[_CODE],
        status=int(STATUS_OF[_CODE]),
        detail=_DETAIL[refusal],
        code=_CODE,
        request_id=_REQUEST_ID,
    )
    before, _, after = msgspec.json.encode(problem).partition(msgspec.json.encode(_REQUEST_ID)[1:-1])
    return before, after


_BODY: Final = {refusal: _prepared_body(refusal) for refusal in Refusal}
_refused: Final = {refusal: ADMISSION_REFUSED.labels(refusal) for refusal in Refusal}
