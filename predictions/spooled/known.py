"""Recognises transactions whose decisions lie in the spool, so that a repetition gets the answer that was given.

Of each decision a process keeps a digest of the request and where its line lies, and reads the answer from there when
it is asked for. What other processes of this host append, or a process left that is gone, is read as it comes. So an
answer is known as long as its file lies there; afterwards PostgreSQL has it, and only the digest is left.
"""

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from struct import Struct

import msgspec
import structlog

from mlserve.observability import metrics
from predictions import spool
from predictions.spooled.following import Follower
from predictions.spooled.lines import line_at

_log = structlog.get_logger(__name__)
MAX_KNOWN = 250_000
"""Decisions of a host that a process recognises, about 225 bytes each; beyond that it forgets the oldest."""
MAX_READ_BYTES = 16 << 20
"""Of other processes' files, each time: about 60 ms. Of a spool that is larger, a process that has just begun knows
all after some commits."""
_PLACE = Struct("<32sIQI")


class Known(msgspec.Struct, frozen=True):
    """A decision that was spooled. `digest`: of its request. `response`: the answer (JSON); None: the line is gone."""

    digest: bytes
    response: bytes | None


class _Head(msgspec.Struct):
    class Transaction(msgspec.Struct):
        id: str

    transaction: Transaction
    digest: bytes


class _Line(_Head):
    response: msgspec.Raw


class KnownDecisions:
    """Of one process and folder. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[bytes, bytes] = {}
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._follower = Follower()
        self._has_warned = False

    def __len__(self) -> int:
        return len(self._places)

    def add(self, transaction_id: str, digest: bytes, location: spool.Location) -> None:
        """What this process has just appended."""
        with self._lock:
            self._put(transaction_id, digest, location)
            self._follower.skip(spool.folder() / location.name, location.offset, location.length)

    def find(self, transaction_ids: Iterable[str]) -> dict[str, Known]:
        """Those of these that were spooled on this host, as far as this process knows."""
        with self._lock:
            self._catch_up()
            if not self._places:
                return {}
            return {
                transaction_id: known
                for transaction_id in transaction_ids
                if (known := self._read(transaction_id)) is not None
            }

    def _catch_up(self) -> None:
        left = MAX_READ_BYTES
        files = spool.scan()
        self._follower.forget_all_but(about for _, about in files)
        for file, about in files:
            if self._follower.has_read(about):
                continue
            for line in self._follower.new_lines(Path(file.path), max_bytes=left):
                left -= line.length
                with suppress(msgspec.MsgspecError, RecursionError, ValueError):
                    head = _decode_head(line.data)
                    location = spool.Location(file.name, line.offset, line.length)
                    self._put(head.transaction.id, head.digest, location, is_first=True)
            if left <= 0:
                return

    def _put(self, transaction_id: str, digest: bytes, location: spool.Location, *, is_first: bool = False) -> None:
        """`is_first`: a line that stands before counts, as it does when they are delivered."""
        key = _key(transaction_id)
        if len(digest) != 32 or (is_first and self._is_there(key)):
            return
        number = self._numbers.get(location.name)
        if number is None:
            number = self._numbers[location.name] = len(self._names)
            self._names.append(location.name)
        self._places.pop(key, None)
        self._places[key] = _PLACE.pack(digest, number, location.offset, location.length)
        while len(self._places) > MAX_KNOWN:
            del self._places[next(iter(self._places))]
            metrics.SPOOL_FORGOTTEN.inc()
            if not self._has_warned:
                self._has_warned = True
                _log.warning("spooled_decisions_forgotten", known=MAX_KNOWN)

    def _is_there(self, key: bytes) -> bool:
        place = self._places.get(key)
        return place is not None and (spool.folder() / self._names[_PLACE.unpack(place)[1]]).exists()

    def _read(self, transaction_id: str) -> Known | None:
        place = self._places.get(_key(transaction_id))
        if place is None:
            return None
        digest, number, offset, length = _PLACE.unpack(place)
        return Known(digest, _response(self._names[number], offset, length, transaction_id))


def _response(name: str, offset: int, length: int, transaction_id: str) -> bytes | None:
    """Out of the line. It is flushed first: another process may just be writing it, and may yet take it back."""
    try:
        descriptor = os.open(spool.folder() / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.fsync(descriptor)
        line = line_at(descriptor, offset, offset + length)
        decoded = _decode_line(line.data) if line is not None else None
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError):
        return None
    finally:
        os.close(descriptor)
    if decoded is None or decoded.transaction.id != transaction_id:
        return None
    return bytes(decoded.response)


def _key(transaction_id: str) -> bytes:
    return blake2b(transaction_id.encode(), digest_size=16).digest()


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_known = KnownDecisions()


def known_decisions() -> KnownDecisions:
    """Those that this process recognises."""
    return _known


def forget() -> None:
    """Know nothing; what lies in the folder is read again."""
    global _known
    _known = KnownDecisions()


os.register_at_fork(after_in_child=forget)
