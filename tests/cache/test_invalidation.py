from collections.abc import Sequence

from mlserve.cache.invalidation import Everywhere, PendingInvalidations
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from tests.cache.doubles import MemoryTier, entry, policy

KEYS = [Key("customer", str(i), "group") for i in range(3)]
POLICIES = {"group": policy()}


def test_what_a_tier_could_not_be_told_is_delivered_later() -> None:
    """However often it fails in between."""
    tier = MemoryTier(Tier.L2)
    pending = PendingInvalidations(tier)
    tier.put_many(dict.fromkeys(KEYS, entry()), POLICIES)
    tier.outage = MissReason.TIMEOUT
    assert not pending.drop(KEYS[:2])
    for _ in range(3):
        pending.retry()
        assert len(pending) == 2
    tier.outage = None
    pending.retry()
    assert len(pending) == 0
    assert list(tier.held) == KEYS[2:]


def test_what_was_told_at_once_is_not_pending() -> None:
    pending = PendingInvalidations(MemoryTier(Tier.L2))
    assert pending.drop(KEYS)
    assert len(pending) == 0


def test_nothing_pending_asks_the_tier_nothing() -> None:
    tier = MemoryTier(Tier.L2)
    PendingInvalidations(tier).retry()
    assert tier.calls == []


class _InvalidatedMeanwhile(MemoryTier):
    """While it drops, somebody else finds out that the same key must go once more, and one more."""

    pending: PendingInvalidations

    def drop_many(self, keys: Sequence[Key]) -> bool:
        dropped = super().drop_many(keys)
        if self.calls.count("drop") == 1:
            self.pending.remember(KEYS[:2])
        return dropped


def test_a_key_that_is_invalidated_again_during_delivery_stays_pending() -> None:
    """The copy that it means may have come after the one that was just dropped."""
    tier = _InvalidatedMeanwhile(Tier.L2)
    tier.pending = pending = PendingInvalidations(tier)
    pending.remember(KEYS[:1])
    pending.retry()
    assert len(pending) == 2
    pending.retry()
    assert len(pending) == 0


def test_many_are_delivered_in_parts() -> None:
    """A part that fails leaves itself and what comes after it pending."""
    tier = MemoryTier(Tier.L2)
    pending = PendingInvalidations(tier)
    pending.remember([Key("customer", str(i), "group") for i in range(2_500)])
    pending.retry()
    assert tier.calls == ["drop"] * 3
    assert len(pending) == 0


class _Teller:
    """L2 or the bus: notes its turn; says no as often as it is told to."""

    def __init__(self, name: str, turns: list[str]) -> None:
        self.name, self.turns, self.refusals = name, turns, 0

    def drop_many(self, keys: Sequence[Key]) -> bool:
        self.turns.append(self.name)
        self.refusals -= 1
        return self.refusals < 0

    withdraw = drop_many


def test_everywhere_is_l2_and_then_the_memory_of_every_process() -> None:
    """The other way round a process could take the copy from L2 again. What one was not told, both are told again."""
    turns: list[str] = []
    l2, bus = _Teller("l2", turns), _Teller("bus", turns)
    pending = PendingInvalidations(Everywhere(l2, bus))
    assert pending.drop(KEYS[:1]) and turns == ["l2", "bus"]
    bus.refusals = 1
    assert not pending.drop(KEYS[:1]) and len(pending) == 1
    l2.refusals = 1
    pending.retry()
    assert turns[4:] == ["l2"] and len(pending) == 1
    pending.retry()
    assert turns[5:] == ["l2", "bus"] and len(pending) == 0
