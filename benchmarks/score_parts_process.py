"""`python -m benchmarks.score_parts_process`: scores with one part or another taken away. A child of `score_parts.py`.

A part is taken away by replacing functions where they are called from: what they returned for these requests is
recorded first, and returned again. A function that was renamed fails when it is replaced; one that is not called
fails when it is recorded. Neither counts as free.
"""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count, cycle
from pkgutil import resolve_name
from time import monotonic, thread_time
from typing import Any, Final
from unittest.mock import patch

import msgspec

from benchmarks.child import say, told
from benchmarks.contest import US_PER_S
from benchmarks.score_world import ScoreWorld

WHOLE: Final = "whole"
EMPTY: Final = "empty view"
EMPTY_PAGE: Final = "empty view, behind the middleware of pages as well"
_SCORES, _EMPTY_VIEW = "/v1/scores", "/v1/scores-empty"
_WARM_FOR_S: Final = 20.0
"""Customers' activity counts as fresh for 60 s, and a dry run renews nothing."""


class Part(msgspec.Struct, frozen=True):
    """`places`: what is replaced. `of`: with what it is compared; another part's name for one that holds that part."""

    name: str
    places: tuple[str, ...]
    of: str = WHOLE


GATE: Final = Part("gate", ())
"""Taken away by calling what stands behind it."""
PARTS: Final = (
    Part("HTTP metrics and log line", ("mlserve.observability.middleware._record",), of=EMPTY),
    GATE,
    Part(
        "key and scope",
        (
            "mlserve.api.authentication.ApiKeyAuthentication.authenticate",
            "mlserve.api.authentication.HasScope.has_permission",
        ),
    ),
    Part("rate limit", ("mlserve.api.keyed_view.charge", "mlserve.api.keyed_view.add_headers")),
    Part("body", ("predictions.api.views.read_json_body", "predictions.api.views.decode_score_request")),
    Part("options", ("predictions.api.views.decode_score_options",)),
    Part("features from L1", ("predictions.scoring.read_groups",)),
    Part("vector", ("features.compute.VectorPlan.derive",)),
    Part("model run", ("predictions.registry.artifact.LoadedModel.score_one",)),
    Part("prediction's key and look-up", ("predictions.scoring._predict",), of="model run"),
    Part(
        "thresholds and answer",
        ("predictions.scoring.decide", "predictions.scoring.trace_of", "predictions.scoring.make_response"),
    ),
    Part("encoding", ("predictions.scoring._encode",)),
    Part(
        "version and timing headers",
        (
            "predictions.scoring.versions_seen",
            "mlserve.api.data_version.token_of",
            "predictions.api.views._server_timing",
        ),
    ),
)


class Task(msgspec.Struct):
    """For how long to measure."""

    seconds: float


class Sweeps(msgspec.Struct):
    """Microseconds a request of the thread's processor time, by what was taken away; one for each turn through all."""

    us: list[dict[str, float]]


Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., None]], Any]


class _Scorer:
    """The application with all that belongs to one world."""

    def __init__(self, world: ScoreWorld) -> None:
        # Sets Django up, which takes the environment that this process was given.
        from mlserve import wsgi

        self._world = world
        self._application: Application = wsgi.application
        self._behind_gate: Any = wsgi._django
        self._numbers = count()
        self._warmed_at = float("-inf")
        self._warm()
        self._answers = {place: self._recorded(place, part.of) for part in PARTS for place in part.places}

    def sweeps(self, seconds: float) -> Sweeps:
        """At least one."""
        done, until = list[dict[str, float]](), monotonic() + seconds
        while not done or monotonic() < until:
            self._warm()
            us = {WHOLE: self._us(self._dry_runs()), EMPTY: self._us(self._empty())}
            with patch("mlserve.api.page_middleware.API", "no address begins so"):
                us[EMPTY_PAGE] = self._us(self._empty())
            for part in PARTS:
                requests = self._empty() if part.of == EMPTY else self._dry_runs()
                with self._without(part):
                    us[part.name] = self._us(requests, behind_gate=part is GATE)
            done.append(us)
        return Sweeps(done)

    def _us(self, requests: list[Environ], *, behind_gate: bool = False) -> float:
        application: Application = self._behind_gate if behind_gate else self._application
        began = thread_time()
        for request in requests:
            _call(application, request)
        return (thread_time() - began) / len(requests) * US_PER_S

    @contextmanager
    def _without(self, part: Part) -> Iterator[None]:
        with ExitStack() as stack:
            for place in part.places:
                stack.enter_context(patch(place, _again(self._answers[place])))
            yield

    def _recorded(self, place: str, of: str) -> list[Any]:
        """What the function returns for each request, in their order."""
        real, answers = resolve_name(place), list[Any]()

        def record(*arguments: Any, **options: Any) -> Any:
            answers.append(real(*arguments, **options))
            return answers[-1]

        requests = self._empty() if of == EMPTY else self._dry_runs()
        with patch(place, record):
            for request in requests:
                _call(self._application, request)
        if len(answers) != len(requests):
            raise RuntimeError(f"{place} was called {len(answers)} times by {len(requests)} requests")
        return answers

    def _warm(self) -> None:
        """Every pair is in L1, and stays fresh for longer than a sweep."""
        if monotonic() - self._warmed_at < _WARM_FOR_S:
            return
        for place, _ in enumerate(self._world.pairs):
            _call(self._application, self._request(_SCORES, "", place, f"parts-{next(self._numbers)}"))
        self._warmed_at = monotonic()

    def _dry_runs(self) -> list[Environ]:
        return [self._request(_SCORES, "dry_run=true", place, "parts") for place, _ in enumerate(self._world.pairs)]

    def _empty(self) -> list[Environ]:
        return [self._request(_EMPTY_VIEW, "", place, "parts") for place, _ in enumerate(self._world.pairs)]

    def _request(self, path: str, query: str, place: int, transaction_id: str) -> Environ:
        """As a WSGI server hands it over."""
        customer, merchant = self._world.pairs[place]
        body = msgspec.json.encode(
            {
                "transaction_id": transaction_id,
                "occurred_at": datetime.now(UTC),
                "customer_id": customer,
                "merchant_id": merchant,
                "amount": 20.0,
                "currency": "EUR",
            }
        )
        return {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "127.0.0.1:8000",
            "HTTP_AUTHORIZATION": f"Bearer {self._world.key}",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input": io.BytesIO(body),
        }


def _call(application: Application, request: Environ) -> None:
    statuses: list[str] = []
    response = application(request, lambda status, _headers, _error=None: statuses.append(status))
    body = b"".join(response)
    if hasattr(response, "close"):
        response.close()
    if statuses != ["200 OK"]:
        raise RuntimeError(f"the service answered {statuses}: {body[:500]!r}")


def _again(answers: list[Any]) -> Callable[..., Any]:
    following = cycle(answers).__next__
    return lambda *_arguments, **_options: following()


def main() -> None:
    messages = told()
    scorer = _Scorer(msgspec.convert(next(messages), ScoreWorld))
    say("ready")
    for message in messages:
        say(scorer.sweeps(msgspec.convert(message, Task).seconds))


if __name__ == "__main__":
    main()
