"""How an entry looks as bytes in Redis, and how bytes that somebody else put there are refused.

    8 bytes   version, big-endian
    1 letter  V value, N negative ("the source knows nothing"), T tombstone ("what was here must not be served")
    8 bytes   written_at in microseconds, big-endian
    msgpack   name of the key (entity and group), epoch, schema, age of the values when read (us), cost (us), values
    16 bytes  where records are sealed (`seal.py`): the seal

The first 17 bytes tell one copy of a key from every other one; scripts compare them without knowing the rest. Lua's
numbers are doubles and lose integers above 2**53, so they compare a version as two halves of 32 bits.

Values are packed as the narrowest floats that lose nothing, 4 or 8 bytes each, or each by its own kind where that is
much less (`narrow.py`), and compressed where that pays. A record names its own key and schema, so bytes that were
moved, torn, or written by another release are a counted miss and never a wrong answer. Decoding builds one typed
struct; there is no code in these bytes to run.
"""

import zlib
from functools import lru_cache
from hashlib import blake2b
from math import isfinite
from struct import Struct
from struct import error as StructError

import msgspec

from mlserve.cache import narrow
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.seal import NO_SEAL, Seal
from mlserve.cache.watermark import Watermark

VALUE, NEGATIVE, TOMBSTONE = b"V", b"N", b"T"
IDENTITY_BYTES = 17
MAX_RECORD_BYTES = 1_000_000
"""Larger records under our names are somebody else's; decoding them would only burn time."""
COMPRESS_FROM_BYTES = 4_096
_COMPRESSION_PAYS_BELOW = 0.8
_US = 1_000_000
_TIMES_END_US = 2**32 * _US
"""Until 2106. Up to there a float of seconds tells one microsecond from the next, so a reader can name what it saw."""
_identity = Struct(">QcQ")
_NARROW, _WIDE, _MIXED, _NARROW_ZIPPED, _WIDE_ZIPPED = b"f", b"d", b"m", b"F", b"D"
_MIXED_PAYS_BELOW = 0.75
"""Of the floats' bytes. Mixed numbers take five times as long to decode."""
_WIDTH = {_NARROW: 4, _WIDE: 8}
_FORMAT = {_NARROW: "f", _WIDE: "d"}


class _Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    name: bytes
    epoch: int
    schema: int
    age_us: int
    cost_us: int
    values: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Body)


def encode(key: Key, digest: bytes, schema: int, entry: Entry, *, epoch: int = 0, seal: Seal = NO_SEAL) -> bytes:
    """The record of `entry`. `digest`: the 16 bytes of the entity's names (`keys.names_of`)."""
    written_us = _microseconds(entry.written_at)
    body = _Body(
        _name_of(digest, key.group),
        epoch,
        schema,
        written_us - _microseconds(entry.as_of),
        _microseconds(entry.cost_s),
        b"" if entry.values is None else _pack(entry.values),
    )
    kind = NEGATIVE if entry.values is None else VALUE
    record = _identity.pack(entry.version, kind, written_us) + _encoder.encode(body)
    return seal.seal_record(record, digest, key.group) if seal.keyed else record


def identity(entry: Entry) -> bytes:
    """The first 17 bytes of this entry's record."""
    kind = NEGATIVE if entry.values is None else VALUE
    return _identity.pack(entry.version, kind, _microseconds(entry.written_at))


def _microseconds(seconds: float) -> int:
    """What a record can hold: from 1970 until 2106."""
    return min(max(0, round(seconds * _US)), _TIMES_END_US - 1)


def decode(
    record: bytes,
    key: Key,
    digest: bytes,
    schema: int,
    watermark: Watermark | None = None,
    seal: Seal = NO_SEAL,
) -> Entry | MissReason:
    """The entry, or why these bytes are none. `watermark`: what the record's partition says, read before the record.

    `DECODE` for foreign or torn ones, `SCHEMA` for another release's, `INVALIDATED` for a tombstone.
    """
    if not IDENTITY_BYTES <= len(record) <= MAX_RECORD_BYTES:
        return MissReason.DECODE
    version, kind, written_us = _identity.unpack_from(record)
    if kind == TOMBSTONE and len(record) == IDENTITY_BYTES:
        return MissReason.INVALIDATED
    if kind not in (VALUE, NEGATIVE) or written_us >= _TIMES_END_US:
        return MissReason.DECODE
    if seal.keyed:  # before anything is made of bytes that may be somebody else's
        opened = seal.open_record(record, digest, key.group)
        if opened is None:
            return MissReason.DECODE
        record = opened
    try:
        body = _decoder.decode(memoryview(record)[IDENTITY_BYTES:])
        if body.name != _name_of(digest, key.group):
            return MissReason.DECODE
        if body.schema != schema:
            return MissReason.SCHEMA
        if body.cost_us < 0:  # readers take costs off the limit: such a copy would never expire
            return MissReason.DECODE
        values = None if kind == NEGATIVE else _unpack(body.values)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, StructError, zlib.error, ValueError):
        return MissReason.DECODE
    # A value that is not a number has no score.
    if values is not None and not _all_finite(values):
        return MissReason.DECODE
    vouched_at = watermark.safe_time if watermark is not None and watermark.epoch == body.epoch else 0.0
    return Entry(version, (written_us - body.age_us) / _US, written_us / _US, values, body.cost_us / _US, vouched_at)


def is_sealed(record: bytes, key: Key, digest: bytes, seal: Seal) -> bool:
    """Whether these bytes, where they lie, come from somebody who knows the key."""
    return len(record) <= MAX_RECORD_BYTES and seal.open_record(record, digest, key.group) is not None


@lru_cache(65_536)
def _name_of(digest: bytes, group: str) -> bytes:
    """12 bytes that tell a key from every other one."""
    return digest[:8] + blake2b(group.encode(), digest_size=4).digest()


@lru_cache(4096)
def _floats(count: int, letter: str) -> Struct:
    return Struct(f"<{count}{letter}")


def _pack(values: tuple[float, ...]) -> bytes:
    form, packed = _WIDE, _floats(len(values), "d").pack(*values)
    try:
        halved = _floats(len(values), "f").pack(*values)
        if _floats(len(values), "d").pack(*_floats(len(values), "f").unpack(halved)) == packed:
            form, packed = _NARROW, halved
    except OverflowError:  # beyond what 4 bytes can hold
        pass
    if len(values) <= narrow.MOST_NUMBERS:
        mixed = narrow.pack(values)
        if len(mixed) < _MIXED_PAYS_BELOW * len(packed):
            return _MIXED + mixed
    if len(packed) >= COMPRESS_FROM_BYTES:
        zipped = zlib.compress(packed, 1)
        if len(zipped) < _COMPRESSION_PAYS_BELOW * len(packed):
            form, packed = form.upper(), zipped
    return form + packed


def _unpack(packed: bytes) -> tuple[float, ...]:
    form = packed[:1]
    if form == _MIXED:
        return narrow.unpack(packed[1:])
    if form in (_NARROW_ZIPPED, _WIDE_ZIPPED):
        form = form.lower()
        packed = form + _unzip(packed[1:])
    width = _WIDTH.get(form)
    count, torn = divmod(len(packed) - 1, width or 1)
    if width is None or torn:
        raise ValueError("no packed values")
    return _floats(count, _FORMAT[form]).unpack_from(packed, 1)


def _unzip(zipped: bytes) -> bytes:
    """Never more than a record may hold, whatever the bytes would expand to."""
    unzipper = zlib.decompressobj()
    numbers = unzipper.decompress(zipped, MAX_RECORD_BYTES)
    if not unzipper.eof or unzipper.unused_data:
        raise ValueError("torn, or larger than a record may be")
    return numbers


def _all_finite(values: tuple[float, ...]) -> bool:
    # One that is not finite makes the sum not finite, and a sum is quick; only large ones need the slow look.
    return isfinite(sum(values)) or all(map(isfinite, values))
