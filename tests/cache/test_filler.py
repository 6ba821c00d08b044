import threading
from collections.abc import Mapping

import pytest

from mlserve.cache import filler as filler_module
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from tests.cache.doubles import KeptStats, MemoryTier, entry, policy

POLICIES = {"group": policy()}


def _key(number: int) -> Key:
    return Key("customer", str(number), "group")


class SlowTier(MemoryTier):
    """Takes copies only while its gate is open; `entered` says that it has been called."""

    def __init__(self) -> None:
        super().__init__(Tier.L2)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        self.entered.set()
        self.gate.wait(10)
        return super().put_many(entries, policies)


def test_a_flush_returns_when_everything_before_it_was_tried() -> None:
    """Many small fills make few trips."""
    tier, stats = SlowTier(), KeptStats()
    filler = Filler(tier, stats)
    filler.fill({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    for number in range(1, 101):
        filler.fill({_key(number): entry()}, POLICIES)
    tier.gate.set()
    filler.flush()
    assert len(tier.held) == 101
    assert tier.calls == ["put", "put"]
    assert not stats.refused


def test_fills_that_find_the_queue_full_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting would slow the request down; a fill that is lost is one more miss later."""
    monkeypatch.setattr(filler_module, "QUEUE_LENGTH", 2)
    tier, stats = SlowTier(), KeptStats()
    filler = Filler(tier, stats)
    filler.fill({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    for number in range(1, 4):
        filler.fill({_key(number): entry(), _key(-number): entry()}, POLICIES)
    assert stats.refused == {(Tier.L2, "queue_full"): 2}
    tier.gate.set()
    filler.flush()
    assert set(tier.held) == {_key(number) for number in (0, 1, -1, 2, -2)}


def test_the_newest_of_several_waiting_copies_goes_out() -> None:
    """Whatever order they were queued in."""
    tier = SlowTier()
    filler = Filler(tier, KeptStats())
    filler.fill({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    filler.fill({_key(1): entry(9)}, POLICIES)
    filler.fill({_key(1): entry(8)}, POLICIES)
    tier.gate.set()
    filler.flush()
    assert tier.held[_key(1)] == entry(9)


def test_a_fill_that_cannot_be_written_does_not_end_the_filling() -> None:
    """It is counted; the thread goes on."""

    class Choosy(MemoryTier):
        def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
            if _key(13) in entries:
                raise ValueError("unlucky")
            return super().put_many(entries, policies)

    tier, stats = Choosy(Tier.L2), KeptStats()
    filler = Filler(tier, stats)
    filler.fill({_key(13): entry()}, POLICIES)
    filler.flush()
    filler.fill({_key(14): entry()}, POLICIES)
    filler.flush()
    assert list(tier.held) == [_key(14)]
    assert stats.refused == {(Tier.L2, "error"): 1}


def test_a_flush_before_the_first_fill_returns() -> None:
    Filler(MemoryTier(Tier.L2), KeptStats()).flush()
