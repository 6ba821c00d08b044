"""Whether this process lives, and whether it can score: two different questions to an orchestrator.

Not live: restart it. Not ready: send it no requests. A process without Valkey is ready, because it scores from
Postgres, and so is one without Postgres, because it scores from what is cached and keeps its decisions on the disk;
both say `degraded`. Without a model nothing can be scored. Every check has a time limit of its own, so that a frozen
server cannot hang the answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
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
    """Runs every check, one after the other, and never raises."""
    checks = {name: _run(name, registered) for name, registered in _registry.items()}
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
    with _connection_given_back():
        probe.read()
        return f"PostgreSQL {connection.connection.info.server_version // 10_000} answers"


def _postgres_writes() -> str:
    """Not required: without it scores are given, and decisions wait on this host's disk."""
    with _connection_given_back():
        try:
            probe.require_writable()
        except DatabaseError as error:
            if failure_of(error) is Failure.READ_ONLY:
                raise WritesRefused("takes no writes; decisions wait on this host's disk") from error
            raise
    if engine().l3_write_breaker.state is State.CLOSED:
        return "takes writes"
    raise WritesRefused("did not take a write a moment ago; decisions wait on this host's disk")


@contextmanager
def _connection_given_back() -> Iterator[None]:
    try:
        yield
    finally:
        if not connection.in_atomic_block:
            connection.close()


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
