"""L1 and the stream that it follows, searched through with the engine's own chain and tail (`l1.py`)."""

import pytest

from tests.model import l1
from tests.model.ablations import IN_L1, counterexample
from tests.model.engine import KEY, OTHER
from tests.model.guards import GUARDS
from tests.model.l1 import Bounds


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(Bounds((KEY, KEY), failovers=1), id="failover"),
        pytest.param(Bounds((KEY, OTHER), trims=1, evicted=True), id="lost messages"),
        pytest.param(Bounds((KEY, OTHER), trims=1, silences=1), id="silence"),
    ],
)
def test_no_copy_in_l1_is_older_than_what_it_is_vouched_for(bounds: Bounds) -> None:
    """Whatever the stream loses, and whatever L2 loses in a failover.

    Every order of events with one reader, the relay and the tail of the stream: about 65,000 states with two commits
    and a failover, 124,000 where messages and the record in L2 are lost, 123,000 where messages are lost and the
    process believes that the stream is silent.
    """
    searched = l1.search(bounds)
    print(searched)
    assert searched.complete and searched.states > 1_000


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(Bounds((KEY, KEY, OTHER), trims=1), id="three commits"),
        pytest.param(Bounds((KEY, OTHER), failovers=1, trims=1), id="failover and lost messages"),
        pytest.param(Bounds((KEY, KEY, KEY, OTHER), failovers=1), id="four commits"),
        pytest.param(Bounds((KEY, OTHER), readers=2, failovers=1, evicted=True), id="two readers"),
        pytest.param(Bounds((KEY, OTHER), failovers=1, silences=1), id="silence"),
    ],
)
def test_wider_bounds(bounds: Bounds) -> None:
    """The same with more of everything."""
    searched = l1.search(bounds, most=4_000_000)
    print(searched)
    assert searched.states > 100_000


@pytest.mark.parametrize("guard", IN_L1)
def test_no_guard_of_l1_can_be_left_out(guard: str) -> None:
    """Without it a copy is vouched for that is older; `-s` prints the way there."""
    way = counterexample(guard)
    print(f"\nwithout: {GUARDS[guard].does}\n{way}")
    assert "in L1 is vouched for up to a moment when" in way
