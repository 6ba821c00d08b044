import random

import pytest

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.tiers.base import CacheTier
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.null import NullTier
from mlserve.cache.tiers.request import RequestTier
from tests.cache.doubles import MemoryTier, entry
from tests.cache.tier_contract import CUSTOMER, POLICIES, TierContract


class TestRequestTier(TierContract):
    replaces = False

    @pytest.fixture
    def tier(self) -> CacheTier:
        return RequestTier()


class TestNullTier(TierContract):
    holds = False

    @pytest.fixture
    def tier(self) -> CacheTier:
        return NullTier(Tier.L2)


class TestMemoryTier(TierContract):
    """The double keeps the contract that the real ones keep."""

    @pytest.fixture
    def tier(self) -> CacheTier:
        return MemoryTier(Tier.L2)


class TestL1Tier(TierContract):
    @pytest.fixture
    def tier(self) -> CacheTier:
        return L1Tier(BoundedStore(100, 100_000))

    def test_a_peek_does_not_make_an_entry_recent(self) -> None:
        """An entry that is read stays, whatever comes; peeking changes nothing about which entries stay."""
        keys = [Key("customer", str(number), "profile") for number in range(100)]
        kept = []
        for peeks in (False, True):
            tier = L1Tier(BoundedStore(10, 10_000, random_source=random.Random(0)))
            for key in keys:
                tier.put_many({key: entry()}, POLICIES)
                tier.get_many(keys[:1], POLICIES)
                if peeks:
                    tier.peek_many(keys[1:5], POLICIES)
            found = tier.peek_many(keys, POLICIES)
            kept.append([key for key in keys if found[key] == entry()])
            assert kept[-1][0] == keys[0]
            assert tier.store.evictions == 100 - len(kept[-1]) == 90
        assert kept[0] == kept[1]

    def test_a_miss_says_why(self) -> None:
        """Never there, pushed out or dropped: read or peeked at, it is the same."""
        tier = L1Tier(BoundedStore(1, 1_000))
        cold, evicted, dropped = (Key("customer", name, "profile") for name in "abc")
        tier.put_many(dict.fromkeys((evicted, dropped), entry()), POLICIES)
        tier.drop_many([dropped])
        why = {cold: MissReason.COLD, evicted: MissReason.EVICTED, dropped: MissReason.INVALIDATED}
        assert tier.get_many(list(why), POLICIES) == tier.peek_many(list(why), POLICIES) == why

    def test_an_entry_is_handed_out_by_reference(self) -> None:
        """No copy, no decoding: the very object that was put."""
        tier, held = L1Tier(BoundedStore(3, 3_000)), entry()
        tier.put_many({CUSTOMER: held}, POLICIES)
        assert tier.get_many([CUSTOMER], POLICIES)[CUSTOMER] is held

    def test_the_store_is_bounded_by_bytes(self) -> None:
        """Few large entries push out as much as many small ones; one larger than the store leaves nothing behind."""
        store = BoundedStore(1_000, 10_000)
        tier = L1Tier(store)
        keys = [Key("customer", str(i), "profile") for i in range(50)]
        tier.put_many({key: Entry(1, 0.0, 0.0, (0.0,) * 50) for key in keys}, POLICIES)
        assert store.weight_bytes <= 10_000
        assert len(store) == 10_000 // Entry(1, 0.0, 0.0, (0.0,) * 50).size_bytes
        assert store.evictions == 50 - len(store)
        tier.put_many({keys[-1]: Entry(2, 0.0, 0.0, (0.0,) * 1_000)}, POLICIES)
        assert tier.peek_many([keys[-1]], POLICIES)[keys[-1]] is MissReason.EVICTED
