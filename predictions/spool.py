"""Where decisions wait on this host's disk while Postgres cannot take them.

One file per process, one JSON line per decision, flushed to the disk before the decision is acknowledged: it survives
kill -9 and a power cut. Each process locks its file (`spooled/locking.py`); a file that nobody locks belongs to a
process that is gone, and whoever drains or appends next takes it over. A torn last line was never acknowledged and is
left behind with a warning. What cannot be written does not stand (`spooled/durable_file.py`).
"""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from errno import ESTALE
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import msgspec
import structlog
from django.conf import settings

from mlserve.errors import ErrorCode, MlserveError
from mlserve.observability import metrics
from predictions.spooled.durable_file import DurableFile, good_length, is_marked, remove_mark
from predictions.spooled.lines import MAX_LINE_BYTES
from predictions.spooled.locking import is_at, lock, make_folder, open_locked, sync_folder
from predictions.spooled.progress import load_progress, remove_progress

_log = structlog.get_logger(__name__)
MAX_FILE_BYTES = 8 << 20
"""About 2,000 decisions: what is delivered leaves the disk in steps of this, and no reader has to go through more to
find where it was. A file that has reached it is left, and a new one begun."""
MAX_DECISION_BYTES = 256 << 10
"""With all features and reasons one has some kilobytes."""
MAX_ATTEMPTS = 4
"""Files that one append tries, when others take them away while it writes."""


class SpoolFailed(MlserveError):
    """Neither Postgres nor the disk takes the decision, so it must not be acknowledged."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE
    retry_after_s: ClassVar[int | None] = 5


class Location(msgspec.Struct, frozen=True):
    """Where a line lies; `length` with its newline."""

    name: str
    offset: int
    length: int


class Taken(msgspec.Struct, frozen=True):
    """A file that nobody else delivers until it is given back. `end`: what lies behind it may not stand."""

    path: Path
    descriptor: int
    end: int


_lock = threading.RLock()
_file: DurableFile | None = None
_unsound: list[DurableFile] = []
"""Files that could not be cut back after a write that failed: kept locked, so that nobody else reads beyond."""
_encoder = msgspec.json.Encoder()


def folder() -> Path:
    """Where this host's spool files lie."""
    return Path(settings.VAR_DIR) / "spool"


def append(entries: Sequence[msgspec.Struct]) -> list[Location]:
    """Returns when all entries are on the disk. Raises SpoolFailed, and then none of them stands, now or later."""
    lines = [_encoder.encode(entry) + b"\n" for entry in entries]
    if any(len(line) > MAX_DECISION_BYTES for line in lines):
        raise SpoolFailed(f"Postgres does not answer and a decision has more than {MAX_DECISION_BYTES:,} bytes")
    if not lines:
        return []
    with _lock:
        try:
            name, offset = _append(b"".join(lines))
        except OSError as error:
            metrics.SPOOL_FAILED.inc()
            raise SpoolFailed(f"Postgres does not answer and the spool cannot be written: {error.strerror}") from error
    locations = []
    for line in lines:
        locations.append(Location(name, offset, len(line)))
        offset += len(line)
    return locations


def pending_files() -> list[Path]:
    """All spool files of this host, oldest first. Raises no error: a folder that cannot be read holds none."""
    return [Path(entry.path) for entry, _ in scan()]


def scan() -> "list[tuple[os.DirEntry[str], os.stat_result]]":
    """The same, with what the system says of each: cheap enough for every commit."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder()) as entries:
        for entry in entries:
            if entry.name.startswith("decisions-") and entry.name.endswith(".jsonl"):
                with contextlib.suppress(OSError):  # another process has delivered it
                    about = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(about.st_mode):
                        found.append((entry, about))
    return sorted(found, key=lambda each: (each[1].st_mtime, each[0].name))


def take(path: Path) -> Taken | None:
    """The file for delivery, if it is this process's own or nobody's. `give_back` must follow. Raises OSError."""
    with _lock:
        for own in _own_files():
            if own.path == path:
                if not is_at(path, own.descriptor):
                    break
                return Taken(path, os.dup(own.descriptor), own.length)
    descriptor = open_locked(path)
    if descriptor is None:
        return None
    return Taken(path, descriptor, good_length(path, os.fstat(descriptor).st_size))


def remove(taken: Taken) -> bool:
    """Remove a file that is settled. Return False if something was appended since it was taken. Raises OSError."""
    with _lock:
        own = next((own for own in _own_files() if own.path == taken.path), None)
        if own is None:
            end = good_length(taken.path, os.fstat(taken.descriptor).st_size)
        else:
            end = own.length
        if end != taken.end or not is_at(taken.path, taken.descriptor):
            return False
        taken.path.unlink()
        remove_progress(taken.path)
        remove_mark(taken.path)
        if own is not None:
            _forget(own)
        return True


def give_back(taken: Taken) -> None:
    """Others may deliver it."""
    os.close(taken.descriptor)


def keep_own_file() -> None:
    """See that what this process has acknowledged is where a drain looks for it. Raises OSError.

    Somebody may have removed its file, or the folder; while the file is open its lines can be saved.
    """
    with _lock:
        if _file is not None and not _file.is_in_place:
            _leave()
        for unsound in list(_unsound):
            if unsound.cut_back():
                _forget(unsound)


def leave_own_file() -> None:
    """Lets go of this process's file: whoever drains next takes it. The next `append` begins a new one."""
    with _lock:
        if _file is not None:
            _forget(_file)


def _append(data: bytes) -> tuple[str, int]:
    for _ in range(MAX_ATTEMPTS):
        file = _file_with_room(len(data))
        try:
            offset = file.append(data)
        except OSError as error:
            _leave_after_failure(file)
            if error.errno == ESTALE:  # the file server does not know the file any more
                continue
            raise
        if is_at(file.path, file.descriptor):
            return file.path.name, offset
        file.undo(offset)
        _leave()
    raise OSError(0, "its files are taken away while they are written")


def _file_with_room(wanted_bytes: int) -> DurableFile:
    global _file
    if _file is not None and not _file.is_in_place:
        _leave()
    if _file is not None and _file.length and _file.length + wanted_bytes > MAX_FILE_BYTES:
        _forget(_file)
    if _file is None:
        make_folder(folder())
        _file = _adopted(wanted_bytes) or _created()
    return _file


def _created() -> DurableFile:
    for _ in range(MAX_ATTEMPTS):
        path = folder() / f"decisions-{os.getpid()}-{uuid4().hex[:8]}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if lock(descriptor) and is_at(path, descriptor):
                sync_folder(path.parent)  # the file's name must survive as well
                return DurableFile(path, descriptor, 0)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # else each attempt leaves one more
                path.unlink()
            raise
        os.close(descriptor)  # a drain was there between opening and locking, and removes it as empty
    raise OSError(0, "its files are taken away while they are made")


def _adopted(wanted_bytes: int) -> DurableFile | None:
    """A file of a process that is gone, if it has room: processes that die again and again leave no more files."""
    for path in pending_files():
        try:
            if path.stat().st_size + wanted_bytes > MAX_FILE_BYTES or is_marked(path):
                continue
            descriptor = open_locked(path)
        except OSError:
            continue
        if descriptor is None:
            continue
        try:
            size = os.fstat(descriptor).st_size
            whole = os.pread(descriptor, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES)).rfind(b"\n") + 1
            length = max(0, size - MAX_LINE_BYTES) + whole
            file = DurableFile(path, descriptor, length)
            if length < size:
                _log.warning("spool_torn_line", path=path.name, bytes=size - length)
            if (whole or not size) and size + wanted_bytes <= MAX_FILE_BYTES and file.cut_back():
                return file
        except OSError as error:
            _log.warning("spool_file_not_adopted", path=path.name, error=str(error))
        os.close(descriptor)
    return None


def _leave() -> None:
    """Give the own file up because it is not where a drain would look for it, or was changed by somebody else.

    What was acknowledged in it is saved if it has no name any more. One that was moved is its mover's matter.
    """
    global _file
    file, _file = _file, None
    if file is None:
        return
    if file.length and file.is_deleted:
        try:
            _save(file)
        except OSError:
            _file = file  # open, its lines can still be saved when the disk is fine
            raise
    file.close()


def _save(file: DurableFile) -> None:
    data = os.pread(file.descriptor, file.length, 0)[load_progress(file.path, file.descriptor).first_waiting :]
    _log.error("spool_file_was_deleted", path=file.path.name, saved_bytes=len(data))
    if data:
        make_folder(folder())
        _append(data)


def _leave_after_failure(file: DurableFile) -> None:
    """The next entries go to a new file: what is wrong with this one is not known."""
    global _file
    if _file is file:
        _file = None
    with contextlib.suppress(OSError):
        if os.fstat(file.descriptor).st_size > file.length and not is_marked(file.path):
            _unsound.append(file)
            return
    file.close()


def _forget(file: DurableFile) -> None:
    global _file
    if file is _file:
        _file = None
    else:
        _unsound.remove(file)
    file.close()


def _own_files() -> Iterator[DurableFile]:
    if _file is not None:
        yield _file
    yield from _unsound


def _forget_after_fork() -> None:
    global _file, _lock, _unsound
    for own in _own_files():
        # The lock belongs to the open file that parent and child share: closing the child's copy keeps it.
        own.close()
    _file, _unsound, _lock = None, [], threading.RLock()


os.register_at_fork(after_in_child=_forget_after_fork)
