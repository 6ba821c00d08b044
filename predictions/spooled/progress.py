"""How far a spool file is delivered, in a small file beside it.

It is written without flushing: delivering a line twice does no harm, so the worst that a lost one costs is work. One
that is damaged, or of another file that stands at this path now, counts as none.
"""

import contextlib
import os
from pathlib import Path
from zlib import crc32

import msgspec
import structlog

_log = structlog.get_logger(__name__)


class Progress(msgspec.Struct):
    """All lines before `done_to` are settled but those that begin at the offsets named.

    `held`: PostgreSQL could not take them when it took others; they are tried again in each round. `refused`: it
    refuses them, and the refused file has no room. `lines`: how many lines lie before `done_to`.
    """

    done_to: int = 0
    lines: int = 0
    held: list[int] = []
    refused: list[int] = []

    @property
    def waiting_before(self) -> int:
        """How many of the lines before `done_to` still wait."""
        return len(self.held) + len(self.refused)

    @property
    def first_waiting(self) -> int:
        """Where the oldest line that waits begins, if there is one."""
        return min([self.done_to, *self.held, *self.refused])


class _Stored(msgspec.Struct):
    inode: int
    progress: Progress


def load_progress(path: Path, descriptor: int) -> Progress:
    """Of the spool file at `path`, open as `descriptor`."""
    try:
        checksum, _, text = _beside(path).read_bytes().partition(b" ")
        if int(checksum) != crc32(text):
            return Progress()
        stored = msgspec.json.decode(text, type=_Stored)
        of_file = os.fstat(descriptor)
    except (OSError, ValueError, msgspec.MsgspecError):
        return Progress()
    progress = stored.progress
    if stored.inode != of_file.st_ino or progress.done_to > of_file.st_size:
        return Progress()
    if progress.done_to and os.pread(descriptor, 1, progress.done_to - 1) != b"\n":
        return Progress()
    return progress


def save_progress(path: Path, descriptor: int, progress: Progress) -> None:
    """As far as the disk takes that."""
    text = msgspec.json.encode(_Stored(os.fstat(descriptor).st_ino, progress))
    fresh = path.with_suffix(".progress-new")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(b"%d " % crc32(text) + text)
        fresh.replace(_beside(path))
    except OSError as error:
        _log.warning("spool_progress_not_written", path=path.name, error=str(error))


def remove_progress(path: Path) -> None:
    """Of a file that is gone."""
    for name in (_beside(path), path.with_suffix(".progress-new")):
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_suffix(".progress")
