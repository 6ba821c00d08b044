"""Followers of the filters: what is announced may exist everywhere, soon and without gaps."""

import threading

import pytest

from mlserve.cache.bloom import TRUST_S, BloomMembership
from mlserve.cache.bloom_follower import Event, Follower
from mlserve.cache.bloom_generation import Position
from mlserve.cache.bloom_redis import (
    _ENTRIES_PER_LOOK,
    IDS_PER_ENTRY,
    STREAM,
    BloomStore,
    Look,
    StoreUnreachable,
)
from tests.cache.bloom.conftest import SECRET, Redis, says_no
from tests.fixtures.clock import ManualClock
from tests.fixtures.servers import ServerHandle


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
