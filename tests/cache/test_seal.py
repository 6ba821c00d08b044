"""Seals: what somebody without the key can write to Redis is a miss that is counted, and nothing more."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from mlserve.cache.breaker import Breaker
from mlserve.cache.codec import IDENTITY_BYTES, decode, encode, is_sealed
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason, Tier
from mlserve.cache.seal import MAC_BYTES, NO_SEAL, KeyedSeal, make_seal
from mlserve.cache.tiers.batches import MOST_KEYS, Applied, Batches, Change, Raced, Step, by_partition
from mlserve.cache.tiers.l2_redis import L2Tier
from mlserve.cache.tiers.wire import Command, SingleNodeWire
from mlserve.cache.watermark import Watermark, name_of, parse
from tests.cache.doubles import KeptStats, policy
from tests.cache.wire_contract import wire_to_l2
from tests.cache.worlds import World
from tests.fixtures.clock import ManualClock

SECRET = "a secret of thirty-two characters"
SEAL, OTHER_SEAL = KeyedSeal(SECRET), KeyedSeal(SECRET + "!")
KEY, NEIGHBOUR = Key("customer", "c1", "profile"), Key("customer", "c2", "profile")
NAMES = names_of(*KEY.entity, 1)
WM = name_of(0)
POLICIES = {"profile": policy("profile", proven=True)}
BY_AGE = {"profile": policy("profile")}
MARK = Watermark(3, "731:739:733,735", 1_700_000_000.0, "4711-9f3a2c")

_digests = st.binary(min_size=16, max_size=16)
_groups = st.text(max_size=20)


def _entry(version: int = 1, number: float = 1.0) -> Entry:
    now = ManualClock().now()
    return Entry(version, now, now, (number,))


def _record(version: int = 1, number: float = 1.0, *, key: Key = KEY, epoch: int = 3, seal: Any = SEAL) -> bytes:
    return encode(key, names_of(*key.entity, 1).digest, 1, _entry(version, number), epoch=epoch, seal=seal)


def _decode(record: bytes, seal: Any = SEAL) -> Entry | MissReason:
    return decode(record, KEY, NAMES.digest, 1, None, seal)


# --- the seal itself ---


@given(st.binary(max_size=300), _digests, _groups)
@example(b"", bytes(16), "")
def test_what_was_sealed_is_opened_where_it_was_sealed_for(record: bytes, digest: bytes, group: str) -> None:
    """Of a record 16 bytes more; of a watermark a field more."""
    sealed = SEAL.seal_record(record, digest, group)
    assert len(sealed) == len(record) + MAC_BYTES
    assert SEAL.open_record(sealed, digest, group) == record
    assert SEAL.open_watermark(SEAL.seal_watermark(record, digest), digest) == record


@given(st.binary(max_size=120), _digests, _groups, st.data())
def test_a_bit_that_was_changed_breaks_it(record: bytes, digest: bytes, group: str, data: st.DataObject) -> None:
    """Of the record, of the seal or of the place; so does another key, and a byte less or more."""
    sealed = SEAL.seal_record(record, digest, group)
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    changed = bytearray(sealed)
    changed[bit // 8] ^= 1 << bit % 8
    assert SEAL.open_record(bytes(changed), digest, group) is None
    assert SEAL.open_record(sealed[:-1], digest, group) is None
    assert SEAL.open_record(sealed + b"\0", digest, group) is None
    assert SEAL.open_record(sealed, bytes(15) + (b"\1" if digest[-1:] != b"\1" else b"\2"), group) is None
    assert SEAL.open_record(sealed, digest, group + "x") is None
    assert OTHER_SEAL.open_record(sealed, digest, group) is None


def test_no_byte_passes_from_the_place_to_what_is_sealed() -> None:
    """A group `ab` over `c` is not a group `a` over `bc`, and the seal of a record is none for a watermark."""
    sealed = SEAL.seal_record(b"c", bytes(16), "ab")
    assert SEAL.open_record(b"b" + sealed, bytes(16), "a") is None
    assert SEAL.open_watermark(SEAL.seal_watermark(b"c", b"ab"), b"ab") == b"c"
    assert SEAL.open_watermark(b"b" + SEAL.seal_watermark(b"c", b"ab"), b"a") is None
    # The bytes that are hashed are the same here: 20:xxxxxxxxxxxxx1:gnamet
    mac = SEAL.seal_record(b"namet", b"20:" + b"x" * 13, "g")[-MAC_BYTES:]
    assert not SEAL.seal_watermark(b"t", b"x" * 13 + b"1:gname").endswith(mac.hex().encode())


@given(st.binary(max_size=60))
def test_bytes_without_a_seal_are_nothing(text: bytes) -> None:
    """However short."""
    assert SEAL.open_record(text, bytes(16), "g") is None
    assert SEAL.open_watermark(text, b"name") is None


def test_without_a_secret_nothing_is_sealed() -> None:
    """And everything is believed."""
    assert make_seal("") is NO_SEAL
    assert make_seal(SECRET).keyed and not NO_SEAL.keyed
    assert NO_SEAL.open_record(NO_SEAL.seal_record(b"r", bytes(16), "g"), bytes(16), "other") == b"r"
    assert NO_SEAL.open_watermark(NO_SEAL.seal_watermark(b"w", b"name"), b"other") == b"w"


# --- records ---


def test_a_record_has_to_have_the_seal_that_readers_ask_for() -> None:
    """Its first 17 bytes, which scripts look at, stay as they are."""
    sealed, bare = _record(), _record(seal=NO_SEAL)
    assert _decode(sealed) == _entry()
    assert sealed[:-MAC_BYTES] == bare
    assert _decode(bare) is MissReason.DECODE
    assert _decode(sealed, NO_SEAL) is MissReason.DECODE
    assert _decode(sealed, OTHER_SEAL) is MissReason.DECODE


def test_a_record_of_another_place_is_refused_by_its_seal_alone() -> None:
    """Entity and group are sealed whole; the name within is shorter."""
    assert is_sealed(_record(), KEY, NAMES.digest, SEAL)
    assert not is_sealed(_record(key=NEIGHBOUR), KEY, NAMES.digest, SEAL)
    assert not is_sealed(_record(key=Key("customer", "c1", "risk")), KEY, NAMES.digest, SEAL)


@given(st.binary(max_size=400))
@example(_record()[:IDENTITY_BYTES] + b"\x91" * 5_000)
def test_any_bytes_are_a_miss(record: bytes) -> None:
    """And never an exception."""
    assert _decode(record) is MissReason.DECODE or record[8:9] == b"T"


def test_a_tombstone_needs_none() -> None:
    """Scripts write it, which have no key. All that a forged one can do is to make its key a miss."""
    assert _decode(_record()[:8] + b"T" + bytes(8)) is MissReason.INVALIDATED


# --- watermarks ---


def test_a_sealed_watermark_is_one_in_its_place_only() -> None:
    """Each partition has its own."""
    sealed = MARK.pack(WM, SEAL)
    assert sealed.startswith(MARK.pack() + b"|")
    assert parse(sealed, WM, SEAL) == MARK
    assert parse(sealed, name_of(1), SEAL) is None
    assert parse(sealed, WM, OTHER_SEAL) is None
    assert parse(sealed) is None
    assert parse(MARK.pack(), WM, SEAL) is None


@pytest.mark.parametrize("part", [b"3|", b":739:", b"1700000000.000000", b"4711"])
def test_no_field_of_a_watermark_can_be_changed(part: bytes) -> None:
    """Epoch, snapshot, moment and relay."""
    sealed = MARK.pack(WM, SEAL)
    digit = next(at for at in range(sealed.index(part), len(sealed)) if chr(sealed[at]).isdigit())
    changed = sealed[:digit] + (b"8" if sealed[digit : digit + 1] != b"8" else b"9") + sealed[digit + 1 :]
    assert parse(changed[:-33]) is not None
    assert parse(changed, WM, SEAL) is None


# --- on a real Valkey ---


@pytest.fixture
def tier(l2_client: redis.Redis, breaker: Breaker, stats: KeptStats, clock: ManualClock) -> L2Tier:
    return L2Tier(SingleNodeWire(lambda: l2_client, breaker), stats, clock=clock, seal=SEAL)


class SealedWorld(World):
    """Over an L2 with a seal."""

    def __init__(self, tier: L2Tier, stats: KeptStats, clock: ManualClock) -> None:
        super().__init__(BY_AGE, clock=clock, l2=tier, stats=stats)
        self.source.write(KEY)

    def read_afresh(self) -> tuple[Tier, tuple[float, ...] | None]:
        """As a process whose L1 is empty."""
        self.l1.held.clear()
        outcome = self.read(KEY).outcomes[KEY]
        self.settle()
        return outcome.tier, outcome.values


@pytest.fixture
def world(tier: L2Tier, stats: KeptStats, clock: ManualClock) -> SealedWorld:
    return SealedWorld(tier, stats, clock)


FORGED: dict[str, Callable[[], bytes]] = {
    "without a seal": lambda: _record(2**62, 666.0, seal=NO_SEAL),
    "with the seal of another key": lambda: _record(2**62, 666.0, seal=OTHER_SEAL),
    "with the seal of another record": lambda: _record(2**62, 666.0, seal=NO_SEAL) + _record()[-MAC_BYTES:],
    "of another entity": lambda: _record(2**62, 666.0, key=NEIGHBOUR),
    "too large to be ours": lambda: bytes(8) + b"V" + bytes(1_000_000),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_record_is_a_counted_miss_and_goes(
    world: SealedWorld, redis_client: redis.Redis, stats: KeptStats, what: str
) -> None:
    """Newer than anything as it looks, it keeps no fill out."""
    redis_client.hset(NAMES.record, KEY.group, FORGED[what]())
    assert world.read_afresh() == (Tier.L3, (1.0,))
    assert stats.misses[Tier.L2, "profile", MissReason.DECODE] == 1
    assert stats.events["envelope_mismatch"] == 1
    assert world.read_afresh() == (Tier.L2, (1.0,))
    assert stats.events["envelope_mismatch"] == 1


def test_a_sealed_record_that_is_refused_for_itself_is_no_mismatch(
    tier: L2Tier, redis_client: redis.Redis, stats: KeptStats
) -> None:
    """It is ours, whatever is wrong with it."""
    redis_client.hset(NAMES.record, KEY.group, _record(1, float("nan")))
    assert tier.get_many([KEY], BY_AGE) == {KEY: MissReason.DECODE}
    assert stats.events["envelope_mismatch"] == 0


def test_a_forged_tombstone_costs_hits_and_never_an_answer(world: SealedWorld, redis_client: redis.Redis) -> None:
    """Above all versions it keeps fills out while it stays; the source answers meanwhile."""
    redis_client.hset(NAMES.record, KEY.group, b"\xff" * 8 + b"T" + bytes(8))
    assert [world.read_afresh() for _ in range(2)] == [(Tier.L3, (1.0,))] * 2
    redis_client.delete(NAMES.record)
    assert [world.read_afresh()[0] for _ in range(2)] == [Tier.L3, Tier.L2]


def test_a_cache_that_was_warm_before_the_key_was_set_is_cold(
    world: SealedWorld, redis_client: redis.Redis, stats: KeptStats
) -> None:
    """Its copies are misses, one each; the same the other way round."""
    redis_client.hset(NAMES.record, KEY.group, _record(seal=NO_SEAL))
    assert [world.read_afresh()[0] for _ in range(2)] == [Tier.L3, Tier.L2]
    assert stats.events["envelope_mismatch"] == 1


def test_copies_are_vouched_for_by_a_sealed_watermark(tier: L2Tier, redis_client: redis.Redis) -> None:
    redis_client.hset(NAMES.record, KEY.group, _record())
    redis_client.set(WM, MARK.pack(WM, SEAL))
    held = tier.get_many([KEY], POLICIES)[KEY]
    assert isinstance(held, Entry)
    assert held.vouched_at == MARK.safe_time


@pytest.mark.parametrize(
    "text",
    [
        MARK.pack(),
        MARK.pack(WM, OTHER_SEAL),
        MARK.pack(name_of(1), SEAL),
        MARK.pack() + MARK.pack(WM, SEAL)[-33:-1],
        b"",
        b"junk",
    ],
    ids=["bare", "another key", "another partition", "torn", "nothing", "junk"],
)
def test_a_forged_watermark_vouches_for_nothing(
    tier: L2Tier, redis_client: redis.Redis, stats: KeptStats, text: bytes
) -> None:
    """It is counted, and a fill gets no epoch by it."""
    redis_client.hset(NAMES.record, KEY.group, _record())
    redis_client.set(WM, text)
    held = tier.get_many([KEY], POLICIES)[KEY]
    assert isinstance(held, Entry)
    assert held.vouched_at == 0.0
    assert stats.events["envelope_mismatch"] == 1
    (lease,) = tier.lease_many([NEIGHBOUR], {}, POLICIES).granted.values()
    assert (lease.epoch, stats.events["envelope_mismatch"]) == (0, 2)


def test_a_watermark_that_is_not_there_is_no_mismatch(tier: L2Tier, stats: KeptStats) -> None:
    tier.get_many([KEY], POLICIES)
    assert stats.events["envelope_mismatch"] == 0


def test_each_part_of_a_batch_is_sealed(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two parts the watermark counts, and readers go on believing it."""
    seen: list[bytes] = []
    original = Batches._call

    def spied(self: Batches, calls: Any) -> Any:
        seen.append(redis_client.get(WM) or b"")  # type: ignore[arg-type]
        return original(self, calls)

    monkeypatch.setattr(Batches, "_call", spied)
    batches = Batches(wire_to_l2(ManualClock()), seal=SEAL)
    changes = by_partition([Change("merchant", f"m{at}", "merchant_risk", 6) for at in range(MOST_KEYS + 1)], 1)[0]
    batches.apply({0: Step(b"", None, MARK)}, batch="b0")
    later = Watermark(3, "740:740:", MARK.safe_time + 1, "relay")
    answers = batches.apply({0: Step(MARK.pack(WM, SEAL), MARK, later, changes)}, batch="b1")
    assert answers == {0: Applied(later.pack(WM, SEAL), len(changes), len(changes))}
    between = batches.parse(0, seen[-1])
    assert between is not None
    assert (between.relay, between.safe_time) == ("b1/1", MARK.safe_time)
    assert batches.read([0]) == {0: Raced(later.pack(WM, SEAL))}


# --- watermarks that go back ---


def _put(client: redis.Redis, *, epoch: int = 3, ago_s: float = 0.0) -> None:
    mark = Watermark(epoch, "731:739:", MARK.safe_time - ago_s, "relay")
    client.set(WM, mark.pack(WM, SEAL))


@pytest.mark.parametrize(
    ("then", "counted"),
    [
        ({"ago_s": 0.000001}, 1),
        ({"ago_s": 0.0}, 0),
        ({"ago_s": -0.05}, 0),
        ({"ago_s": 5.0, "epoch": 4}, 0),
        ({"ago_s": -5.0, "epoch": 2}, 1),
    ],
    ids=["earlier", "the same", "later", "a new epoch", "an older epoch"],
)
def test_a_watermark_that_went_back_is_counted_once(
    tier: L2Tier, redis_client: redis.Redis, stats: KeptStats, then: dict[str, Any], counted: int
) -> None:
    """After a failover, or because somebody put an old one back, whose seal is good."""
    _put(redis_client)
    tier.get_many([KEY], POLICIES)
    _put(redis_client, **then)
    for _ in range(3):
        tier.get_many([KEY], POLICIES)
    assert stats.events["watermark_went_back"] == counted


def test_every_way_to_a_watermark_counts(tier: L2Tier, redis_client: redis.Redis, stats: KeptStats) -> None:
    """A reader's look-up, a reader's lease, a writer's lease."""
    _put(redis_client, ago_s=0)
    tier.get_many([KEY], POLICIES)
    _put(redis_client, ago_s=1)
    tier.lease_many([KEY], {}, POLICIES)
    _put(redis_client, ago_s=2)
    tier.lease_for_write([KEY.entity], timeout_s=0.05)
    assert stats.events["watermark_went_back"] == 2


def test_an_answer_that_was_overtaken_is_no_step_back(
    tier: L2Tier, redis_client: redis.Redis, stats: KeptStats
) -> None:
    """A thread that is held up holds the watermark of before; others have read on in the meantime."""
    _put(redis_client, ago_s=1)
    tier.get_many([KEY], POLICIES)
    ask = tier.wire.ask

    def held_up(commands: Sequence[Command], **options: Any) -> list[Any]:
        _put(redis_client, ago_s=0.7)
        replies = ask(commands, **options)
        tier.wire.ask = ask  # type: ignore[method-assign]
        _put(redis_client, ago_s=0)
        tier.get_many([KEY], POLICIES)
        return replies

    tier.wire.ask = held_up  # type: ignore[method-assign]
    tier.get_many([KEY], POLICIES)
    assert stats.events["watermark_went_back"] == 0
    _put(redis_client, ago_s=0.5)
    tier.get_many([KEY], POLICIES)
    assert stats.events["watermark_went_back"] == 1
