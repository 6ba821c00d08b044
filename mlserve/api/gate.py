"""The gate in front of Django: a request gets a slot of its kind (`admission.py`), or is refused before anything else
is done for it.

Refused is what nothing has been done for: its key was not looked up, its body not read. Whatever may wait for
PostgreSQL or for a client needs a slot, and each kind has its own: however pages hang, the API answers, and however
both hang, scores do. Health and files take no time and pass; they always find a thread, since the slots of all kinds
are fewer than the threads (`settings/threads.py`).

| kind | what | how long it waits for a slot |
| --- | --- | --- |
| scores | `/v1/scores` and batches | as `admission.py` says: a moment |
| pages | the admin, the documentation, unknown addresses | `MAX_PAGE_WAIT_S`: a browser asks for several at once |
| calls | the rest of the API, stored scores too: PostgreSQL is asked for them | `MAX_CALL_WAIT_S` |
| metrics | `/metrics` with a key, which may have to be looked up; without one it passes | `MAX_CALL_WAIT_S` |

A batch takes many times as long as a score. So batches have no more than some of the slots for scores: the others are
left to single scores, which would hardly get one among many batches.

In the same way, pages and calls with a body have no more than some of the slots of their kind. A body is read by the
thread of its request, and the server waits for a slow client without a limit: one slot at least stays free of that.

In overload most requests are refused, on the processors that the others are scored on: what a refusal says is made
beforehand, but for the request's id. A refused page is made by Django, in words (`page_middleware.py`).
"""

from collections.abc import Callable, Iterable
from random import randrange
from time import perf_counter
from typing import Any, Final, cast

import msgspec
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import Resolver404, resolve

from mlserve.api.admission import Admission, Refusal, Visit
from mlserve.api.page_middleware import API, REFUSED
from mlserve.api.problems import CONTENT_TYPE, TYPE_PREFIX, Problem, is_page
from mlserve.errors import STATUS_OF, TITLE_OF, ErrorCode
from mlserve.observability.metrics import ADMISSION_REFUSED, ADMISSION_WAIT
from mlserve.observability.middleware import count_request, route_of
from mlserve.observability.request_id import assign_request_id

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

GATED: Final = "/v1/scores"
_BATCH: Final = f"{GATED}/batch"
_METRICS: Final = "/metrics"
_HEALTH: Final = ("/healthz/live", "/healthz/ready")
_FILES: Final = "/static/"
MAX_PAGE_WAIT_S: Final = 3.0
"""A person waits so long for a page; then an answer in words is better."""
MAX_CALL_WAIT_S: Final = 1.0
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
        self,
        application: Application,
        *,
        scores: Admission,
        batches: Admission,
        pages: Admission,
        forms: Admission,
        calls: Admission,
        bodies: Admission,
        metrics: Admission,
    ) -> None:
        self._application = application
        self._scores = (scores,)
        self._batches = (batches, scores)
        self._pages = (pages,)
        self._forms = (pages, forms)
        self._calls = (calls,)
        self._bodies = (calls, bodies)
        self._metrics = (metrics,)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        wanted = self._wanted(environ)
        if not wanted:
            return _finished(self._application(environ, start_response))
        arrived = perf_counter()
        visit = Visit()
        try:
            for admission in wanted:
                refusal = visit.enter(admission)
                if refusal is not None:
                    return self._refuse(environ, start_response, refusal, arrived)
            waited_s = perf_counter() - arrived
            if waited_s > _WAITED_S:
                ADMISSION_WAIT.observe(waited_s)
            return _finished(self._application(environ, start_response))
        finally:
            visit.leave()

    def _wanted(self, environ: Environ) -> tuple[Admission, ...]:
        """Where a slot is needed, in this order, so that nobody waits for somebody who waits for him."""
        path = environ.get("PATH_INFO", "")
        if path == GATED:
            return self._scores
        if path == _BATCH and environ.get("REQUEST_METHOD") == "POST":
            return self._batches
        has_body = environ.get("CONTENT_LENGTH", "0") not in ("", "0")  # nothing that comes in chunks is read
        if path.startswith(API):
            return self._bodies if has_body else self._calls
        if has_body:
            return self._forms
        if path == _METRICS:
            return self._metrics if "HTTP_AUTHORIZATION" in environ else ()
        return () if path in _HEALTH or path.startswith(_FILES) else self._pages

    def _refuse(
        self, environ: Environ, start_response: StartResponse, refusal: Refusal, arrived: float
    ) -> Iterable[bytes]:
        _refused[refusal].inc()
        if is_page(environ.get("PATH_INFO", "")):
            environ[REFUSED] = refusal
            return _finished(self._application(environ, start_response))
        _count(environ, perf_counter() - arrived)
        return _refuse(environ, start_response, refusal)


def _finished(response: Iterable[bytes]) -> Iterable[bytes]:
    """The body as a whole, once all that the request holds is given back: its connection to Postgres too.

    A server closes a response after it was sent. The next request on that connection would then begin beside the end of
    this one, on another thread, and both would fight for the interpreter. And it sends a body that comes in parts from
    the thread of its request, for as long as a slow client takes to read it. So a file is read as a whole; of those
    that pages load the largest has 1.6 MB.
    """
    if isinstance(response, HttpResponse):
        body = response.content
    elif isinstance(response, StreamingHttpResponse):
        body = b"".join(cast("Iterable[bytes]", response))
    else:
        return response
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
