"""How others lay out an entity's features in Redis: as a hash of JSON, and as Feast does.

Feast: `docs/specs/online_store_format.md` in its repository, and `online_stores/redis.py` where the two differ. A key
is the serialised entity key and the project; a field is the first 4 bytes of Murmur3 of "view:feature"; a value is a
`ValueProto`, for a double one byte of tag and 8 of number; a field `_ts:view` has the `Timestamp` of the row.
"""

import json
import struct
from collections.abc import Sequence
from functools import cache

from sklearn.utils import murmurhash3_32

Hash = tuple[bytes, dict[bytes, bytes]]
"""A key, and its fields with their values."""

VIEW = "customer_features"
_PROJECT, _JOIN_KEY = b"fraud_detection", b"customer_id"
_STRING = 2
"""`ValueType.STRING`."""
_DOUBLE_TAG, _SECONDS_TAG = b"\x29", b"\x08"
"""Field 5 of `ValueProto`, 8 bytes; field 1 of `Timestamp`, a varint."""
_double = struct.Struct("<d")


def as_json(entity_id: str, values: Sequence[float]) -> Hash:
    """One field for each feature, its value in JSON."""
    return f"customer:{entity_id}".encode(), {
        _name(place).encode(): json.dumps(value).encode() for place, value in enumerate(values)
    }


def as_feast(entity_id: str, values: Sequence[float], *, as_of: float) -> Hash:
    """One feature view of doubles. Its time is in whole seconds, as Feast writes it."""
    fields = {_feast_field(place): _DOUBLE_TAG + _double.pack(value) for place, value in enumerate(values)}
    fields[b"_ts:" + VIEW.encode()] = _SECONDS_TAG + _varint(int(as_of))
    name = entity_id.encode()
    key = struct.pack("<I", _STRING) + _JOIN_KEY + struct.pack("<II", _STRING, len(name)) + name + _PROJECT
    return key, fields


@cache
def _feast_field(place: int) -> bytes:
    return struct.pack("<Q", int(murmurhash3_32(f"{VIEW}:{_name(place)}", positive=True)))[:4]


def _varint(number: int) -> bytes:
    """Seven bits at a time, the lowest first, as protocol buffers write it."""
    low, rest = number & 0x7F, number >> 7
    return bytes((low,)) if not rest else bytes((low | 0x80,)) + _varint(rest)


def _name(place: int) -> str:
    return f"feature_{place}"
