"""Whatever lies under our names in Redis: a miss that is counted, the answer from the source, and a copy that heals."""

import os
import pickle
import random
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import redis

from mlserve.cache.breaker import FIRST_INTERVAL_S, Breaker, State
from mlserve.cache.codec import IDENTITY_BYTES, MAX_RECORD_BYTES, encode
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason, Outcome, Tier
from mlserve.cache.tiers.l2_redis import L2Tier
from tests.cache.doubles import KeptStats, policy
from tests.cache.worlds import World
from tests.fixtures.clock import ManualClock

POLICIES = {"profile": policy("profile", fixed_values=1)}
VICTIM, NEIGHBOUR = Key("customer", "c1", "profile"), Key("customer", "c2", "profile")
NAMES = names_of(*VICTIM.entity, 1)
NAME, FIELD = NAMES.record, "profile"


class Bomb:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> Any:
        return os.getenv, ("PATH",)


def _record(version: int = 1, age_s: float = 0.0, values: tuple[float, ...] = (1.0,)) -> bytes:
    now = ManualClock().now()
    return encode(VICTIM, NAMES.digest, 1, Entry(version, now - age_s, now - age_s, values))


def _with_body(**changes: object) -> bytes:
    names = ("name", "epoch", "schema", "age_us", "cost_us", "values")
    good = _record()
    body = dict(zip(names, msgspec.msgpack.decode(good[IDENTITY_BYTES:]), strict=True))
    return good[:IDENTITY_BYTES] + msgspec.msgpack.encode([*(body | changes).values()])


def _zip_bomb(size: int) -> bytes:
    """Compressed zeros. A block that refers to nothing before it may come a thousand times."""
    zipper = zlib.compressobj(9)
    start = zipper.compress(b"") + zipper.flush(zlib.Z_FULL_FLUSH)
    block = zipper.compress(bytes(1_000_000)) + zipper.flush(zlib.Z_FULL_FLUSH)
    return start + block * (size // 1_000_000) + zipper.flush()


BYTES: dict[str, tuple[bytes, MissReason]] = {
    "nothing": (b"", MissReason.DECODE),
    "text": (b"not a record, but longer than 17 bytes", MissReason.DECODE),
    "a pickle": (pickle.dumps(Bomb()), MissReason.DECODE),
    "a pickle behind our header": (_record()[:IDENTITY_BYTES] + pickle.dumps(Bomb()), MissReason.DECODE),
    "a pickle for values": (_with_body(values=pickle.dumps(Bomb())), MissReason.DECODE),
    "torn at the end": (_record()[:-1], MissReason.DECODE),
    "torn in the header": (_record()[: IDENTITY_BYTES - 1], MissReason.DECODE),
    "the header alone": (_record()[:IDENTITY_BYTES], MissReason.DECODE),
    "of another entity": (
        encode(NEIGHBOUR, names_of(*NEIGHBOUR.entity, 1).digest, 1, Entry(1, 0.0, 0.0, (1.0,))),
        MissReason.DECODE,
    ),
    "of another group": (
        encode(Key("customer", "c1", "risk"), NAMES.digest, 1, Entry(1, 0.0, 0.0, (1.0,))),
        MissReason.DECODE,
    ),
    "of another schema": (
        encode(VICTIM, NAMES.digest, 2, Entry(1, 0.0, 0.0, (1.0,))),
        MissReason.SCHEMA,
    ),
    "not a number": (_record(values=(float("nan"),)), MissReason.DECODE),
    "too many values": (_record(values=(1.0, 2.0)), MissReason.DECODE),
    "a cost below zero": (_with_body(cost_us=-(10**12)), MissReason.DECODE),
    "from the future": (_record(age_s=-3_600), MissReason.EXPIRED),
    "past its limit": (_record(age_s=3_600), MissReason.EXPIRED),
    "a tombstone": (_record()[:8] + b"T" + _record()[9:IDENTITY_BYTES], MissReason.INVALIDATED),
    "larger than a record": (_record() + bytes(2 * MAX_RECORD_BYTES), MissReason.DECODE),
    "a gigabyte, compressed": (_with_body(values=b"F" + _zip_bomb(1_000_000_000)), MissReason.DECODE),
    "more than a gigabyte, compressed": (_with_body(values=b"D" + _zip_bomb(1_100_000_000)), MissReason.DECODE),
}

TYPES: dict[str, Callable[[redis.Redis], object]] = {
    "string": lambda client: client.set(NAME, _record()),
    "list": lambda client: client.rpush(NAME, FIELD, _record()),
    "set": lambda client: client.sadd(NAME, FIELD),
    "zset": lambda client: client.zadd(NAME, {FIELD: 1}),
    "stream": lambda client: client.xadd(NAME, {FIELD: _record()}),
}


class Poisoned(World):
    """Over the real L2, where the neighbour's copy lies; the source knows both customers."""

    def __init__(self, l2: L2Tier, stats: KeptStats, clock: ManualClock) -> None:
        super().__init__(POLICIES, clock=clock, l2=l2, stats=stats)
        for key in (VICTIM, NEIGHBOUR):
            self.source.write(key)
        self.read_afresh(NEIGHBOUR)
        self.stats.misses.clear()

    def read_afresh(self, *keys: Key) -> Mapping[Key, Outcome]:
        """As a process whose L1 is empty."""
        self.l1.held.clear()
        outcomes = self.read(*keys).outcomes
        self.settle()
        return outcomes


@pytest.fixture
def world(l2: L2Tier, stats: KeptStats, clock: ManualClock) -> Poisoned:
    return Poisoned(l2, stats, clock)


def _expect_a_miss(world: Poisoned, reason: MissReason, breaker: Breaker) -> None:
    """The neighbour is not touched; what was read instead replaces the poison."""
    outcomes = world.read_afresh(VICTIM, NEIGHBOUR)
    assert {key: outcome.tier for key, outcome in outcomes.items()} == {VICTIM: Tier.L3, NEIGHBOUR: Tier.L2}
    assert outcomes[VICTIM].entry == world.source.rows[VICTIM]
    assert world.stats.misses[Tier.L2, "profile", reason] == 1
    assert world.stats.counts_of(Tier.L2)[1] == {reason: 1}
    assert breaker.state is State.CLOSED
    assert world.read_afresh(VICTIM)[VICTIM].tier is Tier.L2


@pytest.mark.parametrize("what", BYTES)
def test_bytes_that_are_not_what_we_left_there(
    world: Poisoned, redis_client: redis.Redis, breaker: Breaker, unpickled: list[str], what: str
) -> None:
    """Nothing in them is run, nothing is expanded beyond what a record may hold."""
    poison, reason = BYTES[what]
    redis_client.hset(NAME, FIELD, poison)
    tracemalloc.start()
    try:
        _expect_a_miss(world, reason, breaker)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert unpickled == []


@pytest.mark.parametrize("type_", TYPES)
def test_values_of_another_type(
    world: Poisoned, redis_client: redis.Redis, breaker: Breaker, unpickled: list[str], type_: str
) -> None:
    TYPES[type_](redis_client)
    _expect_a_miss(world, MissReason.DECODE, breaker)
    assert redis_client.type(NAME) == b"hash"
    assert unpickled == []


def test_random_bytes_and_records_with_flipped_bits(
    world: Poisoned, redis_client: redis.Redis, breaker: Breaker, unpickled: list[str]
) -> None:
    """Whatever comes of them: an answer of finite numbers from somewhere, and no exception."""
    chance = random.Random(5)
    for _ in range(300):
        poison = bytearray(chance.randbytes(chance.randrange(80)) if chance.random() < 0.5 else _record())
        for _ in range(chance.randrange(4) if poison else 0):
            poison[chance.randrange(len(poison))] ^= 1 << chance.randrange(8)
        redis_client.delete(NAME)
        redis_client.hset(NAME, FIELD, bytes(poison))
        outcome = world.read_afresh(VICTIM)[VICTIM]
        assert outcome.age_s >= 0
        assert outcome.tier in (Tier.L2, Tier.L3, Tier.DEFAULT)
        assert all(abs(value) < float("inf") for value in outcome.values or ())
    assert breaker.state is State.CLOSED
    assert unpickled == []


@pytest.mark.parametrize("size", [2 * MAX_RECORD_BYTES, 100_000_000])
def test_a_value_too_large_to_be_ours_is_removed(
    world: Poisoned, l2: L2Tier, redis_client: redis.Redis, breaker: Breaker, clock: ManualClock, size: int
) -> None:
    """Readers miss, in time or out of it; the prober takes it away, also if reading it has opened the breaker."""
    redis_client.hset(NAME, FIELD, bytes(size))
    found = l2.get_many([VICTIM], POLICIES, timeout_s=0.05)[VICTIM]
    assert found in (MissReason.DECODE, MissReason.TIMEOUT)
    breaker.failure(timed_out=True)  # as where it takes too long
    l2.probe()
    assert (breaker.state, l2.oversized_removed) == (State.OPEN, 0)
    clock.advance(2 * FIRST_INTERVAL_S)
    l2.probe()
    assert (breaker.state, l2.oversized_removed) == (State.CLOSED, 1)
    assert not redis_client.exists(NAME)
    outcomes = world.read_afresh(VICTIM, NEIGHBOUR)
    assert [outcomes[key].tier for key in (VICTIM, NEIGHBOUR)] == [Tier.L3, Tier.L2]
    l2.probe()
    assert l2.oversized_removed == 1
