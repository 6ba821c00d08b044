import threading
from collections.abc import Mapping

import pytest

from mlserve.cache import filler as filler_module
from mlserve.cache.chain import NEVER_BEGUN
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import Entity, LeaseToken
from tests.cache.doubles import KeptStats, MemoryTier, entry, policy

POLICIES = {"group": policy(), "other": policy("other")}
Leases = Mapping[Entity, LeaseToken]


def _key(number: int, group: str = "group") -> Key:
    return Key("customer", str(number), group)


def _leased(tier: MemoryTier, *keys: Key) -> Leases:
    granted = tier.lease_many(keys, {}, POLICIES).granted
    assert set(granted) == {key.entity for key in keys}
    return granted


class SlowTier(MemoryTier):
    """Takes copies only while its gate is open; `entered` says that it has been called."""

    def __init__(self) -> None:
        super().__init__(Tier.L2)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def put_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], *, since: int = NEVER_BEGUN
    ) -> bool:
        self.entered.set()
        self.gate.wait(10)
        return super().put_many(entries, policies)


def test_a_flush_returns_when_everything_before_it_was_tried() -> None:
    """Many small fills make few trips."""
    tier, stats = SlowTier(), KeptStats()
    filler = Filler(tier, stats)
    filler.put({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    for number in range(1, 101):
        filler.put({_key(number): entry()}, POLICIES)
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
    filler.put({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    for number in range(1, 4):
        filler.put({_key(number): entry(), _key(-number): entry()}, POLICIES)
    assert stats.refused == {(Tier.L2, "queue_full"): 2}
    tier.gate.set()
    filler.flush()
    assert set(tier.held) == {_key(number) for number in (0, 1, -1, 2, -2)}


def test_the_newest_of_several_waiting_copies_goes_out() -> None:
    """Whatever order they were queued in."""
    tier = SlowTier()
    filler = Filler(tier, KeptStats())
    filler.put({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    filler.put({_key(1): entry(9)}, POLICIES)
    filler.put({_key(1): entry(8)}, POLICIES)
    tier.gate.set()
    filler.flush()
    assert tier.held[_key(1)] == entry(9)


def test_a_fill_that_cannot_be_written_does_not_end_the_filling() -> None:
    """It is counted; the thread goes on."""

    class Choosy(MemoryTier):
        def put_many(
            self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], *, since: int = NEVER_BEGUN
        ) -> bool:
            if _key(13) in entries:
                raise ValueError("unlucky")
            return super().put_many(entries, policies)

    tier, stats = Choosy(Tier.L2), KeptStats()
    filler = Filler(tier, stats)
    filler.put({_key(13): entry()}, POLICIES)
    filler.flush()
    filler.put({_key(14): entry()}, POLICIES)
    filler.flush()
    assert list(tier.held) == [_key(14)]
    assert stats.refused == {(Tier.L2, "error"): 1}


def test_a_flush_before_the_first_fill_returns() -> None:
    Filler(MemoryTier(Tier.L2), KeptStats()).flush()


def test_a_fill_ends_its_leases() -> None:
    """Those of entities that the source knew nothing to keep of as well, and when it could not be read at all."""
    tier = MemoryTier(Tier.L2)
    filler = Filler(tier, KeptStats())
    filler.fill({_key(1): entry()}, POLICIES, _leased(tier, _key(1), _key(2)))
    filler.fill({}, POLICIES, _leased(tier, _key(3)))
    filler.flush()
    assert tier.held == {_key(1): entry()}
    assert tier.leases == {}


def test_leased_and_free_fills_that_wait_together_both_arrive() -> None:
    """One whose lease is gone is refused, alone."""
    tier = SlowTier()
    filler = Filler(tier, KeptStats())
    filler.put({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    lost = _leased(tier, _key(1))
    filler.fill({_key(1): entry()}, POLICIES, lost)
    filler.fill({_key(2): entry()}, POLICIES, _leased(tier, _key(2)))
    filler.put({_key(3): entry()}, POLICIES)
    tier.drop_many([_key(1)])
    tier.gate.set()
    filler.flush()
    assert set(tier.held) == {_key(0), _key(2), _key(3)}


@pytest.mark.parametrize("lost_one_comes", ["first", "last"])
def test_a_fill_whose_lease_was_lost_does_not_arrive_under_another_one(lost_one_comes: str) -> None:
    """An invalidation came between two reads of an entity by this process, and both wait to be written.

    The first read what the invalidation was about: also the group that only it has read.
    """
    tier = SlowTier()
    filler = Filler(tier, KeptStats())
    filler.put({_key(0): entry()}, POLICIES)
    tier.entered.wait(10)
    old, unread = _key(1), _key(1, "other")
    lost = _leased(tier, old, unread)
    tier.drop_many([old, unread])
    fills = [({old: entry(1), unread: entry(1)}, lost), ({old: entry(2)}, _leased(tier, old))]
    for entries, leases in fills if lost_one_comes == "first" else reversed(fills):
        filler.fill(entries, POLICIES, leases)
    tier.gate.set()
    filler.flush()
    assert tier.held == {_key(0): entry(), old: entry(2)}
    assert tier.leases == {}
