"""A caller says which versions it has seen: no copy that is older answers it, wherever it lies."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from mlserve.cache import following
from mlserve.cache.cascade import Reading
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key
from mlserve.cache.loading import WAIT_WITH_COPY_S
from mlserve.cache.outcome import Degradation, MissReason, Outcome, Tier
from mlserve.cache.policy import Policy
from mlserve.cache.refresher import NullRefresher
from mlserve.cache.tiers.request import RequestTier
from tests.cache.doubles import BusyClock, KnownIds, entry, negative, policy
from tests.cache.worlds import PATIENCE_S, World
from tests.fixtures.waiting import until

POLICIES: dict[str, Policy] = {
    "group": policy(),
    "proven": policy("proven", proven=True),
    "no_l2": policy("no_l2", use_l2=False),
}
A, B = (Key("customer", name, "group") for name in "ab")
NO_L2 = Key("customer", "a", "no_l2")
PROVEN = Key("customer", "a", "proven")


class Settled(World):
    """What a read leaves behind is done when it returns."""

    def __init__(self) -> None:
        super().__init__(POLICIES, clock=BusyClock(), refresher=NullRefresher())

    def read(self, *keys: Key, **options: Any) -> Reading:
        reading = super().read(*keys, **options)
        self.settle()
        return reading

    def one(self, key: Key = A, **options: Any) -> Outcome:
        return self.read(key, **options).outcomes[key]


@pytest.fixture
def world() -> Settled:
    return Settled()


def _served(outcome: Outcome) -> tuple[int, Tier, bool]:
    return outcome.version, outcome.tier, outcome.stale


def _changed_unheard(world: Settled, key: Key = A) -> Mapping[Key, int]:
    """Both tiers hold version 1, the source has version 2; returns what the writer has seen."""
    world.source.write(key)
    world.read(key)
    return {key: world.source.write(key).version}


def test_a_copy_in_l1_that_is_older_is_a_miss(world: Settled) -> None:
    """Young as it is; and so is the one in L2, for the reason that nobody vouches for it to this caller."""
    seen = _changed_unheard(world)
    assert _served(world.one()) == (1, Tier.L1, False)
    assert _served(world.one(at_least=seen)) == (2, Tier.L3, False)
    assert world.stats.misses[Tier.L1, "group", MissReason.UNPROVEN] == 1
    assert world.stats.misses[Tier.L2, "group", MissReason.UNPROVEN] == 1


def test_what_was_read_for_it_replaces_the_older_copies(world: Settled) -> None:
    """The next reader profits, with a token or without."""
    seen = _changed_unheard(world)
    world.one(at_least=seen)
    assert _served(world.one()) == (2, Tier.L1, False)
    assert _served(world.one(at_least=seen)) == (2, Tier.L1, False)
    world.l1.held.clear()
    assert _served(world.one(at_least=seen)) == (2, Tier.L2, False)


def test_a_copy_that_is_as_new_or_newer_serves(world: Settled) -> None:
    """From the nearest tier: a token costs a caller nothing where the copies are good."""
    world.source.write(A)
    newest = world.source.write(A)
    world.read(A)
    for version in (0, 1, newest.version):
        assert _served(world.one(at_least={A: version})) == (2, Tier.L1, False)
    assert len(world.source.asked) == 1


def test_a_token_for_one_key_leaves_the_others_alone(world: Settled) -> None:
    """Their copies serve."""
    world.source.write(B)
    world.read(B)
    seen = _changed_unheard(world)
    outcomes = world.read(A, B, at_least=seen).outcomes
    assert (outcomes[A].tier, outcomes[B].tier) == (Tier.L3, Tier.L1)


def test_the_word_of_the_source_counts_whatever_its_version(world: Settled) -> None:
    """After a failover that lost commits nothing newer is to be had, and nobody waits for it."""
    world.source.write(A)
    assert _served(world.one(at_least={A: 1_000})) == (1, Tier.L3, False)
    assert len(world.source.asked) == 1


def test_a_negative_copy_has_a_version_too(world: Settled) -> None:
    """Who has created a customer is not told that nobody knows it."""
    world.read(A)
    newest = world.source.write(A)
    assert world.one().tier is Tier.DEFAULT
    assert _served(world.one(at_least={A: newest.version})) == (newest.version, Tier.L3, False)


def test_a_deletion_that_was_seen_stays(world: Settled) -> None:
    """The negative copy carries the version of the deletion: older values do not come back."""
    world.l1.held[A] = entry(1, now=world.clock.now())
    world.memory.held[A] = negative(2, now=world.clock.now())
    assert world.one(at_least={A: 2}).tier is Tier.DEFAULT
    assert world.source.asked == []


def test_the_filter_of_ids_is_not_asked(world: Settled) -> None:
    """It may be behind the caller, who knows that the id exists. Version 0 says nothing of the kind."""
    ids = KnownIds()
    newest = world.source.write(A)
    assert world.one(at_least={A: newest.version}, membership=ids).tier is Tier.L3
    assert ids.asked == []
    assert world.one(B, at_least={B: 0}, membership=ids).tier is Tier.DEFAULT
    assert ids.asked == [B.entity]


def test_this_requests_own_snapshot_is_no_excuse(world: Settled) -> None:
    """What it read before is replaced by what it asks for, and then serves again."""
    request = RequestTier()
    world.source.write(A)
    world.one(request=request)
    seen = {A: world.source.write(A).version}
    assert _served(world.one(request=request)) == (1, Tier.REQUEST, False)
    assert _served(world.one(request=request, at_least=seen)) == (2, Tier.L3, False)
    assert _served(world.one(request=request, at_least=seen)) == (2, Tier.REQUEST, False)
    assert _served(world.one(request=request)) == (2, Tier.REQUEST, False)


def test_this_requests_own_snapshot_serves_flagged_while_the_source_is_away(world: Settled) -> None:
    """If it is all that there is."""
    request = RequestTier()
    world.source.write(A)
    world.one(request=request)
    world.l1.held.clear()
    world.memory.held.clear()
    world.source.away = True
    assert _served(world.one(request=request, at_least={A: 2})) == (1, Tier.REQUEST, True)


def test_a_dry_run_is_as_strict(world: Settled) -> None:
    """And leaves the older copies where they are."""
    seen = _changed_unheard(world)
    assert _served(world.one(at_least=seen, leave_no_trace=True)) == (2, Tier.L3, False)
    assert world.l1.held[A].version == world.memory.held[A].version == 1


@pytest.mark.parametrize("key", [A, PROVEN])
def test_while_the_source_is_away_an_older_copy_serves_flagged(world: Settled, key: Key) -> None:
    """As one past its limit does, however young it is."""
    seen = _changed_unheard(world, key)
    world.source.away = True
    reading = world.read(key, at_least=seen)
    outcome = reading.outcomes[key]
    assert (outcome.version, outcome.stale, outcome.degradations) == (1, True, (Degradation.STALE,))
    assert reading.degradations == {Degradation.STALE, Degradation.STALE_SOURCE_UNAVAILABLE}
    assert len(world.stats.ages["late"][key.group]) == 1


def test_a_strict_read_of_a_source_that_is_away_flags_it_as_well(world: Settled) -> None:
    """`max_age_s` 0 looks for copies afterwards: those are older than what the caller has seen."""
    seen = _changed_unheard(world)
    world.source.away = True
    assert _served(world.one(at_least=seen, max_age_s=0)) == (1, Tier.L2, True)


def test_past_its_grace_period_an_older_copy_does_not_serve(world: Settled) -> None:
    """A token makes nothing servable that was not."""
    seen = _changed_unheard(world)
    world.source.away = True
    world.clock.advance(60 + 600 + 1)
    reading = world.read(A, at_least=seen)
    assert reading.outcomes[A].tier is Tier.DEFAULT
    assert reading.degradations == {Degradation.SOURCE_UNAVAILABLE}


def test_what_was_filled_before_the_lease_is_judged(world: Settled) -> None:
    """L2 is looked at again when the lease is asked for: an older fill does not end the search, a newer one does."""
    world.source.write(A)
    seen = {A: world.source.write(A).version}
    world.budget_s = 0  # the first look at L2 is spared
    world.memory.held[A] = entry(1, now=world.clock.now())
    assert _served(world.one(at_least=seen)) == (2, Tier.L3, False)
    world.l1.held.clear()
    assert _served(world.one(at_least=seen)) == (2, Tier.L2, False)
    assert world.stats.events["filled_meanwhile"] == 1


def test_what_somebody_else_fills_meanwhile_is_judged(world: Settled) -> None:
    """The other process had read before the change: its fill does not serve, and this one reads for itself."""
    seen = _changed_unheard(world)
    world.memory.take_lease(A.entity)

    def fill_the_old() -> None:
        world.memory.leases.clear()
        world.memory.held[A] = entry(1, now=world.clock.now())

    assert isinstance(world.clock, BusyClock)
    world.clock.meanwhile = [fill_the_old]
    assert _served(world.one(at_least=seen)) == (2, Tier.L3, False)
    assert world.stats.events["lease_waited"] == 1


def test_an_older_copy_does_not_serve_while_somebody_else_loads(world: Settled) -> None:
    """The source is not away: who has seen more waits for longer than for a copy past its limit, and then reads."""
    seen = _changed_unheard(world)
    world.memory.take_lease(A.entity)
    began = world.clock.monotonic()
    reading = world.read(A, at_least=seen)
    assert _served(reading.outcomes[A]) == (2, Tier.L3, False)
    assert reading.degradations == set()
    assert world.clock.monotonic() - began > WAIT_WITH_COPY_S
    assert world.stats.events["lease_overdue"] == 1


# --- other threads of the process ---


@pytest.fixture
def held_up() -> World:
    """Its source is held up until a test opens the gate."""
    world = World(POLICIES, refresher=NullRefresher())
    world.gate.clear()
    return world


def _first(threads: ThreadPoolExecutor, world: World, *keys: Key, **options: Any) -> Future[Reading]:
    """A thread that is held up in the source with these keys."""
    first = threads.submit(world.read, *keys, **options)
    assert world.reading.wait(PATIENCE_S)
    return first


def _joined(world: World, count: int = 1) -> None:
    until(lambda: world.stats.events["flight_joined"] == count)


def _loading_at_once(world: World, gate: threading.Event) -> Any:
    """Reads the source at once and brings what it read when the gate opens."""

    def load(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        read = world.source.load(keys)
        world.reading.set()
        assert gate.wait(PATIENCE_S)
        return read

    return load


def test_what_another_thread_brings_is_judged(held_up: World) -> None:
    """It had read before the caller's write: the caller looks for itself, and the other one keeps what it has."""
    world = held_up
    world.source.write(A)
    with ThreadPoolExecutor(2) as threads:
        first = _first(threads, world, A, loader=_loading_at_once(world, world.gate))
        seen = {A: world.source.write(A).version}
        second = threads.submit(world.read, A, at_least=seen, loader=world.source.load)
        _joined(world)
        world.gate.set()
        assert first.result().outcomes[A].version == 1
        assert _served(second.result().outcomes[A]) == (2, Tier.L3, False)


def test_what_another_thread_brings_serves_flagged_if_the_source_has_gone_since(held_up: World) -> None:
    """An older value beats none, and says so."""
    world = held_up
    world.source.write(NO_L2)
    with ThreadPoolExecutor(2) as threads:
        first = _first(threads, world, NO_L2, loader=_loading_at_once(world, world.gate))
        world.source.away = True
        second = threads.submit(world.read, NO_L2, at_least={NO_L2: 2}, loader=world.source.load)
        _joined(world)
        world.gate.set()
        first.result()
        outcome = second.result().outcomes[NO_L2]
    assert (outcome.version, outcome.stale) == (1, True)
    assert Degradation.STALE_SOURCE_UNAVAILABLE in second.result().degradations


def test_a_copy_that_is_too_old_for_one_thread_serves_another_as_it_is(held_up: World) -> None:
    """The source is away for both, but only the one with the token has seen more."""
    world = held_up
    world.source.write(A)
    world.memory.held[A] = entry(1, now=world.clock.now())
    world.source.away = True
    with ThreadPoolExecutor(2) as threads:
        first = _first(threads, world, A, at_least={A: 2})
        second = threads.submit(world.read, A)
        _joined(world)
        world.gate.set()
        assert _served(first.result().outcomes[A]) == (1, Tier.L2, True)
        assert _served(second.result().outcomes[A]) == (1, Tier.L2, False)
    assert second.result().degradations == set()


def test_who_waits_for_another_thread_with_an_older_copy_waits_for_its_answer(
    held_up: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only as long as somebody whose copy may serve flagged meanwhile."""
    monkeypatch.setattr(following, "WAIT_WITH_COPY_S", 0.0)
    world = held_up
    world.l1.held[A] = world.source.write(A)
    world.clock.advance(90)
    seen = {A: world.source.write(A).version}
    with ThreadPoolExecutor(2) as threads:
        first = _first(threads, world, A)
        second = threads.submit(world.read, A, at_least=seen)
        _joined(world)
        world.clock.advance(1)
        world.gate.set()
        first.result()
        assert _served(second.result().outcomes[A]) == (2, Tier.L3, False)
    assert second.result().degradations == set()
    assert world.source.asked == [[A]]


def test_who_has_waited_in_vain_with_an_older_copy_reads(held_up: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other thread is stuck, not the source: the older copy does not serve."""
    monkeypatch.setattr(following, "FOLLOW_S", 0.02)
    world = held_up
    world.l1.held[A] = world.source.write(A)
    world.clock.advance(90)
    seen = {A: world.source.write(A).version}
    with ThreadPoolExecutor(1) as threads:
        first = _first(threads, world, A)
        reading = world.read(A, at_least=seen, loader=world.source.load)
        assert _served(reading.outcomes[A]) == (2, Tier.L3, False)
        assert reading.degradations == set()
        world.gate.set()
        first.result()


def test_what_serves_another_thread_until_the_load_is_done_does_not_serve_the_caller(held_up: World) -> None:
    """Another process loads; the first thread is content with its copy past its limit, the one with the token reads."""
    world = held_up
    world.memory.held[A] = world.source.write(A)
    world.clock.advance(90)
    seen = {A: world.source.write(A).version}
    world.memory.take_lease(A.entity)
    look, began = threading.Event(), threading.Event()
    waited = world.memory.lease_many

    def held_up_there(*arguments: Any, **options: Any) -> Any:
        began.set()
        assert look.wait(PATIENCE_S)
        return waited(*arguments, **options)

    world.memory.lease_many = held_up_there  # type: ignore[method-assign]
    world.gate.set()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(world.read, A)
        assert began.wait(PATIENCE_S)
        second = threads.submit(world.read, A, at_least=seen)
        _joined(world)
        look.set()
        assert first.result().degradations == {Degradation.STALE, Degradation.STALE_REFRESHING}
        assert _served(second.result().outcomes[A]) == (2, Tier.L3, False)
    assert second.result().degradations == set()
