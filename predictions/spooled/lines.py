"""Reads a spool file by lines in bounded memory, whatever lies in it."""

import io
import os
from collections.abc import Iterator
from hashlib import sha256

import msgspec

MAX_LINE_BYTES = 1 << 20
"""No decision takes as much (`spool.MAX_DECISION_BYTES`), nor the record of a refused one: longer ones are garbage."""
KEPT_OF_GARBAGE_BYTES = 64 << 10
"""From either end of a line that is too long: a decision that was cut off may stand there."""
_READ_AT_ONCE_BYTES = 256 << 10


class Line(msgspec.Struct, frozen=True):
    """`length` counts the newline, `data` is without it. `digest` (SHA-256) only if the line was too long to be kept:
    then `data` is its beginning and its end."""

    offset: int
    data: bytes
    length: int
    digest: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.length


def lines_between(descriptor: int, start: int, end: int) -> Iterator[Line]:
    """All whole lines of the file from `start` on and before `end`. A last one without its newline is left out.

    The descriptor's own position is neither used nor moved. Raises OSError.
    """
    with io.BufferedReader(_Section(descriptor, start, end), _READ_AT_ONCE_BYTES) as section:
        offset = start
        while piece := section.readline(MAX_LINE_BYTES):
            line = (
                Line(offset, piece[:-1], len(piece))
                if piece.endswith(b"\n")
                else _too_long(section, offset, piece)
                if len(piece) == MAX_LINE_BYTES
                else None
            )
            if line is None:
                return
            yield line
            offset = line.end


def line_at(descriptor: int, offset: int, end: int) -> Line | None:
    """The line that begins at `offset`; None if none ends before `end`. Raises OSError."""
    return next(lines_between(descriptor, offset, end), None)


def _too_long(section: io.BufferedIOBase, offset: int, piece: bytes) -> Line | None:
    head, tail, length, digest = piece[:KEPT_OF_GARBAGE_BYTES], piece, len(piece), sha256(piece)
    while not piece.endswith(b"\n"):
        piece = section.readline(MAX_LINE_BYTES)
        if not piece:
            return None
        length += len(piece)
        digest.update(piece)
        tail = (tail + piece)[-KEPT_OF_GARBAGE_BYTES:]
    return Line(offset, head + tail.rstrip(b"\n"), length, digest.hexdigest())


class _Section(io.RawIOBase):
    """A part of an open file, read without its position: others may read and write the same open file."""

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor = descriptor
        self._at, self._end = start, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._end - self._at)
        if wanted <= 0:
            return 0
        got = os.preadv(self._descriptor, [memoryview(buffer)[:wanted]], self._at)
        self._at += got
        return got
