"""How a request is called, from its first line in the log to the problem that a client reports."""

import re
import secrets
import time
from typing import Any, Protocol

_META_KEY = "mlserve.request_id"
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}").fullmatch


class _HasMeta(Protocol):
    META: Any


def new_request_id() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of milliseconds since 1970, 74 random bits; sorts by time."""
    milliseconds = time.time_ns() // 1_000_000 & (1 << 48) - 1
    random_bits = secrets.randbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (random_bits >> 62) << 64 | 0b10 << 62 | random_bits & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def assign_request_id(request: _HasMeta) -> str:
    """The client's own `Request-Id` if it is short and plain, else a new one; kept with the request."""
    proposed = request.META.get("HTTP_REQUEST_ID")
    request_id = proposed if proposed and _SANE(proposed) else new_request_id()
    request.META[_META_KEY] = request_id
    return request_id


def request_id_of(request: _HasMeta) -> str:
    """What `assign_request_id` gave to this request; a request that never passed the middleware gets one now."""
    known: str | None = request.META.get(_META_KEY)
    return known if known is not None else assign_request_id(request)
