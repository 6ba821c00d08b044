"""How often a run finds that a guard is missing: the same run with one seed after the other."""

import json
import math
from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from features.checker.ablations import ABLATIONS
from features.checker.run import Report

ENOUGH = 0.95
"""Of the runs without a guard that is marked "run": 19 of 20."""
_Z = 1.96


class Rate(msgspec.Struct, frozen=True):
    """`found` of `runs` ended with a violation, after `median_s` (None if none did). `failed`: runs that were none.

    `low` and `high`: the 95 % interval of the rate (Wilson 1927, without correction for continuity).
    """

    guard: str
    found_by: str
    faults: Sequence[str]
    runs: int
    found: int
    failed: int
    low: float
    high: float
    median_s: float | None

    @property
    def as_promised(self) -> bool:
        """With the proof whole nothing is found; without a guard that is marked "run", nearly always something."""
        if not self.guard:
            return self.found == 0 and not self.failed
        return self.found_by != "run" or (self.runs > 0 and self.found >= math.floor(ENOUGH * self.runs))


def measure(guard: str, *, seeds: Sequence[int], faults: Sequence[str], run: Callable[[int], Report]) -> Rate:
    """`run` plays one run with a seed. A guard '' stands for the whole proof."""
    reports = [run(seed) for seed in seeds]
    judged = [report for report in reports if not report.failures]
    times_s = [report.seconds for report in judged if report.verdict.violations]
    low, high = wilson(len(times_s), len(judged))
    return Rate(
        guard=guard,
        found_by=ABLATIONS[guard].found_by if guard else "",
        faults=tuple(faults),
        runs=len(judged),
        found=len(times_s),
        failed=len(reports) - len(judged),
        low=low,
        high=high,
        median_s=round(median(times_s), 1) if times_s else None,
    )


def wilson(found: int, runs: int) -> tuple[float, float]:
    """The 95 % interval of a share. (0, 1) without any run."""
    if not runs:
        return 0.0, 1.0
    share, square = found / runs, _Z * _Z
    middle = (share + square / (2 * runs)) / (1 + square / runs)
    half = _Z / (1 + square / runs) * math.sqrt(share * (1 - share) / runs + square / (4 * runs * runs))
    return max(0.0, middle - half), min(1.0, middle + half)


def as_json(rates: Sequence[Rate]) -> str:
    """One object; a list of the rates and whether all are as promised."""
    found = [{**msgspec.to_builtins(rate), "as_promised": rate.as_promised} for rate in rates]
    return json.dumps({"rates": found, "as_promised": all(rate.as_promised for rate in rates)})


def line(rate: Rate) -> str:
    """One row of the table that `HEAD` begins."""
    found = f"{rate.found} of {rate.runs}"
    interval = f"{rate.low:.0%} to {rate.high:.0%}"
    after = "" if rate.median_s is None else f"{rate.median_s:.0f} s"
    failed = f"  {rate.failed} failed" if rate.failed else ""
    return f"{rate.guard or '(whole)':18}{rate.found_by:8}{found:>10}  {interval:14}{after:>6}  {_short(rate)}{failed}"


HEAD = f"{'without':18}{'marked':8}{'found':>10}  {'95 % interval':14}{'after':>6}  faults"


def _short(rate: Rate) -> str:
    return ",".join(rate.faults) if len(rate.faults) <= 3 else f"{len(rate.faults)} kinds"
