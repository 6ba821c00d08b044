"""How a long command tells how far it is: a bar on a terminal, a line per stage elsewhere, always on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

Progress = Callable[[str, float], None]
"""Called with the stage and the share of it that is done, 0 to 1."""


def silent(_stage: str, _done: float) -> None:
    """Says nothing."""


@contextmanager
def shown() -> Iterator[Progress]:
    """A progress for people; what a program reads goes to stdout and is not disturbed."""
    console = Console(file=sys.stderr)
    with (_bar if console.is_terminal else _lines)(console) as progress:
        yield progress


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: float) -> None:
            if stage not in tasks:
                _finish(bar, tasks)
                tasks[stage] = bar.add_task(stage, total=1.0)
            bar.update(tasks[stage], completed=done)

        yield show
        _finish(bar, tasks)


def _finish(bar: Bar, tasks: dict[str, TaskID]) -> None:
    for task in tasks.values():
        bar.update(task, completed=1.0)


@contextmanager
def _lines(console: Console) -> Iterator[Progress]:
    said: set[str] = set()

    def say(stage: str, _done: float) -> None:
        if stage not in said:
            said.add(stage)
            console.print(f"{stage} ...", highlight=False)

    yield say
