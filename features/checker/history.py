"""What clients did and saw: one append-only file of fixed-size records per process, to be merged afterwards.

All times are CLOCK_BOOTTIME in nanoseconds, which the processes of one host share. A client that is killed loses the
reads of its last moments and no event of a write: those reach the kernel before the client goes on.
"""

import os
import struct
import time
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import NamedTuple

import msgspec

from mlserve.cache.outcome import Tier

TIERS = tuple(Tier)
NO_CONTENT = 0
"""The content of a key that the source knows nothing of, or whose row is deleted."""
_FLUSH_BYTES = 8_192
_FLUSH_NS = 200_000_000
_HEADER = struct.Struct("<8sII")
_MAGIC = b"MLSHIST1"


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Event(IntEnum):
    """Of one write of one key. After `SENT` and without `ACKED` nobody knows; the database's journal does."""

    INVOKED = 0
    SENT = 1
    """The commit is about to be sent; version and content are known."""
    ACKED = 2
    ROLLED_BACK = 3
    FAILED = 4


class Way(IntEnum):
    """By which way a write reached the source."""

    SQL = 0
    """As psql does it: nobody in the application hears of it."""
    ORM_SAVE = 1
    ORM_BULK = 2
    THROUGH = 3
    AROUND = 4
    DELETE = 5
    HELD = 6
    """In a transaction that stays open for seconds."""
    INITIAL = 7


class WriteEvent(NamedTuple):
    event: int
    way: int
    key: int
    session: int
    number: int
    version: int
    content: int
    at_ns: int


class Flag(IntFlag):
    STALE = 1
    """The answer said so."""
    UNPROVEN = 2
    """L2 had a copy that nobody vouched for, and the source was read."""
    STRONG = 4
    """Asked with `max_age_s=0`."""
    TOKEN = 8
    """Asked with the newest versions that this session had seen."""
    FINAL = 16
    """After the writers had stopped and every fault was mended."""
    ANSWERED = 32
    """There was a value, or the knowledge that there is none."""


class Read(NamedTuple):
    key: int
    tier: int
    flags: int
    session: int
    start_ns: int
    end_ns: int
    version: int
    content: int


class ReadFile(NamedTuple):
    """`process`: number of the process. `clock_offset_ns`: by how much its clock was wrong."""

    process: int
    clock_offset_ns: int
    path: Path


_WRITE = struct.Struct("<BBHIqqQq")
_READ = struct.Struct("<HBBIqqqQ")
RECORD_BYTES = _READ.size
HEADER_BYTES = _HEADER.size


class _Appender:
    def __init__(self, path: Path, process: int, clock_offset_us: int = 0) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.write(self._descriptor, _HEADER.pack(_MAGIC, process, clock_offset_us & 0xFFFFFFFF))

    def _append(self, data: bytes | bytearray) -> None:
        os.write(self._descriptor, data)


class WriteLog(_Appender):
    """Of one process, one thread. Each event is with the kernel on return."""

    def note(self, event: Event, way: Way, *, key: int, session: int, number: int, version: int, content: int) -> None:
        self._append(_WRITE.pack(event, way, key, session, number, version, content, now_ns()))


class ReadLog(_Appender):
    """Of one process. Each thread has a `ReadBuffer` of its own."""

    def buffer(self) -> "ReadBuffer":
        return ReadBuffer(self)


class ReadBuffer:
    """Not thread-safe."""

    def __init__(self, log: ReadLog) -> None:
        self._log = log
        self._buffer = bytearray()
        self._flush_at = 0

    def note(self, read: Read) -> None:
        self._buffer += _READ.pack(*read)
        if read.end_ns >= self._flush_at or len(self._buffer) >= _FLUSH_BYTES:
            self.flush()
            self._flush_at = read.end_ns + _FLUSH_NS

    def flush(self) -> None:
        if self._buffer:
            self._log._append(self._buffer)
            self._buffer.clear()


def write_events(folder: Path) -> Iterator[WriteEvent]:
    """Of all processes; those of one process in order."""
    for path in sorted(folder.glob("*.writes")):
        _, _, body = _open(path)
        yield from map(WriteEvent._make, _WRITE.iter_unpack(body))


def read_files(folder: Path) -> list[ReadFile]:
    files = []
    for path in sorted(folder.glob("*.reads")):
        process, offset_us, _ = _open(path)
        files.append(ReadFile(process, offset_us * 1000, path))
    return files


def reads_of(file: ReadFile) -> Iterator[Read]:
    """Those of one session in order."""
    _, _, body = _open(file.path)
    return map(Read._make, _READ.iter_unpack(body))


def _open(path: Path) -> tuple[int, int, bytes]:
    """A torn last record, of a process that was killed in the middle of it, is left out."""
    data = path.read_bytes()
    if len(data) < HEADER_BYTES or data[:8] != _MAGIC:
        return 0, 0, b""
    _, process, offset_us = _HEADER.unpack_from(data)
    signed_us = offset_us - 2**32 if offset_us >= 2**31 else offset_us
    return process, signed_us, data[HEADER_BYTES : len(data) - (len(data) - HEADER_BYTES) % RECORD_BYTES]


class Volume(msgspec.Struct, frozen=True):
    reads: int
    write_events: int


def volume(folder: Path) -> Volume:
    """By the sizes of the files, so that it costs nothing to ask while clients run."""

    def count(pattern: str) -> int:
        return sum(max(0, path.stat().st_size - HEADER_BYTES) // RECORD_BYTES for path in folder.glob(pattern))

    return Volume(count("*.reads"), count("*.writes"))
