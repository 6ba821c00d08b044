"""Reads what was appended to files since they were last looked at, and nothing twice."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictions.spooled.durable_file import good_length
from predictions.spooled.lines import Line, lines_between


class Follower:
    """Of the files that it is asked for. Not thread-safe."""

    def __init__(self) -> None:
        self._read_to: dict[tuple[int, int], int] = {}

    def new_lines(self, path: Path, *, max_bytes: int | None = None) -> Iterator[Line]:
        """Lines that were not read before, at most so many bytes of them. None of a file that cannot be read."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            about = os.fstat(descriptor)
            identity = about.st_dev, about.st_ino
            end = good_length(path, about.st_size)
            start = self._read_to.get(identity, 0)
            if start > end:  # cut back: what was behind did not stand
                start = self._read_to[identity] = end
            if max_bytes is not None:
                end = min(end, start + max_bytes)
            for line in lines_between(descriptor, start, end):
                self._read_to[identity] = line.end
                yield line
        except OSError:
            return
        finally:
            os.close(descriptor)

    def skip(self, path: Path, offset: int, length: int) -> None:
        """What this process has just appended itself need not be read, if all before it was."""
        try:
            about = path.lstat()
        except OSError:
            return
        identity = about.st_dev, about.st_ino
        if self._read_to.get(identity, 0) == offset:
            self._read_to[identity] = offset + length

    def has_read(self, about: os.stat_result) -> bool:
        """Whether nothing was appended to the file that the system describes so."""
        return self._read_to.get((about.st_dev, about.st_ino), 0) == about.st_size

    def forget_all_but(self, there: Iterable[os.stat_result]) -> bool:
        """Return whether any file that was read is none of these any more."""
        gone = self._read_to.keys() - {(about.st_dev, about.st_ino) for about in there}
        for identity in gone:
            del self._read_to[identity]
        return bool(gone)
