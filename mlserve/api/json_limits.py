"""What a JSON body may hold, decided before any of it is parsed: so deep, so many values, numbers so long.

Looks at the raw bytes and makes no object for what it finds there. Every step is linear in the length of the body,
whatever stands in it, which parsers and what comes after them are not. Says nothing about whether the text is JSON.
"""

import re
from itertools import accumulate
from typing import Final

from mlserve.api.bodies import MalformedBody

ORDINARY_BYTES: Final = 1024
"""A request is shorter, and what is no longer costs nothing, whatever it holds."""
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 1_000
MAX_DIGITS: Final = 1_000
"""In one row. A double has 17 that matter and at most 309 before the point."""

# Possessive, and with an end that may be missing: whatever is open or escaped, no byte is looked at twice.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_DIGITS: Final = bytes(byte if chr(byte) in "0123456789" else 32 for byte in range(256))
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if chr(byte) not in "[]{}")
_STEP: Final = [1 if chr(byte) in "[{" else -1 for byte in range(256)]


def refuse_outsized(body: bytes, *, values: int = MAX_VALUES) -> None:
    """Raises `MalformedBody` that names the limit."""
    outside = _STRING.sub(b"", body)
    if outside.count(b",") >= values:
        raise MalformedBody(f"The body has more than {values:,} values.")
    brackets = outside.translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise MalformedBody(f"The body is nested too deeply: more than {MAX_DEPTH} levels.")
    digits = max(map(len, outside.translate(_DIGITS).split()), default=0)
    if digits > MAX_DIGITS:
        raise MalformedBody(f"The body has a number of {digits:,} digits; at most {MAX_DIGITS:,}.")
