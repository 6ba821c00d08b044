"""The cascade against a plain model of its rules."""

from collections import Counter
from collections.abc import Mapping, Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, life_share
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.policy import CLOCK_SKEW_S, Policy, Verdict
from mlserve.cache.refresher import NullRefresher
from mlserve.cache.tiers.base import Entity
from tests.cache.doubles import policy
from tests.cache.worlds import World

POLICIES: dict[str, Policy] = {
    "both": policy("both"),
    "no_l1": policy("no_l1", use_l1=False),
    "no_l2": policy("no_l2", use_l2=False, fresh_for_s=20),
    "neither": policy("neither", use_l1=False, use_l2=False),
}
ENTITIES: list[Entity] = [("customer", "a"), ("customer", "b")]
KEYS = [Key(*entity, group) for entity in ENTITIES for group in POLICIES]
Served = tuple[Tier, Entry]


class CascadeAgainstAModel(RuleBasedStateMachine):
    """Whatever happens to tiers, source, time and policies: every read is what the rules, written plainly, say."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(POLICIES, refresher=NullRefresher())
        self.asked: Counter[Tier] = Counter()

    @initialize(keys=st.sets(st.sampled_from(KEYS)))
    def known(self, keys: set[Key]) -> None:
        for key in keys:
            self.world.source.write(key)

    @rule(key=st.sampled_from(KEYS))
    def write(self, key: Key) -> None:
        self.world.source.write(key)

    @rule(seconds=st.sampled_from([0.5, 1.9, 2.1, 4.9, 5.1, 19.0, 21.0, 59.0, 61.0, 300.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule(group=st.sampled_from(list(POLICIES)), fresh_for_s=st.sampled_from([5.0, 20.0, 60.0]))
    def edit_policy(self, group: str, fresh_for_s: float) -> None:
        self.world.policies[group] = policy(
            group, fresh_for_s=fresh_for_s, use_l1=POLICIES[group].use_l1, use_l2=POLICIES[group].use_l2
        )

    @rule(reason=st.sampled_from([None, MissReason.TIMEOUT, MissReason.BREAKER]))
    def l2_changes(self, reason: MissReason | None) -> None:
        self.world.memory.outage = reason

    @rule(away=st.booleans())
    def source_changes(self, away: bool) -> None:
        self.world.source.away = away

    @rule(from_l1=st.booleans(), key=st.sampled_from(KEYS))
    def evict(self, from_l1: bool, key: Key) -> None:
        tier = self.world.l1 if from_l1 else self.world.memory
        tier.held.pop(key, None)

    @rule(keys=st.sets(st.sampled_from(KEYS), min_size=1))
    def invalidate(self, keys: set[Key]) -> None:
        for tier in (self.world.l1, self.world.memory):
            tier.drop_many(list(keys))

    @rule(seconds=st.sampled_from([0.5, 30.0, 61.0, 700.0]))
    def set_clock_back(self, seconds: float) -> None:
        self.world.clock.set_back(seconds)

    @rule(entity=st.sampled_from(ENTITIES), taken=st.booleans())
    def another_process_loads(self, entity: Entity, taken: bool) -> None:
        self.world.memory.leases.pop(entity, None)
        if taken:
            self.world.memory.take_lease(entity)

    @rule(
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6, unique=True),
        max_age_s=st.sampled_from([None, None, 0.0, 1.0, 30.0, 1_000.0]),
        dry=st.booleans(),
    )
    def read(self, keys: list[Key], max_age_s: float | None, dry: bool) -> None:
        world = self.world
        answers = {key: self._answer(key, max_age_s) for key in keys}
        missing = [key for key in keys if answers[key] is None]
        elsewhere = {key for key in missing if max_age_s != 0 and not dry and self._is_leased(key)}
        spare = {key: held for key in missing if (held := self._spare(key)) is not None}
        asked = [
            [key for key in missing if key not in elsewhere],
            [key for key in missing if key in elsewhere and key not in spare],
        ]
        for key in (*asked[0], *asked[1]):
            answers[key] = self._source(key)
        leases_before, calls_before = dict(world.memory.leases), len(world.source.asked)
        outcomes = world.read(*keys, max_age_s=max_age_s, leave_no_trace=dry).outcomes
        world.settle()
        assert world.source.asked[calls_before:] == [call for call in asked if call]
        assert world.memory.leases == leases_before
        for key, outcome in outcomes.items():
            served = answers[key] or spare.get(key)
            if answers[key] is None and served and not self._within_grace(key, served[1]):
                served = None  # it has passed that limit during the wait
            assert (outcome.tier, outcome.version, outcome.stale) == self._expected(key, served, max_age_s)
            assert outcome.stale == (outcome.age_s > outcome.max_age_s)
            assert (outcome.values is None) == (outcome.tier is Tier.DEFAULT)
            assert outcome.values in (None, (float(outcome.version),))
            assert outcome.age_s >= 0
        if not dry:
            self._count(keys, {key: None if key in missing else answers[key] for key in keys})

    @invariant()
    def ages_are_never_negative(self) -> None:
        for ages in self.world.stats.ages.values():
            assert all(age_s >= 0 for of_namespace in ages.values() for age_s in of_namespace)

    @invariant()
    def misses_add_up_to_their_reasons(self) -> None:
        for tier in (Tier.L1, Tier.L2):
            hits, reasons = self.world.stats.counts_of(tier)
            assert hits + sum(reasons.values()) == self.asked[tier]

    def _count(self, keys: Sequence[Key], answers: Mapping[Key, Served | None]) -> None:
        for key in keys:
            answer, in_force = answers[key], self.world.policies[key.group]
            self.asked[Tier.L1] += in_force.use_l1
            self.asked[Tier.L2] += in_force.use_l2 and (answer is None or answer[0] is not Tier.L1)

    def _copies(self, key: Key) -> list[Served]:
        world, in_force = self.world, self.world.policies[key.group]
        copies = []
        if in_force.use_l1 and key in world.l1.held:
            copies.append((Tier.L1, world.l1.held[key]))
        if in_force.use_l2 and key in world.memory.held and not world.memory.outage:
            copies.append((Tier.L2, world.memory.held[key]))
        return copies

    def _answer(self, key: Key, max_age_s: float | None) -> Served | None:
        if max_age_s == 0:
            return None
        in_force = self.world.policies[key.group]
        for tier, held in self._copies(key):
            verdict = in_force.verdict(
                held, now=self.world.clock.now(), max_age_s=max_age_s, life_share=life_share(key)
            )
            if verdict is not Verdict.EXPIRED:
                return tier, held
        return None

    def _source(self, key: Key) -> Served | None:
        if self.world.source.away:
            return None
        row, now = self.world.source.rows.get(key), self.world.clock.now()
        return (Tier.L3, row) if row else (Tier.DEFAULT, Entry(0, now, now, None))

    def _is_leased(self, key: Key) -> bool:
        use_l2 = self.world.policies[key.group].use_l2
        return use_l2 and not self.world.memory.outage and key.entity in self.world.memory.leases

    def _spare(self, key: Key) -> Served | None:
        """The newest copy, and L2's of two alike, if it may still serve."""
        newest = max(self._copies(key), key=lambda copy: (copy[1].version, copy[0] is Tier.L2), default=None)
        return newest if newest and self._within_grace(key, newest[1]) else None

    def _within_grace(self, key: Key, held: Entry) -> bool:
        in_force, age_s = self.world.policies[key.group], self.world.clock.now() - held.as_of
        return held.values is not None and -CLOCK_SKEW_S <= age_s <= in_force.fresh_for_s + in_force.grace_s

    def _expected(self, key: Key, served: Served | None, max_age_s: float | None) -> tuple[Tier, int, bool]:
        """Tier, version, stale; at the moment of the answer."""
        if served is None or served[1].values is None:
            return Tier.DEFAULT, served[1].version if served else 0, False
        tier, held = served
        age_s = self.world.clock.now() - held.as_of
        return tier, held.version, age_s > self.world.policies[key.group].allowed_age_s(max_age_s)


TestCascadeAgainstAModel = CascadeAgainstAModel.TestCase
TestCascadeAgainstAModel.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
