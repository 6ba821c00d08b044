"""Who is admitted, who waits and for how long, who is refused."""

import contextlib
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.urls import Resolver404, resolve

from mlserve.api.admission import INTERVAL_S, TARGET_S, Admission, Refusal, Visit, step_aside
from mlserve.api.gate import RETRY_AFTER_S, Environ, Gate, StartResponse
from mlserve.api.page_middleware import REFUSED
from mlserve.observability.metrics import HTTP_LATENCY, HTTP_REQUESTS
from mlserve.observability.middleware import route_of
from tests.fixtures.clock import ManualClock
from tests.fixtures.waiting import until

_PATIENT_S = 20.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def admission(clock: ManualClock) -> Admission:
    return Admission(at_once=2, most_waiting=2, clock=clock)


def _timed(admission: Admission) -> tuple[Refusal | None, float]:
    began = time.monotonic()
    return admission.enter(), time.monotonic() - began


def _waits(admission: Admission, number: int) -> bool:
    return admission.waiting == number


def test_as_many_as_have_a_place_are_admitted_at_once(admission: Admission) -> None:
    """And a place that was left is free."""
    for _ in range(3):
        assert [admission.enter(), admission.enter()] == [None, None]
        assert admission.under_way == 2
        admission.leave()
        admission.leave()
    assert admission.under_way == 0


def test_the_first_to_wait_gets_the_next_place(admission: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of arrival, and never more than there are places."""
    monkeypatch.setattr("mlserve.api.admission.INTERVAL_S", _PATIENT_S)
    admission.enter()
    admission.enter()
    with ThreadPoolExecutor(2) as pool:
        waiting: list[Future[Refusal | None]] = []
        for number in (1, 2):
            waiting.append(pool.submit(admission.enter))
            until(partial(_waits, admission, number))
        admission.leave()
        assert waiting[0].result(_PATIENT_S) is None
        assert not waiting[1].done() and admission.under_way == 2
        admission.leave()
        assert waiting[1].result(_PATIENT_S) is None
    assert (admission.under_way, admission.waiting) == (2, 0)


def test_who_finds_the_queue_full_is_refused_at_once(admission: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wait."""
    monkeypatch.setattr("mlserve.api.admission.INTERVAL_S", _PATIENT_S)
    admission.enter()
    admission.enter()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(admission.enter) for _ in range(2)]
        until(lambda: admission.waiting == 2)
        assert admission.enter() is Refusal.FULL
        admission.leave()
        admission.leave()
        assert [each.result(_PATIENT_S) for each in waiting] == [None, None]


def test_nobody_waits_for_ever(admission: Admission) -> None:
    """And whoever gave up is not handed a place later."""
    admission.enter()
    admission.enter()
    refusal, took_s = _timed(admission)
    assert refusal is Refusal.LATE and took_s >= INTERVAL_S
    assert admission.waiting == 0
    admission.leave()
    assert admission.under_way == 1


def test_a_place_that_comes_at_the_last_moment_is_kept(admission: Admission) -> None:
    """Handed over just when patience was at its end: refusing now would lose the place."""
    admission.enter()
    admission.enter()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(admission.enter)
        until(partial(_waits, admission, 1))
        with admission._lock:
            threading.Event().wait(2 * INTERVAL_S)  # it has given up, and asks for the lock to say so
            admission._waiting.popleft().release()
        assert waiting.result(_PATIENT_S) is None
    assert (admission.under_way, admission.waiting) == (2, 0)


def test_in_a_standing_queue_patience_is_short(
    admission: Admission, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the queue has not been empty for an interval; when it was, patience is long again."""
    monkeypatch.setattr("mlserve.api.admission.INTERVAL_S", 1.0)
    admission.enter()
    admission.enter()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_timed, admission)
        until(lambda: admission.waiting == 1)
        clock.advance(1.5)
        refusal, took_s = _timed(admission)
        assert refusal is Refusal.LATE and TARGET_S <= took_s < 0.9
        assert not first.done()
        assert first.result(_PATIENT_S)[1] >= 0.9
    refusal, took_s = _timed(admission)
    assert refusal is Refusal.LATE and took_s >= 0.9


def test_places_are_neither_lost_nor_made_under_load(clock: ManualClock) -> None:
    """Many threads that come, wait, give up and go: never more at once than there are places, and none is left over."""
    admission = Admission(at_once=3, most_waiting=4, clock=clock)
    lock, barrier = threading.Lock(), threading.Barrier(16)
    inside, most, admitted = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, admitted
        barrier.wait(_PATIENT_S)
        for _ in range(200):
            if admission.enter() is not None:
                continue
            with lock:
                inside += 1
                admitted += 1
                most = max(most, inside)
            with lock:
                inside -= 1
            admission.leave()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENT_S)
    assert 0 < most <= 3 and admitted > 0
    assert (admission.under_way, admission.waiting) == (0, 0)


class _Inner:
    """Stands for Django: a place that is taken as long as it is called."""

    def __init__(self, admission: Admission, error: Exception | None = None) -> None:
        self.seen: list[tuple[str, int]] = []
        self._admission = admission
        self._error = error

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self.seen.append((environ["PATH_INFO"], self._admission.under_way))
        if self._error is not None:
            raise self._error
        start_response("200 OK", [])
        return [b"inner"]


_KINDS = ("scores", "batches", "pages", "forms", "calls", "bodies", "metrics")
_CEILINGS = ("batches", "forms", "bodies")
"""Within the slots of another kind."""


def _gate(inner: _Inner, clock: ManualClock, **places: Admission) -> Gate:
    """With one place for each kind that is not given."""
    return Gate(
        inner, **{kind: places.get(kind) or Admission(at_once=1, most_waiting=0, clock=clock) for kind in _KINDS}
    )


def _call(gate: Gate, path: str, **environ: str) -> tuple[str, dict[str, str], bytes]:
    said: list[Any] = []
    body = b"".join(gate({"PATH_INFO": path, **environ}, lambda status, headers: said.extend([status, headers])))
    return said[0], dict(said[1]), body


def _refused(gate: Gate, path: str, **environ: str) -> bool:
    """A page is refused by Django, whom the gate tells."""
    seen: dict[str, str] = {"PATH_INFO": path, **environ}
    said: list[str] = []
    b"".join(gate(seen, lambda status, _headers: said.append(status)))
    return said[0].startswith("503") or REFUSED in seen


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/scores", "scores"),
        ("/v1/scores/t-1", "calls"),
        ("/v1/features/customer/c-1", "calls"),
        ("/v1/nothing", "calls"),
        ("/v1/", "calls"),
        ("/admin/", "pages"),
        ("/admin", "pages"),
        ("/docs", "pages"),
        ("/openapi.json", "pages"),
        ("/", "pages"),
        ("/nothing", "pages"),
        ("//admin/", "pages"),
        ("/healthz/nothing", "pages"),
        ("/metrics/", "pages"),
        ("/healthz/live", ""),
        ("/healthz/ready", ""),
        ("/metrics", ""),
        ("/static/console/console.css", ""),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "POST"])
def test_every_address_is_of_one_kind(clock: ManualClock, method: str, path: str, kind: str) -> None:
    """It needs a slot of that kind, whatever the method, and none of any other. Health and files need none at all."""
    admissions = {name: Admission(at_once=1, most_waiting=0, clock=clock) for name in _KINDS}
    gate = _gate(_Inner(admissions["scores"]), clock, **admissions)
    for full in (name for name in _KINDS if name not in _CEILINGS):
        admissions[full].enter()
        assert _refused(gate, path, REQUEST_METHOD=method) == (full == kind)
        admissions[full].leave()
    assert {each.under_way for each in admissions.values()} == {0}


@pytest.mark.parametrize(
    ("path", "kind", "ceiling"),
    [
        ("/v1/labels", "calls", "bodies"),
        ("/v1/nothing", "calls", "bodies"),
        ("/admin/login/", "pages", "forms"),
        ("/healthz/live", "pages", "forms"),
        ("/metrics", "pages", "forms"),
        ("/static/console/console.css", "pages", "forms"),
    ],
)
def test_what_has_a_body_leaves_slots_to_what_has_none(clock: ManualClock, path: str, kind: str, ceiling: str) -> None:
    """A slow body keeps its slot; so bodies have no more than some of those of their kind."""
    outer, inner = (Admission(at_once=size, most_waiting=0, clock=clock) for size in (2, 1))
    gate = _gate(_Inner(outer), clock, **{kind: outer, ceiling: inner})
    inner.enter()
    assert _refused(gate, path, CONTENT_LENGTH="2")
    inner.leave()
    assert not _refused(gate, path, CONTENT_LENGTH="2")
    outer.enter()
    outer.enter()
    assert _refused(gate, path, CONTENT_LENGTH="2")
    assert (outer.under_way, inner.under_way) == (2, 0)


def test_metrics_with_a_key_have_a_slot_of_their_own(clock: ManualClock) -> None:
    """The key may have to be looked up; without one nothing is waited for."""
    metrics = Admission(at_once=1, most_waiting=0, clock=clock)
    gate = _gate(_Inner(metrics), clock, metrics=metrics)
    metrics.enter()
    assert _refused(gate, "/metrics", HTTP_AUTHORIZATION="Bearer x")
    assert not _refused(gate, "/metrics")


def test_a_page_waits_for_its_slot_as_long_as_it_may(clock: ManualClock) -> None:
    """However long the queue has been standing: who waits is a person."""
    admission = Admission(at_once=1, most_waiting=2, clock=clock, max_wait_s=_PATIENT_S)
    admission.enter()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(admission.enter)
        until(lambda: admission.waiting == 1)
        clock.advance(60)
        second = pool.submit(admission.enter)
        until(lambda: admission.waiting == 2)
        threading.Event().wait(2 * INTERVAL_S)
        assert admission.waiting == 2
        admission.leave()
        assert first.result(_PATIENT_S) is None
        admission.leave()
        assert second.result(_PATIENT_S) is None
    short = Admission(at_once=1, most_waiting=1, clock=clock, max_wait_s=0.01)
    short.enter()
    assert short.enter() is Refusal.LATE


def test_batches_leave_places_to_single_scores(clock: ManualClock) -> None:
    """A batch needs one of its own places and one of those for scores, and gives back both, however it ends."""
    scores, batches = (Admission(at_once=size, most_waiting=0, clock=clock) for size in (2, 1))
    gate = _gate(_Inner(scores), clock, scores=scores, batches=batches)
    assert _call(gate, "/v1/scores/batch", REQUEST_METHOD="POST")[0] == "200 OK"
    batches.enter()
    assert _call(gate, "/v1/scores/batch", REQUEST_METHOD="POST")[0] == "503 Service Unavailable"
    assert _call(gate, "/v1/scores")[0] == "200 OK"
    batches.leave()
    scores.enter()
    scores.enter()
    assert _call(gate, "/v1/scores/batch", REQUEST_METHOD="POST")[0] == "503 Service Unavailable"
    assert (scores.under_way, batches.under_way) == (2, 0)


def test_a_refusal_is_a_problem_like_any_other(clock: ManualClock) -> None:
    """With a request id, and seconds to wait that differ from client to client."""
    import json

    admission = Admission(at_once=1, most_waiting=0, clock=clock)
    gate = _gate(_Inner(admission), clock, scores=admission, calls=admission)
    admission.enter()
    status, headers, body = _call(gate, "/v1/scores", HTTP_REQUEST_ID="mine-1")
    problem = json.loads(body)
    assert status == "503 Service Unavailable" and headers["Content-Type"] == "application/problem+json"
    assert problem["code"] == "overloaded" and problem["status"] == 503
    assert headers["Request-Id"] == problem["request_id"] == "mine-1"
    assert headers["Cache-Control"] == "no-store"
    assert int(headers["Content-Length"]) == len(body)
    waits = {int(_call(gate, "/v1/scores")[1]["Retry-After"]) for _ in range(200)}
    assert waits == set(range(RETRY_AFTER_S[0], RETRY_AFTER_S[1] + 1))


@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/scores",
        "/v1/scores/batch",
        "/v1/scores/t-1",
        "/v1/scores/",
        "/v1/scores/a/b",
        "/v1/scoresheet",
        "/v1/labels",
    ],
)
def test_a_refusal_is_counted_as_a_request(clock: ManualClock, path: str, method: str) -> None:
    """Under the route and the method that it has for all others."""
    admission = Admission(at_once=1, most_waiting=0, clock=clock)
    gate = _gate(_Inner(admission), clock, scores=admission, calls=admission)
    admission.enter()
    match = None
    with contextlib.suppress(Resolver404):
        match = resolve(path)
    route, shown = route_of(path, match), method if method != "BREW" else "other"
    counter, timer = HTTP_REQUESTS.labels(route, shown, "503"), HTTP_LATENCY.labels(route)
    before = counter._value.get(), timer._sum.get()
    assert _call(gate, path, REQUEST_METHOD=method, CONTENT_LENGTH="9")[0] == "503 Service Unavailable"
    assert counter._value.get() == before[0] + 1
    assert timer._sum.get() > before[1]


def test_a_request_that_fails_leaves_its_place(clock: ManualClock) -> None:
    """Whatever it fails with."""
    admission = Admission(at_once=1, most_waiting=0, clock=clock)
    gate = _gate(_Inner(admission, error=RuntimeError("no")), clock, scores=admission)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            _call(gate, "/v1/scores")
    assert admission.under_way == 0


def test_who_steps_aside_leaves_the_place_to_the_next_and_still_counts(clock: ManualClock) -> None:
    """Those aside and those who wait are as many as may wait; the place itself is free."""
    admission = Admission(at_once=1, most_waiting=2, clock=clock)
    for aside in (1, 2):
        assert admission.enter() is None
        admission.step_aside()
        assert (admission.under_way, admission.aside) == (0, aside)
    assert admission.enter() is None
    assert admission.enter() is Refusal.FULL
    admission.leave_from_aside()
    assert admission.aside == 1
    admission.leave()
    admission.leave_from_aside()
    assert [admission.enter(), admission.under_way, admission.aside] == [None, 1, 0]


def test_who_waits_for_a_place_gets_the_one_of_who_steps_aside(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, while the other is still there."""
    monkeypatch.setattr("mlserve.api.admission.INTERVAL_S", _PATIENT_S)
    visits = []
    for _ in range(2):
        visits.append(Visit())
        assert visits[-1].enter(admission) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(admission.enter)
        until(lambda: admission.waiting == 1)
        step_aside()
        step_aside()  # a batch hands over once, but nobody needs to know
        assert waiting.result(_PATIENT_S) is None
    assert (admission.under_way, admission.aside) == (2, 1)
    visits[1].leave()
    assert (admission.under_way, admission.aside) == (2, 0)
    step_aside()  # nobody's
    assert (admission.under_way, admission.aside) == (2, 0)
