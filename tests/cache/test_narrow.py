"""Numbers in as few bytes as lose nothing: what comes out is what went in, whatever it was, and how long it is."""

import struct
from contextlib import suppress
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.cache.codec import encode
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.narrow import MOST_NUMBERS, pack, unpack

_cents = st.integers(0, 2**33).map(lambda cents: cents / 100)
_singles = st.floats(width=32)
_whole = st.integers(-(2**54), 2**54).map(float)
_numbers = st.one_of(st.floats(), _cents, _singles, _whole, st.integers(0, 300).map(float))


def _bits(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


@given(st.lists(_numbers, max_size=MOST_NUMBERS).map(tuple))
@example((-0.0, 0.0, 1e300, -1e300, 5e-324, 2.2e-308, 0.1, 1.005, 655.35, 655.36, 42949672.95, 42949672.96))
@example((255.0, 256.0, 65535.0, 65536.0, 4294967295.0, 4294967296.0, -1.0, -2147483648.0, -2147483649.0))
@example((1.0, 300.0, 70000.0, -1.0, 0.25, 700.25, 0.5, 1 / 3))  # all eight kinds
def test_numbers_come_back_bit_for_bit(values: tuple[float, ...]) -> None:
    """As floats, not as integers, and with the sign of zero."""
    back = unpack(pack(values))
    assert _bits(back) == _bits(values)
    assert all(type(number) is float for number in back)


def test_each_number_has_the_width_of_its_kind() -> None:
    """Fifty features: counts of 1 byte, amounts of 2, shares of 4, and 16 bytes that say which is which."""
    random = Random(1)
    values = [float(random.randrange(256)) for _ in range(17)]
    values += [random.randrange(655) + 0.37 for _ in range(17)]
    values += [struct.unpack("<f", struct.pack("<f", random.uniform(0.001, 1)))[0] for _ in range(16)]
    random.shuffle(values)
    assert len(pack(values)) == 16 + 17 * 1 + 17 * 2 + 16 * 4


@pytest.mark.parametrize(("length", "bytes_each"), [(MOST_NUMBERS, 1), (MOST_NUMBERS + 1, 4)])
def test_records_hold_vectors_of_up_to_64_numbers_by_their_kinds(length: int, bytes_each: int) -> None:
    """Longer ones as floats; the rest of a record is 50 bytes and the bits that say which is which."""
    key, now = Key("customer", "c1", "profile"), 1_700_000_000.0
    record = encode(key, names_of("customer", "c1", 1).digest, 1, Entry(1, now, now, (7.0,) * length))
    assert 0 < len(record) - bytes_each * length < 50 + length / 4


def test_a_longer_vector_than_is_ever_packed_is_refused() -> None:
    """Whoever could have shapes of any length kept could fill the memory of every process."""
    one = pack((7.0,) * MOST_NUMBERS)
    longer = bytes((MOST_NUMBERS + 1,)) + one[1:3] + bytes(17) + b"\7" * (MOST_NUMBERS + 1)
    with pytest.raises(ValueError, match="no packed numbers"):
        unpack(longer)


@pytest.mark.parametrize("count", [0, 1, 4, 5, MOST_NUMBERS])
def test_vectors_of_any_length_that_is_allowed_come_back(count: int) -> None:
    """A mask is read four numbers at a time; what is left over of the last four is nobody's."""
    values = tuple(number / 8 for number in range(count))
    assert unpack(pack(values)) == values


@given(st.lists(_numbers, min_size=1, max_size=MOST_NUMBERS).map(tuple), st.data())
def test_torn_bytes_are_refused(values: tuple[float, ...], data: st.DataObject) -> None:
    """Cut anywhere, or with bytes behind them."""
    packed = pack(values)
    for torn in (packed[: data.draw(st.integers(0, len(packed) - 1))], packed + b"\0"):
        with pytest.raises((ValueError, struct.error)):
            unpack(torn)


@given(st.binary(max_size=200))
@example(b"\xff\0\0" + bytes(2_000))  # more numbers than are allowed
@example(b"\1\x0f\0\0\0")  # a kind that does not exist
def test_any_bytes_are_numbers_or_an_error_that_the_codec_knows(packed: bytes) -> None:
    with suppress(ValueError, struct.error):
        assert all(type(number) is float for number in unpack(packed))
