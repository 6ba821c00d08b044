"""One look-up on its way down the tiers: what it has found, what it still looks for, what would do if need be."""

from collections.abc import Callable, Mapping

import msgspec

from mlserve.cache.bloom import Membership
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.loading import Loader
from mlserve.cache.outcome import Degradation, Outcome, Tier, TierTrace
from mlserve.cache.policy import Policy, Verdict
from mlserve.cache.stats import Stats
from mlserve.cache.tiers.base import Found


class Search(msgspec.Struct):
    """`open`: the keys that nobody has had yet. `at_least`: the versions that the caller has seen."""

    policies: Mapping[str, Policy]
    loader: Loader
    membership: Membership
    now: float
    max_age_s: float | None
    at_least: Mapping[Key, int]
    traceless: bool
    stats: Stats
    life_share: Callable[[Key], float]
    open: list[Key]
    trace: list[TierTrace]
    found: dict[Key, tuple[Entry, Tier]] = {}
    """What will be served, and who had it."""
    expired: dict[Key, tuple[Entry, Tier]] = {}
    """The newest copy that does not serve, in case the source cannot be reached."""
    seen_in_l2: Found = {}
    into_l1: dict[Key, Entry] = {}
    refreshing: set[Key] = set()
    source_failed: bool = False
    spared: set[Key] = set()
    """Served although past their limit, unproven or older than `at_least`, the source being away."""
    degradations: set[Degradation] = set()
    degraded: dict[Key, set[Degradation]] = {}
    """The same by key."""

    def flag(self, key: Key, degradation: Degradation) -> None:
        self.degradations.add(degradation)
        self.degraded.setdefault(key, set()).add(degradation)

    # --- what a copy is worth to this look-up ---

    def verdict(self, key: Key, entry: Entry, *, life_share: float = 1.0) -> Verdict:
        verdict = self.policies[key.group].verdict(entry, now=self.now, max_age_s=self.max_age_s, life_share=life_share)
        return verdict if self.reaches(key, entry) else Verdict.UNPROVEN

    def reaches(self, key: Key, entry: Entry) -> bool:
        """Whether a copy is no older than what the caller has seen of the key."""
        return entry.version >= self.at_least.get(key, 0)

    def has_spare(self, key: Key) -> bool:
        """Whether there is a copy that may serve, flagged, while the source is away."""
        held = self.expired.get(key)
        return held is not None and self.policies[key.group].within_grace(held[0], now=self.now)

    def serves_meanwhile(self, key: Key) -> bool:
        """Whether the spare copy may serve although the source is not away, while somebody else loads."""
        return self.has_spare(key) and self.reaches(key, self.expired[key][0])

    # --- what happens to it ---

    def keep_newest(self, key: Key, entry: Entry, tier: Tier) -> None:
        """A copy that does not serve."""
        if key not in self.expired or self.expired[key][0].version <= entry.version:
            self.expired[key] = (entry, tier)

    def close_found(self) -> None:
        self.open = [key for key in self.open if key not in self.found]

    def asked(self, looked_up: TierTrace) -> None:
        """A tier that was asked in two steps has one line."""
        for held in self.trace:
            if held.tier is looked_up.tier:
                held.asked += looked_up.asked
                held.hit += looked_up.hit
                held.ms += looked_up.ms
                return
        self.trace.append(looked_up)

    def serve_spares(self) -> None:
        """What is within its grace period serves flagged, the rest has no value at all."""
        for key in self.open:
            if not self.has_spare(key):
                self.flag(key, Degradation.SOURCE_UNAVAILABLE)
                continue
            self.found[key] = held = self.expired[key]
            self.spared.add(key)
            self.stats.late()[key.group].append(max(0.0, self.now - held[0].as_of))
            self.flag(
                key, Degradation.STALE_REFRESHING if key in self.refreshing else Degradation.STALE_SOURCE_UNAVAILABLE
            )

    def outcome(self, key: Key, *, source_tier: Tier) -> Outcome:
        max_age_s = self.policies[key.group].allowed_age_s(self.max_age_s)
        held = self.found.get(key)
        if held is None:
            self.stats.defaulted(key.group)
            return Outcome(key, None, Tier.DEFAULT, 0.0, max_age_s)
        entry, tier = held
        if entry.values is None:
            self.flag(key, Degradation.UNKNOWN_ENTITY)
            self.stats.defaulted(key.group)
            return Outcome(key, entry, Tier.DEFAULT, 0.0, max_age_s, False, (Degradation.UNKNOWN_ENTITY,))
        age_s = max(0.0, self.now - entry.as_of)
        # Said of the moment of the answer: a copy that was fresh when its tier was asked may have passed its limit
        # while the source was read for another key. A limit of 0 forbids copies; what the source says is fresh.
        unproven = key in self.spared and (self.policies[key.group].proven or not self.reaches(key, entry))
        if entry.outdated:
            reasons: tuple[Degradation, ...] = (Degradation.STALE, Degradation.STALE_LEDGER_AHEAD)
        elif unproven or (age_s > max_age_s and not (max_age_s == 0 and tier is source_tier)):
            reasons = (Degradation.STALE,)
        else:
            reasons = ()
        if reasons:
            for reason in reasons:
                self.flag(key, reason)
            self.stats.stale(key.group)
            return Outcome(key, entry, tier, age_s, max_age_s, True, reasons)
        return Outcome(key, entry, tier, age_s, max_age_s)
