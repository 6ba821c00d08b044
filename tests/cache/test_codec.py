import math
import pickle
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlserve.cache.codec import (
    COMPRESS_FROM_BYTES,
    IDENTITY_BYTES,
    MAX_RECORD_BYTES,
    decode,
    encode,
    identity,
)
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason

KEY = Key("customer", "c1", "profile")
DIGEST = names_of(KEY.kind, KEY.id, 1).digest
SCHEMA = 3
YEAR_2106_S = 2**32
HEAD = b"\0" * 7 + b"\7V" + b"\0" * 8

_numbers = st.floats(allow_nan=False, allow_infinity=False)
_versions = st.integers(0, 2**63 - 1)
# A record tells microseconds, a float of seconds tells any 64th of one exactly.
_times = st.integers(0, YEAR_2106_S * 64 - 1).map(lambda count: count / 64)
_costs = st.integers(0, 60 * 64).map(lambda count: count / 64)
_values = st.lists(_numbers, max_size=40).map(tuple)
_entries = st.builds(Entry, _versions, _times, _times, st.none() | _values, _costs)
_ids = st.text(min_size=1, max_size=70)


def _decode(record: bytes) -> Entry | MissReason:
    return decode(record, KEY, DIGEST, SCHEMA)


def _encode(entry: Entry) -> bytes:
    return encode(KEY, DIGEST, SCHEMA, entry)


def _record(**changes: Any) -> bytes:
    """One whose body was written by hand: a field by its name, the rest as in a good record."""
    good = _encode(Entry(7, 0.0, 0.0, (1.0,)))
    names = ("name", "epoch", "schema", "age_us", "cost_us", "values")
    body = dict(zip(names, msgspec.msgpack.decode(good[IDENTITY_BYTES:]), strict=True))
    return good[:IDENTITY_BYTES] + msgspec.msgpack.encode([*(body | changes).values()])


@given(entry=_entries, kind=_ids, entity_id=_ids, group=_ids, schema=st.integers(0, 10**6))
def test_a_record_decodes_to_the_entry_it_was_made_of(
    entry: Entry, kind: str, entity_id: str, group: str, schema: int
) -> None:
    """Bit for bit, whatever characters the key has."""
    try:
        group.encode()
    except UnicodeEncodeError:
        return  # groups are names in our code
    key, digest = Key(kind, entity_id, group), names_of(kind, entity_id, 1).digest
    decoded = decode(encode(key, digest, schema, entry), key, digest, schema)
    assert decoded == entry
    assert repr(decoded) == repr(entry)  # the sign of zero as well


@given(entry=_entries, written_us=st.integers(0, YEAR_2106_S * 1_000_000 - 1))
def test_what_a_reader_saw_is_told_from_every_other_copy(entry: Entry, written_us: int) -> None:
    """The identity of a decoded entry is the head of its record, to the microsecond, until 2106.

    A reader that cannot name what it saw would be told for ever that somebody has changed it.
    """
    record = _encode(entry)
    record = record[:9] + written_us.to_bytes(8, "big") + record[IDENTITY_BYTES:]
    decoded = _decode(record)
    assert isinstance(decoded, Entry)
    assert identity(decoded) == record[:IDENTITY_BYTES]


@pytest.mark.parametrize("written_us", [YEAR_2106_S * 1_000_000, 2**63 + 1, 2**64 - 1])
def test_a_time_that_cannot_be_named_to_the_microsecond_is_refused(written_us: int) -> None:
    record = _encode(Entry(1, 0.0, 0.0, (1.0,)))
    assert _decode(record[:9] + written_us.to_bytes(8, "big") + record[17:]) is MissReason.DECODE


def test_a_negative_cost_is_refused() -> None:
    """Readers of L1 subtract so many costs from the limit: the copy would be fresh for ever."""
    assert isinstance(_decode(_record()), Entry)
    assert _decode(_record(cost_us=-1)) is MissReason.DECODE


@given(st.binary(max_size=400))
@example(b"")
@example(b"0" * 20)
@example(HEAD + b"\x91" * 5_000)  # nested beyond the decoder's depth
@example(pickle.dumps({"values": (1.0,)}))
def test_any_bytes_are_a_miss_and_never_an_exception(record: bytes) -> None:
    assert _decode(record) is MissReason.DECODE or record[8:9] == b"T"


@given(body=st.recursive(st.none() | st.integers() | st.floats() | st.binary() | st.text(), st.lists, max_leaves=12))
def test_any_message_behind_a_good_header_is_a_miss_and_never_an_exception(body: Any) -> None:
    """Well-formed msgpack of another shape."""
    try:
        packed = msgspec.msgpack.encode(body)
    except (OverflowError, UnicodeEncodeError):
        return
    assert _decode(HEAD + packed) is MissReason.DECODE


@given(packed=st.binary(max_size=60), form=st.sampled_from([b"f", b"d", b"F", b"D", b""]))
def test_any_bytes_for_values_never_raise(packed: bytes, form: bytes) -> None:
    """Of no known form, torn, not what was compressed: a miss, or else finite numbers."""
    decoded = _decode(_record(values=form + packed))
    if isinstance(decoded, Entry):
        assert all(map(math.isfinite, decoded.values or ()))
    else:
        assert decoded is MissReason.DECODE


def test_nesting_beyond_the_decoders_depth_is_a_miss() -> None:
    """Hidden where the decoder skips: behind the last field."""
    record = _encode(Entry(1, 0.0, 0.0, (1.0,)))
    head, fields = record[:IDENTITY_BYTES], record[IDENTITY_BYTES + 1 :]
    assert _decode(head + b"\x97" + fields + b"\x91" * 20_000 + b"\x01") is MissReason.DECODE


@given(entry=_entries, data=st.data())
def test_a_torn_record_is_a_miss(entry: Entry, data: st.DataObject) -> None:
    """Cut anywhere, or with bytes behind it."""
    record = _encode(entry)
    assert _decode(record[: data.draw(st.integers(0, len(record) - 1))]) is MissReason.DECODE
    assert _decode(record + data.draw(st.binary(min_size=1, max_size=8))) is MissReason.DECODE


@given(entry=_entries, data=st.data())
@settings(max_examples=300)
def test_flipped_bits_never_raise(entry: Entry, data: st.DataObject) -> None:
    """What still decodes is an entry of finite numbers; there is no checksum, so a flipped value may pass for one."""
    record = bytearray(_encode(entry))
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decoded = _decode(bytes(record))
    if isinstance(decoded, Entry):
        assert all(map(math.isfinite, (decoded.as_of, decoded.written_at, *(decoded.values or ()))))
    else:
        assert decoded in (MissReason.DECODE, MissReason.SCHEMA)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [(), (1e308, 1e308)])
def test_values_that_are_not_finite_are_refused(number: float, others: tuple[float, ...]) -> None:
    """A value that is no number has no score. Large ones, whose sum alone is not finite, are fine."""
    assert _decode(_encode(Entry(1, 0.0, 0.0, (*others, number)))) is MissReason.DECODE
    assert _decode(_encode(Entry(1, 0.0, 0.0, others))) == Entry(1, 0.0, 0.0, others)


@pytest.mark.parametrize(
    ("values", "bytes_each"),
    [((0.5, -3.0, 2.0**100) * 100, 4), ((1 / 8, 1 / 3) * 100, 8), ((1 / 8, 1e300) * 100, 8), ((-0.0, 1 / 8) * 100, 4)],
    ids=["narrow", "not exact in 4 bytes", "too large for 4 bytes", "zeros with a sign"],
)
def test_values_take_the_narrowest_floats_that_lose_nothing(values: tuple[float, ...], bytes_each: int) -> None:
    entry = Entry(1, 0.0, 0.0, values)
    record = _encode(entry)
    assert repr(_decode(record)) == repr(entry)
    assert 0 <= len(record) - bytes_each * len(values) < 60


def test_many_values_are_compressed_where_that_pays() -> None:
    """A run of like numbers shrinks; noise is left as it is."""
    like = Entry(1, 0.0, 0.0, tuple(float(number % 7) for number in range(COMPRESS_FROM_BYTES)))
    noise = Entry(1, 0.0, 0.0, tuple(math.sin(number) for number in range(COMPRESS_FROM_BYTES // 8)))
    assert len(_encode(like)) < COMPRESS_FROM_BYTES / 10
    assert len(_encode(noise)) > COMPRESS_FROM_BYTES
    assert _decode(_encode(like)) == like
    assert _decode(_encode(noise)) == noise


def test_what_would_expand_beyond_a_record_is_refused_unexpanded() -> None:
    """A hundred megabytes of zeros in a hundred kilobytes; and bytes behind the end of what was compressed."""
    zipper = zlib.compressobj(9)
    bomb = b"".join(zipper.compress(bytes(1_000_000)) for _ in range(100)) + zipper.flush()
    assert len(bomb) < 200_000
    assert _decode(_record(values=b"F" + bomb)) is MissReason.DECODE
    assert isinstance(_decode(_record(values=b"F" + zlib.compress(bytes(400)))), Entry)
    assert _decode(_record(values=b"F" + zlib.compress(bytes(400)) + b"more")) is MissReason.DECODE


def test_a_record_of_another_key_or_schema_is_refused() -> None:
    """Group and entity make it `decode`, since somebody moved it; the schema makes it `schema`."""
    entry = Entry(1, 0.0, 0.0, (1.0,))
    assert _decode(encode(Key("customer", "c1", "other"), DIGEST, SCHEMA, entry)) is MissReason.DECODE
    assert _decode(encode(KEY, names_of("customer", "c2", 1).digest, SCHEMA, entry)) is MissReason.DECODE
    assert _decode(encode(KEY, names_of("merchant", "c1", 1).digest, SCHEMA, entry)) is MissReason.DECODE
    assert _decode(encode(KEY, DIGEST, SCHEMA + 1, entry)) is MissReason.SCHEMA


def test_a_tombstone_says_that_something_was_invalidated() -> None:
    """It is 17 bytes; one with anything behind is none of ours."""
    tombstone = HEAD[:8] + b"T" + HEAD[9:]
    assert _decode(tombstone) is MissReason.INVALIDATED
    assert _decode(tombstone + b"\0") is MissReason.DECODE
    assert _decode(HEAD[:8] + b"X" + HEAD[9:]) is MissReason.DECODE


def test_a_record_too_large_to_be_ours_is_not_even_looked_at() -> None:
    """2 MB under our name would burn the time of every reader."""
    large = _encode(Entry(1, 0.0, 0.0, tuple(math.sin(number) for number in range(250_000))))
    assert len(large) > MAX_RECORD_BYTES
    assert _decode(large) is MissReason.DECODE


def test_names_in_redis_show_no_id_and_keep_entities_apart() -> None:
    """Kind and id cannot be confused with one another, and the id is not in the clear."""
    pairs = [("a", "bc"), ("ab", "c"), ("a", "b:c"), ("a:b", "c")]
    names = [names_of(*pair, 1) for pair in pairs]
    assert len({name.record for name in names} | {name.lease for name in names}) == 8
    assert b"4111111111111111" not in names_of("customer", "4111111111111111", 1).record
