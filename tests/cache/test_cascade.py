from typing import Any

import pytest

from mlserve.cache.cascade import Reading
from mlserve.cache.keys import JITTER_SHARE, Key
from mlserve.cache.outcome import Degradation, MissReason, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.refresher import NullRefresher
from mlserve.cache.tiers.request import RequestTier
from tests.cache.doubles import KnownIds, policy
from tests.cache.worlds import World

POLICIES: dict[str, Policy] = {
    "both": policy("both"),
    "no_l1": policy("no_l1", use_l1=False),
    "no_l2": policy("no_l2", use_l2=False, fresh_for_s=20),
    "neither": policy("neither", use_l1=False, use_l2=False),
}
KEYS = [Key("customer", entity_id, group) for entity_id in ("a", "b") for group in POLICIES]
A, A_NO_L1, A_NO_L2, A_NEITHER, B = KEYS[:5]


class Settled(World):
    """What a read leaves behind is done when it returns."""

    def __init__(self) -> None:
        super().__init__(POLICIES, refresher=NullRefresher())

    def read(self, *keys: Key, **options: Any) -> Reading:
        reading = super().read(*keys, **options)
        self.settle()
        return reading

    def tier(self, key: Key, *, max_age_s: float | None = None) -> Tier:
        return self.read(key, max_age_s=max_age_s).outcomes[key].tier


@pytest.fixture
def world() -> Settled:
    return Settled()


def test_a_value_climbs_up_as_it_is_read(world: Settled) -> None:
    """Source, then L2 for another process, then the memory of this one."""
    world.source.write(A)
    assert world.tier(A) is Tier.L3
    world.l1.held.clear()
    assert world.tier(A) is Tier.L2
    assert world.tier(A) is Tier.L1
    assert world.source.asked == [[A]]


def test_only_what_is_missing_is_loaded(world: Settled) -> None:
    """In one call for all of it, and each tier is asked once for what the ones before it did not have."""
    for key in KEYS:
        world.source.write(key)
    world.read(A)
    world.read(A_NO_L1)
    for tier in (world.l1, world.memory):
        tier.calls.clear()
    reading = world.read(*KEYS)
    assert world.source.asked[2:] == [[key for key in KEYS if key not in (A, A_NO_L1)]]
    assert [(trace.tier, trace.asked, trace.hit) for trace in reading.trace] == [
        (Tier.L1, 4, 1),
        (Tier.L2, 3, 1),
        (Tier.L3, 6, 6),
    ]
    assert world.memory.calls.count("get") == 1
    assert "get" not in world.l1.calls, "what the quick look did not find is not looked for again"


def test_a_request_never_sees_two_values_of_one_key(world: Settled) -> None:
    """Neither when the source changes between two reads nor when the first answer was that nobody knows."""
    request = RequestTier()
    world.source.write(A)
    first = world.read(A, B, request=request).outcomes
    world.source.write(A)
    world.source.write(B)
    world.l1.held.clear()
    world.memory.held.clear()
    again = world.read(A, B, request=request).outcomes
    assert (again[A].version, again[A].tier) == (first[A].version, Tier.REQUEST)
    assert again[B].tier is Tier.DEFAULT


def test_a_request_for_age_0_reads_the_source_and_leaves_a_copy(world: Settled) -> None:
    """Both tiers count a bypass, and the next reader profits."""
    world.source.write(A)
    world.read(A)
    world.source.write(A)
    newest = world.read(A, max_age_s=0).outcomes[A]
    assert (newest.version, newest.tier, newest.stale) == (2, Tier.L3, False)
    assert world.stats.misses[Tier.L1, "both", MissReason.BYPASS] == 1
    assert world.stats.misses[Tier.L2, "both", MissReason.BYPASS] == 1
    assert world.read(A).outcomes[A].version == 2


def test_an_id_that_nobody_knows_is_remembered_for_a_short_time(world: Settled) -> None:
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


def test_a_source_with_nothing_newer_is_not_asked_by_every_request(world: Settled) -> None:
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


def test_an_expired_copy_serves_flagged_while_the_source_is_away(world: Settled) -> None:
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
def test_an_outage_of_l2_is_said_and_costs_a_read_of_the_source(world: Settled, reason: MissReason) -> None:
    world.source.write(A)
    world.read(A)
    world.l1.held.clear()
    world.memory.outage = reason
    reading = world.read(A)
    assert reading.outcomes[A].tier is Tier.L3
    assert reading.degradations == {Degradation.CACHE_UNAVAILABLE}
    assert world.stats.misses[Tier.L2, "both", reason] == 1


def test_a_budget_that_is_spent_spares_l2(world: Settled) -> None:
    """One deadline for all look-ups of a request: the second one does not wait once more.

    Before the source is read the lease is asked for all the same, since it spares the source; and finds the copy.
    """
    world.source.write(A)
    world.source.write(B)
    world.read(A)
    world.l1.held.clear()
    world.memory.calls.clear()
    world.budget_s = 0
    reading = world.read(A, B)
    assert (reading.outcomes[A].tier, reading.outcomes[B].tier) == (Tier.L2, Tier.L3)
    assert reading.degradations == {Degradation.CACHE_UNAVAILABLE}
    assert "get" not in world.memory.calls
    assert world.stats.events == {"filled_meanwhile": 1}


def test_a_copy_that_passes_its_limit_while_the_source_is_read_is_flagged(world: Settled) -> None:
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


def test_a_dry_run_leaves_no_trace(world: Settled) -> None:
    """It peeks, fills nothing, promotes nothing and counts nothing, and gets the same answers."""
    for key in KEYS:
        world.source.write(key)
    world.read(A_NO_L1)
    world.read(A)
    before = dict(world.l1.held), dict(world.memory.held)
    world.l1.calls.clear()
    world.memory.calls.clear()
    world.stats.__init__()  # type: ignore[misc]
    reading = world.read(*KEYS, leave_no_trace=True)
    assert [reading.outcomes[key].version for key in KEYS] == [world.source.rows[key].version for key in KEYS]
    assert (world.l1.held, world.memory.held) == before
    assert world.l1.calls == [], "the quick look peeks"
    assert world.memory.calls == ["get"]
    assert not (world.stats.misses or world.stats.ages or world.stats.asked or world.stats.events)


def test_an_id_that_never_existed_is_answered_without_the_source(world: Settled) -> None:
    """The filter is asked only about what no tier knows, once an entity; nothing is kept of its answer."""
    world.source.write(A)
    world.read(A)
    ids = KnownIds(A.entity)
    reading = world.read(A, B, Key("customer", "b", "no_l1"), membership=ids)
    assert reading.outcomes[A].tier is Tier.L1
    unknown = reading.outcomes[B]
    assert (unknown.tier, unknown.values, unknown.degradations) == (
        Tier.DEFAULT,
        None,
        (Degradation.UNKNOWN_ENTITY,),
    )
    assert reading.degradations == {Degradation.UNKNOWN_ENTITY}
    assert world.source.asked == [[A]]
    assert ids.asked == [B.entity]
    assert world.stats.events == {"unknown_by_filter": 1}
    assert set(world.l1.held) == set(world.memory.held) == {A}


def test_the_filter_is_told_what_the_source_said(world: Settled) -> None:
    """An entity exists if any of its groups does. Not in a dry run, whose look leaves no trace."""
    world.source.write(A)
    ids = KnownIds(A.entity, B.entity)
    keys = (A, A_NO_L1, B)
    world.read(*keys, membership=ids, leave_no_trace=True)
    assert ids.told == {}
    world.read(*keys, membership=ids)
    assert ids.told == {A.entity: True, B.entity: False}


def test_a_request_for_age_0_does_not_ask_the_filter(world: Settled) -> None:
    """It wants the source's word."""
    world.source.write(A)
    assert world.read(A, max_age_s=0, membership=KnownIds()).outcomes[A].tier is Tier.L3


def test_a_copy_past_its_limit_serves_while_another_process_loads(world: Settled) -> None:
    """Flagged for that reason, which is no fault of the source's; it is counted as served late."""
    world.source.write(A)
    world.read(A)
    world.clock.advance(61)
    world.memory.take_lease(A.entity)
    reading = world.read(A)
    outcome = reading.outcomes[A]
    assert (outcome.version, outcome.tier, outcome.stale) == (1, Tier.L2, True)
    assert reading.degradations == {Degradation.STALE, Degradation.STALE_REFRESHING}
    assert len(world.source.asked) == 1
    assert len(world.stats.ages["late"]["both"]) == 1
    assert world.stats.source_errors == {}
