"""Groups whose freshness is proven: copies serve only while somebody vouches for them, in every tier."""

import random

import pytest
import redis

from mlserve.cache.breaker import Breaker
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade, Reading
from mlserve.cache.chain import Chain
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key, names_of
from mlserve.cache.loading import CoordinatedLoading
from mlserve.cache.negatives import NegativeQuota
from mlserve.cache.outcome import Degradation, MissReason, Tier
from mlserve.cache.policy import Verdict
from mlserve.cache.tiers.batches import Batches, Change, Step, by_partition
from mlserve.cache.tiers.bus_tail import BusTail
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.cache.tiers.request import RequestTier
from mlserve.cache.tiers.wire import SingleNodeWire
from mlserve.cache.watermark import Watermark, name_of
from tests.cache.doubles import KeptStats, MemorySource, entry, negative, policy
from tests.fixtures.clock import ManualClock

KEY, OTHER = Key("customer", "c1", "group"), Key("customer", "c2", "group")
BOUND_S = 1.0
PROVEN = {"group": policy(proven=True, bound_s=BOUND_S)}


class VouchingSource(MemorySource):
    """What is read from it has everything that was acknowledged before the read."""

    def load(self, keys):
        read_at = self._clock.now()
        loaded = super().load(keys)
        return {
            key: Entry(held.version, held.as_of, held.written_at, held.values, 0.0, read_at)
            for key, held in loaded.items()
        }


class ProvenWorld:
    """A cascade over L1, a real Valkey and a source, and whoever writes the watermark."""

    def __init__(self, client: redis.Redis) -> None:
        self.clock, self.stats, self.client = ManualClock(), KeptStats(), client
        self.source = VouchingSource(self.clock)
        self.breaker = Breaker("l2", self.clock, random_source=random.Random(0))
        store = BoundedStore(100, 1_000_000)
        self.chain = Chain(store, partitions=1, partition_of=lambda key: 0, clock=self.clock)
        self.l1 = L1Tier(store, self.chain)
        wire = SingleNodeWire(lambda: client, self.breaker)
        self.l2 = L2Tier(wire, self.stats, clock=self.clock, heads=lambda: self.chain.heads)
        self.batches, self.tail = Batches(wire), BusTail(chain=self.chain, wire=wire, partitions=1)
        self.told: Watermark | None = None
        self.snapshot = 100
        self.filler = Filler(self.l2, self.stats)
        loading = CoordinatedLoading(
            l2=self.l2,
            filler=self.filler,
            negatives=NegativeQuota(self.clock, 100),
            stats=self.stats,
            clock=self.clock,
            source_tier=Tier.L3,
        )
        self.cascade = Cascade(l1=self.l1, l2=self.l2, loading=loading, stats=self.stats, clock=self.clock)

    def vouch(self, *, epoch: int = 1, ago_s: float = 0.0) -> None:
        watermark = Watermark(epoch, "100:100:", self.clock.now() - ago_s, "relay-1")
        self.client.set(name_of(0), watermark.pack())

    def relay(self, *changes: Change) -> None:
        """What a relay does with one tick, and the process hears of it."""
        self.snapshot += 1
        following = Watermark(1, f"{self.snapshot}:{self.snapshot}:", self.clock.now(), "relay-1")
        held = self.told.pack() if self.told else b""
        self.batches.apply({0: Step(held, self.told, following, by_partition(changes, 1).get(0, []))}, batch="b")
        self.told = following
        self.tail.poll()

    def read(self, key: Key = KEY) -> Reading:
        reading = self.cascade.read_many(
            [key],
            policies=PROVEN,
            loader=self.source.load,
            request=RequestTier(),
            budget=Budget(self.clock, 0.05),
        )
        self.filler.flush()
        return reading

    def tier(self, key: Key = KEY) -> Tier:
        return self.read(key).outcomes[key].tier

    def forget_l1(self) -> None:
        self.l1.store.clear()


@pytest.fixture
def world(redis_client: redis.Redis) -> ProvenWorld:
    return ProvenWorld(redis_client)


def test_a_copy_serves_while_the_watermark_is_recent(world: ProvenWorld) -> None:
    """And no longer: then the source is read, and the reason of the miss is `unproven`."""
    world.vouch()
    world.source.write(KEY)
    assert world.tier() is Tier.L3
    world.forget_l1()
    assert world.tier() is Tier.L2
    world.forget_l1()
    world.clock.advance(BOUND_S + 0.01)
    assert world.tier() is Tier.L3
    assert world.stats.misses[Tier.L2, "group", MissReason.UNPROVEN] == 1
    world.vouch()
    world.forget_l1()
    assert world.tier() is Tier.L2


def test_without_a_watermark_nothing_in_l2_serves(world: ProvenWorld) -> None:
    """Not even what was filled a moment ago, and not when a watermark comes later: the copy has no epoch."""
    world.source.write(KEY)
    for _ in range(2):
        assert world.tier() is Tier.L3
        world.forget_l1()
    world.vouch()
    assert world.tier() is Tier.L3


def test_copies_of_another_epoch_are_void(world: ProvenWorld) -> None:
    """A new epoch empties the cache without touching a record."""
    world.vouch(epoch=1)
    world.source.write(KEY)
    world.read()
    world.forget_l1()
    world.vouch(epoch=2)
    assert world.tier() is Tier.L3
    world.forget_l1()
    assert world.tier() is Tier.L2


@pytest.mark.parametrize("held", ["a value", "a tombstone"])
def test_versions_of_another_epoch_keep_no_fill_out(world: ProvenWorld, held: str) -> None:
    """The source was restored to before some writes: what it says now replaces what it does not know any more."""
    world.vouch(epoch=1)
    world.source.write(KEY)
    lost = Entry(1_000, world.clock.now(), world.clock.now(), (9.0,), 0.0, world.clock.now())
    world.l2.fill_many({KEY: lost}, PROVEN, world.l2.lease_many([KEY], {}, PROVEN).granted)
    if held == "a tombstone":
        world.l2.drop_many([KEY])
    world.vouch(epoch=2)
    world.forget_l1()
    assert (world.tier(), world.read().outcomes[KEY].version) == (Tier.L3, 1)
    world.forget_l1()
    assert (world.tier(), world.read().outcomes[KEY].version) == (Tier.L2, 1)
    assert not world.stats.refused


def test_a_newer_version_of_this_epoch_keeps_a_fill_out(world: ProvenWorld) -> None:
    """Whatever lease somebody has."""
    world.vouch()
    now = world.clock.now()
    newer, older = (Entry(version, now, now, (1.0,), 0.0, now) for version in (7, 6))
    world.l2.fill_many({KEY: newer}, PROVEN, world.l2.lease_many([KEY], {}, PROVEN).granted)
    seen = world.l2.get_many([KEY], PROVEN)
    world.l2.fill_many({KEY: older}, PROVEN, world.l2.lease_many([KEY], seen, PROVEN).granted)
    assert world.stats.refused == {(Tier.L2, "newer"): 1}


def test_a_copy_in_l1_lives_no_longer_than_the_bound(world: ProvenWorld) -> None:
    """Counted from the moment that its watermark spoke of, not from the copying."""
    world.vouch(ago_s=0.6)
    world.source.write(KEY)
    world.read()
    world.forget_l1()
    assert world.tier() is Tier.L2
    assert world.tier() is Tier.L1
    world.clock.advance(0.41)
    world.vouch()
    assert world.tier() is Tier.L2
    assert world.stats.misses[Tier.L1, "group", MissReason.UNPROVEN] == 1


def test_a_change_that_was_relayed_is_seen(world: ProvenWorld) -> None:
    """A tombstone and the end of the lease, as a relay leaves them: the next reader gets the new value."""
    world.vouch()
    world.source.write(KEY)
    world.read()
    world.source.write(KEY)
    world.l2.drop_many([KEY])
    world.vouch()
    world.clock.advance(BOUND_S + 0.01)
    world.vouch()
    assert world.read().outcomes[KEY].version == 2


def test_what_nobody_vouches_for_serves_flagged_while_the_source_is_away(world: ProvenWorld) -> None:
    """Young as it is: an unflagged value would be a promise."""
    world.vouch()
    world.source.write(KEY)
    world.read()
    world.clock.advance(BOUND_S + 0.01)
    world.source.away = True
    reading = world.read()
    outcome = reading.outcomes[KEY]
    assert (outcome.version, outcome.stale) == (1, True)
    assert Degradation.STALE_SOURCE_UNAVAILABLE in reading.degradations


def test_a_watermark_from_the_future_is_believed_for_a_tenth_of_a_second_at_most(world: ProvenWorld) -> None:
    """The clock of the database may be ahead; a copy in L1 then still ends when this host says so."""
    world.vouch(ago_s=-3_600)
    world.source.write(KEY)
    world.read()
    world.forget_l1()
    assert world.tier() is Tier.L2
    assert world.stats.events["clock_ahead"] > 0
    held = world.l1.store.peek(KEY)
    assert held.vouched_at <= world.clock.now() + 0.1


@pytest.mark.parametrize("text", [b"", b"garbage", b"1|1:1:|nan|r", b"1|5:3:|1700000000.000000|r", b"\xff" * 300])
def test_a_watermark_that_is_none_vouches_for_nothing(world: ProvenWorld, text: bytes) -> None:
    world.vouch()
    world.source.write(KEY)
    world.read()
    world.forget_l1()
    world.client.set(name_of(0), text)
    assert world.tier() is Tier.L3


def test_a_watermark_of_another_type_vouches_for_nothing(world: ProvenWorld) -> None:
    world.vouch()
    world.source.write(KEY)
    world.read()
    world.forget_l1()
    world.client.delete(name_of(0))
    world.client.lpush(name_of(0), "1|100:100:|1700000000.000000|r")
    assert world.tier() is Tier.L3


def test_an_unknown_id_is_proven_as_well(world: ProvenWorld) -> None:
    """That nobody knows an id is a statement like any other, and the filter of ids has no say in it."""
    world.vouch()
    world.read(OTHER)
    world.clock.advance(BOUND_S + 0.01)
    world.source.write(OTHER)
    assert world.read(OTHER).outcomes[OTHER].version == 1


def test_a_writers_lease_takes_that_of_a_reader(world: ProvenWorld) -> None:
    """Who read before the write must not fill after it; the writer may, and its copy has the epoch."""
    world.vouch()
    reader = world.l2.lease_many([KEY], {}, PROVEN).granted
    writer = world.l2.lease_for_write([KEY.entity], timeout_s=0.05)
    assert world.l2.fill_many({KEY: entry(2)}, PROVEN, writer)
    world.l2.fill_many({KEY: entry(1)}, PROVEN, reader)
    held = world.l2.get_many([KEY], PROVEN)[KEY]
    assert isinstance(held, Entry)
    assert (held.version, held.vouched_at) == (2, world.clock.now())
    assert world.stats.refused[Tier.L2, "lease"] == 1


def test_the_watermark_comes_in_the_same_round_trip(world: ProvenWorld) -> None:
    """And is asked for before the records: what is read after it is at least as new as it says."""
    world.vouch()
    sent = []
    ask = world.l2.wire.ask

    def watched(commands, **options):
        sent.append([command.packed.split(b"\r\n")[2] for command in commands])
        return ask(commands, **options)

    world.l2.wire.ask = watched  # type: ignore[method-assign]
    world.l2.get_many([KEY, OTHER], PROVEN)
    assert sent == [[b"GET", b"HMGET", b"HMGET"]]


def test_a_verdict_without_proof_is_not_one_of_age(world: ProvenWorld) -> None:
    """Negative or not, young or old."""
    now = world.clock.now()
    for held in (entry(age_s=0, now=now), negative(now=now)):
        assert PROVEN["group"].verdict(held, now=now, max_age_s=None) is Verdict.UNPROVEN


def test_names_of_a_partition_share_their_hash_tag() -> None:
    """Record, lease and watermark lie in one slot, hence on one node and in one history."""
    names = names_of("customer", "c1", 16)
    tags = {name[name.index(b"{") : name.index(b"}") + 1] for name in (names.record, names.lease, names.watermark)}
    assert len(tags) == 1
    assert names.watermark == name_of(int(tags.pop()[1:-1]))


def test_a_copy_in_l1_lives_for_as_long_as_nothing_is_heard_of_it(world: ProvenWorld) -> None:
    """A process that follows the batches need not ask L2 again."""
    world.relay()
    world.source.write(KEY)
    assert world.tier() is Tier.L3
    for _ in range(20):
        world.clock.advance(0.4)
        world.relay(Change("customer", "c2", "group", 99))
        assert world.tier() is Tier.L1
    version = world.source.write(KEY).version
    world.relay(Change("customer", "c1", "group", version))
    reading = world.read()
    assert (reading.outcomes[KEY].tier, reading.outcomes[KEY].version) == (Tier.L3, version)
    assert world.tier() is Tier.L1


def test_in_silence_l1_serves_no_longer_than_the_bound(world: ProvenWorld) -> None:
    """By the quick look as by the slow one: what was heard last vouches no longer than that."""
    world.relay()
    world.source.write(KEY)
    world.read()
    world.clock.advance(5)
    world.relay()
    assert world.tier() is Tier.L1
    world.clock.advance(BOUND_S + 0.01)
    assert world.tier() is Tier.L3
    assert world.stats.misses[Tier.L1, "group", MissReason.UNPROVEN] == 1


def test_a_copy_that_came_unvouched_is_not_believed_by_the_quick_look(world: ProvenWorld) -> None:
    """It was read while the group went by its TTL."""
    world.relay()
    newest = world.source.write(KEY)
    now = world.clock.now()
    world.l1.put_many({KEY: Entry(0, now, now, (1.0,))}, PROVEN, since=world.l1.begin())
    assert world.read().outcomes[KEY].version == newest.version


def test_what_is_vouched_for_is_asked_before_the_copy(world: ProvenWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a batch between the two would vouch for the copy that it has just taken away."""
    world.relay()
    world.source.write(KEY)
    world.read()
    world.clock.advance(BOUND_S + 0.01)
    look = world.l1.store.get

    def look_and_then_hear(key: Key) -> object:
        found = look(key)
        version = world.source.write(KEY).version
        world.relay(Change("customer", "c1", "group", version))
        return found

    monkeypatch.setattr(world.l1.store, "get", look_and_then_hear)
    monkeypatch.setattr(world.l1, "get", look_and_then_hear)
    monkeypatch.setattr(world.cascade, "_l1_get", look_and_then_hear)
    assert world.tier() is Tier.L3


def test_a_load_that_was_overtaken_by_a_batch_does_not_stay_in_l1(world: ProvenWorld) -> None:
    """The caller gets what it read; the next one reads again."""
    world.relay()
    world.source.write(KEY)
    load = world.source.load

    def slow_load(keys):
        loaded = load(keys)
        version = world.source.write(KEY).version
        world.relay(Change("customer", "c1", "group", version))
        return loaded

    world.source.load = slow_load  # type: ignore[method-assign]
    world.read()
    world.source.load = load  # type: ignore[method-assign]
    assert world.l1.store.peek(KEY) is None
    assert world.tier() is Tier.L3


def test_l2_does_not_count_where_it_has_lost_what_was_heard_of_it(world: ProvenWorld) -> None:
    """A replica was promoted that never got the last batch: its watermark is recent, and its copy was withdrawn."""
    world.relay()
    old = world.source.write(KEY)
    world.read()
    record = world.client.dump(names_of("customer", "c1", 1).record)
    before = world.told
    version = world.source.write(KEY).version
    world.relay(Change("customer", "c1", "group", version))
    assert before is not None and record is not None
    world.client.set(name_of(0), before.pack())
    world.client.restore(names_of("customer", "c1", 1).record, 60_000, record, replace=True)
    world.forget_l1()
    assert world.read().outcomes[KEY].version == version > old.version
    assert world.stats.events["history_lost"] == 1


def test_a_fill_from_l2_is_kept_where_its_watermark_covers_what_was_heard(world: ProvenWorld) -> None:
    world.relay()
    world.source.write(KEY)
    world.read()
    world.forget_l1()
    assert world.tier() is Tier.L2
    assert world.tier() is Tier.L1
