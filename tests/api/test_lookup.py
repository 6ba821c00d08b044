"""The directory of keys: how seldom it asks, and what it does when nobody answers."""

import threading
from collections.abc import Callable

import pytest
from django.db import OperationalError

from mlserve.api.lookup import (
    ASK_AFTER_S,
    FRESH_FOR_S,
    KEPT_FOR_S,
    RETRY_AFTER_FAILURE_S,
    ApiClient,
    Kept,
    KeyDirectory,
)

ALICE = ApiClient("mls_alice", "alice", frozenset({"score"}))


class Source:
    """Stands for Postgres: answers, refuses, counts."""

    def __init__(self) -> None:
        self.keys = {"good": ALICE}
        self.away = False
        self.asked = 0
        self.before_answer: Callable[[], object] = lambda: None

    def __call__(self, digest: str) -> ApiClient | None:
        self.asked += 1
        self.before_answer()
        if self.away:
            raise OperationalError("away")
        return self.keys.get(digest)


class Hands:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def directory(source: Source, clock: Hands) -> KeyDirectory:
    return KeyDirectory(load=source, clock=clock, max_entries=3)


@pytest.mark.parametrize(("digest", "client"), [("good", ALICE), ("bad", None)])
def test_a_key_is_asked_for_once_a_second(
    directory: KeyDirectory, source: Source, clock: Hands, digest: str, client: ApiClient | None
) -> None:
    """Good or bad."""
    assert [directory.find(digest) for _ in range(5)] == [client] * 5
    assert source.asked == 1
    clock.now += FRESH_FOR_S
    assert directory.find(digest) is client
    assert source.asked == 2


def test_a_revoked_key_ends_within_a_second(directory: KeyDirectory, source: Source, clock: Hands) -> None:
    """And a key that is made after it was tried works within a second."""
    assert directory.find("good") and directory.find("late") is None
    source.keys = {"late": ALICE}
    clock.now += FRESH_FOR_S
    assert directory.find("good") is None
    assert directory.find("late") is ALICE


def test_a_known_key_outlives_an_outage_of_ten_minutes(directory: KeyDirectory, source: Source, clock: Hands) -> None:
    """Counted from its last confirmation; after that nobody can vouch for it."""
    directory.find("good")
    source.away = True
    clock.now += KEPT_FOR_S - 0.001
    assert directory.find("good") is ALICE
    clock.now += RETRY_AFTER_FAILURE_S
    with pytest.raises(OperationalError):
        directory.find("good")


def test_an_outage_is_not_asked_about_at_every_request(directory: KeyDirectory, source: Source, clock: Hands) -> None:
    """Each try may wait for a connection, so a failed one is followed by a pause."""
    directory.find("good")
    source.away = True
    clock.now += FRESH_FOR_S
    assert [directory.find("good") for _ in range(5)] == [ALICE] * 5
    assert source.asked == 2
    clock.now += RETRY_AFTER_FAILURE_S
    directory.find("good")
    assert source.asked == 3


def test_an_unknown_key_in_an_outage_is_not_called_wrong(directory: KeyDirectory, source: Source) -> None:
    """It may be right."""
    source.away = True
    with pytest.raises(OperationalError):
        directory.find("good")


def test_one_request_asks_and_the_others_go_on(directory: KeyDirectory, source: Source, clock: Hands) -> None:
    """Even if Postgres takes its time: only the one that asks waits."""
    directory.find("good")
    clock.now += ASK_AFTER_S
    asking, answer = threading.Event(), threading.Event()

    def take_time() -> None:
        asking.set()
        answer.wait(10)

    source.before_answer = take_time
    slow = threading.Thread(target=directory.find, args=("good",))
    slow.start()
    assert asking.wait(10)
    assert directory.find("good") is ALICE
    answer.set()
    slow.join(10)
    assert source.asked == 2


def test_nobody_goes_on_for_longer_than_a_second(directory: KeyDirectory, source: Source, clock: Hands) -> None:
    """A key that was revoked while Postgres takes its time ends in time: then all wait for its answer."""
    directory.find("good")
    clock.now += ASK_AFTER_S
    asking, answer = threading.Event(), threading.Event()
    found: list[ApiClient | None] = []

    def take_time() -> None:
        asking.set()
        answer.wait(10)

    source.before_answer = take_time
    slow = threading.Thread(target=directory.find, args=("good",))
    slow.start()
    assert asking.wait(10)
    clock.now += FRESH_FOR_S - ASK_AFTER_S
    waiting = threading.Thread(target=lambda: found.append(directory.find("good")))
    waiting.start()
    source.keys = {}
    waiting.join(0.05)
    assert found == []
    answer.set()
    slow.join(10)
    waiting.join(10)
    assert found == [None]
    assert source.asked == 2


def test_an_answer_counts_from_its_question_on(directory: KeyDirectory, source: Source, clock: Hands) -> None:
    """What Postgres said a while ago may be over."""

    def take_time() -> None:
        clock.now += ASK_AFTER_S

    source.before_answer = take_time
    directory.find("good")
    directory.find("good")
    assert source.asked == 2


def test_wrong_keys_never_push_out_right_ones(directory: KeyDirectory, source: Source) -> None:
    """However many are tried, and the table of them stays small."""
    directory.find("good")
    for number in range(100):
        directory.find(f"bad {number}")
    asked = source.asked
    assert directory.find("good") is ALICE
    assert source.asked == asked
    assert len(directory._unknown_until) <= 3


def test_right_keys_are_bounded_too(directory: KeyDirectory, source: Source) -> None:
    """The oldest leaves first."""
    source.keys = {str(number): ALICE for number in range(10)}
    for digest in source.keys:
        directory.find(digest)
    assert list(directory._known) == ["7", "8", "9"]


def test_a_key_that_only_the_copy_knows_is_good_for_what_is_left_of_the_ten_minutes(
    source: Source, clock: Hands
) -> None:
    """A restart begins no new ten minutes; afterwards nobody can vouch for it."""
    source.away = True
    kept_at, begun_at = clock.now, clock.now + 100
    directory = KeyDirectory(load=source, clock=clock, kept=lambda _: Kept(ALICE, clock.now - kept_at))
    clock.now = begun_at
    assert directory.find("good") is ALICE
    assert directory.find("good") is ALICE
    assert source.asked == 1
    clock.now = kept_at + KEPT_FOR_S - 0.001
    assert directory.find("good") is ALICE
    clock.now += RETRY_AFTER_FAILURE_S
    with pytest.raises(OperationalError):
        directory.find("good")
    later = KeyDirectory(load=source, clock=clock, kept=lambda _: Kept(ALICE, clock.now - kept_at))
    with pytest.raises(OperationalError):
        later.find("good")


def test_whoever_keeps_keys_is_told_of_those_that_are_not_valid(source: Source, clock: Hands) -> None:
    """As soon as it is known here."""
    told: list[str] = []
    directory = KeyDirectory(load=source, clock=clock, revoked=told.append)
    directory.find("good")
    directory.find("bad")
    assert told == ["bad"]
