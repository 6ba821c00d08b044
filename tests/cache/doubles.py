"""The few doubles of the engine's ports, all of them here: a tier in memory, statistics that are kept, a source."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from mlserve.cache.bloom import Membership
from mlserve.cache.chain import NEVER_BEGUN
from mlserve.cache.codec import identity
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.loading import SourceUnavailable
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.stats import EVENTS, NullStats
from mlserve.cache.tiers.base import Entity, Found, LeaseAnswer, LeaseToken, LocalTier, SharedTier
from tests.fixtures.clock import ManualClock

NOW = 1_700_000_000.0


class BusyClock(ManualClock):
    """While somebody sleeps, `meanwhile` is done, one thing a sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        if self.meanwhile:
            self.meanwhile.pop(0)()


def policy(namespace: str = "group", **changes: object) -> Policy:
    """60 s fresh, 600 s grace, 5 s negative, both tiers."""
    values: dict[str, object] = {"schema": 1, "fresh_for_s": 60, "grace_s": 600, "negative_ttl_s": 5}
    return Policy(namespace=namespace, **{**values, **changes})  # type: ignore[arg-type]


def entry(version: int = 1, *, age_s: float = 0.0, copy_age_s: float | None = None, now: float = NOW) -> Entry:
    """An entry whose only value is its version; the copy is as old as the value unless said otherwise."""
    written_at = now - (age_s if copy_age_s is None else copy_age_s)
    return Entry(version, now - age_s, written_at, (float(version),))


def negative(version: int = 0, *, copy_age_s: float = 0.0, now: float = NOW) -> Entry:
    return Entry(version, now - copy_age_s, now - copy_age_s, None)


class MemoryTier(LocalTier, SharedTier):
    """A dictionary. `outage` makes it fail as a tier may: a reason for every key, and nothing taken."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.held: dict[Key, Entry] = {}
        self.leases: dict[Entity, LeaseToken] = {}
        self.outage: MissReason | None = None
        self.calls: list[str] = []

    def get(self, key: Key, /) -> Entry | None:
        return None if self.outage else self.held.get(key)

    peek = get

    def why_missing(self, key: Key, /) -> MissReason:
        return self.outage or MissReason.COLD

    def get_many(self, keys: Sequence[Key], policies: Mapping[str, Policy], *, timeout_s: float | None = None) -> Found:
        self.calls.append("get")
        return self._found(keys)

    def peek_many(self, keys: Sequence[Key], policies: Mapping[str, Policy]) -> Found:
        self.calls.append("peek")
        return self._found(keys)

    vouched_at = 0.0

    def begin(self) -> int:
        return NEVER_BEGUN

    def put_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], *, since: int = NEVER_BEGUN
    ) -> bool:
        self.calls.append("put")
        if self.outage:
            return False
        for key, new in entries.items():
            held = self.held.get(key)
            if held is None or held.version <= new.version:
                self.held[key] = new
        return True

    def drop_many(self, keys: Sequence[Key]) -> bool:
        self.calls.append("drop")
        if self.outage:
            return False
        for key in keys:
            self.held.pop(key, None)
            self.leases.pop(key.entity, None)
        return True

    def lease_many(
        self,
        keys: Sequence[Key],
        seen: Mapping[Key, Entry | MissReason],
        policies: Mapping[str, Policy],
        *,
        timeout_s: float | None = None,
    ) -> LeaseAnswer:
        self.calls.append("lease")
        answer = LeaseAnswer({}, set(), {}, set())
        for entity in dict.fromkeys(key.entity for key in keys):
            of_entity = [key for key in keys if key.entity == entity]
            if self.outage:
                answer.unavailable.add(entity)
            elif any(self._has_changed(key, seen.get(key, MissReason.COLD)) for key in of_entity):
                answer.changed.update(self._found(of_entity))
            elif entity in self.leases:
                answer.elsewhere.add(entity)
            else:
                answer.granted[entity] = self.take_lease(entity)
        return answer

    def take_lease(self, entity: Entity) -> LeaseToken:
        """As another process would."""
        self.leases[entity] = LeaseToken(b"", b"", str(len(self.calls)).encode())
        return self.leases[entity]

    def _has_changed(self, key: Key, seen: Entry | MissReason) -> bool:
        held = self.held.get(key)
        if isinstance(seen, Entry):
            return held is None or identity(held) != identity(seen)
        return held is not None and seen not in (MissReason.DECODE, MissReason.SCHEMA, MissReason.BYPASS)

    def fill_many(
        self, entries: Mapping[Key, Entry], policies: Mapping[str, Policy], leases: Mapping[Entity, LeaseToken]
    ) -> bool:
        mine = {
            key: entry
            for key, entry in entries.items()
            if key.entity in leases and self.leases.get(key.entity) is leases[key.entity]
        }
        arrived = self.put_many(mine, policies)
        self.release({key.entity: leases[key.entity] for key in mine})
        return arrived

    def release(self, leases: Mapping[Entity, LeaseToken]) -> None:
        for entity, lease in leases.items():
            if self.leases.get(entity) is lease:
                del self.leases[entity]

    def _found(self, keys: Sequence[Key]) -> Found:
        if self.outage:
            return dict.fromkeys(keys, self.outage)
        return {key: self.held.get(key, MissReason.COLD) for key in keys}


class KeptStats(NullStats):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.ages: defaultdict[Tier | str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.misses: Counter[tuple[Tier, str, MissReason]] = Counter()
        self.asked: Counter[Tier] = Counter()
        self.source_errors: Counter[str] = Counter()
        self.refused: Counter[tuple[Tier, str]] = Counter()
        self.staleness: Counter[str] = Counter()
        self.defaults: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hits(self, tier: Tier) -> Mapping[str, list[float]]:
        return self.ages[tier]

    def late(self) -> Mapping[str, list[float]]:
        return self.ages["late"]

    def miss(self, tier: Tier, namespace: str, reason: MissReason) -> None:
        self.misses[tier, namespace, reason] += 1

    def latency(self, tier: Tier, namespaces: Iterable[str], seconds: float) -> None:
        self.asked[tier] += 1

    def source_error(self, reason: str) -> None:
        self.source_errors[reason] += 1

    def fill_refused(self, tier: Tier, reason: str, count: int) -> None:
        self.refused[tier, reason] += count

    def stale(self, namespace: str) -> None:
        self.staleness[namespace] += 1

    def defaulted(self, namespace: str) -> None:
        self.defaults[namespace] += 1

    def event(self, what: str, count: int = 1) -> None:
        assert what in EVENTS
        with self._lock:
            self.events[what] += count

    def counts_of(self, tier: Tier) -> tuple[int, dict[MissReason, int]]:
        """Hits, and misses by reason."""
        reasons: Counter[MissReason] = Counter()
        for (where, _, reason), count in self.misses.items():
            if where is tier:
                reasons[reason] += count
        return sum(len(ages) for ages in self.ages[tier].values()), dict(reasons)


class KnownIds(Membership):
    """Only these entities may exist. `told` keeps what the source said of them."""

    def __init__(self, *known: Entity) -> None:
        self._known = set(known)
        self.asked: list[Entity] = []
        self.told: dict[Entity, bool] = {}

    def may_exist(self, kind: str, entity_id: str) -> bool:
        self.asked.append((kind, entity_id))
        return (kind, entity_id) in self._known

    def observed(self, kind: str, entity_id: str, *, exists: bool) -> None:
        self.told[kind, entity_id] = exists


class MemorySource:
    """The source of truth: rows with versions that rise, each read `reading_s` long. `away` makes it fail."""

    def __init__(self, clock: ManualClock) -> None:
        self.rows: dict[Key, Entry] = {}
        self.away = False
        self.reading_s = 0.0
        self.asked: list[list[Key]] = []
        self._clock = clock
        self._version = 0

    def write(self, key: Key) -> Entry:
        self._version += 1
        now = self._clock.now()
        self.rows[key] = Entry(self._version, now, now, (float(self._version),))
        return self.rows[key]

    def load(self, keys: Sequence[Key]) -> Mapping[Key, Entry]:
        self.asked.append(list(keys))
        if self.away:
            raise SourceUnavailable("database")
        now = self._clock.now()
        self._clock.advance(self.reading_s)
        loaded = {}
        for key in keys:
            row = self.rows.get(key)
            loaded[key] = Entry(0, now, now, None) if row is None else Entry(row.version, row.as_of, now, row.values)
        return loaded
