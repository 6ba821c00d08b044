"""Where generations and announcements lie: a hash and a stream in the L2 Redis, both of which may be lost.

What is lost must be noticed, because a missed announcement is a wrong "no". A stream counts all entries that it ever
had (`entries-added`); who has followed it knows the count that the next look must find. Trimmed, deleted, lost and
restored entries all make a difference. A stream begins with a random count, so that one that was begun anew cannot be
taken for the one before; and only the build begins one. Whoever finds none, or must make all filters unusable, is done
by its absence.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import redis

from mlserve.cache.bloom import UnusableFilter
from mlserve.cache.bloom_generation import MOST_HEADER_BYTES, Header, Position, Record, decode_header

STREAM = "mlserve:bloom:{0}:new"
FILTERS = "mlserve:bloom:{0}:filters"
"""The hash tag keeps both in one partition."""
MOST_ENTRIES = 100_000
IDS_PER_ENTRY = 200
_ENTRIES_PER_LOOK = 500
_CHUNK_BYTES = 256 * 1024
"""What Redis and the network move well within one timeout."""
_UNFINISHED_S = 600
"""A generation that was not saved to its end is forgotten after this time."""


class StoreUnreachable(Exception):
    """Redis did not answer, or refused."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")


class Gap(Exception):
    """Announcements may have been missed. The message says why."""


class Look(msgspec.Struct, frozen=True):
    """`ids`: kind and id of each announcement behind the position asked for. `more`: there are further ones already."""

    generation: str | None
    ids: list[tuple[str, str]]
    position: Position
    more: bool


def order(entry_id: str) -> tuple[int, int]:
    """Ids of a stream compare by two numbers."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


class BloomStore:
    """Thread-safe. `connect` returns the redis-py client of this process."""

    def __init__(self, connect: Callable[[], "redis.Redis"]) -> None:
        self._connect = connect

    def begin(self, *, now: float) -> Position:
        """Where announcements stand; begins a stream if there is none. `now`: since 1970. Raises StoreUnreachable."""
        with _translated():
            client = self._connect()
            try:
                info = client.xinfo_stream(STREAM)
            except redis.ResponseError:  # no stream, or somebody else's value under its name
                self._begin_stream(client, now)
                info = client.xinfo_stream(STREAM)
        return _end_of(info)

    def generation(self) -> str | None:
        """The name of the newest generation. Raises StoreUnreachable."""
        with _translated():
            try:
                return _name(self._connect().hget(FILTERS, "name"))
            except redis.ResponseError:  # somebody else's value under our name
                return None

    def look(self, after: Position) -> Look:
        """What was announced behind `after`, at most some hundred entries. Raises Gap and StoreUnreachable."""
        with _translated():
            pipeline = self._connect().pipeline(transaction=True)
            pipeline.xinfo_stream(STREAM)
            pipeline.xrange(STREAM, f"({after.id}", "+", count=_ENTRIES_PER_LOOK)
            pipeline.hget(FILTERS, "name")
            info, entries, name = pipeline.execute(raise_on_error=False)
        if not isinstance(info, dict) or not isinstance(entries, list):
            raise Gap(f"no stream of announcements: {info}")
        end = _end_of(info)
        if order(end.id) < order(after.id):
            raise Gap(f"the stream ends at {end.id}, before {after.id}, which was read already")
        reached = Position(entries[-1][0].decode(), after.added + len(entries)) if entries else after
        more = len(entries) == _ENTRIES_PER_LOOK and end.added > reached.added
        if not more and end.added != reached.added:
            raise Gap(f"the stream had {end.added} entries in all, where {reached.added} are known")
        return Look(_name(name), [each for _, entry in entries for each in _ids(entry)], reached if more else end, more)

    def announce(self, ids: Mapping[str, Sequence[str]]) -> str | None:
        """The id of the last entry, in one round trip; None if there is no stream, so that no filter can be trusted.

        Where Redis answers but takes no entries (no memory, somebody else's value), the stream is ended instead.
        Raises StoreUnreachable; the announcement may then have been made or not.
        """
        with _translated():
            client = self._connect()
            pipeline = client.pipeline(transaction=False)
            for kind, of_kind in ids.items():
                for start in range(0, len(of_kind), IDS_PER_ENTRY):
                    part = msgspec.msgpack.encode(of_kind[start : start + IDS_PER_ENTRY])
                    entry: dict[Any, Any] = {"kind": kind, "ids": part}
                    pipeline.xadd(STREAM, entry, maxlen=MOST_ENTRIES, approximate=True, nomkstream=True)
            replies = pipeline.execute(raise_on_error=False)
            if any(isinstance(reply, Exception) for reply in replies):
                client.unlink(STREAM)
                return None
        return None if None in replies else max((reply.decode() for reply in replies), key=order)

    def end_stream(self) -> None:
        """Makes all filters of all processes unusable until the next build. Raises StoreUnreachable."""
        with _translated():
            self._connect().unlink(STREAM)

    def save(self, record: Record, name: str) -> None:
        """Puts a generation in the place of the one before, as a whole or not at all. Raises StoreUnreachable."""
        unfinished = f"{FILTERS}:{name}"
        with _translated():
            client = self._connect()
            client.hset(unfinished, mapping={"name": name, "header": record.header, "code": record.code})
            client.expire(unfinished, _UNFINISHED_S)
            for number, start in enumerate(range(0, len(record.body), _CHUNK_BYTES)):
                client.hset(unfinished, str(number), record.body[start : start + _CHUNK_BYTES])
            pipeline = client.pipeline(transaction=True)
            pipeline.rename(unfinished, FILTERS)
            pipeline.persist(FILTERS)
            pipeline.execute()

    def header(self, secret: bytes) -> Header | None:
        """Of the newest generation; None if there is none. Raises UnusableFilter and StoreUnreachable."""
        with _translated(), _no_hash_of_ours():
            client = self._connect()
            lengths = [client.hstrlen(FILTERS, field) for field in ("header", "code")]
            if not any(lengths):
                return None
            if max(lengths) > MOST_HEADER_BYTES:
                raise UnusableFilter(f"a header of {max(lengths)} bytes; at most {MOST_HEADER_BYTES} are allowed")
            header, code = cast(list[bytes | None], client.hmget(FILTERS, ["header", "code"]))
        return decode_header(header or b"", code or b"", secret)

    def body(self, header: Header) -> bytes:
        """The bytes that the header speaks of. Raises UnusableFilter and StoreUnreachable."""
        parts = []
        with _translated(), _no_hash_of_ours():
            client = self._connect()
            for number, start in enumerate(range(0, header.body_bytes, _CHUNK_BYTES)):
                expected = min(_CHUNK_BYTES, header.body_bytes - start)
                if client.hstrlen(FILTERS, str(number)) != expected:
                    raise UnusableFilter(f"part {number} of the filters is not {expected} bytes long")
                parts.append(cast(bytes | None, client.hget(FILTERS, str(number))) or b"")
        return b"".join(parts)

    def _begin_stream(self, client: "redis.Redis", now: float) -> None:
        # Far from 0 and from any other stream's, and far below the 2^63 at which Redis stops counting.
        count = 2**40 + secrets.randbits(56)
        entry_id = f"{int(now * 1000)}-0"
        pipeline = client.pipeline(transaction=True)
        pipeline.unlink(STREAM)
        pipeline.xadd(STREAM, {"begun": "1"}, id=entry_id)
        pipeline.execute_command("XSETID", STREAM, entry_id, "ENTRIESADDED", count, "MAXDELETEDID", "0-0")
        pipeline.execute()


def _end_of(info: Mapping[str, Any]) -> Position:
    return Position(info["last-generated-id"].decode(), info["entries-added"])


def _name(reply: object) -> str | None:
    return reply.decode("ascii", "replace") if isinstance(reply, bytes) else None


def _ids(entry: Mapping[bytes, bytes]) -> list[tuple[str, str]]:
    if b"begun" in entry:
        return []
    try:
        kind = entry[b"kind"].decode()
        return [(kind, entity_id) for entity_id in msgspec.msgpack.decode(entry[b"ids"], type=list[str])]
    except (KeyError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise Gap(f"an announcement that cannot be read: {type(error).__name__}: {error}") from error


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise StoreUnreachable(error) from error


@contextmanager
def _no_hash_of_ours() -> Iterator[None]:
    try:
        yield
    except redis.ResponseError as error:
        raise UnusableFilter(f"no filters under {FILTERS}: {error}") from error
