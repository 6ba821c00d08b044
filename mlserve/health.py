"""Whether this process lives, and whether it can score: two different questions to an orchestrator.

Not live: restart it. Not ready: send it no requests. A process without Valkey is ready, because it scores from
Postgres, and so is one without Postgres, because it scores from what is cached and keeps its decisions on the disk;
both say `degraded`. Without a model nothing can be scored.

One round of checks answers all who ask within `SHARED_FOR_S`: many who ask do not become many who wait for a server
that hangs. The checks of a round run at the same time, on threads of their own, and the round ends after `ROUND_S`,
whatever hangs: a check that has not answered has failed, and is not begun again before it has. Few callers wait for a
round (`readiness` in `settings/threads.py`); the others take the last result.
"""

import threading
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import ClassVar, Final, Literal

import msgspec
import redis
import structlog
from django.conf import settings
from django.db import DatabaseError, connection

from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from mlserve.errors import ErrorCode, MlserveError
from mlserve.platform import l2_nodes
from mlserve.postgres import probe
from mlserve.postgres.failures import Failure, failure_of

TIMEOUT_S: Final = 1
"""For each server; PostgreSQL gets the limit of a read beside the wait for a connection (`postgres/sessions.py`)."""
ROUND_S: Final = 3.0
"""For all checks together, whatever their own limits come to."""
SHARED_FOR_S: Final = 1.0
GOOD_FOR_S: Final = 30.0
"""To those who do not wait for a round. An older result says nothing of now; orchestrators ask every few seconds."""
_FIRST_WAIT_S: Final = 0.25
"""Where nothing is known everybody waits for a moment: mostly that is all that a round takes."""
_MARGIN_S: Final = 0.5
"""For a thread to wake up on a busy machine."""

Check = Callable[[], str]
"""Raises if the thing does not work; returns a few words about it otherwise."""

_log = structlog.get_logger(__name__)


class WritesRefused(MlserveError):
    """PostgreSQL answers, and takes no writes."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """`required` says whether the process is unready without it. `ms` is what asking took."""

    status: Literal["ok", "failed"]
    required: bool
    detail: str
    ms: float


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """`ready`; `degraded` if only things fail that scoring can do without; else `unavailable`."""

    status: Literal["ready", "degraded", "unavailable"]
    checks: dict[str, CheckResult]


class _Registered(msgspec.Struct, frozen=True):
    check: Check
    required: bool


_registry: dict[str, _Registered] = {}


def register_check(name: str, check: Check, *, required: bool) -> None:
    """Adds a check to every later `readiness()`; apps call it in `AppConfig.ready()`. The same name replaces."""
    _registry[name] = _Registered(check, required)


def readiness() -> Readiness:
    """What the last round found, or the one that this call waits for. Answers within `ROUND_S`, and never raises."""
    return _rounds.result()


def forget() -> None:
    """The next call begins a round of its own."""
    global _rounds
    _rounds = _Rounds()


class _Rounds:
    """Thread-safe. Holds the newest result and the round that is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._last: Readiness | None = None
        self._last_at = 0.0
        self._under_way: threading.Event | None = None
        self._running: dict[str, threading.Thread] = {}

    def result(self) -> Readiness:
        with self._lock:
            known = self._younger_than(SHARED_FOR_S)
            if known is not None:
                return known
            known = self._younger_than(GOOD_FOR_S)
            ended = self._under_way or self._begin()
            waits = self._waiting < settings.THREAD_SHARES.readiness.at_once
            self._waiting += waits
        if waits or known is None:
            ended.wait(ROUND_S + _MARGIN_S if waits else _FIRST_WAIT_S)
        with self._lock:
            self._waiting -= waits
            return self._younger_than(GOOD_FOR_S) or _NOT_KNOWN

    def _younger_than(self, seconds: float) -> Readiness | None:
        return self._last if monotonic() - self._last_at < seconds else None

    def _begin(self) -> threading.Event:
        self._under_way = ended = threading.Event()
        threading.Thread(target=self._round, args=(ended,), name="readiness", daemon=True).start()
        return ended

    def _round(self, ended: threading.Event) -> None:
        try:
            result = _judge(self._check_all())
            with self._lock:
                self._last, self._last_at = result, monotonic()
        finally:
            with self._lock:
                self._under_way = None
            ended.set()

    def _check_all(self) -> dict[str, CheckResult]:
        """Every check, each on a thread of its own; one that still hangs since an earlier round is not begun again."""
        ends_at = monotonic() + ROUND_S
        registry, found = dict(_registry), dict[str, CheckResult]()
        for name, registered in registry.items():
            if name not in self._running or not self._running[name].is_alive():
                self._running[name] = threading.Thread(
                    target=_note, args=(found, name, registered), name=f"readiness-{name}", daemon=True
                )
                self._running[name].start()
        for name in registry:
            self._running[name].join(max(0.0, ends_at - monotonic()))
        hangs = {name: _hangs(registered) for name, registered in registry.items() if name not in found}
        return {name: found.get(name) or hangs[name] for name in registry}


def _note(found: dict[str, CheckResult], name: str, registered: _Registered) -> None:
    try:
        found[name] = _run(name, registered)
    finally:
        connection.close()  # of this thread, if the check took one


def _hangs(registered: _Registered) -> CheckResult:
    detail = f"does not answer within {ROUND_S:g} s"
    return CheckResult(status="failed", required=registered.required, detail=detail, ms=ROUND_S * 1000)


def _judge(checks: dict[str, CheckResult]) -> Readiness:
    failed = [result for result in checks.values() if result.status == "failed"]
    if any(result.required for result in failed):
        return Readiness(status="unavailable", checks=checks)
    return Readiness(status="degraded" if failed else "ready", checks=checks)


def _run(name: str, registered: _Registered) -> CheckResult:
    started = perf_counter()
    status: Literal["ok", "failed"] = "ok"
    try:
        detail = registered.check()
    except Exception as error:  # whatever it is, the thing does not work
        # The whole message may name hosts and users: it goes to the log, the answer is public.
        _log.warning("readiness_check_failed", check=name, error=f"{type(error).__name__}: {error}")
        status, detail = "failed", getattr(error, "detail", None) or f"does not answer ({type(error).__name__})"
    ms = round((perf_counter() - started) * 1000, 2)
    return CheckResult(status=status, required=registered.required, detail=detail, ms=ms)


def _postgres_answers() -> str:
    """By a connection of the pool, as scores read it: a server that takes no more connections may still serve those
    that it has."""
    probe.read()
    return f"PostgreSQL {connection.connection.info.server_version // 10_000} answers"


def _postgres_writes() -> str:
    """Not required: without it scores are given, and decisions wait on this host's disk."""
    try:
        probe.require_writable()
    except DatabaseError as error:
        if failure_of(error) is Failure.READ_ONLY:
            raise WritesRefused("takes no writes; decisions wait on this host's disk") from error
        raise
    if engine().l3_write_breaker.state is State.CLOSED:
        return "takes writes"
    raise WritesRefused("did not take a write a moment ago; decisions wait on this host's disk")


def _cache_answers() -> str:
    l2_nodes.require_answer(settings.CACHES["l2"], timeout_s=TIMEOUT_S)
    return "answers"


def _broker_answers() -> str:
    return _ping(settings.CELERY_BROKER_URL)


def _ping(url: str) -> str:
    client = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None)
    try:
        client.ping()
    finally:
        client.close()
    return "answers"


register_check("postgres", _postgres_answers, required=False)
register_check("postgres_writes", _postgres_writes, required=False)
register_check("cache", _cache_answers, required=False)
register_check("broker", _broker_answers, required=False)

_NOT_KNOWN: Final = Readiness(status="unavailable", checks={})
"""While nothing is known and the first round hangs; one caller waits for it."""
_rounds = _Rounds()
