"""Polling off the request path."""

import os
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections

from mlserve.poller import Poller

WAIT_S = 20.0
"""Longer than any machine needs; reached only when a test fails."""


class Polls:
    """Does what the test says in every poll and lets the test wait for polls."""

    def __init__(self) -> None:
        self.fail_with: Exception | None = None
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()
        if self.fail_with is not None:
            raise self.fail_with

    def wait_for_more(self, more: int = 2) -> None:
        """The poll that is under way may have begun before the test's change, so two more are the least to wait for."""
        with self._changed:
            wanted = self.count + more
            assert self._changed.wait_for(lambda: self.count >= wanted, WAIT_S)


@pytest.fixture
def polls() -> Polls:
    return Polls()


@pytest.fixture
def poller(polls: Polls) -> Iterator[Poller]:
    poller = Poller("test", 0.001, polls)
    yield poller
    poller.stop()


def test_it_polls_at_once_and_again(poller: Poller, polls: Polls) -> None:
    """A started poller polls without waiting for its first interval, and then goes on."""
    poller.ensure_started()
    polls.wait_for_more(3)


def test_starting_twice_starts_one_thread(poller: Poller, polls: Polls) -> None:
    """`ensure_started` may be called by every request."""
    for _ in range(5):
        poller.ensure_started()
    assert [thread.name for thread in threading.enumerate()].count("poll-test") == 1


def test_a_failure_is_logged_once_and_its_end_too(
    poller: Poller, polls: Polls, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of many polls makes one line when it begins, one when it changes and one when it ends."""
    caplog.set_level("INFO", logger="mlserve.poller")
    polls.fail_with = ValueError("first")
    poller.ensure_started()
    polls.wait_for_more(4)
    assert str(poller.error) == "first"
    polls.fail_with = KeyError("second")
    polls.wait_for_more(4)
    polls.fail_with = None
    polls.wait_for_more(4)
    assert poller.error is None
    poller.stop()
    lines = [cast("dict[str, Any]", record.msg) for record in caplog.records]
    assert [(line["event"], line.get("error")) for line in lines] == [
        ("poll_failed", "ValueError: first"),
        ("poll_failed", "KeyError: 'second'"),
        ("poll_recovered", None),
    ]


def test_a_stopped_poller_starts_again(poller: Poller, polls: Polls) -> None:
    """After `stop` nothing polls; `ensure_started` begins anew."""
    poller.ensure_started()
    polls.wait_for_more()
    poller.stop()
    assert "poll-test" not in [thread.name for thread in threading.enumerate()]
    poller.ensure_started()
    polls.wait_for_more()


def test_poll_now_raises_to_its_caller(poller: Poller, polls: Polls) -> None:
    """`poll_now` polls in the calling thread and hides nothing."""
    polls.fail_with = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        poller.poll_now()
    assert polls.count == 1


def test_polls_never_overlap() -> None:
    """`poll_now` waits for the poll that is under way."""
    begun, finish = threading.Event(), threading.Event()
    inside: list[int] = []
    most: list[int] = []

    def poll() -> None:
        inside.append(1)
        most.append(len(inside))
        begun.set()
        assert finish.wait(WAIT_S)
        inside.pop()

    poller = Poller("overlap", 1000, poll)
    poller.ensure_started()
    assert begun.wait(WAIT_S)
    impatient = threading.Thread(target=poller.poll_now)
    impatient.start()
    finish.set()
    impatient.join()
    poller.stop()
    assert most == [1, 1]


def test_a_forked_child_polls_with_a_thread_of_its_own(poller: Poller, polls: Polls) -> None:
    """Threads do not survive a fork; the child's next `ensure_started` makes a new one, whoever held the locks."""
    poller.ensure_started()
    polls.wait_for_more()
    with poller._polling:  # as if the fork happened in the middle of a poll
        pid = os.fork()
        if pid == 0:
            child_polls = Polls()
            poller._poll = child_polls
            try:
                poller.ensure_started()
                child_polls.wait_for_more(1)
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("error", [None, OperationalError("away")])
def test_those_who_need_the_first_poll_wait_for_one(error: Exception | None) -> None:
    """However many they are; what it failed with is what each of them gets."""
    entered, go_on = threading.Event(), threading.Event()
    raised: list[Exception] = []
    polled: list[int] = []

    def poll() -> None:
        polled.append(threading.get_ident())
        entered.set()
        assert go_on.wait(WAIT_S)
        if error is not None:
            raise error

    def first() -> None:
        try:
            begun.poll_first()
        except OperationalError as failure:
            raised.append(failure)

    poller = begun = Poller("first", 1_000, poll)
    poller.ensure_started()
    assert entered.wait(WAIT_S)
    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    poller.stop()
    assert len(polled) == 1
    assert raised == ([] if error is None else [error] * 8)


def test_an_error_that_nobody_foresaw_is_not_taken_for_the_answer() -> None:
    """The next caller polls for itself."""
    answers: list[Exception | None] = [RuntimeError("odd"), None]

    def poll() -> None:
        error = answers.pop(0)
        if error is not None:
            raise error

    poller = Poller("odd", 1_000, poll)
    with pytest.raises(RuntimeError):
        poller.poll_first()
    poller.poll_first()
    poller.poll_first()
    assert answers == []


def test_what_follows_a_poll_holds_up_nobody(polls: Polls) -> None:
    """It follows in the thread alone, after failures too, and others may poll meanwhile."""
    polls.fail_with = RuntimeError("away")
    follows, go_on = threading.Event(), threading.Event()

    def then() -> None:
        follows.set()
        go_on.wait(WAIT_S)

    poller = Poller("then", 0.001, polls, then=then)
    poller.ensure_started()
    assert follows.wait(WAIT_S)
    polls.fail_with = None
    poller.poll_now()
    follows.clear()
    go_on.set()
    assert follows.wait(WAIT_S)
    poller.stop()


@pytest.mark.django_db(transaction=True)
def test_an_idle_poller_holds_no_connection() -> None:
    """Every poll begins without a database connection: the one before gave its own back to the pool."""
    held, enough = [], threading.Event()

    def poll() -> None:
        held.append(connection.connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        if len(held) == 3:
            enough.set()

    poller = Poller("connection", 0.001, poll)
    poller.ensure_started()
    assert enough.wait(WAIT_S)
    poller.stop()
    assert held[:3] == [None, None, None]


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_cannot_be_looked_at_goes_back_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread goes on, and after more polls than the pool has connections there is still one to be had."""
    polls = Polls()

    def poll() -> None:
        connection.ensure_connection()
        monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "errors_occurred", True)
        monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "is_usable", _raises, raising=False)
        polls()

    poller = Poller("odd", 0.001, poll)
    poller.ensure_started()
    polls.wait_for_more(3 * settings.DATABASES[DEFAULT_DB_ALIAS]["OPTIONS"]["pool"]["max_size"])
    poller.stop()
    assert poller.error is None


def _raises() -> bool:
    raise RuntimeError("odd")
