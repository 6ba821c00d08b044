"""What a process hears of L2's batches, and what its memory may keep because of it: every guard by itself."""

import threading

import pytest

from mlserve.cache import chain as chain_module
from mlserve.cache.chain import RING_KEYS, SILENCE_S, Chain, Message, Refusal
from mlserve.cache.entry import Entry
from mlserve.cache.keys import PREDICTION, Key
from mlserve.cache.outcome import MissReason
from mlserve.cache.tiers.l1_locmem import BoundedStore, L1Tier
from mlserve.cache.watermark import MOST_AHEAD_S, Watermark
from tests.cache.doubles import policy
from tests.fixtures.clock import ManualClock

KEY, OTHER = Key("merchant", "m1", "group"), Key("merchant", "m2", "group")
FAR = Key("customer", "far", "group")
"""Lies in another partition."""
PREDICTED = Key(PREDICTION, "digest", PREDICTION)
POLICIES = {"group": policy(proven=True), PREDICTION: policy()}


class Process:
    """One that follows two partitions."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = BoundedStore(100, 1_000_000)
        self.chain = Chain(self.store, partitions=2, partition_of=self._partition_of, clock=self.clock)
        self.l1 = L1Tier(self.store, self.chain)
        for partition in (0, 1):
            self.hear(0, 1, partition=partition)

    @staticmethod
    def _partition_of(key: Key) -> int | None:
        return None if key.kind == PREDICTION else int(key.kind == "customer")

    def mark(self, number: int, epoch: int = 1) -> Watermark:
        return Watermark(epoch, f"{100 + number}:{100 + number}:", self.clock.now(), f"relay-{number}")

    def hear(
        self, held: int, following: int, *changes: tuple[Key, int], partition: int = 0, epochs: tuple[int, int] = (1, 1)
    ) -> bool:
        before = Watermark(epochs[0], f"{100 + held}:{100 + held}:", 0.0, f"relay-{held}")
        after = self.mark(following, epochs[1])
        return self.chain.hear(partition, Message(_name_of(before), _name_of(after), after, changes))

    def put(self, key: Key = KEY, version: int = 1, since: int | None = None) -> bool:
        since = self.l1.begin() if since is None else since
        now = self.clock.now()
        self.l1.put_many({key: Entry(version, now, now, (1.0,), 0.0, now)}, POLICIES, since=since)
        held = self.store.peek(key)
        return held is not None and held.version == version

    def holds(self, key: Key = KEY) -> bool:
        return self.store.peek(key) is not None


def _name_of(mark: Watermark) -> bytes:
    """Stands for its bytes, but for the moment, which no test wants to repeat."""
    return f"{mark.epoch}|{mark.snapshot}|{mark.relay}".encode()


@pytest.fixture
def process() -> Process:
    return Process()


def test_a_batch_takes_out_what_it_names_and_vouches_for_the_rest(process: Process) -> None:
    """Also in the moment of the batch, and for as long as batches come."""
    assert process.put(KEY, 1) and process.put(OTHER, 5)
    process.clock.advance(10)
    assert process.hear(1, 2, (KEY, 2), (OTHER, 5))
    assert not process.holds(KEY) and process.holds(OTHER)
    assert process.chain.vouched_of(OTHER) == process.clock.now()
    found = process.l1.get_many([KEY, OTHER], POLICIES)
    assert found[KEY] is MissReason.INVALIDATED
    kept = found[OTHER]
    assert isinstance(kept, Entry) and kept.vouched_at == process.clock.now()


def test_the_memory_is_only_vouched_for_where_every_partition_is(process: Process) -> None:
    process.clock.advance(10)
    process.hear(1, 2)
    assert process.chain.vouched_at == process.clock.now() - 10
    assert process.chain.vouched_of(KEY) == process.clock.now()
    process.hear(1, 2, partition=1)
    assert process.chain.vouched_at == process.clock.now()


def test_a_gap_empties_the_partition(process: Process) -> None:
    """Other partitions, and predictions, stay."""
    for key in (KEY, FAR, PREDICTED):
        assert process.put(key)
    assert not process.hear(2, 3)
    assert [process.holds(key) for key in (KEY, FAR, PREDICTED)] == [False, True, True]
    assert process.chain.gaps == 3, "two to begin with"
    assert process.put(KEY) and process.hear(3, 4) and process.holds(KEY), "and goes on from there"


def test_a_new_epoch_empties_the_partition(process: Process) -> None:
    assert process.put()
    assert not process.chain.hear(0, Message(_name_of(process.mark(1)), b"2|x", process.mark(1, epoch=2)))
    assert not process.holds()


def test_what_cannot_be_read_empties_the_partition_and_vouches_for_nothing(process: Process) -> None:
    assert process.put()
    assert not process.chain.hear(0, Message(_name_of(process.mark(1)), b"", None))
    assert not process.holds() and process.chain.vouched_of(KEY) == 0.0
    assert not process.hear(1, 2), "nobody knows what it follows"


def test_a_fill_that_was_under_way_at_a_gap_is_refused(process: Process) -> None:
    """It may have read what the lost message withdrew."""
    since = process.l1.begin()
    process.hear(2, 3)
    assert not process.put(since=since)
    assert process.chain.refused[Refusal.GAP] == 1
    assert process.put(FAR, since=since), "of another partition"


def test_a_fill_whose_key_was_named_meanwhile_is_refused(process: Process) -> None:
    """Unless it brings that very version or a newer one."""
    since = process.l1.begin()
    process.hear(1, 2, (KEY, 7))
    process.hear(2, 3, (OTHER, 9))
    assert not process.put(KEY, 6, since=since)
    assert process.chain.refused[Refusal.NAMED] == 1
    assert process.put(KEY, 7, since=since)
    assert process.put(OTHER, 8, since=process.l1.begin()), "what was heard before it began is no concern of it"


def test_an_older_name_does_not_hide_a_newer_one(process: Process) -> None:
    """After a failover a relay tells again what it had told."""
    since = process.l1.begin()
    process.hear(1, 2, (KEY, 7))
    process.hear(2, 3, (KEY, 5))
    assert not process.put(KEY, 6, since=since)


def test_a_fill_that_began_before_what_is_remembered_is_refused(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_module, "RING_KEYS", 3)
    since = process.l1.begin()
    process.hear(1, 2, *[(Key("merchant", f"x{number}", "group"), 1) for number in range(3)])
    assert process.put(KEY, since=since)
    process.hear(2, 3, (OTHER, 1), (OTHER, 1))
    assert not process.put(KEY, 2, since=since)
    assert process.chain.refused[Refusal.FORGOTTEN] == 1
    assert process.put(KEY, 2, since=process.l1.begin())


def test_what_is_remembered_is_bounded(process: Process) -> None:
    for number in range(1, 4):
        process.hear(
            number, number + 1, *[(Key("merchant", f"{number}-{n}", "group"), 1) for n in range(RING_KEYS // 2)]
        )
    followed = process.chain._followed[0]
    assert len(followed.ring) == len(followed.named) == RING_KEYS


def test_a_withdrawal_takes_every_version_and_fills_that_are_under_way(process: Process) -> None:
    assert process.put(KEY, 2**63 - 1) and process.put(OTHER)
    since = process.l1.begin()
    process.chain.withdraw([KEY])
    assert not process.holds(KEY) and process.holds(OTHER)
    assert not process.put(KEY, 2**63 - 1, since=since)
    assert process.put(KEY, 1)
    assert process.hear(1, 2), "it is no batch"


def test_silence_ends_the_trust(process: Process) -> None:
    """Within half a second, whatever moment the last message spoke of; the copies stay for when it is over."""
    assert process.put()
    process.hear(1, 2)
    process.hear(1, 2, partition=1)
    process.clock.advance(SILENCE_S)
    process.chain.note_silence()
    assert process.chain.vouched_at > 0 and not process.chain.is_silent(0)
    process.clock.advance(0.01)
    process.chain.note_silence()
    assert process.chain.vouched_at == 0.0 and process.chain.vouched_of(KEY) == 0.0 and process.chain.is_silent(0)
    assert process.hear(2, 3) and process.holds()
    assert process.chain.vouched_of(KEY) == process.clock.now()


def test_silence_is_measured_by_a_clock_that_nobody_sets(process: Process) -> None:
    """An hour back, and what was heard would look new for an hour."""
    process.hear(1, 2)
    process.clock.set_back(3600)
    process.clock.advance(SILENCE_S + 0.01)
    process.chain.note_silence()
    assert process.chain.vouched_of(KEY) == 0.0


def test_a_message_from_the_future_vouches_for_no_more_than_now(process: Process) -> None:
    ahead = Watermark(1, "102:102:", process.clock.now() + 3600, "relay-2")
    process.chain.hear(0, Message(_name_of(process.mark(1)), b"any", ahead))
    assert process.chain.vouched_of(KEY) == process.clock.now() + MOST_AHEAD_S


def test_a_copy_that_nobody_vouched_for_when_it_came_is_not_vouched_for_later(process: Process) -> None:
    """It was read while its group went by TTL, without asking L2 how far it had come."""
    now = process.clock.now()
    process.l1.put_many({KEY: Entry(1, now, now, (1.0,))}, POLICIES, since=process.l1.begin())
    process.hear(1, 2)
    held = process.l1.get_many([KEY], POLICIES)[KEY]
    assert isinstance(held, Entry) and held.vouched_at == 0.0


def test_whoever_brings_no_position_is_refused_once_something_was_heard() -> None:
    """Before that there is nothing to compare with; the first message empties the memory."""
    store, clock = BoundedStore(10, 10_000), ManualClock()
    chain = Chain(store, partitions=1, partition_of=lambda key: 0, clock=clock)
    l1 = L1Tier(store, chain)
    l1.put_many({KEY: Entry(1, 0.0, 0.0, (1.0,))}, POLICIES)
    assert store.peek(KEY) is not None
    chain.hear(0, Message(b"", b"1", Watermark(1, "1:1:", clock.now(), "r")))
    assert store.peek(KEY) is None
    l1.put_many({KEY: Entry(1, 0.0, 0.0, (1.0,))}, POLICIES)
    assert store.peek(KEY) is None


def test_a_request_does_not_wait_for_a_flush(process: Process) -> None:
    """A fill that finds the chain at work gives its place up."""
    held, over = threading.Event(), threading.Event()

    def at_work() -> None:
        with process.chain._lock:
            held.set()
            over.wait(5)

    thread = threading.Thread(target=at_work)
    thread.start()
    held.wait(5)
    try:
        assert not process.put()
        assert process.chain.refused[Refusal.BUSY] == 1
    finally:
        over.set()
        thread.join()
    assert process.put()


def test_a_batch_between_look_and_answer_does_not_vouch_for_what_was_found(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has just taken that copy away."""
    assert process.put(KEY, 1)
    put_at = process.clock.now()
    process.clock.advance(10)
    look = process.store.get

    def look_and_then_hear(key: Key) -> object:
        found = look(key)
        process.hear(1, 2, (KEY, 2))
        return found

    monkeypatch.setattr(process.store, "get", look_and_then_hear)
    found = process.l1.get_many([KEY], POLICIES)[KEY]
    assert isinstance(found, Entry) and found.vouched_at == put_at
