"""What a contest tells beside its ratio; the numbers are made up."""

from io import StringIO

from rich.console import Console

from benchmarks import contest, suite
from benchmarks.contest import Contest
from benchmarks.ratio import Compare, Target
from features.progress import silent


def test_figures_are_told_side_by_side_after_the_last_round() -> None:
    """In the table with a column for each side, blank where a side has none, and in JSON as they are."""
    turns: list[float] = []

    def ours(_seconds: float) -> float:
        turns.append(1.0)
        return 1.0

    made_up = Contest(
        name="made-up",
        ours_is="this",
        other_is="that",
        unit="ms",
        compare=Compare.OURS,
        target=Target(2, at_most=True),
        ours=ours,
        other=lambda _seconds: 3.0,
        figures=lambda: {"this": {"turns": float(len(turns)), "p50 ms": 0.25}, "that": {"turns": 2500.0}},
    )
    result = contest.run(made_up, seconds=0.01, progress=silent, rounds=2)
    assert suite.as_json([result])["results"][0]["figures"] == {
        "this": {"turns": 3.0, "p50 ms": 0.25},  # two rounds and a warm-up
        "that": {"turns": 2500.0},
    }
    out = StringIO()
    suite.show([result], Console(file=out, width=120))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["this", "that"] in lines
    assert ["turns", "3", "2,500"] in lines
    assert ["p50", "ms", "0.25"] in lines
