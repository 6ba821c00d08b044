"""What every tier promises. A subclass supplies the tier; one that holds nothing says so by `holds`."""

import pytest

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import CacheTier
from tests.cache.doubles import NOW, entry, negative, policy

POLICIES: dict[str, Policy] = {name: policy(name) for name in ("profile", "risk")}
CUSTOMER = Key("customer", "c1", "profile")
SAME_ENTITY = Key("customer", "c1", "risk")
MERCHANT = Key("merchant", "m1", "risk")
ABSENT = Key("merchant", "nobody", "risk")


class TierContract:
    holds = True
    replaces = True
    """False for a tier whose first copy stands, the request's snapshot."""

    @pytest.fixture
    def tier(self) -> CacheTier:
        raise NotImplementedError

    def test_every_key_asked_is_answered(self, tier: CacheTier) -> None:
        """With an entry or a reason, held or not; no key answers nothing."""
        tier.put_many({CUSTOMER: entry()}, POLICIES)
        for ask in (tier.get_many, tier.peek_many):
            found = ask([CUSTOMER, SAME_ENTITY, ABSENT], POLICIES)
            assert list(found) == [CUSTOMER, SAME_ENTITY, ABSENT]
            assert isinstance(found[ABSENT], MissReason)
            assert isinstance(found[SAME_ENTITY], MissReason)
            assert ask([], POLICIES) == {}

    def test_an_entry_comes_back_as_it_was_put(self, tier: CacheTier) -> None:
        """Version, times to the microsecond, values to the last bit, several entities at once, negative ones too."""
        put = {
            CUSTOMER: Entry(2**62, NOW - 3 / 64, NOW + 1 / 64, (0.1, -0.0, 1e300, 2.0**-1074), 5 / 64),
            SAME_ENTITY: entry(7),
            MERCHANT: negative(3),
        }
        assert tier.put_many(put, POLICIES)
        if self.holds:
            assert tier.get_many(list(put), POLICIES) == put
            assert tier.peek_many(list(put), POLICIES) == put

    def test_an_older_version_is_refused(self, tier: CacheTier) -> None:
        """Whoever comes late with what it read earlier changes nothing; a newer or equal version replaces.

        In a snapshot the first copy stands, whatever comes by.
        """
        first, newest, rewritten = entry(9), entry(10), entry(10, age_s=1)
        for each in (first, newest, entry(8)):
            tier.put_many({CUSTOMER: each}, POLICIES)
        if self.holds:
            assert tier.get_many([CUSTOMER], POLICIES) == {CUSTOMER: newest if self.replaces else first}
        tier.put_many({CUSTOMER: rewritten}, POLICIES)
        if self.holds:
            assert tier.get_many([CUSTOMER], POLICIES) == {CUSTOMER: rewritten if self.replaces else first}

    def test_what_is_dropped_is_gone(self, tier: CacheTier) -> None:
        """Only the keys named; dropping what is not there is no error; what was dropped may be put again."""
        tier.put_many({CUSTOMER: entry(5), SAME_ENTITY: entry(5)}, POLICIES)
        assert tier.drop_many([CUSTOMER, ABSENT])
        found = tier.get_many([CUSTOMER, SAME_ENTITY], POLICIES)
        assert isinstance(found[CUSTOMER], MissReason)
        assert not self.holds or found[SAME_ENTITY] == entry(5)
        tier.put_many({CUSTOMER: entry(5)}, POLICIES)
        assert not self.holds or tier.get_many([CUSTOMER], POLICIES)[CUSTOMER] == entry(5)

    def test_nothing_to_do_is_no_error(self, tier: CacheTier) -> None:
        assert tier.put_many({}, POLICIES)
        assert tier.drop_many([])
