"""Tells a person which stage a long start is in, how long each took, and what it found."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO


@dataclass
class Stage:
    """`note` is shown when the stage ends."""

    name: str
    note: str = ""


@dataclass
class Stages:
    """Writes one line when a stage begins and one when it ends; `seconds` keeps the times, in order.

    `check` is called at both moments and may raise.
    """

    stream: TextIO
    check: Callable[[], None] = lambda: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[Stage]:
        """`doing` says what is going on. A stage that raises has no end."""
        self.check()
        stage = Stage(name)
        self.say(f"{name:<12} {doing} ...")
        started = time.perf_counter()
        yield stage
        self.check()
        self.done(name, time.perf_counter() - started, stage.note)

    def done(self, name: str, seconds: float, note: str) -> None:
        """A stage that has just ended."""
        self.seconds[name] = round(seconds, 2)
        self.say(f"{name:<12} {seconds:5.1f} s  {note}")

    def say(self, line: str) -> None:
        """On a terminal it replaces a status line that may stand there."""
        self.stream.write(("\r\x1b[K" if self.stream.isatty() else "") + line + "\n")
        self.stream.flush()
