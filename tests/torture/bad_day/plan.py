"""What breaks when: the faults in an order that the seed gives, as many as the time takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.torture.bad_day.fault import Fault

CALM_S: Final = 3.0
"""Between two faults, when all is well again."""
RECOVERY_S: Final = 5.0
"""From a fault's end until all is well, on the average; more only makes the day longer."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One fault of the day, and for how long it lasts."""

    fault: Fault
    lasts_s: float


def plan_day(faults: Sequence[Fault], *, seconds: float, random: Random) -> list[Step]:
    """Round after round of all faults, each round in another order, until the time is up.

    If there is less time than one round at the usual durations takes, they are shorter; what does not fit even at the
    least durations is left out, which is another fault for every seed.
    """
    least_s, usual_s = (
        sum(_cost_s(fault, lasts) for fault, lasts in each)
        for each in (
            [(fault, fault.least_s) for fault in faults],
            [(fault, fault.usual_s) for fault in faults],
        )
    )
    share = min(1.0, max(0.0, (seconds - least_s) / max(usual_s - least_s, 1e-9)))
    steps: list[Step] = []
    left_s = seconds
    while True:
        before = len(steps)
        for fault in random.sample(list(faults), len(faults)):
            lasts_s = fault.least_s + share * (fault.usual_s - fault.least_s)
            if _cost_s(fault, lasts_s) <= left_s:
                steps.append(Step(fault=fault, lasts_s=lasts_s))
                left_s -= _cost_s(fault, lasts_s)
        if len(steps) < before + len(faults):
            return steps


def _cost_s(fault: Fault, lasts_s: float) -> float:
    return lasts_s + fault.extra_s + RECOVERY_S + CALM_S
