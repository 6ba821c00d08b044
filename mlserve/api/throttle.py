"""Holds a key to its limit, and tells it in every answer what it has left.

The header fields are those of draft-ietf-httpapi-ratelimit-headers-10, as Structured Fields (RFC 9651):
`RateLimit-Policy` says the burst (`q`) and in how many seconds an empty bucket is full (`w`); `RateLimit` what is left
(`r`) and the seconds until there is more (`t`; until all is there, in drafts before this one). `Retry-After` is never
less than `t`, as the draft asks. What is left is what this process knows of it, in whole units.
"""

import os
import secrets
import threading
from math import ceil, isinf
from typing import ClassVar, Final

from django.http import HttpResponse
from rest_framework.request import Request

from mlserve.api.allowance import POLL_S, Allowances, Taken
from mlserve.api.authentication import client_of
from mlserve.api.limit import Limit
from mlserve.api.shared_bucket import SharedBuckets
from mlserve.cache.clock import SystemClock
from mlserve.cache.wiring import engine
from mlserve.errors import ErrorCode, MlserveError
from mlserve.observability.metrics import RATE_LIMIT
from mlserve.poller import Poller

_POLICY: Final = "key"
_META_KEY: Final = "mlserve.rate_limit"


class RateLimited(MlserveError):
    """The key has asked for more than its limit lets through."""

    code: ClassVar[ErrorCode] = ErrorCode.RATE_LIMITED

    def __init__(self, detail: str, *, retry_after_s: int | None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s  # type: ignore[misc]  # of the class where it is always the same


def charge(request: Request, *, units: int = 1) -> None:
    """Takes `units` from the limit of the request's key; all or none. Raises `RateLimited`.

    A key without a limit pays nothing for it.
    """
    client = client_of(request)
    if client is None or client.limit is None or units < 1:
        return
    taken = _allowances().take(client.id, client.limit, units=units)
    request.META[_META_KEY] = (client.limit, taken)
    if taken.alone:
        RATE_LIMIT.labels("alone_allowed" if taken.allowed else "alone_refused").inc()
    if not taken.allowed:
        if not taken.alone:
            RATE_LIMIT.labels("refused").inc()
        raise _refusal(client.limit, taken, units)


def add_headers(request: Request, response: HttpResponse) -> None:
    """What the key may ask for, and what it has left, if it has a limit and was charged."""
    charged: tuple[Limit, Taken] | None = request._request.META.get(_META_KEY)
    if charged is not None:
        limit, taken = charged
        response.headers["RateLimit-Policy"] = f'"{_POLICY}";q={limit.burst};w={ceil(limit.burst / limit.per_s)}'
        response.headers["RateLimit"] = f'"{_POLICY}";r={taken.remaining};t={ceil(taken.more_in_s)}'


def _refusal(limit: Limit, taken: Taken, units: int) -> RateLimited:
    allowed = f"{limit.per_s} a second, {limit.burst} at once"
    if isinf(taken.retry_after_s):
        return RateLimited(
            f"{units} at once are never allowed by this key's limit ({allowed}): send lists of at most {limit.burst}, "
            "or have its burst raised. To come again later does not help.",
            retry_after_s=None,
        )
    return RateLimited(f"This key's limit is used up ({allowed}).", retry_after_s=max(1, ceil(taken.retry_after_s)))


_lock = threading.Lock()
_of_process: Allowances | None = None
_poller: Final = Poller("rate-limits", POLL_S, lambda: _allowances().poll())


def _allowances() -> Allowances:
    """Of this process; its poller runs from the first key on that has a limit."""
    global _of_process
    allowances = _of_process
    if allowances is None:
        with _lock:
            if _of_process is None:
                buckets = SharedBuckets(lambda: engine().wire, secrets.token_hex(6))
                _of_process = Allowances(buckets, SystemClock())
            allowances = _of_process
    _poller.ensure_started()
    return allowances


def forget() -> None:
    """Drops what this process holds, as if it had died."""
    global _of_process
    _poller.stop()
    _of_process = None


def _forget_after_fork() -> None:
    # Two processes that hold units under one name would hold more than Redis knows.
    global _of_process, _lock
    _of_process, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
