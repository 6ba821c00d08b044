"""Gentle traffic through the real API, for people who want to see the cache at work.

Transactions come at even intervals. What was missed while the service was away is not made up for: a service that
comes back meets the usual rate, no flood.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import ClassVar, Final, Protocol

import msgspec
import structlog

from mlserve.errors import ErrorCode, MlserveError
from warmup.service_client import ServiceClient, Unreachable

RETRY_S: Final = 0.5
"""Between two attempts while nobody answers."""
REPORT_EVERY_S: Final = 30.0

_log = structlog.get_logger(__name__)


class NextTransaction(Protocol):
    """`features.transactions.simulate.LiveTraffic` is one."""

    def next(self, now: datetime) -> dict[str, object]: ...


class KeyNotAccepted(MlserveError):
    """The service does not take this API key, and will not take it later either."""

    code: ClassVar[ErrorCode] = ErrorCode.UNAUTHENTICATED


class Tally(msgspec.Struct):
    """Transactions sent: `scored` were answered with a score, `refused` with an error, `unreachable` not at all."""

    scored: int = 0
    refused: int = 0
    unreachable: int = 0


def drive(
    *,
    client: ServiceClient,
    traffic: NextTransaction,
    per_second: float,
    stopped: threading.Event,
    now: Callable[[], datetime],
    most: int | None = None,
) -> Tally:
    """Sends transactions until `stopped` is set, or `most` of them. Raises KeyNotAccepted at the first 401 or 403."""
    tally = Tally()
    due = last_report = time.monotonic()
    while not stopped.wait(max(0.0, due - time.monotonic())):
        due = max(due + 1 / per_second, time.monotonic())
        if not _send(client, traffic.next(now()), tally):
            stopped.wait(RETRY_S)
        if time.monotonic() - last_report >= REPORT_EVERY_S:
            last_report = time.monotonic()
            _log.info("live_traffic", **msgspec.to_builtins(tally))
        if most is not None and tally.scored + tally.refused >= most:
            break
    return tally


def _send(client: ServiceClient, transaction: dict[str, object], tally: Tally) -> bool:
    """False if nobody answered."""
    try:
        reply = client.score(transaction)
    except Unreachable as error:
        if not tally.unreachable:
            _log.warning("service_unreachable", error=str(error))
        tally.unreachable += 1
        return False
    if reply.status in (401, 403):
        raise KeyNotAccepted(f"the service refuses the API key ({reply.status}); it needs one with the scope `score`")
    if reply.status == 200:
        tally.scored += 1
    else:
        tally.refused += 1
        _log.warning("score_refused", status=reply.status, body=reply.body[:500].decode("utf-8", "replace"))
    return True
