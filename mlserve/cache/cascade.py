"""Down the tiers, load what is missing, fill back up. Start reading here.

A look-up goes `request -> l1 -> l2 -> source`. Each tier is asked once, for all keys that are still open; what it
holds is judged by the policy in force now (`policy.py`), not by anything that was decided when it was stored. Ids that
never existed end before the source (`bloom.py`). Who loads what nobody holds, and who waits, `loading.py` decides; a
hot key is reloaded in the background before it expires (`xfetch.py`, `refresher.py`).

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
from mlserve.cache.keys import Key, life_share
from mlserve.cache.loading import WAIT_WITH_COPY_S, Loader, Loading, Order
from mlserve.cache.outcome import Degradation, MissReason, Outcome, Tier, TierTrace
from mlserve.cache.policy import Policy, Verdict
from mlserve.cache.refresher import NullRefresher, Refresher
from mlserve.cache.singleflight import Flight, Flights
from mlserve.cache.stats import NullStats, Stats
from mlserve.cache.tiers.base import Entity, Found, LocalTier, SharedTier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.xfetch import HORIZON_COSTS, refreshes_early

_L1 = Tier.L1  # Python 3.11 takes longer to find a member of an enumeration than a copy in L1
_EVERYBODY = NullMembership()
_NOTHING_WRONG: frozenset[Degradation] = frozenset()
FOLLOW_S = 2.0
"""How long to wait for another thread's look, having nothing to serve: as long as its own waits can add up to."""
_LATENCY_SAMPLE = 16
"""L1's look-ups are timed once in so many: a clock costs a tenth of what it would measure."""


_NO_KEYS: Mapping[Key, AbstractSet[Degradation]] = MappingProxyType({})


class Reading(msgspec.Struct):
    """The outcome of every key asked for, and what each tier did for it. `degraded`: the same degradations by key."""

    outcomes: dict[Key, Outcome]
    trace: list[TierTrace]
    degradations: AbstractSet[Degradation]
    degraded: Mapping[Key, AbstractSet[Degradation]] = _NO_KEYS


class _Search(msgspec.Struct):
    """What one look-up has found on its way down; `open` is what it still looks for."""

    policies: Mapping[str, Policy]
    loader: Loader
    membership: Membership
    now: float
    max_age_s: float | None
    traceless: bool
    stats: Stats
    open: list[Key]
    found: dict[Key, tuple[Entry, Tier]]
    """What will be served, and who had it."""
    expired: dict[Key, tuple[Entry, Tier]]
    """The newest copy past its limit, in case the source cannot be reached."""
    seen_in_l2: Found
    into_l1: dict[Key, Entry]
    refreshing: set[Key]
    source_failed: bool
    spared: set[Key]
    """Served although past their limit or unproven, the source being away."""
    trace: list[TierTrace]
    degradations: set[Degradation]
    degraded: dict[Key, set[Degradation]]

    def flag(self, key: Key, degradation: Degradation) -> None:
        self.degradations.add(degradation)
        self.degraded.setdefault(key, set()).add(degradation)


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
        self._now, self._monotonic, self._l1_get, self._hits = clock.now, clock.monotonic, l1.get, stats.hits
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
        leave_no_trace: bool = False,
        membership: Membership = _EVERYBODY,
    ) -> Reading:
        """An outcome for every key.

        `leave_no_trace` (dry runs) neither fills nor promotes nor counts. `membership`: which entities never existed,
        asked only about those that no tier knows.
        """
        outcomes: dict[Key, Outcome] = {}
        trace: list[TierTrace] = []
        if max_age_s is None and not leave_no_trace and request.latest is None and request.held is None:
            # The hot path: what this process holds and what is fresh beyond doubt. Whatever is decided here
            # `Policy.verdict` would decide alike, more slowly; a test compares the two.
            now, get, hits = self._now(), self._l1_get, self._hits(_L1)
            missing: list[Key] = []
            for key in keys:
                entry = get(key)
                if entry is not None:
                    group = key.group
                    policy = policies[group]
                    age_s = now - entry.as_of
                    if 0.0 <= age_s < policy.surely_fresh_s - HORIZON_COSTS * entry.cost_s and entry.values is not None:
                        outcomes[key] = Outcome(key, entry, _L1, age_s, policy.fresh_for_s)
                        hits[group].append(age_s)
                        continue
                missing.append(key)
            if outcomes:
                elapsed_s = self._now() - now
                trace.append(TierTrace(_L1, len(outcomes), len(outcomes), elapsed_s * 1000))
                self._reads = reads = self._reads + 1
                if not reads % _LATENCY_SAMPLE:
                    self._stats.latency(_L1, {key.group for key in outcomes}, elapsed_s)
                if not missing:
                    request.latest = outcomes
                    return Reading(outcomes, trace, _NOTHING_WRONG)
        else:
            missing = list(keys)
        search = _Search(
            policies=policies,
            loader=loader,
            membership=membership,
            now=self._now(),
            max_age_s=max_age_s,
            traceless=leave_no_trace,
            stats=NullStats() if leave_no_trace else self._stats,
            open=missing,
            found={},
            expired={},
            seen_in_l2={},
            into_l1={},
            refreshing=set(),
            source_failed=False,
            spared=set(),
            trace=trace,
            degradations=set(),
            degraded={},
        )
        self._ask_request(search, request)
        self._ask_l1(search)
        if search.open:
            if self._flights is None or leave_no_trace or max_age_s == 0:
                self._look_below(search, budget)
            else:
                self._look_below_together(search, budget, self._flights)
            self._serve_expired(search)
        for key in missing:
            outcomes[key] = self._outcome(search, key)
        request.remember(outcomes)
        return Reading({key: outcomes[key] for key in keys}, trace, search.degradations, search.degraded)

    # --- the walk, for what needs more thought ---

    def _ask_request(self, search: _Search, request: RequestTier) -> None:
        if request.is_empty:
            return
        held = request.get_many(search.open, search.policies)
        answered = {key: entry for key, entry in held.items() if isinstance(entry, Entry)}
        if answered:
            for key, entry in answered.items():
                search.found[key] = (entry, Tier.REQUEST)
                if entry.values is not None:
                    search.stats.hits(Tier.REQUEST)[key.group].append(max(0.0, search.now - entry.as_of))
            search.open = [key for key in search.open if key not in answered]
            search.trace.append(TierTrace(Tier.REQUEST, asked=len(held), hit=len(answered)))

    def _ask_l1(self, search: _Search) -> None:
        keys = [key for key in search.open if search.policies[key.group].use_l1]
        if keys and not self._bypassed(search, Tier.L1, keys):
            started = self._monotonic()
            held = (self._l1.peek_many if search.traceless else self._l1.get_many)(keys, search.policies)
            self._judge(search, Tier.L1, keys, held, self._monotonic() - started)

    def _look_below_together(self, search: _Search, budget: Budget, flights: Flights) -> None:
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
            self._follow(search, budget, others)
        search.open += left

    def _follow(self, search: _Search, budget: Budget, flights: Mapping[Key, Flight]) -> None:
        search.stats.event("flight_joined", len(flights))
        joined = self._monotonic()
        without: list[Key] = []
        alone: list[Key] = []
        for key, flight in flights.items():
            policy = search.policies[key.group]
            patience_s = WAIT_WITH_COPY_S if self._has_spare(search, key) else FOLLOW_S
            if not flight.wait(max(0.0, joined + patience_s - self._monotonic())):
                if self._has_spare(search, key):
                    search.refreshing.add(key)
                    without.append(key)
                else:
                    alone.append(key)
                continue
            search.now = max(search.now, self._now())
            brought = flight.brought.get(key)
            if brought is None:
                if key in flight.past_limit:
                    _keep_newest(search.expired, key, *flight.past_limit[key])
                if flight.refreshing:
                    search.refreshing.add(key)
                else:
                    search.source_failed = True
                without.append(key)
            elif not policy.verdict(brought[0], now=search.now, max_age_s=search.max_age_s).serves:
                alone.append(key)  # good enough for that thread's request and too old for this one
            else:
                search.found[key] = brought
                if brought[0].values is not None:
                    search.stats.late()[key.group].append(max(0.0, search.now - brought[0].as_of))
        search.open = alone
        if alone:
            self._look_below(search, budget)
        search.open += without

    def _has_spare(self, search: _Search, key: Key) -> bool:
        held = search.expired.get(key)
        return held is not None and search.policies[key.group].within_grace(held[0], now=search.now)

    def _look_below(self, search: _Search, budget: Budget) -> None:
        """L2, the filter of ids, the source; and what was found goes into L1."""
        self._ask_l2(search, budget)
        self._end_with_ids_that_never_were(search)
        self._load(search)
        if search.into_l1 and not search.traceless:
            self._l1.put_many(search.into_l1, search.policies)
            search.into_l1 = {}

    def _ask_l2(self, search: _Search, budget: Budget) -> None:
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

    def _bypassed(self, search: _Search, tier: Tier, keys: Iterable[Key]) -> bool:
        """A request for values of age 0 wants the source itself."""
        if search.max_age_s != 0:
            return False
        for key in keys:
            search.stats.miss(tier, key.group, MissReason.BYPASS)
        return True

    def _judge(self, search: _Search, tier: Tier, keys: Sequence[Key], held: Found, elapsed_s: float) -> None:
        stats, hits, asked = search.stats, search.stats.hits(tier), len(search.found)
        for key in keys:
            entry = held[key]
            if isinstance(entry, MissReason):
                stats.miss(tier, key.group, entry)
                if entry in (MissReason.TIMEOUT, MissReason.BREAKER):
                    search.flag(key, Degradation.CACHE_UNAVAILABLE)
                continue
            policy, share = search.policies[key.group], self._life_share(key)
            verdict = policy.verdict(entry, now=search.now, max_age_s=search.max_age_s, life_share=share)
            if not verdict.serves:
                _keep_newest(search.expired, key, entry, tier)
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
        search.open = [key for key in search.open if key not in search.found]
        stats.latency(tier, {key.group for key in keys}, elapsed_s)
        _add_to_trace(search.trace, TierTrace(tier, len(keys), len(search.found) - asked, elapsed_s * 1000))

    def _refresh_early(self, search: _Search, key: Key, entry: Entry, gap_s: float) -> None:
        if gap_s < HORIZON_COSTS * entry.cost_s:
            uniform = 1.0 - self._random.random()  # in (0, 1]
            if refreshes_early(gap_s=gap_s, cost_s=entry.cost_s, uniform=uniform):
                self._refresher.refresh([key], search.policies, search.loader)

    def _end_with_ids_that_never_were(self, search: _Search) -> None:
        if not search.open or search.max_age_s == 0:
            return
        # What must be proven is not left to the filter: it may be two seconds behind.
        asked = {key.entity for key in search.open} - {
            key.entity for key in search.open if search.policies[key.group].proven
        }
        unknown = {entity for entity in asked if not search.membership.may_exist(*entity)}
        if not unknown:
            return
        for key in search.open:
            if key.entity in unknown:
                search.found[key] = (Entry(0, search.now, search.now, None), Tier.DEFAULT)
        search.open = [key for key in search.open if key.entity not in unknown]
        search.stats.event("unknown_by_filter", len(unknown))

    def _load(self, search: _Search) -> None:
        if not search.open:
            return
        policies, source = search.policies, self._source_tier
        started = self._monotonic()
        spare = {key: search.expired[key][0] for key in search.open if self._has_spare(search, key)}
        loaded = self._loading.load(
            Order(
                keys=search.open,
                policies=policies,
                loader=search.loader,
                seen=search.seen_in_l2,
                spare=spare,
                max_age_s=search.max_age_s,
                strict=search.max_age_s == 0,
                traceless=search.traceless,
            )
        )
        elapsed_s = self._monotonic() - started
        # Ages are told as of a clock read after the load: what was read cannot be from the future.
        search.now = max(search.now, self._now())
        for key, (entry, tier) in loaded.found.items():
            search.found[key] = (entry, tier)
            if policies[key.group].use_l1:
                search.into_l1[key] = entry
            if entry.values is not None:
                counted = search.stats.hits(source) if key in loaded.read else search.stats.late()
                counted[key.group].append(max(0.0, search.now - entry.as_of))
        self._tell_membership(search, {key: search.found[key][0] for key in loaded.read})
        search.refreshing |= loaded.refreshing
        search.source_failed = search.source_failed or loaded.failed
        search.stats.latency(source, {key.group for key in search.open}, elapsed_s)
        _add_to_trace(search.trace, TierTrace(source, len(search.open), len(loaded.found), elapsed_s * 1000))
        search.open = [key for key in search.open if key not in search.found]

    def _tell_membership(self, search: _Search, read: Mapping[Key, Entry]) -> None:
        """What the source said of ids that the filter let through: its false positives are measured by that."""
        exists: dict[Entity, bool] = {}
        for key, entry in read.items():
            exists[key.entity] = exists.get(key.entity, False) or entry.values is not None or entry.version > 0
        if not search.traceless:
            for entity, known in exists.items():
                search.membership.observed(*entity, exists=known)

    def _look_for_copies(self, search: _Search, keys: Sequence[Key]) -> None:
        """The request wanted the source itself, which is away: an old value, flagged, beats none at all."""
        for tier in (self._l1, self._l2):
            for key, entry in tier.peek_many(keys, search.policies).items():
                if isinstance(entry, Entry):
                    _keep_newest(search.expired, key, entry, tier.tier)

    def _serve_expired(self, search: _Search) -> None:
        """What is within its grace period serves flagged, the rest has no value at all."""
        if search.open and search.source_failed and search.max_age_s == 0:
            self._look_for_copies(search, search.open)
        for key in search.open:
            if not self._has_spare(search, key):
                search.flag(key, Degradation.SOURCE_UNAVAILABLE)
                continue
            search.found[key] = held = search.expired[key]
            search.spared.add(key)
            search.stats.late()[key.group].append(max(0.0, search.now - held[0].as_of))
            search.flag(
                key,
                Degradation.STALE_REFRESHING if key in search.refreshing else Degradation.STALE_SOURCE_UNAVAILABLE,
            )

    def _outcome(self, search: _Search, key: Key) -> Outcome:
        max_age_s = search.policies[key.group].allowed_age_s(search.max_age_s)
        held = search.found.get(key)
        if held is None:
            search.stats.defaulted(key.group)
            return Outcome(key, None, Tier.DEFAULT, 0.0, max_age_s)
        entry, tier = held
        if entry.values is None:
            search.flag(key, Degradation.UNKNOWN_ENTITY)
            search.stats.defaulted(key.group)
            return Outcome(key, entry, Tier.DEFAULT, 0.0, max_age_s, False, (Degradation.UNKNOWN_ENTITY,))
        age_s = max(0.0, search.now - entry.as_of)
        # Said of the moment of the answer: a copy that was fresh when its tier was asked may have passed its limit
        # while the source was read for another key. A limit of 0 forbids copies; what the source says is fresh.
        unproven = search.policies[key.group].proven and key in search.spared
        if unproven or (age_s > max_age_s and not (max_age_s == 0 and tier is self._source_tier)):
            search.flag(key, Degradation.STALE)
            search.stats.stale(key.group)
            return Outcome(key, entry, tier, age_s, max_age_s, True, (Degradation.STALE,))
        return Outcome(key, entry, tier, age_s, max_age_s)


def _keep_newest(held: dict[Key, tuple[Entry, Tier]], key: Key, entry: Entry, tier: Tier) -> None:
    if key not in held or held[key][0].version <= entry.version:
        held[key] = (entry, tier)


def _add_to_trace(trace: list[TierTrace], looked_up: TierTrace) -> None:
    """A tier that was asked in two steps has one line."""
    for held in trace:
        if held.tier is looked_up.tier:
            held.asked += looked_up.asked
            held.hit += looked_up.hit
            held.ms += looked_up.ms
            return
    trace.append(looked_up)
