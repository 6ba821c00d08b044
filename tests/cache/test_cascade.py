from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade, Reading
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import JITTER_SHARE, Key, life_share
from mlserve.cache.loading import CoordinatedLoading
from mlserve.cache.negatives import NegativeQuota
from mlserve.cache.outcome import Degradation, MissReason, Tier
from mlserve.cache.policy import Policy, Verdict
from mlserve.cache.singleflight import Flights
from mlserve.cache.tiers.request import RequestTier
from tests.cache.doubles import KeptStats, MemorySource, MemoryTier, policy
from tests.fixtures.clock import ManualClock

POLICIES: dict[str, Policy] = {
    "both": policy("both"),
    "no_l1": policy("no_l1", use_l1=False),
    "no_l2": policy("no_l2", use_l2=False, fresh_for_s=20),
    "neither": policy("neither", use_l1=False, use_l2=False),
}
KEYS = [Key("customer", entity_id, group) for entity_id in ("a", "b") for group in POLICIES]
A, A_NO_L1, A_NO_L2, A_NEITHER, B = KEYS[:5]


class World:
    """A cascade over tiers in memory, a source and a clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.l1, self.l2 = MemoryTier(Tier.L1), MemoryTier(Tier.L2)
        self.stats = KeptStats()
        self.source = MemorySource(self.clock)
        self.filler = Filler(self.l2, self.stats)
        self.policies = dict(POLICIES)
        self.budget_s = 0.05
        self.flights = Flights()
        self.loading = CoordinatedLoading(
            l2=self.l2,
            filler=self.filler,
            negatives=NegativeQuota(self.clock, 1_000),
            stats=self.stats,
            clock=self.clock,
            source_tier=Tier.L3,
        )
        self.cascade = Cascade(
            l1=self.l1,
            l2=self.l2,
            loading=self.loading,
            stats=self.stats,
            clock=self.clock,
            source_tier=Tier.L3,
            flights=self.flights,
        )

    def read(
        self,
        *keys: Key,
        max_age_s: float | None = None,
        leave_no_trace: bool = False,
        request: RequestTier | None = None,
    ) -> Reading:
        reading = self.cascade.read_many(
            keys,
            policies=self.policies,
            loader=self.source.load,
            request=request or RequestTier(),
            budget=Budget(self.clock, self.budget_s),
            max_age_s=max_age_s,
            leave_no_trace=leave_no_trace,
        )
        self.filler.flush()
        return reading

    def tier(self, key: Key, *, max_age_s: float | None = None) -> Tier:
        return self.read(key, max_age_s=max_age_s).outcomes[key].tier


@pytest.fixture
def world() -> World:
    return World()


def test_a_value_climbs_up_as_it_is_read(world: World) -> None:
    """Source, then L2 for another process, then the memory of this one."""
    world.source.write(A)
    assert world.tier(A) is Tier.L3
    world.l1.held.clear()
    assert world.tier(A) is Tier.L2
    assert world.tier(A) is Tier.L1
    assert world.source.asked == [[A]]


def test_only_what_is_missing_is_loaded(world: World) -> None:
    """In one call for all of it, and each tier is asked once for what the ones before it did not have."""
    for key in KEYS:
        world.source.write(key)
    world.read(A)
    world.read(A_NO_L1)
    for tier in (world.l1, world.l2):
        tier.calls.clear()
    reading = world.read(*KEYS)
    assert world.source.asked[2:] == [[key for key in KEYS if key not in (A, A_NO_L1)]]
    assert [(trace.tier, trace.asked, trace.hit) for trace in reading.trace] == [
        (Tier.L1, 4, 1),
        (Tier.L2, 3, 1),
        (Tier.L3, 6, 6),
    ]
    assert world.l1.calls.count("get") == world.l2.calls.count("get") == 1


def test_a_request_never_sees_two_values_of_one_key(world: World) -> None:
    """Neither when the source changes between two reads nor when the first answer was that nobody knows."""
    request = RequestTier()
    world.source.write(A)
    first = world.read(A, B, request=request).outcomes
    world.source.write(A)
    world.source.write(B)
    world.l1.held.clear()
    world.l2.held.clear()
    again = world.read(A, B, request=request).outcomes
    assert (again[A].version, again[A].tier) == (first[A].version, Tier.REQUEST)
    assert again[B].tier is Tier.DEFAULT


def test_a_request_for_age_0_reads_the_source_and_leaves_a_copy(world: World) -> None:
    """Both tiers count a bypass, and the next reader profits."""
    world.source.write(A)
    world.read(A)
    world.source.write(A)
    newest = world.read(A, max_age_s=0).outcomes[A]
    assert (newest.version, newest.tier, newest.stale) == (2, Tier.L3, False)
    assert world.stats.misses[Tier.L1, "both", MissReason.BYPASS] == 1
    assert world.stats.misses[Tier.L2, "both", MissReason.BYPASS] == 1
    assert world.read(A).outcomes[A].version == 2


def test_an_id_that_nobody_knows_is_remembered_for_a_short_time(world: World) -> None:
    """It is served as a default and said to be unknown; then the source is asked again."""
    for _ in range(3):
        outcome = world.read(A).outcomes[A]
        assert (outcome.tier, outcome.values, outcome.degradations) == (
            Tier.DEFAULT,
            None,
            (Degradation.UNKNOWN_ENTITY,),
        )
    assert len(world.source.asked) == 1
    world.clock.advance(POLICIES["both"].negative_ttl_s + 0.001)
    world.source.write(A)
    assert world.tier(A) is Tier.L3


def test_a_source_with_nothing_newer_is_not_asked_by_every_request(world: World) -> None:
    """What is past its limit at the source serves flagged, and the source is asked again after a while."""
    world.source.write(A)
    world.clock.advance(3_600)
    for _ in range(3):
        outcome = world.read(A).outcomes[A]
        assert outcome.stale
        assert outcome.degradations == (Degradation.STALE,)
    assert len(world.source.asked) == 1
    world.clock.advance(5.001)
    world.read(A)
    assert len(world.source.asked) == 2


def test_an_expired_copy_serves_flagged_while_the_source_is_away(world: World) -> None:
    """The newest one that any tier holds, within the grace period; after that there is a default, not a lie."""
    world.source.write(A)
    world.read(A)
    old = world.l1.held[A]
    world.source.write(A)
    world.read(A, max_age_s=0)
    world.l1.held[A] = old
    world.source.away = True
    world.clock.advance(61)
    reading = world.read(A)
    outcome = reading.outcomes[A]
    assert (outcome.version, outcome.tier, outcome.stale, outcome.age_s) == (2, Tier.L2, True, 61)
    assert reading.degradations == {Degradation.STALE, Degradation.STALE_SOURCE_UNAVAILABLE}
    world.clock.advance(600)
    reading = world.read(A)
    assert reading.outcomes[A].tier is Tier.DEFAULT
    assert reading.degradations == {Degradation.SOURCE_UNAVAILABLE}
    assert world.stats.source_errors == {"database": 2}


@pytest.mark.parametrize("reason", [MissReason.TIMEOUT, MissReason.BREAKER])
def test_an_outage_of_l2_is_said_and_costs_a_read_of_the_source(world: World, reason: MissReason) -> None:
    world.source.write(A)
    world.read(A)
    world.l1.held.clear()
    world.l2.outage = reason
    reading = world.read(A)
    assert reading.outcomes[A].tier is Tier.L3
    assert reading.degradations == {Degradation.CACHE_UNAVAILABLE}
    assert world.stats.misses[Tier.L2, "both", reason] == 1


def test_a_budget_that_is_spent_spares_l2(world: World) -> None:
    """One deadline for all look-ups of a request: the second one does not wait once more.

    Before the source is read the lease is asked for all the same, since it spares the source; and finds the copy.
    """
    world.source.write(A)
    world.source.write(B)
    world.read(A)
    world.l1.held.clear()
    world.l2.calls.clear()
    world.budget_s = 0
    reading = world.read(A, B)
    assert (reading.outcomes[A].tier, reading.outcomes[B].tier) == (Tier.L2, Tier.L3)
    assert reading.degradations == {Degradation.CACHE_UNAVAILABLE}
    assert "get" not in world.l2.calls
    assert world.stats.events == {"filled_meanwhile": 1}


def test_a_copy_that_passes_its_limit_while_the_source_is_read_is_flagged(world: World) -> None:
    """What is said of age and staleness is true of the moment of the answer."""
    world.source.write(A)
    world.source.write(B)
    world.read(A)
    nearly = 60 * (1 - JITTER_SHARE)
    world.clock.advance(nearly)
    world.source.reading_s = 7.0
    outcome = world.read(A, B).outcomes[A]
    assert outcome.tier is Tier.L1
    assert outcome.age_s == pytest.approx(nearly + 7.0)
    assert outcome.stale


def test_a_dry_run_leaves_no_trace(world: World) -> None:
    """It peeks, fills nothing, promotes nothing and counts nothing, and gets the same answers."""
    for key in KEYS:
        world.source.write(key)
    world.read(A_NO_L1)
    world.read(A)
    before = dict(world.l1.held), dict(world.l2.held)
    world.l1.calls.clear()
    world.l2.calls.clear()
    world.stats.__init__()  # type: ignore[misc]
    reading = world.read(*KEYS, leave_no_trace=True)
    assert [reading.outcomes[key].version for key in KEYS] == [world.source.rows[key].version for key in KEYS]
    assert (world.l1.held, world.l2.held) == before
    assert world.l1.calls == ["peek"]
    assert world.l2.calls == ["get"]
    assert not (world.stats.misses or world.stats.ages or world.stats.asked or world.stats.events)


class Expected(NamedTuple):
    """What the plain model says of one key."""

    tier: Tier
    version: int
    stale: bool


class CascadeAgainstAModel(RuleBasedStateMachine):
    """Whatever happens to tiers, source, time and policies: every read is what the rules, written plainly, say."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
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
        self.world.l2.outage = reason

    @rule(away=st.booleans())
    def source_changes(self, away: bool) -> None:
        self.world.source.away = away

    @rule(tier=st.sampled_from(["l1", "l2"]), key=st.sampled_from(KEYS))
    def evict(self, tier: str, key: Key) -> None:
        getattr(self.world, tier).held.pop(key, None)

    @rule(
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6, unique=True),
        max_age_s=st.sampled_from([None, None, 0.0, 1.0, 30.0, 1_000.0]),
        dry=st.booleans(),
    )
    def read(self, keys: list[Key], max_age_s: float | None, dry: bool) -> None:
        world = self.world
        expected = {key: self._expected(key, max_age_s) for key in keys}
        answers = {key: self._answer(key, max_age_s) for key in keys}
        missing = [key for key in keys if answers[key] is None]
        calls_before = len(world.source.asked)
        reading = world.read(*keys, max_age_s=max_age_s, leave_no_trace=dry)
        outcomes = reading.outcomes
        assert {
            key: Expected(outcome.tier, outcome.version, outcome.stale) for key, outcome in outcomes.items()
        } == expected
        for outcome in outcomes.values():
            assert outcome.stale == (outcome.age_s > outcome.max_age_s)
            assert (outcome.values is None) == (outcome.tier is Tier.DEFAULT)
            assert outcome.values in (None, (float(outcome.version),))
        assert world.source.asked[calls_before:] == ([missing] if missing else [])
        if not dry:
            self._count(keys, answers)

    @invariant()
    def misses_add_up_to_their_reasons(self) -> None:
        for tier in (Tier.L1, Tier.L2):
            hits, reasons = self.world.stats.counts_of(tier)
            assert hits + sum(reasons.values()) == self.asked[tier]

    def _count(self, keys: Sequence[Key], answers: Mapping[Key, tuple[Tier, Entry] | None]) -> None:
        for key in keys:
            answer, in_force = answers[key], self.world.policies[key.group]
            self.asked[Tier.L1] += in_force.use_l1
            self.asked[Tier.L2] += in_force.use_l2 and (answer is None or answer[0] is not Tier.L1)

    def _copies(self, key: Key) -> list[tuple[Tier, Entry]]:
        world, in_force = self.world, self.world.policies[key.group]
        copies = []
        if in_force.use_l1 and key in world.l1.held:
            copies.append((Tier.L1, world.l1.held[key]))
        if in_force.use_l2 and key in world.l2.held and not world.l2.outage:
            copies.append((Tier.L2, world.l2.held[key]))
        return copies

    def _answer(self, key: Key, max_age_s: float | None) -> tuple[Tier, Entry] | None:
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

    def _expected(self, key: Key, max_age_s: float | None) -> Expected:
        world, in_force, now = self.world, self.world.policies[key.group], self.world.clock.now()
        answer = self._answer(key, max_age_s)
        if answer is None and not world.source.away:
            row = world.source.rows.get(key)
            answer = (Tier.L3, row) if row else (Tier.DEFAULT, Entry(0, now, now, None))
        if answer is None:
            usable = [
                copy
                for copy in self._copies(key)
                if copy[1].values is not None and now - copy[1].as_of <= in_force.fresh_for_s + in_force.grace_s
            ]
            answer = max(usable, key=lambda copy: (copy[1].version, copy[0] is Tier.L2), default=None)
        if answer is None or answer[1].values is None:
            return Expected(Tier.DEFAULT, answer[1].version if answer else 0, False)
        tier, held = answer
        return Expected(tier, held.version, now - held.as_of > in_force.allowed_age_s(max_age_s))


TestCascadeAgainstAModel = CascadeAgainstAModel.TestCase
TestCascadeAgainstAModel.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
