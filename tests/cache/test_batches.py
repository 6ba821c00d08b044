"""The step from one watermark to the next, on a real Valkey."""

from collections.abc import Iterator
from struct import pack as struct_pack
from typing import cast

import pytest
import redis

from mlserve.cache import codec
from mlserve.cache.entry import Entry
from mlserve.cache.keys import Key, names_of
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers import batches as batches_module
from mlserve.cache.tiers.batches import (
    MOST_KEYS,
    TOMBSTONE_MS,
    Applied,
    Batches,
    Change,
    EntityChange,
    Raced,
    Step,
    Unanswered,
    by_partition,
)
from mlserve.cache.watermark import MOST_BYTES, Watermark, name_of, parse
from tests.cache.wire_contract import wire_to_l2
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle

GROUP = "merchant_risk"
KEY = Key("merchant", "m1", GROUP)
NAMES = names_of("merchant", "m1", 1)
WM = name_of(0)


@pytest.fixture
def batches(redis_client: redis.Redis) -> Batches:
    return Batches(wire_to_l2(ManualClock()))


def _mark(number: int, epoch: int = 1) -> Watermark:
    return Watermark(epoch, f"{100 + number}:{100 + number}:", 1_700_000_000.0 + number, "relay")


def _step(before: Watermark | None, after: Watermark, *changes: Change) -> dict[int, Step]:
    held = before.pack() if before else b""
    return {0: Step(held, before, after, by_partition(changes, 1).get(0, []))}


def _change(version: int, entity_id: str = "m1") -> Change:
    return Change("merchant", entity_id, GROUP, version)


def _hold(client: redis.Redis, version: int) -> bytes:
    record = codec.encode(KEY, NAMES.digest, 1, Entry(version, 1.0, 1.0, (1.0,)))
    client.hset(NAMES.record, GROUP, record)
    client.pexpire(NAMES.record, 5_000)
    return record


def _held(client: redis.Redis) -> bytes | None:
    return cast("bytes | None", client.hget(NAMES.record, GROUP))


def _version(record: bytes | None) -> int:
    assert record is not None
    assert codec.decode(record, KEY, NAMES.digest, 1) is MissReason.INVALIDATED
    return int.from_bytes(record[:8], "big")


def test_a_step_invalidates_and_then_says_so(batches: Batches, redis_client: redis.Redis) -> None:
    """Tombstone, lease gone, watermark moved; it never expires, and the tombstone does."""
    _hold(redis_client, 5)
    redis_client.set(NAMES.lease, b"token", px=3000)
    assert batches.apply(_step(None, _mark(1), _change(6)), batch="b1") == {0: Applied(_mark(1).pack(), 1, 1)}
    assert _version(_held(redis_client)) == 6
    assert not redis_client.exists(NAMES.lease)
    assert redis_client.get(WM) == _mark(1).pack() and redis_client.pttl(WM) == -1
    assert TOMBSTONE_MS - 5_000 < redis_client.pttl(NAMES.record) <= TOMBSTONE_MS


@pytest.mark.parametrize("held", [6, 7, 2**53 + 1, 2**63 - 1])
def test_a_record_that_is_as_new_stays_and_its_lease_does_not(
    batches: Batches, redis_client: redis.Redis, held: int
) -> None:
    """Whoever holds the lease may have read the source before this change."""
    record = _hold(redis_client, held)
    redis_client.set(NAMES.lease, b"token")
    (applied,) = batches.apply(_step(None, _mark(1), _change(min(held, 2**53))), batch="b1").values()
    assert applied == Applied(_mark(1).pack(), 1, 0)
    assert _held(redis_client) == record
    assert not redis_client.exists(NAMES.lease)


@pytest.mark.parametrize("held", [2**53, 2**32 - 1, 0])
def test_versions_are_compared_to_the_last_digit(batches: Batches, redis_client: redis.Redis, held: int) -> None:
    """2**53 and 2**53 + 1 are one number to Lua."""
    _hold(redis_client, held)
    batches.apply(_step(None, _mark(1), _change(held + 1)), batch="b1")
    assert _version(_held(redis_client)) == held + 1


def test_what_is_not_there_gets_a_tombstone(batches: Batches, redis_client: redis.Redis) -> None:
    """It keeps out an older value that comes late."""
    batches.apply(_step(None, _mark(1), _change(6)), batch="b1")
    assert _version(_held(redis_client)) == 6


def test_a_step_that_builds_on_another_watermark_changes_nothing(batches: Batches, redis_client: redis.Redis) -> None:
    """The caller gets the one that is there: another relay's, or that of an older history after a failover."""
    batches.apply(_step(None, _mark(2)), batch="b1")
    record = _hold(redis_client, 5)
    redis_client.set(NAMES.lease, b"token")
    for before in (_mark(1), None, _mark(2, epoch=2)):
        assert batches.apply(_step(before, _mark(3), _change(6)), batch="b2") == {0: Raced(_mark(2).pack())}
    assert batches.read([0]) == {0: Raced(_mark(2).pack())}
    assert (_held(redis_client), redis_client.get(NAMES.lease)) == (record, b"token")
    assert redis_client.get(WM) == _mark(2).pack()


@pytest.mark.parametrize("foreign", ["hash", "large", "bytes", "question"])
def test_a_foreign_watermark_is_replaced(batches: Batches, redis_client: redis.Redis, foreign: str) -> None:
    """Whatever its type and size; by a step that builds on what was read."""
    match foreign:
        case "hash":
            redis_client.hset(WM, "a", "b")
        case "large":
            redis_client.set(WM, b"1" * (MOST_BYTES + 1))
        case "bytes":
            redis_client.set(WM, b"\xff\x00no watermark")
        case _:
            redis_client.set(WM, b"?")
    (answer,) = batches.read([0]).values()
    assert not isinstance(answer, Unanswered)
    held = answer.watermark
    if foreign == "question":
        (answer,) = batches.apply({0: Step(held, None, _mark(1))}, batch="b1").values()
        assert isinstance(answer, Raced | Applied)
        held = answer.watermark
    assert parse(held) is None and len(held) < 100
    batches.apply({0: Step(held, None, _mark(1))}, batch="b1")
    assert redis_client.get(WM) == _mark(1).pack()


@pytest.mark.parametrize("junk", [b"", b"short", b"x" * 40, struct_pack(">QcQ", 2**64 - 1, b"?", 0)])
def test_bytes_that_are_no_record_make_way(batches: Batches, redis_client: redis.Redis, junk: bytes) -> None:
    """They protect nothing."""
    redis_client.hset(NAMES.record, GROUP, junk)
    batches.apply(_step(None, _mark(1), _change(6)), batch="b1")
    assert _version(_held(redis_client)) == 6


def test_a_foreign_value_under_the_name_of_an_entity_makes_way(batches: Batches, redis_client: redis.Redis) -> None:
    """And so does one under that of its lease."""
    redis_client.set(NAMES.record, b"string")
    redis_client.hset(NAMES.lease, "a", "b")
    batches.apply(_step(None, _mark(1), _change(6)), batch="b1")
    assert _version(_held(redis_client)) == 6
    assert not redis_client.exists(NAMES.lease)


def test_versions_out_of_bounds_are_told_as_the_nearest(batches: Batches, redis_client: redis.Redis) -> None:
    """A line that somebody wrote into the journal by hand stops nobody."""
    batches.apply(_step(None, _mark(1), _change(-1), _change(2**80, "m2")), batch="b1")
    assert _version(_held(redis_client)) == 0


def test_many_changes_go_in_parts_of_one_chain(
    batches: Batches, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the last part the watermark promises what it did before, and counts."""
    between: list[bytes] = []
    original = Batches._call

    def spied(self: Batches, calls: object) -> object:
        between.append(cast("bytes | None", redis_client.get(WM)) or b"")
        return original(self, calls)  # type: ignore[arg-type]

    monkeypatch.setattr(Batches, "_call", spied)
    batches.apply(_step(None, _mark(1)), batch="b0")
    changes = [_change(6, f"m{number}") for number in range(2 * MOST_KEYS + 1)]
    answers = batches.apply(_step(_mark(1), _mark(2), *changes), batch="b1")
    assert answers == {0: Applied(_mark(2).pack(), len(changes), len(changes))}
    seen = [parse(text) for text in between[2:]]
    assert [mark.relay for mark in seen if mark] == ["b1/1", "b1/2"]
    assert {(mark.snapshot, mark.safe_time, mark.epoch) for mark in seen if mark} == {
        (_mark(1).snapshot, _mark(1).safe_time, 1)
    }


def test_a_part_that_another_relay_comes_between_is_refused(
    batches: Batches, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is not told: whoever came between tells it all."""
    batches.apply(_step(None, _mark(1)), batch="b0")
    changes = by_partition([_change(6, f"m{number}") for number in range(3 * MOST_KEYS)], 1)[0]
    original, calls = Batches._call, 0

    def interrupted(self: Batches, told: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            redis_client.set(WM, _mark(9).pack())
        return original(self, told)  # type: ignore[arg-type]

    monkeypatch.setattr(Batches, "_call", interrupted)
    answers = batches.apply({0: Step(_mark(1).pack(), _mark(1), _mark(2), changes)}, batch="b1")
    assert (answers, calls) == ({0: Raced(_mark(9).pack())}, 2)
    assert redis_client.get(WM) == _mark(9).pack()


def test_an_entity_is_never_torn_between_two_parts() -> None:
    """Its groups go together, however they add up."""
    change = EntityChange(
        ("merchant", "m1"), b"r", b"l", False, tuple((b"%d" % number, bytes(8)) for number in range(MOST_KEYS - 1))
    )
    assert [len(chunk) for chunk in batches_module._chunks([change, change, change])] == [1, 1, 1]


def test_groups_of_one_entity_are_told_together(batches: Batches, redis_client: redis.Redis) -> None:
    """One hash, one lease, a tombstone for each group."""
    told = by_partition([_change(6), Change("merchant", "m1", "merchant_profile", 7)], 1)
    assert [len(change.versions) for change in told[0]] == [2]
    (applied,) = batches.apply({0: Step(b"", None, _mark(1), told[0])}, batch="b").values()
    assert applied == Applied(_mark(1).pack(), 2, 2)
    assert sorted(redis_client.hkeys(NAMES.record)) == [b"merchant_profile", b"merchant_risk"]


def test_a_copy_of_a_hot_entity_is_told_where_it_lies(batches: Batches, redis_client: redis.Redis) -> None:
    """In its own partition, and only if it is there."""
    partitions = 16
    told = by_partition([_change(6)], partitions)
    assert len(told) == 3
    names = [names_of("merchant", "m1", partitions, replica) for replica in range(3)]
    for name in names[:2]:
        redis_client.hset(name.record, GROUP, codec.encode(KEY, name.digest, 1, Entry(5, 1.0, 1.0, (1.0,))))
    for name in names:
        redis_client.set(name.lease, b"token")
    batches.apply({at: Step(b"", None, _mark(1), changes) for at, changes in told.items()}, batch="b")
    assert [_version(cast("bytes | None", redis_client.hget(name.record, GROUP))) for name in names[:2]] == [6, 6]
    assert redis_client.hget(names[2].record, GROUP) is None
    assert not redis_client.exists(*[name.lease for name in names])


@pytest.mark.parametrize("partitions", [2, 3])
def test_replicas_that_meet_are_told_once(partitions: int) -> None:
    """With few partitions two replicas have one name."""
    records = [change.record for of in by_partition([_change(6)], partitions).values() for change in of]
    assert len(records) == len(set(records)) == partitions


def test_a_server_that_forgot_the_script_is_taught_it(batches: Batches, redis_client: redis.Redis) -> None:
    """After a restart, or SCRIPT FLUSH."""
    batches.apply(_step(None, _mark(1)), batch="b1")
    redis_client.script_flush()
    assert batches.apply(_step(_mark(1), _mark(2), _change(6)), batch="b2") == {0: Applied(_mark(2).pack(), 1, 1)}


def test_a_server_that_is_away_or_refuses_is_no_exception(batches: Batches, valkey_cache: ServerHandle) -> None:
    """Whether the step arrived is then unknown."""
    valkey_cache.kill()
    (answer,) = batches.apply(_step(None, _mark(1)), batch="b1").values()
    assert isinstance(answer, Unanswered)
    valkey_cache.start()


@pytest.fixture
def read_only(redis_client: redis.Redis) -> Iterator[None]:
    """As a server that has just become a replica."""
    redis_client.replicaof("127.0.0.1", "1")
    yield
    redis_client.replicaof("NO", "ONE")


@pytest.mark.usefixtures("read_only")
def test_a_replica_says_why_it_refuses(batches: Batches) -> None:
    """It is waited for; nothing counts as told."""
    (answer,) = batches.apply(_step(None, _mark(1)), batch="b1").values()
    assert isinstance(answer, Unanswered) and "READONLY" in f"{answer.why}".upper().replace(" ", "")
