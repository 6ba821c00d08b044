"""A tier that holds nothing: for a policy that bypasses a tier, and as the plainest reading of the contract."""

from collections.abc import Mapping, Sequence

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import Found


class NullTier:
    """Misses everything, for the reason `bypass`."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        return dict.fromkeys(keys, MissReason.BYPASS)

    peek_many = get_many

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        return True

    def drop_many(self, keys: Sequence[Key]) -> bool:
        return True
