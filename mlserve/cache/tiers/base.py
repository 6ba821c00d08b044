"""What every tier can do. The cascade knows tiers only through this."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from mlserve.cache.chain import NEVER_BEGUN
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy

Found = dict[Key, Entry | MissReason]
Entity = tuple[str, str]
"""Kind and id."""


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


class LocalTier(CacheTier, Protocol):
    """A tier in this process's memory."""

    def get(self, key: Key, /) -> Entry | None:
        """One key, as quick as memory allows; counts as a use of the entry."""
        ...

    def peek(self, key: Key, /) -> Entry | None:
        """As `get`, but leaves no trace."""
        ...

    def why_missing(self, key: Key, /) -> MissReason:
        """Of a key that was not there."""
        ...

    @property
    def vouched_at(self) -> float:
        """Whatever was committed before this moment (s since 1970) has been taken out. To be read before a copy is."""
        ...

    def begin(self) -> int:
        """A position for `put_many`, to be taken before anything is read that is going to be put."""
        ...

    def put_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], *, since: int = NEVER_BEGUN
    ) -> bool:
        """Refuses as well what may have changed since the position `since`."""
        ...


class LeaseToken(msgspec.Struct, frozen=True):
    """The right to fill one entity. `record` and `lease` are the names it was granted for.

    `epoch`: of the partition, when it was granted; what is filled carries it. `void`: what its holder saw there may be
    of another epoch, in which versions were others.
    """

    record: bytes
    lease: bytes
    token: bytes
    epoch: int = 0
    void: bool = False


class LeaseAnswer(msgspec.Struct):
    """Every entity asked for is in one of `granted`, `elsewhere`, `unavailable`, or has its keys in `changed`."""

    granted: dict[Entity, LeaseToken]
    elsewhere: set[Entity]
    """Somebody else is loading them."""
    changed: Found
    """Somebody has filled them since they were looked at: here is what they are now."""
    unavailable: set[Entity]
    """The tier did not answer: load without filling."""


class SharedTier(CacheTier, Protocol):
    """A tier that several processes share, and that says which of them loads what is missing.

    `timeout_s` is what the caller has left for it; the tier may have a tighter limit of its own.
    """

    def get_many(
        self, keys: Sequence[Key], policies: Mapping[str, Policy], *, timeout_s: float | None = None
    ) -> Found: ...

    def lease_many(
        self,
        keys: Sequence[Key],
        seen: Mapping[Key, Entry | MissReason],
        policies: Mapping[str, Policy],
        *,
        timeout_s: float | None = None,
    ) -> LeaseAnswer:
        """Ask for the right to load these keys' entities, one lease an entity. `seen`: what the caller found there."""
        ...

    def fill_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], leases: Mapping[Entity, LeaseToken]
    ) -> bool:
        """Keep copies that were read after their entity's lease was granted, and end it; without it: refused."""
        ...

    def release(self, leases: Mapping[Entity, LeaseToken]) -> None:
        """Give leases back without a fill."""
        ...
