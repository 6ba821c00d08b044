"""Whether a copy may be served, decided at read time from the policy in force now.

Nothing about freshness is frozen into a stored entry: an operator who shortens a TTL is obeyed at once by every
copy that already exists. A copy is judged by two ages:

* the age of the *values* (`now - as_of`): past the limit they are stale, whoever holds them;
* the age of the *copy* (`now - written_at`): a copy whose values are stale, but which was read from the source a
  moment ago, is not worth another read of the source, which itself has nothing newer. It is served, flagged.
"""

from collections.abc import Mapping
from enum import Enum

import msgspec

from mlserve.cache.entry import Entry
from mlserve.cache.keys import JITTER_SHARE

RECHECK_SHARE = 0.1
RECHECK_LIMIT_S = 5.0
"""How soon a source whose values are past their limit is asked again: a tenth of the limit, at most this."""
CLOCK_SKEW_S = 60.0
"""Hosts' clocks may differ by this much. A copy from further in the future would be fresh until then: refused."""


NEVER = -1.0


class Verdict(Enum):
    FRESH = "fresh"
    STALE_AT_SOURCE = "stale at the source"
    EXPIRED = "expired"
    UNPROVEN = "unproven"
    """Nobody vouches for it, or not lately enough; it may be fresh all the same."""

    @property
    def serves(self) -> bool:
        return self is not Verdict.EXPIRED and self is not Verdict.UNPROVEN


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How long copies of one namespace (a feature group, or `prediction`) count as fresh. Durations in seconds."""

    namespace: str
    schema: int
    fresh_for_s: float
    grace_s: float
    negative_ttl_s: float
    use_l1: bool = True
    use_l2: bool = True
    fail_when_missing: bool = False
    fixed_values: int | None = None
    repeated_values: int = 0
    """A value has `fixed_values` numbers and then any number of runs of `repeated_values`; None: any number at all."""
    proven: bool = False
    """Copies count only while somebody vouches for them (`Entry.vouched_at`), not longer than `bound_s` ago."""
    bound_s: float = 1.0
    surely_fresh_s: float = NEVER
    """Derived: copies in L1 up to this age are fresh whatever their key's jitter; if freshness need not be proven."""

    def __post_init__(self) -> None:
        quick = self.use_l1 and self.fresh_for_s > 0
        sure_s = self.fresh_for_s * (1 - JITTER_SHARE) if quick else NEVER
        msgspec.structs.force_setattr(self, "surely_fresh_s", sure_s)

    def allowed_age_s(self, max_age_s: float | None) -> float:
        """The tighter of policy and request. A request for 0 means "read the source", not "values of age 0"."""
        if not max_age_s:
            return self.fresh_for_s
        return min(self.fresh_for_s, max_age_s)

    def verdict(self, entry: Entry, *, now: float, max_age_s: float | None, life_share: float = 1.0) -> Verdict:
        """What a copy is worth at `now` (s since 1970) under the policy and the request's `max_age_s`.

        `life_share` is the key's (`keys.life_share`): a copy is given up at that share of the policy's limit, so that
        copies of one moment do not all expire in one moment. Values within the limit are never called stale for it.
        """
        if self.proven and now - entry.vouched_at > self.bound_s:
            return Verdict.UNPROVEN
        copy_age_s = now - entry.written_at
        if entry.values is None:
            limit_s = self.negative_ttl_s if max_age_s is None else min(self.negative_ttl_s, max_age_s)
            return Verdict.FRESH if -CLOCK_SKEW_S <= copy_age_s <= limit_s else Verdict.EXPIRED
        if entry.as_of > now + CLOCK_SKEW_S:
            return Verdict.EXPIRED
        allowed_s, age_s = self.allowed_age_s(max_age_s), now - entry.as_of
        if age_s <= min(allowed_s, self.fresh_for_s * life_share):
            return Verdict.FRESH
        if -CLOCK_SKEW_S <= copy_age_s <= min(RECHECK_LIMIT_S, RECHECK_SHARE * allowed_s):
            return Verdict.FRESH if age_s <= allowed_s else Verdict.STALE_AT_SOURCE
        return Verdict.EXPIRED

    def fits(self, entry: Entry) -> bool:
        """Whether an entry has as many numbers as its namespace's values have."""
        if entry.values is None or self.fixed_values is None:
            return True
        beyond = len(entry.values) - self.fixed_values
        return beyond == 0 if not self.repeated_values else beyond >= 0 and beyond % self.repeated_values == 0

    def within_grace(self, entry: Entry, *, now: float) -> bool:
        """Whether an expired copy may still serve, flagged, while the source cannot be reached."""
        return entry.values is not None and -CLOCK_SKEW_S <= now - entry.as_of <= self.fresh_for_s + self.grace_s

    def keep_for_s(self, entry: Entry) -> float:
        """Upper limit of a copy's stay in Redis, counted from its writing; expiry itself is decided at read."""
        return max(1.0, self.negative_ttl_s if entry.values is None else self.fresh_for_s + self.grace_s)


class PolicyBook(msgspec.Struct, frozen=True):
    """All policies in force at one moment, and the version that scores name.

    `is_confirmed`: the source has said so, to this process. Otherwise they are what was in force when it last did.
    """

    version: int
    policies: Mapping[str, Policy]
    is_confirmed: bool = True

    def __getitem__(self, namespace: str) -> Policy:
        return self.policies[namespace]
