"""Decisions that PostgreSQL refuses, kept with the reason until somebody decides: a client was told that they stand.

They lie in `refused.jsonl` beside the spool's files, each once, whoever finds it out and however often. The file
rotates, and all of them together have a limit: beyond it a refused decision stays in the spool, and everything that
reports on the spool says so. What an operator drops moves to `dropped.jsonl`, with the reason.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from hashlib import blake2b, sha256
from pathlib import Path

import msgspec
import structlog

from predictions.spooled.durable_file import DurableFile
from predictions.spooled.following import Follower
from predictions.spooled.lines import KEPT_OF_GARBAGE_BYTES, Line
from predictions.spooled.locking import make_folder, sync_folder

_log = structlog.get_logger(__name__)
MAX_FILE_BYTES = 16 << 20
MAX_WHOLE_BYTES = 512 << 10
"""A longer line is kept by its two ends: as a record, it must itself be a line that can be read."""
MAX_BYTES = 256 << 20
"""Of all refused files: some 50,000 decisions. So many are no accident of single decisions but one cause, and until it
is mended they lie as safely in the spool."""


class RefusedIsFull(Exception):
    """The refused files have reached their limit."""


_NO_RECORD = msgspec.Raw(b"null")


class Refused(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the spool that cannot be delivered.

    `key` stands for the line and names it where it has no readable `transaction_id`. `record`: the line, if it is
    JSON; `line`: the line, or the two ends of one that was too long, if it is not. `at` is None if nobody noted it.
    """

    key: str
    at: datetime | None
    reason: str
    transaction_id: str | None = None
    sqlstate: str | None = None
    record: msgspec.Raw = _NO_RECORD
    line: bytes = b""
    length: int = 0
    sha256: str = ""

    @property
    def data(self) -> bytes:
        """The line as it was in the spool."""
        return self.line if self.record == _NO_RECORD else bytes(self.record)


class Dropped(msgspec.Struct, frozen=True):
    """What an operator took away."""

    at: datetime
    who: str
    reason: str
    refused: Refused


def refused_line(line: Line, *, at: datetime | None, reason: str, sqlstate: str | None = None) -> Refused:
    """The record of a line that was refused."""
    data, digest = line.data, line.digest
    if not digest and len(data) > MAX_WHOLE_BYTES:
        data, digest = data[:KEPT_OF_GARBAGE_BYTES] + data[-KEPT_OF_GARBAGE_BYTES:], sha256(data).hexdigest()
    refused = Refused(
        blake2b(digest.encode() + data, digest_size=16).hexdigest(), at, reason, _transaction_id(data), sqlstate
    )
    if digest:
        return msgspec.structs.replace(refused, line=data, length=line.length, sha256=digest)
    if _is_json(data):
        return msgspec.structs.replace(refused, record=msgspec.Raw(data))
    return msgspec.structs.replace(refused, line=data)


class RefusedFiles:
    """Of one folder. Every change takes a lock that all processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._follower = Follower()
        self._keys: set[str] = set()

    @property
    def path(self) -> Path:
        """Where the next one goes."""
        return self.folder / "refused.jsonl"

    def paths(self) -> list[Path]:
        """All refused files, oldest first."""
        return [*sorted(self.folder.glob("refused-*.jsonl")), *([self.path] if self.path.exists() else [])]

    def size(self) -> int:
        """Bytes in all of them."""
        total = 0
        for path in self.paths():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def has_room(self) -> bool:
        """Whether another one would be taken."""
        return self.size() < MAX_BYTES

    def add(self, refused: Sequence[Refused]) -> int:
        """Return how many were new, when all are on the disk. Raises RefusedIsFull or OSError; then none was added."""
        make_folder(self.folder)
        with self._locked():
            self._learn()
            new = {each.key: each for each in refused if each.key not in self._keys}
            if not new:
                return 0
            data = b"".join(_encode(each) for each in new.values())
            if not self.has_room():
                raise RefusedIsFull
            self._append(data)
        return len(new)

    def records(self) -> Iterator[Refused]:
        """All that are refused, oldest first. What is not readable as a record is one without a reason."""
        follower = Follower()
        for path in self.paths():
            for line in follower.new_lines(path):
                yield _decoded(line)

    def rewrite(self, change: Callable[[Refused], Refused | None]) -> None:
        """Replaces each by what `change` makes of it; None takes it away. Crash-safe, file by file. Raises OSError."""
        with self._locked():
            for path in self.paths():
                self._rewrite(path, change)

    def drop(self, keys: set[str], *, at: datetime, who: str, reason: str) -> None:
        """Move these to the audit file. Raises OSError."""
        with self._locked():
            audit = _open(self.folder / "dropped.jsonl")
            try:
                for each in self.records():
                    if each.key in keys:
                        audit.append(_encoder.encode(Dropped(at, who, reason, each)) + b"\n")
                sync_folder(self.folder)
            finally:
                audit.close()
            for path in self.paths():
                self._rewrite(path, lambda record: None if record.key in keys else record)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / "refused.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _learn(self) -> None:
        paths = self.paths()
        if self._follower.forget_all_but(path.lstat() for path in paths):  # somebody has taken some away
            self._follower, self._keys = Follower(), set()
        for path in paths:
            self._keys |= {_decoded(line).key for line in self._follower.new_lines(path)}

    def _append(self, data: bytes) -> None:
        file = _open(self.path)
        try:
            if file.length and file.length + len(data) > MAX_FILE_BYTES:
                file.close()
                number = 1 + max((_number_of(path) for path in self.folder.glob("refused-*.jsonl")), default=0)
                self.path.rename(self.folder / f"refused-{number:06}.jsonl")
                file = _open(self.path)
            if file.length and os.pread(file.descriptor, 1, file.length - 1) != b"\n":
                data = b"\n" + data  # its end was torn, or written by hand
            file.append(data)
            sync_folder(self.folder)
        finally:
            file.close()

    def _rewrite(self, path: Path, change: Callable[[Refused], Refused | None]) -> None:
        fresh, changed, left = path.with_suffix(".new"), False, False
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            for line in Follower().new_lines(path):
                before = _decoded(line)
                after = change(before)
                changed |= after is not before
                if after is not None:
                    left = True
                    out.write(line.data + b"\n" if after is before else _encode(after))
            out.flush()
            os.fsync(out.fileno())
        if not changed:
            fresh.unlink()
        elif left:
            fresh.replace(path)
        else:
            path.unlink()
            fresh.unlink()
        sync_folder(self.folder)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Refused)


def _encode(refused: Refused) -> bytes:
    return _encoder.encode(refused) + b"\n"


def _decoded(line: Line) -> Refused:
    try:
        return _decoder.decode(line.data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return refused_line(line, at=None, reason="not known: no record of this version")


class _Named(msgspec.Struct):
    class Transaction(msgspec.Struct):
        id: str

    transaction: Transaction


def _transaction_id(data: bytes) -> str | None:
    try:
        return msgspec.json.decode(data, type=_Named).transaction.id
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return False
    return data != b"null"


def _open(path: Path) -> DurableFile:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o600)  # also one that was made when others could read it
    return DurableFile(path, descriptor, os.fstat(descriptor).st_size)


def _number_of(path: Path) -> int:
    number = path.stem.removeprefix("refused-")
    return int(number) if number.isdigit() else 0
