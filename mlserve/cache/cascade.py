"""Down the tiers, load what is missing, fill back up. Start reading here.

A look-up goes `request -> l1 -> l2 -> source`. Each tier is asked once, for all keys that are still open; what it
holds is judged by the policy in force now (`policy.py`), not by anything that was decided when it was stored. Ids that
never existed end before the source (`bloom.py`). Threads that look for the same key go together (`singleflight.py`,
`following.py`). Who loads what nobody holds, and who waits, `loading.py` decides; a hot key is reloaded in the
background before it expires (`xfetch.py`, `refresher.py`). What one look-up knows is a `Search` (`search.py`).

If the source cannot be reached, a copy that is past its limit serves within the policy's grace period, and says so.
Nothing here raises on account of a tier: the worst that a broken cache can do is to send a request to the source.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType

import msgspec

from mlserve.cache.bloom import Membership, NullMembership
from mlserve.cache.budget import Budget
from mlserve.cache.clock import Clock
from mlserve.cache.entry import Entry
from mlserve.cache.following import follow
from mlserve.cache.keys import Key, life_share
from mlserve.cache.loading import Loader, Loading, Order
from mlserve.cache.outcome import Degradation, MissReason, Outcome, Tier, TierTrace
from mlserve.cache.policy import Policy, Verdict
from mlserve.cache.refresher import NullRefresher, Refresher
from mlserve.cache.search import Search
from mlserve.cache.singleflight import Flights
from mlserve.cache.stats import NullStats, Stats
from mlserve.cache.tiers.base import Entity, Found, LocalTier, SharedTier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.xfetch import HORIZON_COSTS, refreshes_early

_L1 = Tier.L1  # Python 3.11 takes longer to find a member of an enumeration than a copy in L1
_EVERYBODY = NullMembership()
_SILENT = NullStats()
_NOTHING_WRONG: frozenset[Degradation] = frozenset()
_NOTHING_SEEN: Mapping[Key, int] = MappingProxyType({})
_LATENCY_SAMPLE = 16
"""L1's look-ups are timed once in so many: a clock costs a tenth of what it would measure."""


_NO_KEYS: Mapping[Key, AbstractSet[Degradation]] = MappingProxyType({})


class Reading(msgspec.Struct):
    """The outcome of every key asked for, and what each tier did for it. `degraded`: the same degradations by key."""

    outcomes: dict[Key, Outcome]
    trace: list[TierTrace]
    degradations: AbstractSet[Degradation]
    degraded: Mapping[Key, AbstractSet[Degradation]] = _NO_KEYS


class Cascade:
    """One per process. Thread-safe; the request tier is per call.

    `source_tier` names the source in outcomes: `l3` for features, `computed` for predictions. `flights`: threads wait
    for one another's looks below L1; not worth it where the source is cheaper than the waiting.
    """

    def __init__(
        self,
        *,
        l1: LocalTier,
        l2: SharedTier,
        loading: Loading,
        stats: Stats,
        clock: Clock,
        source_tier: Tier = Tier.L3,
        refresher: Refresher | NullRefresher | None = None,
        flights: Flights | None = None,
        random_source: random.Random | None = None,
        life_share: Callable[[Key], float] = life_share,
    ) -> None:
        self._l1 = l1
        self._l2 = l2
        self._loading = loading
        self._stats = stats
        self._clock = clock
        self._source_tier = source_tier
        self._refresher = refresher or NullRefresher()
        self._flights = flights
        self._random = random_source or random.Random()
        self._life_share = life_share
        self._now, self._monotonic, self._l1_get, self._l1_peek = clock.now, clock.monotonic, l1.get, l1.peek
        self._reads = 0

    def read_many(
        self,
        keys: Sequence[Key],
        *,
        policies: Mapping[str, Policy],
        loader: Loader,
        request: RequestTier,
        budget: Budget,
        max_age_s: float | None = None,
        at_least: Mapping[Key, int] | None = None,
        leave_no_trace: bool = False,
        membership: Membership = _EVERYBODY,
    ) -> Reading:
        """An outcome for every key.

        `at_least`: the versions that the caller has seen. A copy with a smaller one is a miss; it serves, flagged, only
        while the source is away. What the source says counts, whatever its version.
        `leave_no_trace` (dry runs) neither fills nor promotes nor counts. `membership`: which entities never existed,
        asked only about those that no tier knows.
        """
        outcomes: dict[Key, Outcome] = {}
        trace: list[TierTrace] = []
        absent: list[Key] = []
        stats = _SILENT if leave_no_trace else self._stats
        if max_age_s is None and not at_least and request.latest is None and request.held is None:
            # The hot path: what this process holds and what is fresh beyond doubt. Whatever is decided here
            # `Policy.verdict` would decide alike, more slowly; a test compares the two.
            now, get, hits = self._now(), self._l1_peek if leave_no_trace else self._l1_get, stats.hits(_L1)
            # Before the copies that it vouches for: what is heard in between takes a copy away and moves this on.
            vouched_s = now - self._l1.vouched_at
            missing: list[Key] = []
            for key in keys:
                entry = get(key)
                if entry is None:
                    absent.append(key)
                else:
                    group = key.group
                    policy = policies[group]
                    age_s = now - entry.as_of
                    if (
                        0.0 <= age_s < policy.surely_fresh_s - HORIZON_COSTS * entry.cost_s
                        and entry.values is not None
                        and (not policy.proven or (vouched_s <= policy.bound_s and entry.vouched_at > 0.0))
                    ):
                        outcomes[key] = Outcome(key, entry, _L1, age_s, policy.fresh_for_s)
                        hits[group].append(age_s)
                        continue
                missing.append(key)
            if outcomes:
                elapsed_s = self._now() - now
                trace.append(TierTrace(_L1, len(outcomes), len(outcomes), elapsed_s * 1000))
                self._reads = reads = self._reads + 1
                if not reads % _LATENCY_SAMPLE:
                    stats.latency(_L1, {key.group for key in outcomes}, elapsed_s)
                if not missing:
                    request.latest = outcomes
                    return Reading(outcomes, trace, _NOTHING_WRONG)
        else:
            missing = list(keys)
        search = Search(
            policies=policies,
            loader=loader,
            membership=membership,
            now=self._now(),
            max_age_s=max_age_s,
            at_least=at_least or _NOTHING_SEEN,
            traceless=leave_no_trace,
            stats=stats,
            life_share=self._life_share,
            open=missing,
            trace=trace,
        )
        self._ask_request(search, request)
        self._ask_l1(search, absent)
        if search.open:
            if self._flights is None or leave_no_trace or max_age_s == 0:
                self._look_below(search, budget)
            else:
                self._look_below_together(search, budget, self._flights)
            if search.open and search.source_failed and search.max_age_s == 0:
                self._look_for_copies(search)
            search.serve_spares()
        for key in missing:
            outcomes[key] = search.outcome(key, source_tier=self._source_tier)
        request.remember(outcomes)
        return Reading({key: outcomes[key] for key in keys}, trace, search.degradations, search.degraded)

    # --- the walk, for what needs more thought ---

    def _ask_request(self, search: Search, request: RequestTier) -> None:
        if request.is_empty:
            return
        held = request.get_many(search.open, search.policies)
        entries = {key: entry for key, entry in held.items() if isinstance(entry, Entry)}
        answered = {key: entry for key, entry in entries.items() if search.reaches(key, entry)}
        for key in entries.keys() - answered.keys():
            search.keep_newest(key, entries[key], Tier.REQUEST)
        if answered:
            for key, entry in answered.items():
                search.found[key] = (entry, Tier.REQUEST)
                if entry.values is not None:
                    search.stats.hits(Tier.REQUEST)[key.group].append(max(0.0, search.now - entry.as_of))
            search.open = [key for key in search.open if key not in answered]
            search.trace.append(TierTrace(Tier.REQUEST, asked=len(held), hit=len(answered)))

    def _ask_l1(self, search: Search, absent: Sequence[Key]) -> None:
        """`absent`: what was not there a moment ago is not looked for again."""
        keys = [key for key in search.open if search.policies[key.group].use_l1]
        was_absent = frozenset(absent)
        if gone := [key for key in keys if key in was_absent]:
            for key in gone:
                search.stats.miss(_L1, key.group, self._l1.why_missing(key))
            search.asked(TierTrace(_L1, len(gone)))
            keys = [key for key in keys if key not in was_absent]
        if keys and not self._bypassed(search, Tier.L1, keys):
            started = self._monotonic()
            held = (self._l1.peek_many if search.traceless else self._l1.get_many)(keys, search.policies)
            self._judge(search, Tier.L1, keys, held, self._monotonic() - started)

    def _look_below_together(self, search: Search, budget: Budget, flights: Flights) -> None:
        """Below L1 one thread of the process looks for a key, and the others wait for what it brings."""
        flight, mine, others = flights.board(search.open, now=self._monotonic())
        search.open = mine
        try:
            if mine:
                self._look_below(search, budget)
        finally:
            # Copies past their limit as well: who waited without asking L2 has none of its own to fall back to.
            flights.land(flight, mine, {**search.found}, {**search.expired}, refreshing=bool(search.refreshing))
        left = search.open
        search.open = []
        if others:
            alone, without = follow(search, others, clock=self._clock)
            search.open = alone
            if alone:
                self._look_below(search, budget)
            search.open += without
        search.open += left

    def _look_below(self, search: Search, budget: Budget) -> None:
        """L2, the filter of ids, the source; and what was found goes into L1, unless it may have changed meanwhile."""
        since = self._l1.begin()
        self._ask_l2(search, budget)
        self._end_with_ids_that_never_were(search)
        self._load(search)
        if search.into_l1 and not search.traceless:
            self._l1.put_many(search.into_l1, search.policies, since=since)
            search.into_l1 = {}

    def _ask_l2(self, search: Search, budget: Budget) -> None:
        keys = [key for key in search.open if search.policies[key.group].use_l2]
        if not keys or self._bypassed(search, Tier.L2, keys):
            return
        if budget.spent():
            search.seen_in_l2 = dict.fromkeys(keys, MissReason.TIMEOUT)
            for key in keys:
                search.stats.miss(Tier.L2, key.group, MissReason.TIMEOUT)
                search.flag(key, Degradation.CACHE_UNAVAILABLE)
            return
        started = self._monotonic()
        search.seen_in_l2 = held = self._l2.get_many(keys, search.policies, timeout_s=budget.left_s())
        self._judge(search, Tier.L2, keys, held, self._monotonic() - started)

    def _bypassed(self, search: Search, tier: Tier, keys: Iterable[Key]) -> bool:
        """A request for values of age 0 wants the source itself."""
        if search.max_age_s != 0:
            return False
        for key in keys:
            search.stats.miss(tier, key.group, MissReason.BYPASS)
        return True

    def _judge(self, search: Search, tier: Tier, keys: Sequence[Key], held: Found, elapsed_s: float) -> None:
        stats, hits, asked = search.stats, search.stats.hits(tier), len(search.found)
        for key in keys:
            entry = held[key]
            if isinstance(entry, MissReason):
                stats.miss(tier, key.group, entry)
                if entry in (MissReason.TIMEOUT, MissReason.BREAKER):
                    search.flag(key, Degradation.CACHE_UNAVAILABLE)
                continue
            policy, share = search.policies[key.group], self._life_share(key)
            verdict = search.verdict(key, entry, life_share=share)
            if not verdict.serves:
                search.keep_newest(key, entry, tier)
                reason = MissReason.EXPIRED if verdict is Verdict.EXPIRED else MissReason.UNPROVEN
                stats.miss(tier, key.group, reason)
                continue
            search.found[key] = (entry, tier)
            if tier is Tier.L2 and policy.use_l1:
                search.into_l1[key] = entry
            if entry.values is None:
                stats.miss(tier, key.group, MissReason.NEGATIVE)
                continue
            hits[key.group].append(max(0.0, search.now - entry.as_of))
            if verdict is Verdict.FRESH and not search.traceless:
                self._refresh_early(search, key, entry, policy.fresh_for_s * share - (search.now - entry.as_of))
        search.close_found()
        stats.latency(tier, {key.group for key in keys}, elapsed_s)
        search.asked(TierTrace(tier, len(keys), len(search.found) - asked, elapsed_s * 1000))

    def _refresh_early(self, search: Search, key: Key, entry: Entry, gap_s: float) -> None:
        if gap_s < HORIZON_COSTS * entry.cost_s:
            uniform = 1.0 - self._random.random()  # in (0, 1]
            if refreshes_early(gap_s=gap_s, cost_s=entry.cost_s, uniform=uniform):
                self._refresher.refresh([key], search.policies, search.loader)

    def _end_with_ids_that_never_were(self, search: Search) -> None:
        if not search.open or search.max_age_s == 0:
            return
        # What must be proven is not left to the filter: it may be two seconds behind.
        asked = {key.entity for key in search.open} - {
            key.entity for key in search.open if search.policies[key.group].proven or search.at_least.get(key)
        }
        unknown = {entity for entity in asked if not search.membership.may_exist(*entity)}
        if not unknown:
            return
        for key in search.open:
            if key.entity in unknown:
                search.found[key] = (Entry(0, search.now, search.now, None), Tier.DEFAULT)
        search.open = [key for key in search.open if key.entity not in unknown]
        search.stats.event("unknown_by_filter", len(unknown))

    def _load(self, search: Search) -> None:
        if not search.open:
            return
        policies, source = search.policies, self._source_tier
        started = self._monotonic()
        spare = {key: search.expired[key][0] for key in search.open if search.serves_meanwhile(key)}
        loaded = self._loading.load(
            Order(
                keys=search.open,
                policies=policies,
                loader=search.loader,
                seen=search.seen_in_l2,
                spare=spare,
                max_age_s=search.max_age_s,
                at_least=search.at_least,
                strict=search.max_age_s == 0,
                traceless=search.traceless,
            )
        )
        elapsed_s = self._monotonic() - started
        # Ages are told as of a clock read after the load: what was read cannot be from the future.
        search.now = max(search.now, self._now())
        for key, (entry, tier) in loaded.found.items():
            search.found[key] = (entry, tier)
            if policies[key.group].use_l1 and not entry.outdated:
                search.into_l1[key] = entry
            if entry.values is not None:
                counted = search.stats.hits(source) if key in loaded.read else search.stats.late()
                counted[key.group].append(max(0.0, search.now - entry.as_of))
        self._tell_membership(search, {key: search.found[key][0] for key in loaded.read})
        search.refreshing |= loaded.refreshing
        search.source_failed = search.source_failed or loaded.failed
        search.stats.latency(source, {key.group for key in search.open}, elapsed_s)
        search.asked(TierTrace(source, len(search.open), len(loaded.found), elapsed_s * 1000))
        search.close_found()

    def _tell_membership(self, search: Search, read: Mapping[Key, Entry]) -> None:
        """What the source said of ids that the filter let through: its false positives are measured by that."""
        exists: dict[Entity, bool] = {}
        for key, entry in read.items():
            exists[key.entity] = exists.get(key.entity, False) or entry.values is not None or entry.version > 0
        if not search.traceless:
            for entity, known in exists.items():
                search.membership.observed(*entity, exists=known)

    def _look_for_copies(self, search: Search) -> None:
        """The request wanted the source itself, which is away: an old value, flagged, beats none at all."""
        for tier in (self._l1, self._l2):
            for key, entry in tier.peek_many(search.open, search.policies).items():
                if isinstance(entry, Entry):
                    search.keep_newest(key, entry, tier.tier)
