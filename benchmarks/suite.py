"""What `manage.py bench` does: run the benchmarks that are asked for, and say what came out."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import contest
from benchmarks.catalogue import BENCHMARKS
from benchmarks.contest import Figures, Progress, Result
from benchmarks.ratio import Verdict
from features.progress import shown

SECONDS = 10.0
"""For each line of the table, without preparation."""


def listed() -> dict[str, str]:
    """Name and subject of each benchmark, in the order of a run."""
    return {name: benchmark.about for name, benchmark in BENCHMARKS.items()}


def by_default() -> list[str]:
    """Those that run if none is named."""
    return [name for name, benchmark in BENCHMARKS.items() if not benchmark.on_demand]


def progress() -> AbstractContextManager[Progress]:
    """On stderr."""
    return shown()


def measure(names: Iterable[str], *, seconds: float, rounds: int | None = None, progress: Progress) -> list[Result]:
    """All contests of the benchmarks `names`, `seconds` each. Raises `contest.BenchmarkFailed`.

    `rounds`: instead of those that each of them wants.
    """
    results = []
    for name in names:
        with BENCHMARKS[name].open(progress) as contests:
            results += [contest.run(each, seconds=seconds, rounds=rounds, progress=progress) for each in contests]
    return results


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """`holds` is null where there is no verdict."""
    return {"results": [_as_json(result) for result in results]}


def missed(results: Sequence[Result]) -> list[str]:
    """Names of those that miss their target for certain."""
    return [result.name for result in results if result.verdict is Verdict.MISSED]


def show(results: Sequence[Result], console: Console) -> None:
    """The table, and below it what was compared."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name")
    for header in ("ours", "other", "unit", "ratio", "min", "max", "target"):
        table.add_column(header, justify="right")
    table.add_column("holds")
    for result in results:
        ratio = result.ratio
        numbers = (ratio.median, ratio.min, ratio.max)
        table.add_row(
            *(result.name, _number(result.ours), _number(result.other), result.unit),
            *(f"{number:.2f}" for number in numbers),
            *(str(result.target), result.verdict),
        )
    console.print(table)
    for result in results:
        console.print(f"\n{result.name}: ratio is {result.compare}, over {result.rounds} rounds, by turns")
        console.print(f"  ours   {result.ours_is}\n  other  {result.other_is}")
        if result.figures:
            console.print(_figures(result.figures))


def _figures(figures: Figures) -> Table:
    """What the ratio does not say, with a column for each side."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 2))
    table.add_column("")
    for side in figures:
        table.add_column(side, justify="right")
    for what in dict.fromkeys(what for numbers in figures.values() for what in numbers):
        table.add_row(what, *(_number(numbers[what]) if what in numbers else "" for numbers in figures.values()))
    return table


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "ours": result.ours,
        "other": result.other,
        "unit": result.unit,
        "compare": result.compare,
        "ratio": asdict(result.ratio),
        "target": {"at_most" if result.target.at_most else "at_least": result.target.bound},
        "holds": None if result.verdict is Verdict.NONE else result.verdict is Verdict.HOLDS,
        "verdict": result.verdict,
        "rounds": result.rounds,
        "ours_is": result.ours_is,
        "other_is": result.other_is,
        "figures": result.figures,
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
