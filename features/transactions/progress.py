"""How far a load is, on stderr: a bar on a terminal, else a line for every tenth."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Report(Protocol):
    """Called as work goes on: the share that is done, 0 to 1, and a few words."""

    def __call__(self, fraction: float, words: str) -> None: ...


@contextmanager
def progress(stage: str, *, stream: TextIO | None = None) -> Iterator[Report]:
    """Shows `stage` until the block ends."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _plain(stage, stream)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(stage, total=1.0, words="")
        yield lambda fraction, words: bar.update(task, completed=fraction, words=words)


def _plain(stage: str, stream: TextIO) -> Report:
    shown = -1

    def report(fraction: float, words: str) -> None:
        nonlocal shown
        tenth = int(fraction * 10 + 1e-9)
        if tenth > shown:
            shown = tenth
            print(f"{stage}: {tenth * 10} %, {words}", file=stream, flush=True)

    return report
