"""How the threads of a web process are divided among the kinds of requests: the arithmetic, and nothing else.

A request that is worked on and a request that waits for its slot both keep a thread, and it takes another one to
refuse, to say that the process lives, or to serve a file. So the slots of all kinds together are fewer than the
threads: whatever hangs behind one kind, the others find theirs. With `FEW` threads that cannot be: scores may take what
there is, and the slots of the other kinds overlap with theirs.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

FEW: Final = 9
"""Up to so many threads are not divided: one for each kind would leave scores hardly any."""
_SCORES_AT_ONCE: Final = 4
_FOR_OTHERS: Final = (7, 12)
"""Of all threads: 15 of 26 at least are left for what is no score, or is a batch that waits."""
_LEAST_LEFT: Final = 6
"""One for each of pages, calls, metrics, metrics that wait, and readiness; and one that is free."""
_EXTRAS: Final = (
    "calls",
    "pages that wait",
    "pages",
    "batches that wait",
    "calls that wait",
    "calls",
    "pages",
    "pages that wait",
    "batches that wait",
)
"""With 26 threads once round, and one more: a browser that opens five pages at once is shown them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Of one kind of request: how many are worked on at once, and how many may wait for that."""

    at_once: int
    waiting: int = 0

    @property
    def threads(self) -> int:
        return self.at_once + self.waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """`batches`, `forms` and `bodies` are ceilings within `scores`, `pages` and `calls`.

    Of these only batches wait outside the slots of their kind, and need threads of their own for that.
    """

    scores: Slots
    batches: Slots
    pages: Slots
    """The admin, the documentation and whatever has no address."""
    forms: Slots
    """Pages with a body, which a slow client can keep."""
    calls: Slots
    """The API, but for scores."""
    bodies: Slots
    """Calls with a body."""
    metrics: Slots
    readiness: Slots
    """Callers that wait for a check; all others take the last result."""

    @property
    def threads(self) -> int:
        """What all kinds take when each has all that it may have."""
        kinds = (self.scores, self.pages, self.calls, self.metrics, self.readiness)
        return self.batches.waiting + sum(kind.threads for kind in kinds)


def scores_at_once(threads: int) -> int:
    """How many scores a process works on if nobody says: a sixth of its threads, but four if there are so many."""
    return max(min(_SCORES_AT_ONCE, threads), threads // 6)


def scores_waiting(threads: int, at_once: int) -> int:
    """How many may wait, for a slot or for their commit: a fourth of the threads, if enough are left for the rest."""
    for_others = max(_LEAST_LEFT, threads * _FOR_OTHERS[0] // _FOR_OTHERS[1])
    return min(threads // 4, max(0, threads - at_once - for_others))


def divide(*, threads: int, at_once: int, waiting: int) -> Shares:
    """What is left beside `at_once` scores and `waiting` ones.

    Each other kind has a thread, one stays free, and those that are over go round in the order of `_EXTRAS`. Where not
    even the first of that is possible, all but two go round, and the kinds overlap.
    """
    left = threads - at_once - waiting
    over = left - _LEAST_LEFT if left >= _LEAST_LEFT else max(0, threads - 2)
    extra = Counter(islice(cycle(_EXTRAS), over))
    pages = Slots(at_once=1 + extra["pages"], waiting=extra["pages that wait"])
    calls = Slots(at_once=1 + extra["calls"], waiting=extra["calls that wait"])
    return Shares(
        scores=Slots(at_once=at_once, waiting=waiting),
        batches=Slots(at_once=max(1, at_once // 2) if left > 0 else at_once, waiting=extra["batches that wait"]),
        pages=pages,
        forms=Slots(at_once=max(1, pages.at_once - 1)),
        calls=calls,
        bodies=Slots(at_once=max(1, calls.at_once - 1)),
        metrics=Slots(at_once=1, waiting=1 if left >= _LEAST_LEFT else 0),
        readiness=Slots(at_once=1),
    )
