"""The faults of a run follow from its seed."""

from features.checker.faults import Nemesis
from features.checker.schedule import FAULTS, plan


def test_a_seed_means_a_schedule() -> None:
    """The same one again and again; another seed, another one."""
    names = tuple(FAULTS)
    assert plan(1, seconds=60, faults=names) == plan(1, seconds=60, faults=names[::-1])
    assert plan(1, seconds=60, faults=names) != plan(2, seconds=60, faults=names)


def test_every_fault_comes_before_any_comes_again() -> None:
    """So a short run has seen as many as it has time for."""
    planned = plan(3, seconds=600, faults=tuple(FAULTS))
    assert {each.fault for each in planned[: len(FAULTS)]} == set(FAULTS)
    assert len(planned) % len(FAULTS) == 0


def test_without_faults_nothing_is_planned() -> None:
    """`--faults none`."""
    assert plan(1, seconds=60, faults=()) == []


def test_every_fault_can_strike() -> None:
    """The nemesis knows each by its name."""
    assert all(callable(getattr(Nemesis, f"_{fault}")) for fault in FAULTS)
