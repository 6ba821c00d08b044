"""Goes through the spool's files and removes what is settled.

New lines of all files come first, then those that were held before: what cannot be delivered now never stands in the
way of what can. An outage ends the round; what was settled until then stays settled (`progress.py`).
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
import structlog

from predictions import spool
from predictions.spooled.lines import Line, line_at, lines_between
from predictions.spooled.progress import Progress, load_progress, remove_progress, save_progress

_log = structlog.get_logger(__name__)
MAX_CHUNK_BYTES = 4 << 20


class Fate(StrEnum):
    """What became of a line."""

    SETTLED = "settled"
    """Delivered, or kept in the refused file: it may leave the spool."""
    HELD = "held"
    """Not now, though others can be delivered."""
    NO_ROOM = "no_room"
    """PostgreSQL refuses it and the refused file takes no more."""
    UNTOUCHED = "untouched"
    """The round ended before it."""


class Delivered(msgspec.Struct, frozen=True):
    """`fates`: of each line. `error`: what ended the round, if it has ended."""

    fates: Sequence[Fate]
    error: Exception | None = None


class Plan(msgspec.Struct, frozen=True):
    """How a round goes. `max_lines` of a chunk and `is_over` are asked before each chunk. `retry_refused`: whether the
    refused file has room."""

    deliver: Callable[[Sequence[Line]], Delivered]
    max_lines: Callable[[], int]
    retry_refused: bool = False
    is_over: Callable[[], bool] = lambda: False


class _Ended(Exception):
    """The round has ended; its cause says why."""


_draining = threading.Lock()


def drain(plan: Plan) -> int:
    """Deliver the lines of every file that is this process's own or nobody's. Return how many left the spool.

    Raises what ended the round. A file that cannot be read is left out, and logged.
    """
    settled = 0
    with _draining:
        for work in (_new_lines, _held_lines):
            for path in spool.pending_files():
                try:
                    settled += _with_file(path, plan, work)
                except OSError as error:
                    _log.error("spool_file_unreadable", path=path.name, error=str(error))
                except _Ended as ended:
                    assert ended.__cause__ is not None
                    raise ended.__cause__ from None
        _remove_orphans(spool.folder())
    return settled


def _with_file(path: Path, plan: Plan, work: "_Work") -> int:
    taken = spool.take(path)
    if taken is None:
        return 0
    settled = 0
    progress = load_progress(path, taken.descriptor)
    try:
        for settled_now in work(taken, progress, plan):
            settled += settled_now
            if progress.done_to < taken.end or progress.waiting_before:
                save_progress(path, taken.descriptor, progress)
        if progress.waiting_before or line_at(taken.descriptor, progress.done_to, taken.end) is not None:
            return settled
        if progress.done_to < taken.end:
            _log.warning("spool_torn_line", path=path.name, bytes=taken.end - progress.done_to)
        if not spool.remove(taken):
            save_progress(path, taken.descriptor, progress)
    finally:
        spool.give_back(taken)
    return settled


_Work = Callable[[spool.Taken, Progress, Plan], Iterator[int]]


def _new_lines(taken: spool.Taken, progress: Progress, plan: Plan) -> Iterator[int]:
    for chunk in _chunks(lines_between(taken.descriptor, progress.done_to, taken.end), plan.max_lines):
        if plan.is_over():
            return
        delivered = plan.deliver(chunk)
        settled = 0
        for line, fate in zip(chunk, delivered.fates, strict=True):
            if fate is Fate.UNTOUCHED:
                break
            progress.done_to = line.end
            progress.lines += 1
            settled += fate is Fate.SETTLED
            _note(progress, line.offset, fate)
        yield settled
        if delivered.error is not None:
            raise _Ended from delivered.error


def _held_lines(taken: spool.Taken, progress: Progress, plan: Plan) -> Iterator[int]:
    offsets = progress.held + (progress.refused if plan.retry_refused else [])
    lines = (line for offset in offsets if (line := line_at(taken.descriptor, offset, taken.end)) is not None)
    for chunk in _chunks(lines, plan.max_lines):
        if plan.is_over():
            return
        delivered = plan.deliver(chunk)
        settled = 0
        for line, fate in zip(chunk, delivered.fates, strict=True):
            if fate is not Fate.UNTOUCHED:
                _forget(progress, line.offset)
                _note(progress, line.offset, fate)
                settled += fate is Fate.SETTLED
        yield settled
        if delivered.error is not None:
            raise _Ended from delivered.error


def _note(progress: Progress, offset: int, fate: Fate) -> None:
    """At the end: those that stay go behind those that were not tried."""
    if fate is Fate.HELD:
        progress.held.append(offset)
    elif fate is Fate.NO_ROOM:
        progress.refused.append(offset)


def _forget(progress: Progress, offset: int) -> None:
    for offsets in (progress.held, progress.refused):
        if offset in offsets:
            offsets.remove(offset)


def _chunks(lines: Iterable[Line], max_lines: Callable[[], int]) -> Iterator[list[Line]]:
    chunk: list[Line] = []
    size, limit = 0, max_lines()
    for line in lines:
        if chunk and (len(chunk) >= limit or size + len(line.data) > MAX_CHUNK_BYTES):
            yield chunk
            chunk, size, limit = [], 0, max_lines()
        chunk.append(line)
        size += len(line.data)
    if chunk:
        yield chunk


def _remove_orphans(folder: Path) -> None:
    """What a process left that was killed after it had removed a file and before it removed what was beside it."""
    for beside in (*folder.glob("decisions-*.progress*"), *folder.glob("decisions-*.good")):
        path = beside.with_suffix(".jsonl")
        if not os.path.lexists(path):
            remove_progress(path)
            beside.unlink(missing_ok=True)


def _forget_after_fork() -> None:
    global _draining
    _draining = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
