"""Where decisions wait on this host's disk while Postgres cannot take them.

One file per process, one JSON line per decision, flushed to the disk before the decision is acknowledged: it survives
kill -9 and a power cut. Each process locks its file; a file that nobody locks belongs to a process that is gone, and
whoever drains next takes it over. A torn last line was never acknowledged and is left behind with a warning.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, ClassVar
from uuid import uuid4

import msgspec
import structlog
from django.conf import settings

from mlserve.errors import ErrorCode, MlserveError

_log = structlog.get_logger(__name__)


class SpoolFailed(MlserveError):
    """Neither Postgres nor the disk takes the decision, so it must not be acknowledged."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE
    retry_after_s: ClassVar[int | None] = 5


_lock = threading.Lock()
_file: IO[bytes] | None = None
_encoder = msgspec.json.Encoder()


def folder() -> Path:
    """Where this host's spool files lie."""
    return Path(settings.VAR_DIR) / "spool"


def append(entries: Sequence[msgspec.Struct]) -> None:
    """Returns when all entries are on the disk. Raises SpoolFailed, and then none of them may be acknowledged."""
    with _lock:
        try:
            file = _own_file()
            file.write(b"".join(_encoder.encode(entry) + b"\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            # What was written in part must stay the file's end: the next entries go to a new one.
            _abandon_own_file()
            raise SpoolFailed(f"Postgres does not answer and the spool cannot be written: {error.strerror}") from error


def pending_files() -> list[Path]:
    """All spool files of this host, oldest first."""
    written = []
    for path in folder().glob("decisions-*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # another process has delivered it
            written.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(written)]


def set_aside(line: bytes) -> None:
    """Keeps a line that cannot be delivered, in `refused.jsonl`: somebody was told that this decision stands.

    Raises OSError.
    """
    _make_folder()
    with _opened(folder() / "refused.jsonl") as file:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def drain(deliver: Callable[[Sequence[bytes]], None], *, lines_at_once: int = 200) -> int:
    """Hand the lines of every file that is ours or nobody's to `deliver` and remove the file. Returns their number.

    What `deliver` raises stops the drain and keeps the file; delivering a line twice must do no harm.
    """
    delivered = 0
    leave_own_file()
    for path in pending_files():
        try:
            file = path.open("rb")
        except FileNotFoundError:  # another process was faster
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not path.exists():
                continue
            *lines, torn = file.read().split(b"\n")
            if torn:
                _log.warning("spool_torn_line", path=path.name, bytes=len(torn))
            for start in range(0, len(lines), lines_at_once):
                deliver(lines[start : start + lines_at_once])
            path.unlink()
            delivered += len(lines)
    return delivered


def _own_file() -> IO[bytes]:
    global _file
    if _file is None:
        _make_folder()
        path = folder() / f"decisions-{os.getpid()}-{uuid4().hex[:8]}.jsonl"
        file = _opened(path)
        fcntl.flock(file, fcntl.LOCK_EX)
        directory = os.open(folder(), os.O_RDONLY)
        try:
            os.fsync(directory)  # the file's name must survive as well
        finally:
            os.close(directory)
        _file = file
    return _file


def _make_folder() -> None:
    """Decisions name customers: the folder and its files are for this user only."""
    folder().mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # a mounted folder may be somebody else's
        folder().chmod(0o700)


def _opened(path: Path) -> IO[bytes]:
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    with contextlib.suppress(PermissionError):
        os.fchmod(file.fileno(), 0o600)  # also one that was made when others could read it
    return file


def leave_own_file() -> None:
    """Lets go of this process's file: whoever drains next takes it. The next `append` begins a new one."""
    with _lock:
        _abandon_own_file()


def _abandon_own_file() -> None:
    global _file
    file, _file = _file, None
    if file is not None:
        with contextlib.suppress(OSError):  # closing writes what is still buffered, which may fail once more
            file.close()


def _forget_after_fork() -> None:
    global _file, _lock
    if _file is not None:
        # The lock belongs to the open file that parent and child share: closing the child's copy keeps it.
        _file.close()
    _file, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
