"""What a follower cannot trust: gaps, hostile bytes, and streams that grow without bound."""

import msgspec
import pytest
import redis

from mlserve.cache import bloom_follower
from mlserve.cache.bloom import IdFilter
from mlserve.cache.bloom_follower import MOST_AT_ONCE, Event, Follower
from mlserve.cache.bloom_generation import Generation, encode, hash_key
from mlserve.cache.bloom_redis import (
    FILTERS,
    STREAM,
    BloomStore,
    StoreUnreachable,
)
from tests.cache.bloom.conftest import SECRET, Redis, says_no


def _lose(at: Redis, how: str) -> None:
    client = at.client
    if how == "evicted":
        client.delete(STREAM)
    elif how == "begun anew":
        client.delete(STREAM)
        at.store.begin(now=at.clock.now() + 1_000_000)
    elif how == "trimmed":
        client.xadd(STREAM, {"kind": "customer", "ids": msgspec.msgpack.encode(["c2"])})
        client.xtrim(STREAM, maxlen=0)
    elif how == "an entry deleted":
        client.xdel(STREAM, client.xadd(STREAM, {"kind": "customer", "ids": msgspec.msgpack.encode(["c2"])}))
    elif how == "gone back":
        client.delete(STREAM)
        client.xadd(STREAM, {"begun": "1"}, id="1-0")
    elif how == "gone back with the same count":
        count = client.xinfo_stream(STREAM)["entries-added"]
        client.delete(STREAM)
        client.xadd(STREAM, {"begun": "1"}, id="1-0")
        client.execute_command("XSETID", STREAM, "1-0", "ENTRIESADDED", count, "MAXDELETEDID", "0-0")
    elif how == "begun anew by a slow clock":
        client.delete(STREAM)
        at.store.begin(now=at.clock.now() - 1_000)
        client.xadd(STREAM, {"kind": "customer", "ids": msgspec.msgpack.encode(["c3"])})
    elif how == "flushed, and followed by others":
        client.flushdb()
        client.xadd(STREAM, {"kind": "customer", "ids": msgspec.msgpack.encode(["c3"])})
    elif how == "no stream":
        client.delete(STREAM)
        client.set(STREAM, b"somebody else's")
    elif how == "no list of ids":
        client.xadd(STREAM, {"kind": "customer", "ids": b"\xff"})
    elif how == "other numbers":
        client.xadd(STREAM, {"kind": "customer", "ids": msgspec.msgpack.encode([1, 2])})
    elif how == "other fields":
        client.xadd(STREAM, {"a": "b"})
    elif how == "no text":
        client.xadd(STREAM, {"kind": b"\xff", "ids": msgspec.msgpack.encode(["c2"])})


LOSSES = (
    *("evicted", "begun anew", "trimmed", "an entry deleted", "gone back", "flushed, and followed by others"),
    *("no stream", "no list of ids", "other numbers", "other fields", "no text"),
    *("gone back with the same count", "begun anew by a slow clock"),
)


@pytest.mark.parametrize("how", LOSSES)
def test_a_gap_makes_the_filters_unusable_until_the_next_generation(at: Redis, reader: Follower, how: str) -> None:
    """Whatever was lost could have been somebody's id. The generation that was in use does not come back."""
    _lose(at, how)
    for _ in range(2):
        reader.poll()
        assert not says_no(reader, "c2")
        assert reader.events[Event.GAP] == 1
    gap = reader.problem
    assert gap
    at.build("c1", "c2", name="two")
    reader.poll()
    assert reader.events[Event.LOADED] == 2
    assert not says_no(reader, "c2") and says_no(reader, "nobody")


@pytest.mark.parametrize("how", LOSSES)
def test_a_generation_behind_a_gap_is_refused(at: Redis, how: str) -> None:
    """A process that begins after the loss cannot know it from the generation alone."""
    at.build("c1")
    _lose(at, how)
    newcomer = at.process()
    for _ in range(2):
        newcomer.poll()
        assert not says_no(newcomer, "c2")
    assert newcomer.events in ({Event.REFUSED: 1}, {})  # none where the flush took the generation as well


def test_a_refused_generation_leaves_the_one_in_use(at: Redis, reader: Follower) -> None:
    """It is as true as before."""
    at.client.hset(FILTERS, mapping={"name": "two", "header": b"x", "code": b"y"})
    reader.poll()
    assert reader.events == {Event.LOADED: 1, Event.REFUSED: 1}
    assert says_no(reader, "c2") and not says_no(reader, "c1")


def _spoil(client: redis.Redis, how: str) -> None:
    if how == "another's value":
        client.set(FILTERS, b"x")
    elif how == "a name alone":
        client.delete(FILTERS)
        client.hset(FILTERS, "name", "two")
    elif how == "no text":
        client.hset(FILTERS, "name", b"\xff\xfe")
    elif how == "another's header":
        client.hset(FILTERS, "header", b'{"layout":1}')
    elif how == "a header of megabytes":
        client.hset(FILTERS, "header", bytes(3_000_000))
    elif how == "a code of megabytes":
        client.hset(FILTERS, "code", bytes(3_000_000))
    elif how == "another name":
        client.hset(FILTERS, "name", "two")
    elif how == "a part missing":
        client.hdel(FILTERS, "0")
    elif how == "a part too long":
        client.hset(FILTERS, "0", bytes(1 + client.hstrlen(FILTERS, "0")))
    elif how == "a part of the same length":
        client.hset(FILTERS, "0", bytes(client.hstrlen(FILTERS, "0")))
    elif how == "written with another secret":
        key = hash_key("two", b"other")
        store = BloomStore(lambda: client)
        held = {"customer": IdFilter.for_count(1, key)}
        store.save(encode(Generation("two", 1.0, store.begin(now=1.0), {"customer": 1}, held), b"other"), "two")


@pytest.mark.parametrize(
    "how",
    [
        *("another's value", "a name alone", "no text", "another's header", "a header of megabytes"),
        *("a code of megabytes", "another name", "a part missing", "a part too long", "a part of the same length"),
        "written with another secret",
    ],
)
def test_hostile_bytes_are_no_filter(at: Redis, how: str) -> None:
    """Refused once, counted, and never an exception; the next good generation is taken."""
    at.build("c1")
    _spoil(at.client, how)
    follower = at.process()
    for _ in range(2):
        follower.poll()
        assert not says_no(follower, "nobody")
        assert follower.events[Event.LOADED] == 0
    assert follower.events[Event.REFUSED] <= 1
    at.client.delete(FILTERS)
    at.build("c1", name="three")
    follower.poll()
    assert says_no(follower, "nobody") and not says_no(follower, "c1")


def test_a_generation_is_saved_as_a_whole_or_not_at_all(at: Redis, reader: Follower) -> None:
    """Half of one under its own name disturbs nobody and is forgotten."""
    unfinished = f"{FILTERS}:two"
    generation = at.begin(*(f"C{number}" for number in range(100_000)), name="two")
    record = encode(generation, SECRET)
    at.client.set(unfinished, b"in the way")
    with pytest.raises(StoreUnreachable):
        at.store.save(record, "two")
    reader.poll()
    assert reader.events == {Event.LOADED: 1} and says_no(reader, "c2")
    at.client.delete(unfinished)
    at.store.save(record, "two")
    assert at.client.ttl(FILTERS) == -1 and not at.client.exists(unfinished)
    reader.poll()
    assert reader.events == {Event.LOADED: 2} and not says_no(reader, "C99999")


def test_a_server_that_takes_no_entries_has_its_stream_ended(at: Redis, reader: Follower) -> None:
    """Else readers would go on to trust a stream that nobody can write to."""
    at.client.config_set("maxmemory-policy", "noeviction")
    at.client.config_set("maxmemory", "1")
    assert at.process().announce({"customer": ["c2"]})
    assert not at.client.exists(STREAM)
    reader.poll()
    assert not says_no(reader, "c2")


def test_very_many_new_ids_end_the_stream(at: Redis, reader: Follower) -> None:
    """A new build is cheaper than to announce each of them to each process."""
    ids = [f"new-{number}" for number in range(MOST_AT_ONCE + 1)]
    writer = at.process()
    writer.poll()
    assert writer.announce({"customer": ids})
    assert not at.client.exists(STREAM)
    for follower in (writer, reader):
        follower.poll()
        assert not any(says_no(follower, entity_id) for entity_id in ids)
    assert writer.undelivered == 0


def test_what_waits_for_redis_is_bounded(at: Redis, reader: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the ids are dropped, and the stream is ended as soon as Redis can be told."""
    monkeypatch.setattr(bloom_follower, "MOST_WAITING", 10)
    writer = at.process()
    monkeypatch.setattr(writer, "_reachable", lambda: False)
    for number in range(11):
        writer.announce({"customer": [f"new-{number}"]})
    assert writer.undelivered < 10
    monkeypatch.setattr(writer, "_reachable", lambda: True)
    writer.poll()
    reader.poll()
    assert not any(says_no(reader, f"new-{number}") for number in range(11))
