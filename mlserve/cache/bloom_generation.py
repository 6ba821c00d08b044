"""How a generation of filters is written down, and how bytes that claim to be one are judged.

A generation is all filters of one build. Its record is a header, which says what it is and what the body must look
like, a code over the header that only holders of the project's secret can make, and the body: the filters' bytes, one
after the other. What does not agree to the last bit is refused: a filter with one bit missing denies somebody.
"""

import hmac
import re
from collections.abc import Mapping
from hashlib import blake2b
from importlib.metadata import version

import msgspec

from mlserve.cache.bloom import MOST_BYTES, IdFilter, UnusableFilter

LAYOUT = 1
"""Rises when anything here changes."""
MOST_HEADER_BYTES = 4096
_MOST_FILTERS = 16
_STREAM_ID = re.compile(r"\d{1,20}-\d{1,20}")
LIBRARY = f"rbloom {version('rbloom')}"
"""Another version may place the same id elsewhere."""


class Position(msgspec.Struct, frozen=True):
    """A place in the stream of announcements: the last id before it, and how many entries there had ever been."""

    id: str
    added: int


class Generation(msgspec.Struct, frozen=True):
    """`position` was read before the ids were: all that was announced behind it must be added.

    `name` is new for every build, and the filters' hash key is derived from it. `counts`: ids per kind at the build.
    """

    name: str
    built_at: float
    position: Position
    counts: Mapping[str, int]
    filters: Mapping[str, IdFilter]


class FilterRecord(msgspec.Struct, frozen=True):
    kind: str
    count: int
    capacity: int
    bytes: int


class Header(msgspec.Struct, frozen=True):
    """`digest`: of the body, in hexadecimal digits."""

    layout: int
    library: str
    name: str
    built_at: float
    position: Position
    filters: tuple[FilterRecord, ...]
    digest: str

    @property
    def body_bytes(self) -> int:
        return sum(record.bytes for record in self.filters)


class Record(msgspec.Struct, frozen=True):
    """What lies in Redis."""

    header: bytes
    code: bytes
    body: bytes


def hash_key(name: str, secret: bytes) -> bytes:
    """The key of the filters of a generation. Whoever reads Redis learns the name, not the key."""
    return blake2b(name.encode(), key=_key(secret), digest_size=32, person=b"bloom hash").digest()


def encode(generation: Generation, secret: bytes) -> Record:
    bodies = {kind: held.dump() for kind, held in generation.filters.items()}
    body = b"".join(bodies.values())
    header = msgspec.json.encode(
        Header(
            layout=LAYOUT,
            library=LIBRARY,
            name=generation.name,
            built_at=generation.built_at,
            position=generation.position,
            filters=tuple(
                FilterRecord(kind, generation.counts[kind], generation.filters[kind].capacity, len(data))
                for kind, data in bodies.items()
            ),
            digest=_digest(body),
        )
    )
    return Record(header, _code(header, secret), body)


def decode_header(header: bytes, code: bytes, secret: bytes) -> Header:
    """Raises UnusableFilter; what it returns was written by a holder of the secret, and can be loaded here."""
    if len(header) > MOST_HEADER_BYTES:
        raise UnusableFilter(f"a header of {len(header)} bytes; at most {MOST_HEADER_BYTES} are allowed")
    if not hmac.compare_digest(code, _code(header, secret)):
        raise UnusableFilter("the header was not written with this project's MLSERVE_SECRET_KEY")
    try:
        decoded = msgspec.json.decode(header, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnusableFilter(f"the header cannot be read: {error}") from error
    if (decoded.layout, decoded.library) != (LAYOUT, LIBRARY):
        raise UnusableFilter(
            f"layout {decoded.layout} by {decoded.library}; this process reads layout {LAYOUT} by {LIBRARY}"
        )
    if not _STREAM_ID.fullmatch(decoded.position.id):
        raise UnusableFilter(f"a position {decoded.position.id!r} that no stream has")
    if len(decoded.filters) > _MOST_FILTERS or any(not 0 < record.bytes <= MOST_BYTES for record in decoded.filters):
        raise UnusableFilter(f"{len(decoded.filters)} filters of {decoded.body_bytes} bytes together")
    return decoded


def decode(header: Header, body: bytes, secret: bytes) -> Generation:
    """Raises UnusableFilter."""
    if len(body) != header.body_bytes or _digest(body) != header.digest:
        raise UnusableFilter("the filters' bytes are not those that were written")
    filters, start, key = {}, 0, hash_key(header.name, secret)
    for record in header.filters:
        data = body[start : start + record.bytes]
        filters[record.kind] = IdFilter.load(data, capacity=record.capacity, hash_key=key)
        start += record.bytes
    counts = {record.kind: record.count for record in header.filters}
    return Generation(header.name, header.built_at, header.position, counts, filters)


def _key(secret: bytes) -> bytes:
    return blake2b(secret, digest_size=32).digest()


def _code(header: bytes, secret: bytes) -> bytes:
    return blake2b(header, key=_key(secret), digest_size=32, person=b"bloom header").digest()


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=32).hexdigest()
