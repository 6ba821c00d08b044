"""What a model's thresholds do to transactions that it has not seen, and whether that can be meant. Pure."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from predictions.decisions import Thresholds

MOST_FLAGGED = 0.05
"""Of all transactions: more nobody can look at. Where fraud is common, `FLAGGED_PER_FRAUD` times its share."""
FLAGGED_PER_FRAUD = 3
MOST_DECLINED = 0.02
DECLINED_PER_FRAUD = 2
ENOUGH_ROWS = 1_000
"""Among so many with frauds in them a model that works flags one."""
_CHANCE = 3
"""Standard deviations that a count may lie above the limit."""
_EDGES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)

Scores = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtThresholds:
    """Flagged: reviewed or declined. Shares are of all rows; `recall` is of the frauds, flagged.

    `decline_precision` is None where nothing was declined, `recall` where nothing was fraud. `brier` is the mean square
    of what the score missed by, 0 is best.
    """

    flagged: int
    flagged_share: float
    declined: int
    declined_share: float
    decline_precision: float | None
    recall: float | None
    brier: float


def measure(*, scores: Scores, labels: Labels, thresholds: Thresholds) -> AtThresholds:
    """On at least one row."""
    flagged, declined = scores >= thresholds.review_from, scores >= thresholds.decline_from
    frauds = int(labels.sum())
    return AtThresholds(
        flagged=int(flagged.sum()),
        flagged_share=float(flagged.mean()),
        declined=int(declined.sum()),
        declined_share=float(declined.mean()),
        decline_precision=float(labels[declined].mean()) if declined.any() else None,
        recall=float(flagged[labels == 1].mean()) if frauds else None,
        brier=float(np.mean((scores.astype(np.float64) - labels) ** 2)),
    )


def reliability(*, scores: Scores, labels: Labels) -> list[dict[str, float | int]]:
    """How many rows score from `from` up to below `to`, what they score on average and how many of them are fraud."""
    bins = np.clip(np.searchsorted(_EDGES, scores, side="right") - 1, 0, len(_EDGES) - 2)
    return [
        {
            "from": _EDGES[place],
            "to": _EDGES[place + 1],
            "rows": int(inside.sum()),
            "mean_score": round(float(scores[inside].mean()), 6),
            "fraud_share": round(float(labels[inside].mean()), 6),
        }
        for place in range(len(_EDGES) - 1)
        if (inside := bins == place).any()
    ]


def most_flagged(fraud_share: float) -> float:
    """The largest share of transactions that thresholds may flag."""
    return max(MOST_FLAGGED, FLAGGED_PER_FRAUD * fraud_share)


def most_declined(fraud_share: float) -> float:
    """The largest share of transactions that thresholds may decline."""
    return max(MOST_DECLINED, DECLINED_PER_FRAUD * fraud_share)


def what_is_implausible(*, rows: int, frauds: int, flagged: int, declined: int) -> list[str]:
    """In words, each with its numbers; nothing where the counts are such as a working model gives."""
    if not rows:
        return ["its thresholds were checked on no transaction"]
    fraud_share = frauds / rows
    found = []
    for what, count, limit in (
        ("flags", flagged, most_flagged(fraud_share)),
        ("declines", declined, most_declined(fraud_share)),
    ):
        if count > limit * rows + _CHANCE * sqrt(max(0.0, limit * (1 - limit)) * rows):
            found.append(
                f"it {what} {count} of {rows} held-out transactions ({count / rows:.1%}), of which {frauds} are fraud; "
                f"plausible is up to {limit:.1%}"
            )
    if not flagged and frauds and rows >= ENOUGH_ROWS:
        found.append(f"it flags none of {rows} held-out transactions, of which {frauds} are fraud")
    return found
