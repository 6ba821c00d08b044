"""How a process keeps its filters current, on a real Valkey: announcements, generations, and everything that is lost.

`no` in these tests stands for an answer that would be wrong of an id that exists.
"""

import threading
from collections.abc import Iterator

import msgspec
import pytest
import redis

from mlserve.cache import bloom_follower
from mlserve.cache.bloom import TRUST_S, BloomMembership, IdFilter
from mlserve.cache.bloom_follower import MOST_AT_ONCE, Event, Follower
from mlserve.cache.bloom_generation import Generation, Position, encode, hash_key
from mlserve.cache.bloom_redis import (
    _ENTRIES_PER_LOOK,
    FILTERS,
    IDS_PER_ENTRY,
    STREAM,
    BloomStore,
    Look,
    StoreUnreachable,
)
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle

SECRET = b"a secret of the project"


class Redis:
    """The store, and builds that know nothing of Postgres."""

    def __init__(self, client: redis.Redis, clock: ManualClock) -> None:
        self.client, self.clock = client, clock
        self.store = BloomStore(lambda: client)

    def build(self, *customers: str, name: str = "one") -> None:
        self.save(self.begin(*customers, name=name))

    def begin(self, *customers: str, name: str = "one") -> Generation:
        """With the position of now, not saved yet."""
        held = IdFilter.for_count(len(customers), hash_key(name, SECRET))
        held.add_all(customers)
        position = self.store.begin(now=self.clock.now())
        return Generation(name, self.clock.now(), position, {"customer": len(customers)}, {"customer": held})

    def save(self, generation: Generation) -> None:
        self.store.save(encode(generation, SECRET), generation.name)

    def process(self, *, reachable: bool = True) -> Follower:
        return Follower(
            membership=BloomMembership(self.clock),
            store=self.store,
            clock=self.clock,
            secret=SECRET,
            reachable=lambda: reachable,
        )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def at(redis_client: redis.Redis, clock: ManualClock) -> Iterator[Redis]:
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    yield Redis(redis_client, clock)
    redis_client.config_set("maxmemory", "0")


@pytest.fixture
def reader(at: Redis) -> Follower:
    """A process that follows a generation with the customer c1."""
    at.build("c1")
    follower = at.process()
    follower.poll()
    assert says_no(follower, "c2") and not says_no(follower, "c1")
    return follower


def says_no(follower: Follower, customer: str) -> bool:
    return not follower.membership.may_exist("customer", customer)


def test_without_a_generation_everything_may_exist(at: Redis) -> None:
    """The first build brings the first filters."""
    follower = at.process()
    follower.poll()
    assert not says_no(follower, "nobody")
    at.build("c1")
    follower.poll()
    assert says_no(follower, "nobody") and not says_no(follower, "c1")
    assert (follower.problem, follower.events) == (None, {Event.LOADED: 1})


def test_an_announced_id_may_exist_after_the_next_poll(at: Redis, reader: Follower) -> None:
    """In the process that announces it at once."""
    writer = at.process()
    writer.poll()
    assert says_no(writer, "c2")
    assert writer.announce({"customer": ["c2"], "merchant": ["m1"]})
    assert not says_no(writer, "c2")
    reader.poll()
    assert not says_no(reader, "c2")


def test_a_follower_that_is_behind_catches_up_in_one_poll(at: Redis, reader: Follower) -> None:
    """However many looks it takes; before the end it does not vouch."""
    writer, entries = at.process(), 2 * _ENTRIES_PER_LOOK + 3
    for number in range(entries):
        writer.announce({"customer": [f"new-{number}"]})
    reader.poll()
    assert reader.problem is None
    assert not any(says_no(reader, f"new-{number}") for number in range(entries))
    assert says_no(reader, "nobody")


def test_many_ids_share_an_entry(at: Redis, reader: Follower) -> None:
    """All of them arrive."""
    ids = [f"new-{number}" for number in range(2 * IDS_PER_ENTRY + 1)]
    before = at.client.xlen(STREAM)
    at.process().announce({"customer": ids})
    assert at.client.xlen(STREAM) - before == 3
    reader.poll()
    assert not any(says_no(reader, entity_id) for entity_id in ids)


def test_a_new_generation_takes_over_with_what_was_announced_since_its_position(at: Redis, reader: Follower) -> None:
    """What was announced between the position and the end of the build is in no snapshot, but in the stream."""
    generation = at.begin("c1", name="two")
    at.process().announce({"customer": ["meanwhile"]})
    reader.poll()
    at.save(generation)
    reader.poll()
    assert reader.events[Event.LOADED] == 2
    assert not says_no(reader, "meanwhile") and says_no(reader, "nobody")
    newcomer = at.process()
    newcomer.poll()
    assert not says_no(newcomer, "meanwhile") and says_no(newcomer, "nobody")


def test_a_generation_takes_over_with_what_this_process_could_not_announce(at: Redis, reader: Follower) -> None:
    """The stream does not have it, and the snapshot neither."""
    cut_off = at.process(reachable=False)
    cut_off.poll()
    assert not cut_off.announce({"customer": ["mine"]})
    assert cut_off.undelivered == 1
    at.build("c1", name="two")
    cut_off.poll()
    assert cut_off.events == {Event.LOADED: 2, Event.UNDELIVERED: 1}
    assert not says_no(cut_off, "mine") and says_no(cut_off, "nobody")


def test_what_could_not_be_announced_follows(
    at: Redis, reader: Follower, valkey_cache: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then other processes may be wrong: the residual that the documentation names."""
    writer = at.process()
    monkeypatch.setattr(writer, "_reachable", lambda: False)
    assert not writer.announce({"customer": ["late"]})
    reader.poll()
    assert says_no(reader, "late")
    monkeypatch.setattr(writer, "_reachable", lambda: True)
    writer.poll()
    assert writer.undelivered == 0
    reader.poll()
    assert not says_no(reader, "late")


def test_announcing_to_a_server_that_is_away_neither_raises_nor_forgets(
    at: Redis, reader: Follower, valkey_cache: ServerHandle
) -> None:
    """The cache comes back empty; what was pending is then in a stream that nobody trusts, or in none."""
    writer = at.process()
    valkey_cache.kill()
    assert not writer.announce({"customer": ["c2"]})
    with pytest.raises(StoreUnreachable):
        reader.poll()
    at.clock.advance(TRUST_S)
    assert not says_no(reader, "c2")
    valkey_cache.start()
    writer.poll()
    reader.poll()
    assert writer.undelivered == 0
    assert not says_no(reader, "c2") and not says_no(reader, "nobody")


def test_nobody_is_denied_by_a_process_that_is_cut_off(reader: Follower, clock: ManualClock) -> None:
    """Trust counts from the moment before the look, not from its answer."""
    clock.advance(TRUST_S)
    assert not says_no(reader, "nobody")
    reader.poll()
    assert says_no(reader, "nobody")


class _SlowStore(BloomStore):
    """Each look takes a second of the test's clock."""

    def __init__(self, at: Redis) -> None:
        super().__init__(lambda: at.client)
        self._clock = at.clock

    def look(self, after: Position) -> Look:
        looked = super().look(after)
        self._clock.advance(1.0)
        return looked


def test_a_slow_answer_is_no_younger_than_its_question(at: Redis) -> None:
    """What was announced while Redis took its time is not in it."""
    at.build("c1")
    follower = Follower(membership=BloomMembership(at.clock), store=_SlowStore(at), clock=at.clock, secret=SECRET)
    follower.poll()
    at.clock.advance(TRUST_S - 1.0)
    assert not says_no(follower, "nobody")


def test_nobody_but_the_build_begins_a_stream(at: Redis, reader: Follower) -> None:
    """Announcing to a stream that is gone tells nobody; without one, all filters are unusable, which is right."""
    at.client.delete(STREAM)
    writer = at.process()
    assert writer.announce({"customer": ["c2"]})
    assert not at.client.exists(STREAM)
    assert writer.undelivered == 0


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


def test_own_announcements_are_forgotten_once_they_are_read_back(at: Redis) -> None:
    """They would pile up in a process that lives for months."""
    at.build("c1")
    writer = at.process()
    writer.poll()
    writer.announce({"customer": ["c2"]})
    assert len(writer._own) == 1
    writer.poll()
    assert writer._own == []


def test_an_announced_id_is_never_denied_while_generations_change(at: Redis) -> None:
    """Writers announce at once with takeovers, for many rounds: what was announced before a poll may exist after it."""
    at.build("c1", name="g0")
    follower = at.process()
    follower.poll()
    rounds, writers = 30, 3
    meet = threading.Barrier(writers + 1)
    denied: list[str] = []

    def write(number: int) -> None:
        announcer = follower if number == 0 else at.process()
        for round_number in range(rounds):
            meet.wait()
            customer = f"w{number}-{round_number}"
            announcer.announce({"customer": [customer]})
            if number == 0 and says_no(follower, customer):
                denied.append(customer)
            meet.wait()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for round_number in range(rounds):
        generation = at.begin("c1", name=f"g{round_number + 1}")
        meet.wait()
        at.save(generation)
        follower.poll()
        meet.wait()
        follower.poll()
        denied += [
            f"w{number}-{round_number}" for number in range(writers) if says_no(follower, f"w{number}-{round_number}")
        ]
    for thread in threads:
        thread.join()
    assert denied == []
    assert follower.events == {Event.LOADED: rounds + 1}
    assert says_no(follower, "nobody")
