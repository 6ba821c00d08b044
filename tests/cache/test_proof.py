"""Groups whose freshness is proven: copies serve only while somebody vouches for them, in every tier."""

import random

import pytest
import redis

from mlserve.cache.breaker import Breaker
from mlserve.cache.budget import Budget
from mlserve.cache.cascade import Cascade, Reading
from mlserve.cache.entry import Entry
from mlserve.cache.filler import Filler
from mlserve.cache.keys import Key, names_of
from mlserve.cache.loading import CoordinatedLoading
from mlserve.cache.negatives import NegativeQuota
from mlserve.cache.outcome import Degradation, MissReason, Tier
from mlserve.cache.policy import Verdict
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
        self.l1 = L1Tier(BoundedStore(100, 1_000_000))
        self.l2 = L2Tier(SingleNodeWire(lambda: client, self.breaker), self.stats, clock=self.clock)
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
