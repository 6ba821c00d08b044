"""Who reads the source when nobody holds a key: one caller at a time among all processes.

Without it an expired hot key sends every process that wants it to Postgres at once (a stampede, a thundering herd).
Within a process, threads have already been brought together (`singleflight.py`).

Whoever gets the entity's lease in L2 loads and fills (`lua/lease.lua`). The others look again at short, jittered
intervals. They wait briefly if they have a copy that may still serve, flagged; otherwise somewhat longer, since all
they could do instead is what the lease is there to prevent. When the wait is over, because a holder died, say, they
serve that copy or load without filling. So a lost lease delays nobody by more than its bound.

How many loads can be under way in this process is the loader's own limit (`limiter.py`).
R. Nishtala et al.: "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from mlserve.cache.clock import Clock
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key
from mlserve.cache.negatives import NegativeQuota
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.stats import Stats
from mlserve.cache.tiers.base import Entity, LeaseToken, SharedTier

Loader = Callable[[Sequence[Key]], Mapping[Key, Entry]]
"""Reads keys from the source: an entry for each, negative where it knows nothing. Raises `SourceUnavailable`."""

WAIT_WITH_COPY_S = 0.05
"""For somebody else's load, having a copy that may serve flagged."""
WAIT_WITHOUT_COPY_S = 0.5
"""The same with nothing to serve. Reading the source takes a millisecond; a herd on few processors may take the holder
some hundred."""
_FIRST_PAUSE_S = 0.003
_LONGEST_PAUSE_S = 0.05


class SourceUnavailable(Exception):
    """The source did not answer. `reason` is short and of a closed set: it becomes a metric label."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Order(msgspec.Struct):
    """What is to be loaded, for one read.

    `seen`: what L2 answered for each key that it was asked for. `spare`: copies past their limit that may still serve,
    flagged. `at_least`: copies with a smaller version do not count. `strict`: the source itself is wanted, so other
    callers' loads do not count. `traceless`: fill nothing.
    """

    keys: Sequence[Key]
    policies: Mapping[str, Policy]
    loader: Loader
    seen: Mapping[Key, Entry | MissReason]
    spare: Mapping[Key, Entry]
    max_age_s: float | None = None
    at_least: Mapping[Key, int] = msgspec.field(default_factory=dict)
    strict: bool = False
    traceless: bool = False


class Loaded(msgspec.Struct):
    """What became of an order. A key that is in neither has no value to be had.

    `refreshing`: another caller is at it, so the spare copy serves. `read`: what this order itself read from the
    source. `failed`: the source was asked and did not answer.
    """

    found: dict[Key, tuple[Entry, Tier]]
    refreshing: set[Key]
    read: set[Key]
    failed: bool = False


class Loading(Protocol):
    """How a cascade gets what no tier has."""

    def load(self, order: Order) -> Loaded:
        """Never raises on account of a tier or the source."""
        ...


class DirectLoading:
    """For a source that is cheaper than any coordination (a prediction is computed in microseconds)."""

    def __init__(self, *, filler: Filler, stats: Stats, source_tier: Tier) -> None:
        self._filler = filler
        self._stats = stats
        self._source_tier = source_tier

    def load(self, order: Order) -> Loaded:
        loaded = Loaded({}, set(), set())
        try:
            entries = order.loader(order.keys)
        except SourceUnavailable as error:
            self._stats.source_error(error.reason)
            loaded.failed = True
            return loaded
        loaded.found = {key: (entry, self._source_tier) for key, entry in entries.items()}
        loaded.read = set(entries)
        if not order.traceless:
            into_l2 = {key: entry for key, entry in entries.items() if order.policies[key.group].use_l2}
            if into_l2:
                self._filler.put(into_l2, order.policies)
        return loaded


class CoordinatedLoading:
    """For a source that must be spared. One per process; thread-safe."""

    def __init__(
        self,
        *,
        l2: SharedTier,
        filler: Filler,
        negatives: NegativeQuota,
        stats: Stats,
        clock: Clock,
        source_tier: Tier,
        random_source: random.Random | None = None,
    ) -> None:
        self._l2 = l2
        self._filler = filler
        self._negatives = negatives
        self._stats = stats
        self._clock = clock
        self._source_tier = source_tier
        self._random = random_source or random.Random()

    def load(self, order: Order) -> Loaded:
        loaded = Loaded({}, set(), set())
        if order.traceless:
            self._read_source(order, order.keys, loaded)
        elif order.strict:
            self._read_strictly(order, loaded)
        else:
            self._read_under_leases(order, loaded)
        return loaded

    # --- one caller among all processes ---

    def _read_under_leases(self, order: Order, loaded: Loaded) -> None:
        keys = order.keys
        leasable = [key for key in keys if self._can_be_leased(order, key)]
        to_read = [key for key in keys if key not in set(leasable)]
        started, pause_s = self._clock.monotonic(), _FIRST_PAUSE_S
        while True:
            leases, elsewhere = self._ask_for_leases(order, leasable, to_read, loaded)
            if to_read:
                self._read_and_fill(order, [key for key in keys if key in set(to_read)], leases, loaded)
            if not elsewhere:
                return
            patience_s = WAIT_WITH_COPY_S if all(key in order.spare for key in elsewhere) else WAIT_WITHOUT_COPY_S
            if self._clock.monotonic() - started >= patience_s:
                self._stats.event("lease_overdue", len(elsewhere))
                self._do_without(order, elsewhere, loaded)
                return
            if pause_s == _FIRST_PAUSE_S:
                self._stats.event("lease_waited", len(elsewhere))
            self._clock.sleep(pause_s * self._random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            leasable, to_read = elsewhere, []

    def _can_be_leased(self, order: Order, key: Key) -> bool:
        """Also where the look-up timed out: if that was L2's fault, its breaker is open and says no at once."""
        return order.policies[key.group].use_l2 and order.seen.get(key) is not MissReason.BREAKER

    def _ask_for_leases(
        self, order: Order, keys: list[Key], to_read: list[Key], loaded: Loaded, *, again: bool = True
    ) -> tuple[dict[Entity, LeaseToken], list[Key]]:
        """The leases that were granted, and the keys that somebody else loads; adds to `to_read` what is ours to do."""
        if not keys:
            return {}, []
        # Not on the request's budget: a lease spares the source, and L2 is not known to be away.
        answer = self._l2.lease_many(keys, order.seen, order.policies)
        granted, elsewhere, unknown = dict(answer.granted), [], []
        for key in keys:
            held = answer.changed.get(key)
            if key.entity in answer.elsewhere:
                elsewhere.append(key)
            elif isinstance(held, Entry) and self._is_usable(order, key, held):
                self._stats.event("filled_meanwhile")
                loaded.found[key] = (held, Tier.L2)
            elif held is not None and again:
                # Not what the caller saw, and of no use: this is what it has seen now.
                unknown.append(key)
            else:
                to_read.append(key)
        if unknown:
            order.seen = {**order.seen, **{key: answer.changed[key] for key in unknown}}
            more, others = self._ask_for_leases(order, unknown, to_read, loaded, again=False)
            granted |= more
            elsewhere += others
        return granted, elsewhere

    def _is_usable(self, order: Order, key: Key, held: Entry) -> bool:
        verdict = order.policies[key.group].verdict(held, now=self._clock.now(), max_age_s=order.max_age_s)
        return verdict.serves and held.version >= order.at_least.get(key, 0)

    def _do_without(self, order: Order, keys: Sequence[Key], loaded: Loaded) -> None:
        """The wait was in vain: the spare copy, or the source without the right to fill."""
        loaded.refreshing.update(key for key in keys if key in order.spare)
        rest = [key for key in keys if key not in order.spare]
        if rest:
            self._read_source(order, rest, loaded)

    # --- reading the source ---

    def _read_strictly(self, order: Order, loaded: Loaded) -> None:
        """Wanted is the source, now: a lease is only asked for in order to fill."""
        leasable = [key for key in order.keys if self._can_be_leased(order, key)]
        granted: Mapping[Entity, LeaseToken] = {}
        if leasable:
            # Whatever lies there does not count, so nothing of it can have changed.
            unseen: dict[Key, Entry | MissReason] = dict.fromkeys(leasable, MissReason.BYPASS)
            granted = self._l2.lease_many(leasable, unseen, order.policies).granted
        self._read_and_fill(order, order.keys, granted, loaded)

    def _read_and_fill(
        self, order: Order, keys: Sequence[Key], leases: Mapping[Entity, LeaseToken], loaded: Loaded
    ) -> None:
        entries: Mapping[Key, Entry] = {}
        try:
            entries = self._read_source(order, keys, loaded)
        finally:
            if leases:  # they end, whatever was read
                kept = {key: entry for key, entry in entries.items() if self._may_keep(order, key, entry, leases)}
                self._filler.fill(kept, order.policies, leases)

    def _may_keep(self, order: Order, key: Key, entry: Entry, leases: Mapping[Entity, LeaseToken]) -> bool:
        policy = order.policies[key.group]
        if key.entity not in leases or not policy.use_l2 or entry.outdated:
            return False
        if entry.values is not None or self._negatives.grant(policy.negative_ttl_s):
            return True
        self._stats.event("negative_refused")
        return False

    def _read_source(self, order: Order, keys: Iterable[Key], loaded: Loaded) -> Mapping[Key, Entry]:
        wanted = list(keys)
        started = self._clock.monotonic()
        try:
            read = order.loader(wanted)
        except SourceUnavailable as error:
            self._stats.source_error(error.reason)
            loaded.failed = True
            return {}
        cost_s = self._clock.monotonic() - started
        entries = {key: measured(entry, cost_s) for key, entry in read.items()}
        for key, entry in entries.items():
            loaded.found[key] = (entry, self._source_tier)
        loaded.read.update(entries)
        return entries


def measured(entry: Entry, cost_s: float) -> Entry:
    """The entry with how long the source took to answer."""
    return Entry(entry.version, entry.as_of, entry.written_at, entry.values, cost_s, entry.vouched_at, entry.outdated)
