"""A vector's numbers in as few bytes as lose nothing: counts as integers, amounts as cents, the rest as floats.

    1 byte    how many numbers
    2 bytes   the four kinds that occur, 4 bits each
    n/4       which of the four each number is, 2 bits each, the first in the lowest bits
    then      the numbers in their order, each as its kind says

Features are mostly counts, amounts and shares. As float64 they take 8 bytes each; like this about 3, and Redis is paid
by the byte. The price is time: three microseconds for 50 numbers instead of one, six for a shape that was not read
lately. All numbers are read by one `struct` and then divided by their kind's divisor, in C.

A number is an amount if the double next to its cents over 100 is that very number, so nothing is rounded: what comes
out is what went in, bit for bit, the sign of zero included.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from math import copysign
from operator import truediv
from struct import Struct

MOST_NUMBERS = 64
"""Longer vectors are lists of events, hardly two of one shape: they would take ten times as long to read as floats."""
_SHAPES_KEPT = 1_024
"""Some 3 KB each."""
_PALETTES_KEPT = 64
"""Some 50 KB each. Values of one group share one or a few."""

_BYTE, _SHORT, _LONG, _SIGNED, _CENTS, _MANY_CENTS, _SINGLE, _DOUBLE = range(8)
_CODES = "BHIiHIfd"
_DIVISORS = (1.0, 1.0, 1.0, 1.0, 100.0, 100.0, 1.0, 1.0)
_WIDTHS = (1, 2, 4, 4, 2, 4, 4, 8)
_WIDER = (_SHORT, _LONG, _DOUBLE, _DOUBLE, _MANY_CENTS, _DOUBLE, _DOUBLE, _DOUBLE)
"""Which other kind can hold all that a kind can."""
_CODE_OF = bytes(map(ord, _CODES)).ljust(256, b"\0")
_AT_ONCE = 4
"""Kinds in one vector."""
_head = Struct("3B")
_single = Struct("<f")


def pack(values: Sequence[float]) -> bytes:
    """For at most `MOST_NUMBERS`. Numbers that are not finite are kept as well."""
    kinds = _at_most_four(bytes(map(_kind, values)))
    palette = bytes(sorted(set(kinds))).ljust(_AT_ONCE, bytes((_BYTE,)))
    places = kinds.translate(bytes.maketrans(palette[::-1], b"\3\2\1\0"))
    places += bytes(-len(places) % _AT_ONCE)
    mask = bytes(a | b << 2 | c << 4 | d << 6 for a, b, c, d in zip(*[iter(places)] * _AT_ONCE, strict=True))
    head = _head.pack(len(values), palette[0] | palette[1] << 4, palette[2] | palette[3] << 4)
    scaled = [
        value if kind >= _SINGLE else round(value * _DIVISORS[kind]) for value, kind in zip(values, kinds, strict=True)
    ]
    return head + mask + Struct(b"<" + kinds.translate(_CODE_OF)).pack(*scaled)


def unpack(packed: bytes) -> tuple[float, ...]:
    """Raises ValueError or `struct.error` for bytes that `pack` did not make."""
    if len(packed) < _head.size or packed[0] > MOST_NUMBERS:
        raise ValueError("no packed numbers")
    start = _head.size + (packed[0] + 3) // _AT_ONCE
    numbers, divisors = _shape(packed[:start])
    if len(packed) != start + numbers.size:
        raise ValueError("torn, or longer than its numbers")
    return tuple(map(truediv, numbers.unpack_from(packed, start), divisors))


def _kind(value: float) -> int:
    """The narrowest that holds this very number."""
    if value.is_integer():
        if 0.0 <= value < 2**32 and copysign(1.0, value) > 0:
            return _BYTE if value < 2**8 else _SHORT if value < 2**16 else _LONG
        if -(2**31) <= value < 0:
            return _SIGNED
    elif 0.0 < value < 2**32 / 100:
        cents = round(value * 100.0)
        if cents / 100.0 == value:
            return _CENTS if cents < 2**16 else _MANY_CENTS
    try:
        return _SINGLE if _single.unpack(_single.pack(value))[0] == value else _DOUBLE
    except OverflowError:  # beyond what 4 bytes can hold
        return _DOUBLE


def _at_most_four(kinds: bytes) -> bytes:
    """The same, with the kinds that cost least to widen widened."""
    present = set(kinds)
    while len(present) > _AT_ONCE:
        widened = min(present - {_DOUBLE}, key=lambda kind: kinds.count(kind) * (_WIDTHS[_WIDER[kind]] - _WIDTHS[kind]))
        kinds = kinds.replace(bytes((widened,)), bytes((_WIDER[widened],)))
        present = set(kinds)
    return kinds


@lru_cache(_SHAPES_KEPT)
def _shape(head: bytes) -> tuple[Struct, tuple[float, ...]]:
    """How the numbers behind `head` are read, and what each is divided by; there may be up to three divisors more."""
    count, low, high = _head.unpack_from(head)
    codes_of, divisors_of = _meanings(low, high)
    mask = head[_head.size :]
    codes = b"".join(map(codes_of.__getitem__, mask))[:count]
    return Struct(b"<" + codes), tuple(chain.from_iterable(map(divisors_of.__getitem__, mask)))


@lru_cache(_PALETTES_KEPT)
def _meanings(low: int, high: int) -> tuple[list[bytes], list[tuple[float, ...]]]:
    """What each byte of a mask says of its four numbers under this palette: their codes, and their divisors."""
    palette = (low & 15, low >> 4, high & 15, high >> 4)
    if max(palette) > _DOUBLE:
        raise ValueError("an unknown kind of number")
    fours = [
        bytes((palette[mask & 3], palette[mask >> 2 & 3], palette[mask >> 4 & 3], palette[mask >> 6]))
        for mask in range(256)
    ]
    return [four.translate(_CODE_OF) for four in fours], [tuple(_DIVISORS[kind] for kind in four) for four in fours]
