"""Ours against another way to do the same, measured by turns."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from time import perf_counter

from benchmarks.ratio import Compare, Ratio, Round, Target, Verdict, ratio_of, verdict_on

Side = Callable[[float], float]
"""Works for about so many seconds and returns what it reached, in the contest's unit."""
Progress = Callable[[str, float], None]
"""Called with the stage and the share of it that is done, 0 to 1."""
Figures = Mapping[str, Mapping[str, float]]
"""By side, then by what was measured, its unit in the name: what one ratio does not say."""

ROUNDS = 9
_WARM_UP_SHARE = 0.1
US_PER_S = 1e6


class BenchmarkFailed(Exception):
    """The measurement could not be made, or did not measure what it says. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """`ours_is` and `other_is` say in words what each side does. `prepare` is called, untimed, before every round."""

    name: str
    ours_is: str
    other_is: str
    unit: str
    compare: Compare
    target: Target
    ours: Side
    other: Side
    prepare: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None
    """Called after the last round; raises BenchmarkFailed if something else was measured than was meant."""
    rounds: int = ROUNDS
    figures: Callable[[], Figures] = dict
    """Over all rounds; called after `check`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`ours` and `other`: the medians over the rounds, in `unit`."""

    name: str
    ours_is: str
    other_is: str
    ours: float
    other: float
    unit: str
    compare: Compare
    ratio: Ratio
    target: Target
    verdict: Verdict
    rounds: int
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """`open` readies what the contests need and clears it away; it may raise BenchmarkFailed.

    `on_demand`: runs only if it is named, because it leaves something behind or takes very long.
    """

    name: str
    about: str
    open: Callable[[Progress], AbstractContextManager[list[Contest]]]
    on_demand: bool = False


def run(contest: Contest, *, seconds: float, progress: Progress, rounds: int | None = None) -> Result:
    """Takes about `seconds`, and what `prepare` takes. Raises BenchmarkFailed.

    Who goes first changes with every round, so that a machine that slows down steadily favours nobody.
    """
    rounds = rounds or contest.rounds
    stage = f"measure {contest.name}"
    progress(stage, 0.0)
    contest.prepare()
    for side in (contest.ours, contest.other):
        side(seconds * _WARM_UP_SHARE / 2)
    each = seconds * (1 - _WARM_UP_SHARE) / (2 * rounds)
    done: list[Round] = []
    for number in range(rounds):
        contest.prepare()
        if number % 2:
            other = contest.other(each)
            ours = contest.ours(each)
        else:
            ours = contest.ours(each)
            other = contest.other(each)
        done.append(Round(ours, other))
        progress(stage, (number + 1) / rounds)
    contest.check()
    ratio = ratio_of(done, contest.compare)
    return Result(
        name=contest.name,
        ours_is=contest.ours_is,
        other_is=contest.other_is,
        ours=median(one.ours for one in done),
        other=median(one.other for one in done),
        unit=contest.unit,
        compare=contest.compare,
        ratio=ratio,
        target=contest.target,
        verdict=verdict_on(ratio, contest.target),
        rounds=rounds,
        figures=contest.figures(),
    )


def per_call(call: Callable[[], object]) -> Side:
    """A side that calls again and again in this thread: microseconds per call, the loop's 0.02 included."""

    def measure(seconds: float) -> float:
        calls, chunk, started = 0, 1, perf_counter()
        while True:
            for _ in repeat(None, chunk):
                call()
            calls += chunk
            elapsed = perf_counter() - started
            if elapsed >= seconds:
                return elapsed / calls * US_PER_S
            if elapsed < seconds / 10:  # few looks at the clock, and yet an end in time
                chunk *= 2

    return measure
