"""Which process a file of the spool belongs to: the one that holds its lock, as long as the file is at its path.

Between opening a file and locking it, another process may have delivered and removed it, or somebody may have put
another one in its place. Then the lock is on a file that nobody will ever look for, and what is written there is
lost. So whoever has locked a file compares it with its path afterwards, every time.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_locked(path: Path) -> int | None:
    """Return a descriptor of the file at `path`, for reading and writing, locked by this process until it is closed.

    None if the file is gone, is another process's, or is not a plain file. Raises OSError if it cannot be opened.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    try:
        if lock(descriptor) and is_at(path, descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def lock(descriptor: int) -> bool:
    """Lock the open file; return False if another process (or another `open` of this one) has it. Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether the open file is a plain one and the one at `path` at this moment."""
    try:
        there, held = path.lstat(), os.fstat(descriptor)
    except OSError:  # it is gone, or the file server has forgotten it (ESTALE)
        return False
    return stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def sync_folder(folder: Path) -> None:
    """Return when the names in the folder are on the disk: a file without its name is lost. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make the folder if it is not there, for this user only: decisions name customers. Raises OSError."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
    with contextlib.suppress(PermissionError):  # a mounted folder may be somebody else's
        folder.chmod(0o700)
