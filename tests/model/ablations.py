"""What happens without one of the guards: the model and the bounds in which its absence shows.

    python -m pytest tests/model -s -k left_out

prints all of them.
"""

from collections.abc import Callable, Mapping
from functools import partial

from tests.model import l1, l2
from tests.model.engine import KEY, OTHER
from tests.model.search import Searched, Violation

WRITERS = l2.Bounds(writers=(KEY, KEY), fillers=(KEY,), failovers=1)
TWO_RELAYS = l2.Bounds(commits=(KEY, OTHER), fillers=(KEY,), relays=2, failovers=1)
READERS = l1.Bounds(commits=(KEY, OTHER), failovers=1, trims=1)

IN_L2: Mapping[str, l2.Bounds] = {
    "lease": WRITERS,
    "lease clearing": WRITERS,
    "write lease before commit": WRITERS,
    "chain": TWO_RELAYS,
    "atomic batch": TWO_RELAYS,
    "primary reads": WRITERS,
}
IN_L1: Mapping[str, l1.Bounds] = dict.fromkeys(
    ("gap flush", "pending drop", "ring", "watermark check", "watermark first", "one node"), READERS
)
REDUNDANT = ("compare and set", "tombstone")
"""Nothing goes wrong without one of these in the models. They keep records in order and tell readers why they miss."""


def counterexample(guard: str) -> str:
    """The shortest way to a copy that is vouched for and too old, in steps, with this guard of `guards.GUARDS` removed.

    Empty if every order of events within the bounds is fine.
    """
    searches: dict[str, Callable[[str], Searched]] = {
        **{name: partial(l2.search, bounds) for name, bounds in IN_L2.items()},
        **{name: partial(l1.search, bounds) for name, bounds in IN_L1.items()},
        **dict.fromkeys(REDUNDANT, partial(l2.search, WRITERS)),
    }
    try:
        searches[guard](guard)
    except Violation as violation:
        return str(violation)
    return ""
