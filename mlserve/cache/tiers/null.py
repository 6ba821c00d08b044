"""A tier that holds nothing: for a policy that bypasses a tier, and as the plainest reading of the contract."""

from collections.abc import Mapping, Sequence

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.tiers.base import Entity, Found, LeaseAnswer, LeaseToken


class NullTier:
    """Misses everything, for the reason `bypass`."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier

    def get(self, _key: Key, /) -> Entry | None:
        return None

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy], *, timeout_s: float | None = None) -> Found:
        return dict.fromkeys(keys, MissReason.BYPASS)

    peek_many = get_many

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        return True

    def drop_many(self, keys: Sequence[Key]) -> bool:
        return True

    def lease_many(
        self,
        keys: Sequence[Key],
        seen: Mapping[Key, Entry | MissReason],
        policies: Mapping[str, Policy],
        *,
        timeout_s: float | None = None,
    ) -> LeaseAnswer:
        """Nobody need be asked: everybody may load, nothing is kept."""
        return LeaseAnswer({}, set(), {}, {key.entity for key in keys})

    def fill_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], leases: Mapping[Entity, LeaseToken]
    ) -> bool:
        return True

    def release(self, leases: Mapping[Entity, LeaseToken]) -> None:
        return None
