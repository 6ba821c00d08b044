"""A file that grows by whole appends: each is on the disk when it returns, or it is not in the file.

A write that fails (no space, a quota, a limit, a broken disk) may have left some of its bytes behind, and a line that
somebody was told does not stand must not be delivered later. So the file is cut back to what it was. If even that
fails, its good length is written down beside it, and no reader goes beyond.
"""

import contextlib
import os
from pathlib import Path

import structlog

from predictions.spooled.locking import is_at

_log = structlog.get_logger(__name__)


class DurableFile:
    """An open file of this process, which holds its lock. Not thread-safe."""

    def __init__(self, path: Path, descriptor: int, length: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.length = length
        """Bytes that stand. What lies behind them was not acknowledged."""

    @property
    def is_in_place(self) -> bool:
        """Whether it is the file at its path, and nobody else has changed its size."""
        return is_at(self.path, self.descriptor) and os.fstat(self.descriptor).st_size == self.length

    @property
    def is_deleted(self) -> bool:
        """Whether it has no name any more: what stands in it will be gone when it is closed."""
        try:
            return os.fstat(self.descriptor).st_nlink == 0
        except OSError:  # the file server has forgotten it (ESTALE)
            return False

    def append(self, data: bytes) -> int:
        """Return where `data` begins, when it is on the disk. Raises OSError, and then nothing of it will be read."""
        try:
            _write_all(self.descriptor, data, self.length)
            os.fsync(self.descriptor)
        except OSError:
            self.cut_back()
            raise
        start = self.length
        self.length += len(data)
        return start

    def cut_back(self) -> bool:
        """Remove what lies behind the good length. Return False if it cannot be removed; then it is marked."""
        try:
            os.ftruncate(self.descriptor, self.length)
            os.fsync(self.descriptor)
        except OSError as error:
            _log.error("spool_file_not_cut_back", path=self.path.name, good_bytes=self.length, error=str(error))
            mark_good_length(self.path, self.length)
            with contextlib.suppress(OSError):
                return os.fstat(self.descriptor).st_size <= self.length
            return False
        return True

    def undo(self, start: int) -> None:
        """Take an append back that went well: somebody has removed the file from its path meanwhile."""
        self.length = start
        self.cut_back()

    def close(self) -> None:
        """Lets go of the file and its lock."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def good_length(path: Path, size: int) -> int:
    """How many bytes of the file at `path`, which has `size`, may be delivered."""
    try:
        return min(size, int(_mark_of(path).read_bytes()))
    except (OSError, ValueError):
        return size


def is_marked(path: Path) -> bool:
    """Whether the file could not be cut back once: then nothing may be appended to it."""
    return _mark_of(path).exists()


def mark_good_length(path: Path, length: int) -> None:
    """As far as the disk takes that."""
    try:
        with _mark_of(path).open("wb") as mark:
            mark.write(b"%d" % length)
            mark.flush()
            os.fsync(mark.fileno())
    except OSError as error:
        _log.error("spool_file_not_marked", path=path.name, good_bytes=length, error=str(error))


def remove_mark(path: Path) -> None:
    """Of a file that is gone."""
    with contextlib.suppress(OSError):
        _mark_of(path).unlink(missing_ok=True)


def _mark_of(path: Path) -> Path:
    return path.with_suffix(".good")


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
