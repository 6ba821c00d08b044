"""How an entry looks as bytes in Redis, and how bytes that somebody else put there are refused.

    19 decimal digits   version; compared as text in Lua, whose numbers lose integers above 2**53
    1 letter            V value, N negative ("the source knows nothing")
    msgpack array       digest of the entity's key, group, schema, as_of, written_at, values

A record names its own key and schema, so bytes that were moved, torn, or written by another release are a counted
miss and never a wrong answer. Decoding builds typed structs only; there is no code in these bytes to run.
"""

from math import isfinite

import msgspec

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason

VERSION_DIGITS = 19
_HEADER_BYTES = VERSION_DIGITS + 1
_VALUE = ord("V")
_NEGATIVE = ord("N")
MAX_RECORD_BYTES = 1_000_000
"""Larger records under our names are somebody else's; decoding them would only burn time."""


class _Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    name: bytes
    group: str
    schema: int
    as_of: float
    written_at: float
    values: tuple[float, ...]


def _digest_in(redis_name: bytes) -> bytes:
    """The 16 bytes that tell one entity's hash from another's."""
    return bytes.fromhex(redis_name[-32:].decode("ascii"))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Body)


def encode(key: Key, redis_name: bytes, schema: int, entry: Entry) -> bytes:
    """The record of `entry`. `redis_name` is the name of the hash that it will lie in."""
    kind = b"N" if entry.values is None else b"V"
    body = _Body(_digest_in(redis_name), key.group, schema, entry.as_of, entry.written_at, entry.values or ())
    return b"%019d%b%b" % (entry.version, kind, _encoder.encode(body))


def decode(record: bytes, key: Key, redis_name: bytes, schema: int) -> Entry | MissReason:
    """The entry, or why these bytes are none: `DECODE` for foreign or torn ones, `SCHEMA` for another release's."""
    if not _HEADER_BYTES < len(record) <= MAX_RECORD_BYTES:
        return MissReason.DECODE
    version, kind = record[:VERSION_DIGITS], record[VERSION_DIGITS]
    if not version.isdigit() or kind not in (_VALUE, _NEGATIVE):
        return MissReason.DECODE
    try:
        body = _decoder.decode(memoryview(record)[_HEADER_BYTES:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return MissReason.DECODE
    if body.name != _digest_in(redis_name) or body.group != key.group:
        return MissReason.DECODE
    if body.schema != schema:
        return MissReason.SCHEMA
    # An infinite `as_of` would be fresh for ever, and a value that is not a number has no score.
    if not (isfinite(body.as_of) and isfinite(body.written_at) and _all_finite(body.values)):
        return MissReason.DECODE
    return Entry(int(version), body.as_of, body.written_at, body.values if kind == _VALUE else None)


def _all_finite(values: tuple[float, ...]) -> bool:
    # One that is not finite makes the sum not finite, and a sum is quick; only large ones need the slow look.
    return isfinite(sum(values)) or all(map(isfinite, values))
