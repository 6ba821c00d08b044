"""Down the tiers, load what is missing, fill back up. Start reading here.

A look-up goes `request -> l1 -> l2 -> source`. Each tier is asked once, for all keys that are still open; what it
holds is judged by the policy in force now (`policy.py`), not by anything that was decided when it was stored. What no
tier can answer is loaded from the source in one call and copied into the tiers above, L2 off the request's path.

If the source cannot be reached, a copy that is past its limit serves within the policy's grace period, and says so.
Nothing here raises on account of a tier: the worst that a broken cache can do is to send a request to the source.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from mlserve.cache.budget import Budget
from mlserve.cache.clock import Clock
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key
from mlserve.cache.outcome import Degradation, MissReason, Outcome, Tier, TierTrace
from mlserve.cache.policy import Policy, Verdict
from mlserve.cache.stats import NullStats, Stats
from mlserve.cache.tiers.base import CacheTier
from mlserve.cache.tiers.request import RequestTier

Loader = Callable[[Sequence[Key]], Mapping[Key, Entry]]
"""Reads keys from the source: an entry for each, negative where it knows nothing. Raises `SourceUnavailable`."""


class SourceUnavailable(Exception):
    """The source did not answer. `reason` is short and of a closed set: it becomes a metric label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reading(msgspec.Struct):
    """The outcome of every key asked for, and what each tier did for it."""

    outcomes: dict[Key, Outcome]
    trace: list[TierTrace]
    degradations: set[Degradation]


class _Search(msgspec.Struct):
    """One look-up on its way down."""

    keys: Sequence[Key]
    policies: Mapping[str, Policy]
    now: float
    max_age_s: float | None
    stats: Stats
    open: list[Key]
    found: dict[Key, tuple[Entry, Tier]]
    """What will be served, and who had it."""
    expired: dict[Key, tuple[Entry, Tier]]
    """The newest copy past its limit, in case the source cannot be reached."""
    trace: list[TierTrace]
    degradations: set[Degradation]


class Cascade:
    """One per process. Thread-safe; the request tier is per call.

    `source_tier` names the source in outcomes: `l3` for features, `computed` for predictions.
    """

    def __init__(
        self, *, l1: CacheTier, l2: CacheTier, filler: Filler, stats: Stats, clock: Clock, source_tier: Tier = Tier.L3
    ) -> None:
        self._l1 = l1
        self._l2 = l2
        self._filler = filler
        self._stats = stats
        self._clock = clock
        self._source_tier = source_tier

    def read_many(
        self,
        keys: Sequence[Key],
        *,
        policies: Mapping[str, Policy],
        loader: Loader,
        request: RequestTier,
        budget: Budget,
        max_age_s: float | None = None,
        leave_no_trace: bool = False,
    ) -> Reading:
        """An outcome for every key. `leave_no_trace` (dry runs) neither fills nor promotes nor counts."""
        search = _Search(
            keys=keys,
            policies=policies,
            now=self._clock.now(),
            max_age_s=max_age_s,
            stats=NullStats() if leave_no_trace else self._stats,
            open=list(keys),
            found={},
            expired={},
            trace=[],
            degradations=set(),
        )
        self._ask_request(search, request)
        self._ask(search, self._l1, [key for key in search.open if policies[key.group].use_l1], peek=leave_no_trace)
        self._ask_l2(search, budget, peek=leave_no_trace)
        loaded = self._load(search, loader)
        if not leave_no_trace:
            self._fill_up(search, loaded)
        request.put_many({key: entry for key, (entry, _) in search.found.items()}, policies)
        return Reading(
            outcomes={key: self._outcome(search, key) for key in keys},
            trace=search.trace,
            degradations=search.degradations,
        )

    def _ask_request(self, search: _Search, request: RequestTier) -> None:
        held = request.get_many(search.open, search.policies)
        answered = {key: entry for key, entry in held.items() if isinstance(entry, Entry)}
        if answered:
            for key, entry in answered.items():
                search.found[key] = (entry, Tier.REQUEST)
                search.stats.hit(Tier.REQUEST, key.group)
            search.open = [key for key in search.open if key not in answered]
            search.trace.append(TierTrace(Tier.REQUEST, asked=len(held), hit=len(answered)))

    def _ask(self, search: _Search, tier: CacheTier, keys: Sequence[Key], *, peek: bool) -> None:
        if not keys:
            return
        name, stats = tier.tier, search.stats
        if search.max_age_s == 0:
            for key in keys:
                stats.miss(name, key.group, MissReason.BYPASS)
            return
        started = self._clock.monotonic()
        held = (tier.peek_many if peek else tier.get_many)(keys, search.policies)
        elapsed_s = self._clock.monotonic() - started
        hits = 0
        for key in keys:
            entry = held[key]
            if isinstance(entry, Entry):
                verdict = search.policies[key.group].verdict(entry, now=search.now, max_age_s=search.max_age_s)
                if verdict is not Verdict.EXPIRED:
                    search.found[key] = (entry, name)
                    stats.hit(name, key.group)
                    hits += 1
                    continue
                _keep_newest(search.expired, key, entry, name)
                entry = MissReason.EXPIRED
            stats.miss(name, key.group, entry)
            if entry in (MissReason.TIMEOUT, MissReason.BREAKER):
                search.degradations.add(Degradation.CACHE_UNAVAILABLE)
        search.open = [key for key in search.open if key not in search.found]
        stats.latency(name, elapsed_s)
        search.trace.append(TierTrace(name, asked=len(keys), hit=hits, ms=elapsed_s * 1000))

    def _ask_l2(self, search: _Search, budget: Budget, *, peek: bool) -> None:
        keys = [key for key in search.open if search.policies[key.group].use_l2]
        if keys and budget.spent():
            for key in keys:
                search.stats.miss(Tier.L2, key.group, MissReason.TIMEOUT)
            search.degradations.add(Degradation.CACHE_UNAVAILABLE)
            return
        self._ask(search, self._l2, keys, peek=peek)

    def _load(self, search: _Search, loader: Loader) -> Mapping[Key, Entry]:
        if not search.open:
            return {}
        missing, source, stats = search.open, self._source_tier, search.stats
        started = self._clock.monotonic()
        try:
            loaded = loader(missing)
        except SourceUnavailable as error:
            stats.source_error(error.reason)
            if search.max_age_s == 0:
                self._look_for_copies(search)
            self._serve_expired(search)
            loaded = {}
        elapsed_s = self._clock.monotonic() - started
        # Ages are told as of a clock read after the load: what was read cannot be from the future.
        search.now = max(search.now, self._clock.now())
        for key, entry in loaded.items():
            search.found[key] = (entry, source)
            stats.load(key.group, 1)
        stats.latency(source, elapsed_s)
        search.trace.append(TierTrace(source, asked=len(missing), hit=len(loaded), ms=elapsed_s * 1000))
        return loaded

    def _look_for_copies(self, search: _Search) -> None:
        """The request wanted the source itself, which is away: an old value, flagged, beats none at all."""
        for tier in (self._l1, self._l2):
            for key, entry in tier.peek_many(search.open, search.policies).items():
                if isinstance(entry, Entry):
                    _keep_newest(search.expired, key, entry, tier.tier)

    def _serve_expired(self, search: _Search) -> None:
        """The source is away: what is within its grace period serves flagged, the rest has no value at all."""
        for key in search.open:
            held = search.expired.get(key)
            if held is not None and search.policies[key.group].within_grace(held[0], now=search.now):
                search.found[key] = held
                search.degradations.add(Degradation.STALE_SOURCE_UNAVAILABLE)
            else:
                search.degradations.add(Degradation.SOURCE_UNAVAILABLE)

    def _fill_up(self, search: _Search, loaded: Mapping[Key, Entry]) -> None:
        policies = search.policies
        into_l1 = {
            key: entry
            for key, (entry, tier) in search.found.items()
            if tier in (Tier.L2, self._source_tier) and policies[key.group].use_l1
        }
        if into_l1:
            self._l1.put_many(into_l1, policies)
        into_l2 = {key: entry for key, entry in loaded.items() if policies[key.group].use_l2}
        if into_l2:
            self._filler.fill(into_l2, policies)

    def _outcome(self, search: _Search, key: Key) -> Outcome:
        policy = search.policies[key.group]
        max_age_s = policy.allowed_age_s(search.max_age_s)
        held = search.found.get(key)
        if held is None:
            search.stats.served(key.group, None, stale=False)
            return Outcome(key, None, Tier.DEFAULT, 0, 0.0, 0.0, max_age_s, stale=False)
        entry, tier = held
        if entry.values is None:
            search.degradations.add(Degradation.UNKNOWN_ENTITY)
            search.stats.served(key.group, None, stale=False)
            return Outcome(
                key, None, Tier.DEFAULT, entry.version, 0.0, 0.0, max_age_s, False, (Degradation.UNKNOWN_ENTITY,)
            )
        degradations: tuple[Degradation, ...] = ()
        age_s = max(0.0, search.now - entry.as_of)
        # Said of the moment of the answer: a copy that was fresh when its tier was asked may have passed its limit
        # while the source was read for another key. A limit of 0 forbids copies; what the source says is fresh.
        stale = age_s > max_age_s and not (max_age_s == 0 and tier is self._source_tier)
        if stale:
            search.degradations.add(Degradation.STALE)
            degradations = (Degradation.STALE,)
        search.stats.served(key.group, age_s, stale=stale)
        return Outcome(key, entry.values, tier, entry.version, entry.as_of, age_s, max_age_s, stale, degradations)


def _keep_newest(expired: dict[Key, tuple[Entry, Tier]], key: Key, entry: Entry, tier: Tier) -> None:
    held = expired.get(key)
    if entry.values is not None and (held is None or held[0].version <= entry.version):
        expired[key] = (entry, tier)
