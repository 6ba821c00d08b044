"""How long each stage of a long piece of work takes, told to whoever watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from features.progress import Progress, silent


class Stages:
    """`seconds` has the wall-clock time of every finished stage, in the order in which they ran."""

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name, 0.0)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
