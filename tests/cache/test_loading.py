"""Who reads the source when nobody holds a key: one caller among all processes."""

from collections.abc import Mapping, Sequence

import pytest
import redis

from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key, names_of
from mlserve.cache.loading import (
    WAIT_WITH_COPY_S,
    WAIT_WITHOUT_COPY_S,
    CoordinatedLoading,
    DirectLoading,
    Loaded,
    Order,
)
from mlserve.cache.negatives import NegativeQuota
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.tiers.base import SharedTier
from mlserve.cache.tiers.l2_redis import L2Tier
from tests.cache.doubles import BusyClock, KeptStats, MemorySource, MemoryTier, entry, policy

POLICIES = {"group": policy(), "other": policy("other"), "no_l2": policy("no_l2", use_l2=False)}
A, A_OTHER, A_NO_L2 = (Key("customer", "a", group) for group in POLICIES)
B = Key("customer", "b", "group")
LONGEST_PAUSE_S = 0.05
Seen = Mapping[Key, Entry | MissReason]


class World:
    """Loading over an L2, a source, and a clock during whose sleeps others do something."""

    def __init__(self, l2: SharedTier | None = None, *, negatives: int = 100) -> None:
        self.clock = BusyClock()
        self.memory = MemoryTier(Tier.L2)
        self.l2 = l2 or self.memory
        self.stats = KeptStats()
        self.source = MemorySource(self.clock)
        self.filler = Filler(self.l2, self.stats)
        self.loading = CoordinatedLoading(
            l2=self.l2,
            filler=self.filler,
            negatives=NegativeQuota(self.clock, negatives),
            stats=self.stats,
            clock=self.clock,
            source_tier=Tier.L3,
        )

    def load(
        self,
        *keys: Key,
        seen: Seen | None = None,
        spare: Mapping[Key, Entry] | None = None,
        strict: bool = False,
        traceless: bool = False,
    ) -> Loaded:
        """Of keys that L2 did not have, unless `seen` says otherwise."""
        loaded = self.loading.load(
            Order(
                keys=keys,
                policies=POLICIES,
                loader=self.source.load,
                seen=dict.fromkeys(keys, MissReason.COLD) if seen is None else seen,
                spare=spare or {},
                strict=strict,
                traceless=traceless,
            )
        )
        self.filler.flush()
        return loaded


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_read_is_found_and_kept(world: World) -> None:
    """All of it with one call of the loader; in L2 afterwards is what may be, and no lease is left."""
    for key in (A, A_OTHER, A_NO_L2):
        world.source.write(key)
    loaded = world.load(A, A_OTHER, A_NO_L2, B)
    assert world.source.asked == [[A, A_OTHER, A_NO_L2, B]]
    assert {key: tier for key, (_, tier) in loaded.found.items()} == dict.fromkeys((A, A_OTHER, A_NO_L2, B), Tier.L3)
    assert loaded.read == {A, A_OTHER, A_NO_L2, B}
    assert set(world.memory.held) == {A, A_OTHER, B}
    assert world.memory.leases == {}


def test_the_cost_of_a_read_is_measured_and_kept(world: World) -> None:
    """By the monotonic clock, on every entry of it."""
    world.source.write(A)
    world.source.reading_s = 0.25
    loaded = world.load(A, B)
    assert {key: held.cost_s for key, (held, _) in loaded.found.items()} == {A: 0.25, B: 0.25}
    assert {key: held.cost_s for key, held in world.memory.held.items()} == {A: 0.25, B: 0.25}


def test_a_source_that_is_away_leaves_no_lease_behind(world: World) -> None:
    """The next caller need not wait for one to run out; the failure is counted and said."""
    world.source.away = True
    loaded = world.load(A, B)
    assert (loaded.found, loaded.failed) == ({}, True)
    assert world.stats.source_errors == {"database": 1}
    assert world.memory.leases == {}
    assert world.memory.held == {}


def test_a_loader_that_breaks_leaves_no_lease_behind(world: World) -> None:
    """A worker's time limit, say, in the middle of a statement; the exception is its caller's."""

    def broken(keys: Sequence[Key]) -> Mapping[Key, Entry]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        world.loading.load(Order(keys=[A], policies=POLICIES, loader=broken, seen={A: MissReason.COLD}, spare={}))
    world.filler.flush()
    assert world.memory.leases == {}


def test_what_another_process_loads_is_waited_for(world: World) -> None:
    """And served as L2's, without a read of one's own; what nobody else loads is not kept waiting."""
    world.source.write(A)
    world.source.write(B)
    lease = world.memory.take_lease(A.entity)
    theirs = entry(1)
    world.clock.meanwhile = [
        lambda: None,
        lambda: world.memory.fill_many({A: theirs}, POLICIES, {A.entity: lease}),
    ]
    loaded = world.load(A, B)
    assert loaded.found[A] == (theirs, Tier.L2)
    assert loaded.found[B][1] is Tier.L3
    assert world.source.asked == [[B]]
    assert world.stats.events == {"lease_waited": 1, "filled_meanwhile": 1}


def test_what_another_process_gives_up_is_loaded(world: World) -> None:
    """Its source failed, or it knew nothing worth keeping: the lease passes on."""
    world.source.write(A)
    lease = world.memory.take_lease(A.entity)
    world.clock.meanwhile = [lambda: world.memory.release({A.entity: lease})]
    assert world.load(A).found[A][1] is Tier.L3
    assert set(world.memory.held) == {A}
    assert world.stats.events == {"lease_waited": 1}


def test_the_wait_for_a_holder_that_died_is_bounded(world: World) -> None:
    """With nothing to serve: then the source is read, but what was read without a lease is not kept."""
    world.source.write(A)
    world.memory.take_lease(A.entity)
    started = world.clock.monotonic()
    assert world.load(A).found[A][1] is Tier.L3
    assert WAIT_WITHOUT_COPY_S <= world.clock.monotonic() - started <= WAIT_WITHOUT_COPY_S + LONGEST_PAUSE_S
    assert world.memory.held == {}
    assert world.stats.events == {"lease_waited": 1, "lease_overdue": 1}


def test_who_has_a_copy_to_serve_waits_briefly_and_spares_the_source(world: World) -> None:
    world.source.write(A)
    old = entry(1, age_s=90)
    world.memory.held[A] = old
    world.memory.take_lease(A.entity)
    started = world.clock.monotonic()
    loaded = world.load(A, seen={A: old}, spare={A: old})
    assert (loaded.found, loaded.refreshing, loaded.failed) == ({}, {A}, False)
    assert WAIT_WITH_COPY_S <= world.clock.monotonic() - started <= WAIT_WITH_COPY_S + LONGEST_PAUSE_S
    assert world.source.asked == []


def test_one_key_without_a_copy_is_worth_the_longer_wait(world: World) -> None:
    """Of two that others load; the one with a copy is served from it, the other is read."""
    world.source.write(B)
    old = entry(1, age_s=90)
    world.memory.held[A] = old
    for key in (A, B):
        world.memory.take_lease(key.entity)
    started = world.clock.monotonic()
    loaded = world.load(A, B, seen={A: old, B: MissReason.COLD}, spare={A: old})
    assert world.clock.monotonic() - started >= WAIT_WITHOUT_COPY_S
    assert (set(loaded.found), loaded.refreshing) == ({B}, {A})
    assert world.source.asked == [[B]]


def test_what_was_filled_between_look_and_lease_is_not_loaded_again(world: World) -> None:
    theirs = entry(2)
    world.memory.held[A] = theirs
    assert world.load(A, seen={A: entry(1, age_s=90)}).found == {A: (theirs, Tier.L2)}
    assert world.source.asked == []
    assert world.stats.events == {"filled_meanwhile": 1}


def test_a_change_that_is_of_no_use_is_loaded_and_replaced(world: World) -> None:
    """Somebody has put a copy there that is past its limit already: the lease is asked for with that in mind."""
    world.source.write(A)
    world.memory.held[A] = entry(1, age_s=90)
    assert world.load(A, seen={A: MissReason.COLD}).found[A][1] is Tier.L3
    assert world.memory.held[A].written_at == world.clock.now()
    assert world.memory.leases == {}


def test_without_l2_the_source_is_read_and_nothing_kept(world: World) -> None:
    """Not even asked for a lease where the look-up was refused; nor waited for where it does not answer."""
    world.source.write(A)
    started = world.clock.monotonic()
    assert world.load(A, seen={A: MissReason.BREAKER}).found[A][1] is Tier.L3
    assert world.memory.calls == []
    world.memory.outage = MissReason.TIMEOUT
    assert world.load(A).found[A][1] is Tier.L3
    assert world.memory.calls == ["lease"]
    assert world.clock.monotonic() == started


def test_a_strict_load_waits_for_nobody(world: World) -> None:
    """It wants the source, now: whatever L2 has and whoever loads. It fills if it gets the lease."""
    world.memory.held[A] = entry(1)
    newest = [world.source.write(A) for _ in range(2)][-1]
    world.memory.take_lease(B.entity)
    started = world.clock.monotonic()
    loaded = world.load(A, B, strict=True, seen={})
    assert loaded.found[A][0].version == newest.version
    assert loaded.read == {A, B}
    assert world.clock.monotonic() == started
    assert world.memory.held == {A: newest}
    assert set(world.memory.leases) == {B.entity}


def test_a_traceless_load_only_reads(world: World) -> None:
    """No lease, no fill, no negative entry counted."""
    world.source.write(A)
    assert set(world.load(A, B, traceless=True).found) == {A, B}
    assert world.memory.calls == []


def test_only_so_many_negative_entries_are_kept() -> None:
    """What is over the quota is answered and its lease given back; values are kept however full it is."""
    world = World(negatives=1)
    world.source.write(B)
    unknown = [Key("customer", f"nobody-{number}", "group") for number in range(3)]
    loaded = world.load(*unknown, B)
    assert [loaded.found[key][0].values for key in unknown] == [None] * 3
    assert set(world.memory.held) == {unknown[0], B}
    assert world.memory.leases == {}
    assert world.stats.events == {"negative_refused": 2}
    world.clock.advance(POLICIES["group"].negative_ttl_s)
    world.load(unknown[1])
    assert unknown[1] in world.memory.held


def test_two_processes_on_one_redis(l2: L2Tier, redis_client: redis.Redis, stats: KeptStats) -> None:
    """The second waits for the first, gets what it filled, and loads when the first has died."""
    world = World(l2)
    first = L2Tier(l2.wire, stats)
    world.source.write(A)
    lease = first.lease_many([A], {}, POLICIES).granted
    world.clock.meanwhile = [lambda: first.fill_many({A: entry(7)}, POLICIES, lease)]
    assert world.load(A).found == {A: (entry(7), Tier.L2)}
    assert world.source.asked == []
    first.lease_many([B], {}, POLICIES)
    assert world.load(B).found[B][1] is Tier.L3
    assert l2.get_many([B], POLICIES) == {B: MissReason.COLD}
    redis_client.delete(names_of(*B.entity, 1).lease)
    world.load(B)
    assert isinstance(l2.get_many([B], POLICIES)[B], Entry)


def test_direct_loading_reads_and_puts() -> None:
    """For what is cheaper to compute than to coordinate: no lease, a failure is said."""
    world = World()
    loading = DirectLoading(filler=world.filler, stats=world.stats, source_tier=Tier.COMPUTED)
    world.source.write(A)

    def order(*, traceless: bool = False) -> Order:
        return Order(
            keys=[A, A_NO_L2], policies=POLICIES, loader=world.source.load, seen={}, spare={}, traceless=traceless
        )

    loading.load(order(traceless=True))
    world.filler.flush()
    assert world.memory.held == {}
    loaded = loading.load(order())
    world.filler.flush()
    assert {tier for _, tier in loaded.found.values()} == {Tier.COMPUTED}
    assert set(world.memory.held) == {A}
    assert world.memory.calls == ["put"]
    world.source.away = True
    assert loading.load(order()).failed
    assert world.stats.source_errors == {"database": 1}
