"""What a read of the cache returns: the value, and everything needed to judge it."""

from enum import StrEnum

import msgspec

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key


class Tier(StrEnum):
    """Who answered. `COMPUTED` is the model (predictions only); `DEFAULT` means that nobody knew."""

    REQUEST = "request"
    L1 = "l1"
    L2 = "l2"
    L3 = "l3"
    COMPUTED = "computed"
    DEFAULT = "default"


class MissReason(StrEnum):
    """Why a tier did not answer: one reason per miss, so that the reasons add up to the misses."""

    COLD = "cold"
    EXPIRED = "expired"
    EVICTED = "evicted"
    INVALIDATED = "invalidated"
    NEGATIVE = "negative"
    SCHEMA = "schema"
    DECODE = "decode"
    TIMEOUT = "timeout"
    BREAKER = "breaker"
    BYPASS = "bypass"
    UNPROVEN = "unproven"


class Degradation(StrEnum):
    """Why an outcome is not what a healthy system would have returned.

    All but the first stand in `degraded_reasons`.
    """

    UNKNOWN_ENTITY = "unknown_entity"
    """The source has no values for this entity; defaults were used. No fault of the system: there is nothing to know.
    An answer says `cold_start` then, and is not degraded for it."""
    STALE = "stale"
    """The newest value that the source has is older than the policy allows, or does not follow from what it knows."""
    STALE_LEDGER_AHEAD = "stale_ledger_ahead"
    """The ledger was changed (an import, a label, by hand), and the values behind it are not derived anew yet."""
    STALE_SOURCE_UNAVAILABLE = "stale_source_unavailable"
    """The source could not be reached; a copy past its limit served within the grace period."""
    STALE_REFRESHING = "stale_refreshing"
    """Somebody else is loading the value right now; a copy past its limit served within the grace period."""
    SOURCE_UNAVAILABLE = "source_unavailable"
    """The source could not be reached and no usable copy was left; defaults were used."""
    CACHE_UNAVAILABLE = "cache_unavailable"
    """L2 did not answer in time; the source was read instead."""
    WINDOW_INCOMPLETE = "window_incomplete"
    """The transaction is too late for the recent history that is kept: its windows may miss some."""
    EMBEDDING_BUILDS_DIFFER = "embedding_builds_differ"
    """The customer's and the merchant's embeddings are of two builds; the affinity is its default."""
    DECISION_SPOOLED = "decision_spooled"
    """Postgres could not take the decision; it lies in the durable spool of the host and follows."""
    MODEL_UNCONFIRMED = "model_unconfirmed"
    """Postgres has not answered this process yet; the model is the one that served on this host when it last did."""
    MODEL_FALLBACK = "model_fallback"
    """The model version that is active cannot be loaded; the last one that could goes on serving."""
    POLICIES_UNCONFIRMED = "policies_unconfirmed"
    """Postgres has not answered this process yet; the policies are those of when it last answered on this host, or the
    defaults where nobody knows any more."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One key's answer. `values` is None if and only if `tier` is `DEFAULT`.

    `entry` is the copy that answered, None where nobody had one. `as_of` is when the source computed the value (seconds
    since 1970), never reset by copying; `age_s` is now minus that, `max_age_s` what policy and request allowed.
    """

    key: Key
    entry: Entry | None
    tier: Tier
    age_s: float
    max_age_s: float
    stale: bool = False
    degradations: tuple[Degradation, ...] = ()

    @property
    def values(self) -> tuple[float, ...] | None:
        return self.entry.values if self.entry is not None else None

    @property
    def version(self) -> int:
        return self.entry.version if self.entry is not None else 0

    @property
    def as_of(self) -> float:
        """0 where there is no value."""
        return self.entry.as_of if self.entry is not None and self.entry.values is not None else 0.0


class TierTrace(msgspec.Struct):
    """What one tier did for one request."""

    tier: Tier
    asked: int = 0
    hit: int = 0
    ms: float = 0.0
