"""The arithmetic of the web process's threads."""

import pytest

from mlserve.settings.threads import FEW, divide, scores_at_once, scores_waiting


@pytest.mark.parametrize("threads", range(FEW + 1, 300))
def test_slots_of_all_kinds_together_leave_a_thread(threads: int) -> None:
    """Whoever has a slot or waits for one keeps a thread: with all of that taken, one is left that answers the rest."""
    at_once = scores_at_once(threads)
    shares = divide(threads=threads, at_once=at_once, waiting=scores_waiting(threads, at_once))
    others = (shares.pages, shares.calls, shares.metrics, shares.readiness)
    assert shares.batches.waiting + shares.scores.threads + sum(kind.threads for kind in others) == shares.threads
    assert shares.threads < threads
    assert all(kind.at_once >= 1 for kind in others)


@pytest.mark.parametrize("threads", range(1, FEW + 1))
def test_few_threads_may_all_score(threads: int) -> None:
    """Nobody waits for a score's slot then, and no other kind takes more than half of the threads."""
    at_once = scores_at_once(threads)
    assert (at_once, scores_waiting(threads, at_once)) == (min(4, threads), 0)
    shares = divide(threads=threads, at_once=at_once, waiting=0)
    assert max(shares.pages.threads, shares.calls.threads) <= max(1, (threads + 1) // 2)


@pytest.mark.parametrize(("threads", "at_once", "waiting"), [(26, 4, 6), (16, 4, 3), (8, 1, 1), (64, 10, 16)])
def test_bodies_leave_a_slot_of_their_kind(threads: int, at_once: int, waiting: int) -> None:
    """If it has more than one: what a slow client keeps is not all that there is."""
    shares = divide(threads=threads, at_once=at_once, waiting=waiting)
    for whole, part in ((shares.pages, shares.forms), (shares.calls, shares.bodies), (shares.scores, shares.batches)):
        assert part.at_once < whole.at_once or whole.at_once == part.at_once == 1


def test_with_the_threads_of_the_default(settings: object) -> None:
    """Scores have what they had with 16 threads that were not divided; a browser is shown five pages at once."""
    at_once = scores_at_once(26)
    shares = divide(threads=26, at_once=at_once, waiting=scores_waiting(26, at_once))
    assert (shares.scores.at_once, shares.scores.waiting) == (4, 6)
    assert (shares.batches.at_once, shares.batches.waiting) == (2, 2)
    assert shares.pages.threads == 5
    assert (shares.calls.threads, shares.bodies.at_once) == (5, 3)
