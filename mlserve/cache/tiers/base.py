"""What every tier can do. The cascade knows tiers only through this."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy

Found = dict[Key, Entry | MissReason]


class CacheTier(Protocol):
    """Never raises: a tier that is broken answers every key with a reason, refuses copies and counts both.

    `policies` maps each key's group to the policy in force.
    """

    tier: Tier

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        """An entry or the reason of the miss for every key asked; entries are not judged for freshness here."""
        ...

    def peek_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        """As `get_many`, but leaves no trace: no recency, no counters."""
        ...

    def put_many(self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy]) -> bool:
        """Keep copies; an entry that is older by version than the one held is refused.

        False if the tier could not be told and may still hold an older copy.
        """
        ...

    def drop_many(self, keys: Sequence[Key]) -> bool:
        """Forget. False if the tier could not be told, in which case the caller must try again."""
        ...
