"""What a JSON body may hold, decided before any of it is parsed: so deep, so many values, numbers so long.

Looks at the raw bytes and makes no object for what it finds there. Every step is linear in the length of the body,
whatever stands in it, which parsers and what comes after them are not. Says nothing about whether the text is JSON.

What is refused is also to be named. So `JsonText.marked` puts a string in place of each value that no parser here
takes: the rest can then be read, and whoever reads it finds the field, or the item of a list, that is wrong.
"""

import re
from itertools import islice
from operator import itemgetter
from secrets import token_hex
from typing import Final

import numpy as np

from mlserve.api.bodies import MalformedBody

ORDINARY_BYTES: Final = 1024
"""A request is shorter, and what is no longer costs nothing, whatever it holds."""
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 1_000
MAX_DIGITS: Final = 1_000
"""In one row. A double has 17 that matter and at most 309 before the point."""
_MAX_MARKS: Final = 1_000
"""A body with more of one kind is left as it is."""

_QUOTE, _BACKSLASH, _SPACE, _COMMA = b'"\\ ,'
_DIGITS: Final = bytes(byte if chr(byte) in "0123456789" else 32 for byte in range(256))
_STEPS: Final = bytes({"[": 1, "{": 1, "]": 255, "}": 255}.get(chr(byte), 0) for byte in range(256))
"""As signed bytes: 255 is -1."""
_CONSTANT: Final = re.compile(rb"(?:NaN|Infinity)\b")
_LONG_NUMBER: Final = re.compile(rb"(?<![-+.eE0-9])[-+.eE0-9]{%d,}+" % (MAX_DIGITS + 1))
_HIGH: Final = rb"\\u[dD][89abAB][0-9a-fA-F][0-9a-fA-F]"
_LOW: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F][0-9a-fA-F]"
_LONE_SURROGATE: Final = re.compile(
    rb"\\(?<!\\\\)u[dD](?:[89abAB][0-9a-fA-F][0-9a-fA-F](?!%b)|[c-fC-F][0-9a-fA-F][0-9a-fA-F](?<!%b%b))"
    % (_LOW, _HIGH, _LOW)
)

_OURS: Final = token_hex(4)
"""No client knows it, so that nobody can send a mark."""
_MARKED: Final = rb"\u0000%b{%%b}" % _OURS.encode()
"""U+0000 is allowed in no field, so that what is marked is never taken."""
_MARK: Final = re.compile(rf"(?:\\u0000|\0){_OURS}\{{([^}}]*)\}}")
_NO_CHARACTER: Final = b"\\" + _MARKED % b"a surrogate without its other half is not a character"


def refuse_outsized(body: bytes) -> None:
    """Raises `MalformedBody` that names the limit."""
    refusal = JsonText(body).refusal
    if refusal is not None:
        raise refusal


class JsonText:
    """A body that is looked at once, however often it is asked about. `refusal` names the limit that it is beyond."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._outside = _outside_strings(body)
        steps = np.frombuffer(self._outside.translate(_STEPS), np.int8)
        self._brackets = np.flatnonzero(steps)
        self._steps = steps[self._brackets]
        self._depth = np.cumsum(self._steps, dtype=np.int32)
        self.refusal = self._refusal()

    @property
    def too_many_values(self) -> bool:
        return self._outside.count(b",") >= MAX_VALUES

    @property
    def too_many_members(self) -> bool:
        """In the outermost object, whatever stands in them."""
        if not self.too_many_values:
            return False
        commas = np.flatnonzero(np.frombuffer(self._outside, np.uint8) == _COMMA)
        opened = np.searchsorted(self._brackets, commas)
        return int(np.count_nonzero(self._depth[opened - 1] <= 1)) >= MAX_VALUES if len(self._depth) else True

    def _refusal(self) -> MalformedBody | None:
        if self.too_many_values:
            return MalformedBody(f"The body has more than {MAX_VALUES:,} values.")
        if self._depth.max(initial=0) > MAX_DEPTH:
            return MalformedBody(f"The body is nested too deeply: more than {MAX_DEPTH} levels.")
        digits = self._most_digits()
        if digits > MAX_DIGITS:
            return MalformedBody(f"The body has a number of {digits:,} digits; at most {MAX_DIGITS:,}.")
        return None

    def _most_digits(self) -> int:
        return max(map(len, self._outside.translate(_DIGITS).split()), default=0)

    def _no_numbers(self) -> list[tuple[int, int]]:
        """From and to of what stands for a number and is none, or is too long; of more than `_MAX_MARKS` some."""
        spans = []
        for found in islice(_CONSTANT.finditer(self._outside), _MAX_MARKS + 1):
            spans.append((found.start() - (self._outside[found.start() - 1 : found.start()] == b"-"), found.end()))
        if self._most_digits() > MAX_DIGITS:
            spans += [found.span() for found in islice(_LONG_NUMBER.finditer(self._outside), _MAX_MARKS + 1)]
        return spans

    def marked(self, *, max_depth: int = MAX_DEPTH) -> bytes:
        """The body with a mark in place of each value that is no JSON, or beyond what is read.

        That is NaN and infinities, numbers of more than `MAX_DIGITS` characters, surrogates without their other half,
        and objects and arrays inside more than `max_depth` others. What else is no JSON stays.
        """
        return self._marked(max_depth, f"nested too deeply: more than {MAX_DEPTH} levels")

    def marked_flat(self) -> bytes:
        """As `marked`, and so are all objects and arrays in the outermost one: for a body of too many values."""
        return self._marked(1, f"more than {MAX_VALUES:,} values in arrays and objects")

    def _marked(self, max_depth: int, deep: str) -> bytes:
        spans = [(start, end, deep) for start, end in self._nested(max_depth)]
        spans += [(start, end, _why(self._outside[start:end])) for start, end in self._no_numbers()]
        few = len(spans) <= _MAX_MARKS
        body = _replaced(self._body, sorted(spans, key=itemgetter(0))) if few else self._body
        return _LONE_SURROGATE.sub(_NO_CHARACTER, body, count=_MAX_MARKS) if rb"\u" in body else body

    def _nested(self, max_depth: int) -> list[tuple[int, int]]:
        """From and to of each object or array inside `max_depth` others; of more than `_MAX_MARKS` some."""
        starts = self._brackets[(self._steps == 1) & (self._depth == max_depth + 1)]
        ends = self._brackets[(self._steps == -1) & (self._depth == max_depth)] + 1
        if len(starts) != len(ends) or np.any(ends < starts):
            return []  # brackets that do not belong together
        pairs = zip(starts[: _MAX_MARKS + 1], ends[: _MAX_MARKS + 1], strict=True)
        return [(int(start), int(end)) for start, end in pairs]


def mark_in(value: bytes) -> str | None:
    """Why something in this part of a marked body cannot be read; None if there is no mark."""
    if _OURS.encode() not in value:
        return None
    found = _MARK.search(value.decode(errors="replace"))
    return found[1] if found else None


def without_marks(text: str) -> str:
    """A name of a marked body, as it can be shown."""
    return _MARK.sub("\ufffd", text)


def _why(text: bytes) -> str:
    if text[-1:] in (b"N", b"y"):
        return f"{text.decode()} is not a JSON number"
    return f"a number of {len(text):,} characters; at most {MAX_DIGITS:,} digits"


def _outside_strings(body: bytes) -> bytes:
    """The bytes with spaces in place of strings; escapes outside of strings are no JSON in any case."""
    if b'"' not in body:
        return body
    plain = np.frombuffer(body, np.uint8)
    quotes = (plain == _QUOTE).view(np.uint8)
    backslashes = np.flatnonzero(plain[:-1] == _BACKSLASH)
    if len(backslashes):  # the first, third, ... of a row escapes what follows it
        number = np.arange(len(backslashes))
        starts = np.flatnonzero(np.diff(backslashes, prepend=-2) != 1)
        in_row = number - np.repeat(starts, np.diff(starts, append=len(backslashes)))
        quotes[backslashes[in_row & 1 == 0] + 1] = 0
    inside = np.bitwise_xor.accumulate(quotes) | quotes
    return np.where(inside, np.uint8(_SPACE), plain).tobytes()


def _replaced(body: bytes, spans: list[tuple[int, int, str]]) -> bytes:
    parts, copied = [], 0
    for start, end, reason in spans:
        if start >= copied:  # else it stands in what is replaced already
            parts += [body[copied:start], b'"%b"' % (_MARKED % reason.encode())]
            copied = end
    return b"".join([*parts, body[copied:]])
