"""L2's protocol, searched through with the engine's own scripts and functions (`l2.py`)."""

import pytest

from tests.model import l2
from tests.model.ablations import IN_L2, REDUNDANT, TWO_RELAYS, WRITERS, counterexample
from tests.model.engine import KEY, OTHER
from tests.model.guards import GUARDS, scripts_without
from tests.model.l2 import Bounds


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(WRITERS, id="writers"),
        pytest.param(Bounds((KEY,), fillers=(KEY, KEY), failovers=1), id="readers"),
        pytest.param(Bounds((KEY, KEY), fillers=(KEY,), may_roll_back=True), id="roll back"),
        pytest.param(Bounds((KEY,), builds=(KEY,), fillers=(KEY,)), id="build"),
    ],
)
def test_what_writers_and_readers_put_is_as_new_as_the_watermark_says(bounds: Bounds) -> None:
    """Whatever expires, and whatever a failover loses; a relay that is left alone mends all of it.

    Every order of events: 258,077 states with two writers that write through, one reader, one relay and one failover;
    102,388 with one writer and two readers; 19,923 with writers that may roll back; 7,736 with a build.
    """
    searched = l2.search(bounds)
    print(searched)
    assert searched.complete and searched.states > 1_000


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(TWO_RELAYS, id="two relays"),
        pytest.param(Bounds(commits=(KEY,), fillers=(KEY,), relays=2, failovers=2), id="two failovers"),
        pytest.param(Bounds(commits=(KEY, OTHER), fillers=(KEY,), failovers=2), id="one relay"),
        pytest.param(Bounds(commits=(KEY,), overlapping=(OTHER,), fillers=(KEY,), failovers=1), id="overlapping"),
        pytest.param(Bounds(commits=(KEY, KEY), fillers=(KEY,), failovers=1, lost_watermarks=1), id="watermark lost"),
        pytest.param(Bounds(commits=(KEY, OTHER), fillers=(KEY,), failovers=2, new=True), id="new"),
    ],
)
def test_relays_need_no_leader(bounds: Bounds) -> None:
    """Any number of them, over a node that loses its history, or its watermark, or has none yet.

    Every order of events: 376,052 states with two relays, commits of two keys and one failover; 254,199 with two
    failovers and commits of one key; 26,517 with one relay, two keys and two failovers.
    """
    searched = l2.search(bounds)
    print(searched)
    assert searched.complete and searched.states > 1_000


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(Bounds((KEY, KEY), fillers=(KEY, KEY), failovers=1), id="two writers, two readers"),
        pytest.param(Bounds(commits=(KEY, OTHER), fillers=(KEY,), relays=2, failovers=2), id="two relays"),
        pytest.param(Bounds(commits=(KEY, KEY, OTHER), fillers=(KEY,), relays=2, failovers=1), id="three commits"),
        pytest.param(Bounds(commits=(KEY,), fillers=(KEY,), relays=2, lost_watermarks=1), id="watermark lost"),
        pytest.param(Bounds(commits=(KEY,), fillers=(KEY,), relays=2, failovers=1, new=True), id="new"),
    ],
)
def test_wider_bounds(bounds: Bounds) -> None:
    """The same with more of everything: up to millions of states each, and gigabytes."""
    searched = l2.search(bounds, most=8_000_000)
    print(searched)
    assert searched.states > 100_000


@pytest.mark.torture
def test_a_watermark_that_is_lost_twice_within_a_tick() -> None:
    """Two relays, of which one is held up: no epoch begins twice, since each marks the absence that it found."""
    l2.search(Bounds(commits=(KEY,), fillers=(KEY,), relays=2, lost_watermarks=2))


@pytest.mark.parametrize("guard", IN_L2)
def test_no_guard_of_l2_can_be_left_out(guard: str) -> None:
    """Without it an old record is vouched for; `-s` prints the way there."""
    way = counterexample(guard)
    print(f"\nwithout: {GUARDS[guard].does}\n{way}")
    assert "is vouched for by a watermark that covers" in way


@pytest.mark.parametrize("guard", REDUNDANT)
def test_versions_and_tombstones_are_a_second_line(guard: str) -> None:
    """Nothing goes wrong without compare-and-set, or without tombstones: the leases keep out whatever is late.

    They stay, because versions keep the records of one key in order where no lease is asked for, and a tombstone tells
    readers why they miss.
    """
    assert counterexample(guard) == ""


def test_a_guard_that_is_not_found_fails() -> None:
    """Who rewrites a script has to say what the guards are now."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.model.guards.text_of", lambda _: b"return 0\n")
        with pytest.raises(LookupError, match=r"fill\.lua"):
            scripts_without("lease")
