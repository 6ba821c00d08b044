"""The stream of a partition on a real Valkey: a relay's batches at one end, a process's memory at the other."""

import random
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from mlserve.cache import bus
from mlserve.cache.breaker import Breaker
from mlserve.cache.chain import SILENCE_S, Chain, Message
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.seal import NO_SEAL, KeyedSeal, Seal
from mlserve.cache.tiers.batches import Applied, Batches, Change, Step, by_partition
from mlserve.cache.tiers.bus_tail import MOST_AT_ONCE, BusTail
from mlserve.cache.tiers.l1_locmem import BoundedStore
from mlserve.cache.tiers.wire import SingleNodeWire
from mlserve.cache.watermark import Watermark, name_of
from tests.fixtures.clock import ManualClock

GROUP = "merchant_risk"
KEY, OTHER = Key("merchant", "m1", GROUP), Key("merchant", "m2", GROUP)
BUS = bus.name_of(0)


class Following:
    """A relay and one process that follows it."""

    def __init__(self, client: redis.Redis, seal: Seal = NO_SEAL) -> None:
        self.client, self.clock, self.seal = client, ManualClock(), seal
        self.store = BoundedStore(1_000, 1_000_000)
        self.chain = Chain(self.store, partitions=1, partition_of=lambda key: 0, clock=self.clock)
        self.breaker = Breaker("bus", self.clock, random_source=random.Random(0))
        wire = SingleNodeWire(lambda: client, self.breaker)
        self.tail = BusTail(chain=self.chain, wire=wire, partitions=1, seal=seal)
        self.batches = Batches(wire, seal=seal)
        self.told: Watermark | None = None
        self.number = 0

    def tell(self, *changes: Change, epoch: int = 1) -> None:
        self.number += 1
        following = Watermark(epoch, f"{100 + self.number}:{100 + self.number}:", self.clock.now(), "relay")
        held = self.told.pack(name_of(0), self.seal) if self.told else b""
        step = Step(held, self.told, following, by_partition(changes, 1).get(0, []))
        (answer,) = self.batches.apply({0: step}, batch=f"b{self.number}").values()
        assert isinstance(answer, Applied)
        self.told = following

    def put(self, key: Key = KEY, version: int = 1) -> None:
        now = self.clock.now()
        entry = Entry(version, now, now, (1.0,), 0.0, now)
        self.chain.admit(key, version, self.chain.begin(), lambda: self.store.put_newer(key, entry))
        assert self.holds(key)

    def holds(self, key: Key = KEY) -> bool:
        return self.store.peek(key) is not None


@pytest.fixture
def following(redis_client: redis.Redis) -> Iterator[Following]:
    world = Following(redis_client)
    world.tell()
    world.tail.poll()
    yield world


def test_what_a_batch_withdraws_goes_from_memory_with_the_next_poll(following: Following) -> None:
    """And the rest is vouched for, up to the moment of that batch."""
    following.put(KEY)
    following.put(OTHER)
    following.clock.advance(0.2)
    following.tell(Change("merchant", "m1", GROUP, 2))
    following.tail.poll()
    assert not following.holds(KEY) and following.holds(OTHER)
    assert following.chain.vouched_at == pytest.approx(following.clock.now())
    assert following.chain.gaps == 1, "the one to begin with"


def test_a_batch_of_several_parts_is_heard_to_the_last(following: Following) -> None:
    keys = [Key("merchant", f"m{number}", GROUP) for number in range(1_200)]
    following.put(keys[700])
    following.tell(*[Change(key.kind, key.id, GROUP, 7) for key in keys])
    following.tail.poll()
    assert not following.holds(keys[700]) and following.chain.gaps == 1
    assert following.chain.heads[0].promised == following.told


def test_a_process_that_was_away_hears_all_that_is_kept(following: Following) -> None:
    """More messages than one look brings."""
    following.put(OTHER)
    following.put(KEY)
    for _ in range(MOST_AT_ONCE + 5):
        following.tell()
    following.tell(Change("merchant", "m1", GROUP, 2))
    following.clock.advance(SILENCE_S + 1)
    following.chain.note_silence()
    following.tail.poll()
    assert following.holds(OTHER) and not following.holds(KEY)
    assert following.chain.gaps == 1


def test_messages_that_were_trimmed_are_a_gap(following: Following) -> None:
    following.put()
    following.tell()
    following.tell()
    following.client.xtrim(BUS, maxlen=1, approximate=False)
    following.tail.poll()
    assert not following.holds() and following.chain.gaps == 2
    assert following.chain.vouched_at > 0


def test_numbers_that_have_gone_back_are_a_gap(following: Following) -> None:
    """After a failover the stream may end before what was read already; asking for what follows brings nothing."""
    following.put()
    following.client.delete(BUS)
    following.tail._last[0] = b"99999999999999-0"
    following.tell()
    following.tail.poll()
    assert following.holds(), "nothing was heard, and what was heard before vouches no longer than the bound"
    following.clock.advance(SILENCE_S + 0.1)
    following.tell(Change("merchant", "m1", GROUP, 2))
    for _ in range(3):
        following.tail.poll()
    assert not following.holds()
    assert following.chain.vouched_at == pytest.approx(following.clock.now())


def test_a_flush_of_redis_is_a_gap(following: Following) -> None:
    following.put()
    following.client.flushdb()
    following.told = None
    for _ in range(2):  # the first one may get the very number that was read last
        following.tell(epoch=2)
    following.tail.poll()
    assert not following.holds()


def test_no_answer_is_silence(following: Following) -> None:
    """Nothing is raised; within half a second nothing is vouched for."""
    following.put()
    following.tail._wire = SingleNodeWire(
        lambda: redis.Redis(port=1, socket_timeout=0.05), Breaker("x", following.clock, random_source=random.Random(0))
    )
    following.tail.poll()
    assert following.chain.vouched_at > 0
    following.clock.advance(SILENCE_S + 0.01)
    following.tail.poll()
    assert following.chain.vouched_at == 0.0


def test_a_foreign_value_in_the_streams_place_is_replaced_by_the_next_batch(following: Following) -> None:
    """The batch takes place in any case: what it withdraws in L2 does not depend on who hears of it."""
    following.put()
    following.client.set(BUS, b"x" * 100)
    following.tail.poll()
    following.tell()  # the stream begins anew: its first number may be the one that was read last
    following.tell(Change("merchant", "m1", GROUP, 2))
    assert following.client.get(name_of(0)) == following.told.pack()  # type: ignore[union-attr]
    assert following.client.type(BUS) == b"stream"
    following.tail.poll()
    assert not following.holds()


def test_a_withdrawal_reaches_every_process_whatever_the_version(following: Following) -> None:
    second = Following(following.client)
    second.tail.poll()
    for process in (following, second):
        process.put(KEY, version=9)
        process.put(OTHER)
    assert following.tail.withdraw([KEY])
    for process in (following, second):
        process.tail.poll()
        assert not process.holds(KEY) and process.holds(OTHER)
    assert following.chain.gaps == 1


@pytest.mark.parametrize(
    "fields",
    [
        {b"held": b"x"},
        {b"a": b"b"},
        {b"held": b"1|1:1:|1.000000|r", b"following": b"\xff", b"changed": b""},
        {b"held": b"", b"following": b"", b"changed": b"\xc1"},
        {b"held": b"", b"following": b"", b"changed": b"\x93\x01\x02\x03"},
        {b"withdrawn": b"\x91\x91\xa1a"},
        {b"withdrawn": b"\xff" * 100},
        {
            b"held": b"",
            b"following": b"x" * 300_000,
            b"changed": b"\x91\x93\xa1a\xa1b\x91\x92\xc4\x02\xff\xfe\xc4\x01a",
        },
    ],
)
def test_bytes_of_somebody_else_empty_the_memory(following: Following, fields: dict[bytes, bytes]) -> None:
    """And the next batches are heard again."""
    following.put()
    following.client.xadd(BUS, fields)  # type: ignore[arg-type]
    following.tail.poll()
    assert not following.holds() and following.chain.vouched_at == 0.0
    following.tell()
    following.tail.poll()
    assert following.chain.vouched_at > 0


def test_a_message_is_read_as_it_was_packed() -> None:
    mark = Watermark(3, "10:12:11", 1_700_000_000.5, "relay")
    changed = bus.pack_changes([(("merchant", "m1"), [(b"a", (5).to_bytes(8, "big")), (b"b", b"\0" * 7 + b"\1")])])
    read = bus.read([b"held", b"before", b"following", mark.pack(), b"changed", changed])
    changes = [(Key("merchant", "m1", "a"), 5), (Key("merchant", "m1", "b"), 1)]
    assert read == Message(b"before", mark.pack(), mark, changes)


def test_the_stream_lies_with_its_watermark() -> None:
    """In one slot of a Cluster, since one script writes both."""
    names = names_of("merchant", "m1", 16)
    assert bus.name_of(names.partition)[: names.record.index(b"}")] == names.record[: names.record.index(b"}")]


def test_without_a_relay_withdrawals_are_heard_and_nothing_else_goes(redis_client: redis.Redis) -> None:
    """Of two in a row both, from the very first one on; and after any silence."""
    first, second = Following(redis_client), Following(redis_client)
    second.tail.poll()
    for silence_s in (0.0, SILENCE_S + 1, SILENCE_S + 1):
        second.clock.advance(silence_s)
        for _ in range(3):
            second.tail.poll()
        for key in (KEY, OTHER, Key("merchant", "m3", GROUP)):
            second.put(key)
        assert first.tail.withdraw([KEY]) and first.tail.withdraw([OTHER])
        second.tail.poll()
        second.tail.poll()
        assert not second.holds(KEY) and not second.holds(OTHER)
        assert second.holds(Key("merchant", "m3", GROUP)) and second.chain.gaps == 0


@pytest.mark.parametrize("forged", ["changed", "held", "following", "no seal"])
def test_a_message_of_somebody_who_has_not_the_key_is_a_gap(redis_client: redis.Redis, forged: str) -> None:
    """Also one made of two true ones: with these watermarks, and without the change that came between them."""
    seal = KeyedSeal("a secret that only the service has")
    world = Following(redis_client, seal)
    world.tell()
    world.tell(Change("merchant", "m1", GROUP, 2))
    first, second = [dict(fields) for _, fields in cast(Any, redis_client.xrange(BUS))]
    redis_client.delete(BUS)
    world.tail.poll()
    redis_client.xadd(BUS, first)
    world.tail.poll()
    assert world.chain.vouched_at > 0
    world.put()
    false = dict(second)
    if forged == "changed":
        false[b"changed"] = first[b"changed"]
    elif forged == "no seal":
        false[b"changed"] = false[b"changed"][:-16]
    else:
        false[forged.encode()] = first[forged.encode()]
    redis_client.xadd(BUS, false)
    world.tail.poll()
    assert not world.holds() and world.chain.vouched_at == 0.0


def test_who_withdraws_does_not_hear_of_it_again(following: Following) -> None:
    """By then it may hold the value that has taken the place of what was withdrawn."""
    following.put(KEY, version=1)
    assert following.tail.withdraw([KEY])
    assert not following.holds()
    following.put(KEY, version=2)
    following.tail.poll()
    assert following.holds()


def test_a_withdrawal_among_numbers_that_have_gone_back_is_not_lost(following: Following) -> None:
    """The batches may go on as if nothing had been: what was said between them is told by no watermark."""
    following.put()
    following.tail._last[0] = b"99999999999999-0"
    assert Following(following.client).tail.withdraw([KEY])
    following.clock.advance(SILENCE_S + 0.1)
    following.tell()
    for _ in range(3):
        following.tail.poll()
    assert not following.holds()
