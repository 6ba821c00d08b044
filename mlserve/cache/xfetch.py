"""Refreshes a hot key before it expires: each reader flips a coin that falls on "now" ever more often near the end.

Without it every hot key has a moment at which its copy is gone and all its readers stand before the source. With it
one of them, usually, starts the reload a little earlier, and the others never notice. The coin needs no coordination:

    refresh if  now + cost * beta * -ln(U) >= expiry,   U uniform in (0, 1]

where `cost` is the measured time of a reload. So a reader at `gap` before expiry refreshes with the probability
exp(-gap / (cost beta)): slow reloads start earlier, and `beta` above 1 is more eager. The number of early reloads is
optimal for what they save: A. Vattani, F. Chierichetti, K. Lowenstein, "Optimal Probabilistic Cache Stampede
Prevention", PVLDB 8(8), 2015.
"""

from math import log

BETA = 1.0
"""1 is the paper's optimum for exponentially distributed gaps."""
HORIZON_COSTS = 30.0
"""So many costs before expiry the coin falls on "now" once in 10^13 readers: no need to flip it."""


def refreshes_early(*, gap_s: float, cost_s: float, uniform: float, beta: float = BETA) -> bool:
    """Whether this reader should start the reload now.

    `gap_s`: until expiry; `cost_s`: measured time of a reload; `uniform`: this reader's coin, in (0, 1].
    """
    return gap_s <= cost_s * beta * -log(uniform)
