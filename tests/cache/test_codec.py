import math
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlserve.cache.codec import MAX_RECORD_BYTES, decode, encode
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, redis_name
from mlserve.cache.outcome import MissReason

KEY = Key("customer", "c1", "profile")
NAME = redis_name(KEY.kind, KEY.id)
SCHEMA = 3

_numbers = st.floats(allow_nan=False, allow_infinity=False)
_versions = st.integers(0, 2**63 - 1)
_entries = st.builds(Entry, _versions, _numbers, _numbers, st.none() | st.lists(_numbers, max_size=40).map(tuple))
_ids = st.text(min_size=1, max_size=70)


def _decode(record: bytes) -> Entry | MissReason:
    return decode(record, KEY, NAME, SCHEMA)


@given(entry=_entries, kind=_ids, entity_id=_ids, group=_ids, schema=st.integers(0, 10**6))
def test_a_record_decodes_to_the_entry_it_was_made_of(
    entry: Entry, kind: str, entity_id: str, group: str, schema: int
) -> None:
    """Bit for bit, whatever characters the key has."""
    try:
        f"{kind}{entity_id}{group}".encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no text; the API's ids have none
    key, name = Key(kind, entity_id, group), redis_name(kind, entity_id)
    decoded = decode(encode(key, name, schema, entry), key, name, schema)
    assert decoded == entry
    assert repr(decoded) == repr(entry)  # the sign of zero as well


@given(st.binary(max_size=400))
@example(b"")
@example(b"0" * 20)
@example(b"\xb2" * 19 + b"V\x96")  # bytes that `isdigit` of text would let through
@example(b"0000000000000000001V" + b"\x91" * 5_000)  # nested beyond the decoder's depth
@example(pickle.dumps({"values": (1.0,)}))
def test_any_bytes_are_a_miss_and_never_an_exception(record: bytes) -> None:
    assert _decode(record) is MissReason.DECODE


@given(body=st.recursive(st.none() | st.integers() | st.floats() | st.binary() | st.text(), st.lists, max_leaves=12))
def test_any_message_behind_a_good_header_is_a_miss_and_never_an_exception(body: Any) -> None:
    """Well-formed msgpack of another shape."""
    try:
        packed = msgspec.msgpack.encode(body)
    except (OverflowError, UnicodeEncodeError):
        return
    assert _decode(b"%019dV" % 7 + packed) is MissReason.DECODE


def test_nesting_beyond_the_decoders_depth_is_a_miss() -> None:
    """Hidden where the decoder skips: behind the last field."""
    record = encode(KEY, NAME, SCHEMA, Entry(1, 0.0, 0.0, (1.0,)))
    head, fields = record[:20], record[21:]
    assert _decode(head + b"\x97" + fields + b"\x91" * 20_000 + b"\x01") is MissReason.DECODE


@given(entry=_entries, data=st.data())
def test_a_torn_record_is_a_miss(entry: Entry, data: st.DataObject) -> None:
    """Cut anywhere, or with bytes behind it."""
    record = encode(KEY, NAME, SCHEMA, entry)
    assert _decode(record[: data.draw(st.integers(0, len(record) - 1))]) is MissReason.DECODE
    assert _decode(record + data.draw(st.binary(min_size=1, max_size=8))) is MissReason.DECODE


@given(entry=_entries, data=st.data())
@settings(max_examples=300)
def test_flipped_bits_never_raise(entry: Entry, data: st.DataObject) -> None:
    """What still decodes is an entry of finite numbers; there is no checksum, so a flipped value may pass for one."""
    record = bytearray(encode(KEY, NAME, SCHEMA, entry))
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    decoded = _decode(bytes(record))
    if isinstance(decoded, Entry):
        assert all(map(math.isfinite, (decoded.as_of, decoded.written_at, *(decoded.values or ()))))
    else:
        assert decoded in (MissReason.DECODE, MissReason.SCHEMA)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["as_of", "written_at", "values"])
def test_numbers_that_are_not_finite_are_refused(number: float, place: str) -> None:
    """A copy from the infinite future would be fresh for ever; a value that is no number has no score."""
    entry = Entry(1, 0.0, 0.0, (1.0,))
    broken = msgspec.structs.replace(entry, **{place: (number,) if place == "values" else number})
    assert _decode(encode(KEY, NAME, SCHEMA, broken)) is MissReason.DECODE


def test_a_record_of_another_key_or_schema_is_refused() -> None:
    """Group and entity make it `decode`, since somebody moved it; the schema makes it `schema`."""
    entry = Entry(1, 0.0, 0.0, (1.0,))
    assert _decode(encode(Key("customer", "c1", "other"), NAME, SCHEMA, entry)) is MissReason.DECODE
    assert _decode(encode(KEY, redis_name("customer", "c2"), SCHEMA, entry)) is MissReason.DECODE
    assert _decode(encode(KEY, redis_name("merchant", "c1"), SCHEMA, entry)) is MissReason.DECODE
    assert _decode(encode(KEY, NAME, SCHEMA + 1, entry)) is MissReason.SCHEMA


def test_a_record_too_large_to_be_ours_is_not_even_looked_at() -> None:
    """2 MB under our name would burn the time of every reader."""
    large = encode(KEY, NAME, SCHEMA, Entry(1, 0.0, 0.0, (1.0,) * 250_000))
    assert len(large) > MAX_RECORD_BYTES
    assert _decode(large) is MissReason.DECODE


def test_versions_sort_as_text_as_they_do_as_numbers() -> None:
    """The script in Redis compares them so."""
    versions = [0, 9, 10, 2**31, 2**53, 2**53 + 1, 2**63 - 1]
    heads = [encode(KEY, NAME, SCHEMA, Entry(version, 0.0, 0.0, None))[:19] for version in versions]
    assert heads == sorted(heads)
    assert len(set(heads)) == len(versions)


def test_names_in_redis_show_no_id_and_keep_entities_apart() -> None:
    """Kind and id cannot be confused with one another, and the id is not in the clear."""
    names = {redis_name("a", "bc"), redis_name("ab", "c"), redis_name("a", "b:c"), redis_name("a:b", "c")}
    assert len(names) == 4
    assert b"4111111111111111" not in redis_name("customer", "4111111111111111")
