"""What a series of rounds says about a target. Pure arithmetic: nothing here measures.

A figure alone says little about code, because the machine is in it. A ratio of two figures that were taken by turns, a
moment apart, cancels most of the machine; how far it swings from round to round says how much is left. Where the
rounds lie on both sides of the target, the run cannot tell, and says so instead of choosing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median


class Compare(StrEnum):
    """Which way the ratio of a contest goes."""

    OURS_OVER_OTHER = "ours / other"
    OTHER_OVER_OURS = "other / ours"
    OURS = "ours"
    """For what has a target of its own, such as one load in a stampede; the other side shows it without protection."""


class Verdict(StrEnum):
    HOLDS = "yes"
    MISSED = "no"
    NONE = "no verdict: spread larger than effect"


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio must reach: at least `bound`, or at most it."""

    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}"

    def met_by(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


@dataclass(frozen=True, slots=True)
class Round:
    """Both sides of a contest, one right after the other, in the contest's unit. Both are above 0."""

    ours: float
    other: float

    def ratio(self, compare: Compare) -> float:
        if compare is Compare.OURS:
            return self.ours
        return self.ours / self.other if compare is Compare.OURS_OVER_OTHER else self.other / self.ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Of all rounds. The median is that of the rounds' ratios, not the ratio of two medians."""

    median: float
    min: float
    max: float


def ratio_of(rounds: Sequence[Round], compare: Compare) -> Ratio:
    """At least one round is needed."""
    ratios = [each.ratio(compare) for each in rounds]
    return Ratio(median=median(ratios), min=min(ratios), max=max(ratios))


def verdict_on(ratio: Ratio, target: Target) -> Verdict:
    """`HOLDS` or `MISSED` if every round says so, else `NONE`."""
    if target.met_by(ratio.min) and target.met_by(ratio.max):
        return Verdict.HOLDS
    if not target.met_by(ratio.min) and not target.met_by(ratio.max):
        return Verdict.MISSED
    return Verdict.NONE
