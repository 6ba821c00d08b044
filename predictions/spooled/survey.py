"""How much waits in the spool and since when, and how much was refused: out of the folder, whoever asks."""

import contextlib
import os
import threading
from datetime import datetime
from pathlib import Path

import msgspec

from predictions import spool
from predictions.spooled.durable_file import good_length
from predictions.spooled.lines import line_at
from predictions.spooled.progress import load_progress
from predictions.spooled.refused import MAX_BYTES, RefusedFiles


class WaitingFile(msgspec.Struct, frozen=True):
    """`oldest_at`: seconds since 1970. `held`: those of the decisions that PostgreSQL could not take when it took
    others. `no_room`: those that it refuses, for which the refused file has no room."""

    name: str
    decisions: int
    bytes: int
    oldest_at: float
    held: int
    no_room: int


class Survey(msgspec.Struct, frozen=True):
    """What lies in the spool. `oldest_at` is None if nothing waits; `unreadable`: files that this user cannot read."""

    files: list[WaitingFile]
    refused: int
    refused_bytes: int
    unreadable: list[str]

    @property
    def decisions(self) -> int:
        return sum(file.decisions for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def oldest_at(self) -> float | None:
        return min((file.oldest_at for file in self.files), default=None)

    @property
    def is_full(self) -> bool:
        """Whether refused decisions are kept in the spool because the refused files have reached their limit."""
        return self.refused_bytes >= MAX_BYTES or any(file.no_room for file in self.files)


def survey() -> Survey:
    """Reads what was appended since it was last asked for in this process. Raises no error of the folder."""
    files: list[WaitingFile] = []
    unreadable: list[str] = []
    with _counting:
        pending = spool.pending_files()
        for path in pending:
            try:
                waiting = _waiting(path)
            except FileNotFoundError:
                continue
            except OSError:
                unreadable.append(path.name)
                continue
            if waiting is not None:
                files.append(waiting)
        refused = RefusedFiles(spool.folder())
        paths = refused.paths()
        counts = [_count(path) for path in paths]
        _counts.forget_all_but([*pending, *paths])
    return Survey(files, sum(counts), refused.size(), unreadable)


class _Decision(msgspec.Struct):
    class Response(msgspec.Struct):
        decided_at: datetime

    response: Response


class _LineCounts:
    """Lines of each file as far as it was read."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, int], tuple[int, int]] = {}

    def count(self, descriptor: int, end: int) -> int:
        about = os.fstat(descriptor)
        identity = about.st_dev, about.st_ino
        read_to, lines = self._read.get(identity, (0, 0))
        if read_to > end:
            read_to, lines = 0, 0
        while read_to < end and (block := os.pread(descriptor, min(1 << 20, end - read_to), read_to)):
            lines += block.count(b"\n")
            read_to += len(block)
        self._read[identity] = read_to, lines
        return lines

    def forget_all_but(self, paths: list[Path]) -> None:
        there = set()
        for path in paths:
            with contextlib.suppress(OSError):
                about = path.lstat()
                there.add((about.st_dev, about.st_ino))
        self._read = {identity: read for identity, read in self._read.items() if identity in there}


_counting = threading.Lock()
_counts = _LineCounts()
_decode = msgspec.json.Decoder(_Decision).decode


def _waiting(path: Path) -> WaitingFile | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        end = good_length(path, about.st_size)
        progress = load_progress(path, descriptor)
        decisions = _counts.count(descriptor, end) - progress.lines + progress.waiting_before
        if decisions <= 0:
            return None
        oldest_at = about.st_mtime
        line = line_at(descriptor, progress.first_waiting, end)
        if line is not None:
            with contextlib.suppress(msgspec.MsgspecError, RecursionError, ValueError):
                oldest_at = _decode(line.data).response.decided_at.timestamp()
    finally:
        os.close(descriptor)
    return WaitingFile(
        name=path.name,
        decisions=decisions,
        bytes=end - progress.first_waiting,
        oldest_at=oldest_at,
        held=len(progress.held),
        no_room=len(progress.refused),
    )


def _count(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return _counts.count(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _forget_after_fork() -> None:
    global _counting
    _counting = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
