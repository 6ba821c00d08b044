"""How a contest is run; the sides are made up, so that what comes out is known."""

from dataclasses import replace

import pytest

from benchmarks.contest import BenchmarkFailed, Contest, per_call, run
from benchmarks.ratio import Compare, Ratio, Target, Verdict


class _Sides:
    """Sides that write down when they were asked, and for how long."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seconds = 0.0

    def contest(self, **changes: object) -> Contest:
        contest = Contest(
            name="made-up",
            ours_is="one",
            other_is="another",
            unit="us/call",
            compare=Compare.OTHER_OVER_OURS,
            target=Target(10),
            ours=lambda seconds: self._note("ours", seconds, 2.0),
            other=lambda seconds: self._note("other", seconds, 30.0),
            prepare=lambda: self.asked.append("prepare"),
        )
        return replace(contest, **changes)  # type: ignore[arg-type]

    def _note(self, side: str, seconds: float, value: float) -> float:
        self.asked.append(side)
        self.seconds += seconds
        return value


def _silent(_stage: str, _done: float) -> None:
    """Nothing to see."""


def test_the_sides_take_turns_within_the_budget() -> None:
    """Prepared before each round, the first of a round changing; all of it takes the seconds that were given."""
    sides = _Sides()
    result = run(sides.contest(), seconds=8.0, progress=_silent, rounds=3)
    warm_up = ["prepare", "ours", "other"]
    assert sides.asked == [*warm_up, *warm_up, "prepare", "other", "ours", *warm_up]
    assert sides.seconds == pytest.approx(8.0)
    assert (result.ours, result.other, result.rounds) == (2.0, 30.0, 3)
    assert result.ratio == Ratio(median=15.0, min=15.0, max=15.0)
    assert result.verdict is Verdict.HOLDS


def test_a_contest_that_measured_something_else_has_no_result() -> None:
    """Its check is asked when the rounds are over."""
    sides = _Sides()

    def check() -> None:
        raise BenchmarkFailed(f"after {sides.asked.count('ours')}")

    with pytest.raises(BenchmarkFailed, match="after 3"):
        run(sides.contest(check=check), seconds=1.0, progress=_silent, rounds=2)


def test_a_call_is_measured_by_calling_it() -> None:
    """At least once, however short the time; the result is a time."""
    calls: list[None] = []
    assert per_call(lambda: calls.append(None))(0.0) > 0
    assert len(calls) == 1
