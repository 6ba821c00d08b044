"""Work that only one process may be at: the second one waits for a while, and then hears who is."""

import os
import time
from threading import Thread

import pytest
from django.db import connection

from mlserve.postgres.one_at_a_time import AlreadyRunning, one_at_a_time
from tests.fixtures.waiting import until

pytestmark = pytest.mark.django_db


def test_the_second_hears_who_and_since_when() -> None:
    """After the wait that it was given, and not before."""
    with one_at_a_time("exercise"):
        began = time.monotonic()
        with (
            pytest.raises(AlreadyRunning, match=rf"^exercise: .* since .* UTC, by process {os.getpid()} on "),
            one_at_a_time("exercise", wait_s=0.5),
        ):
            raise AssertionError("both")
        assert 0.4 < time.monotonic() - began < 5


def test_who_waits_long_enough_comes_next() -> None:
    """Short work is done one after the other."""
    done: list[str] = []

    def second() -> None:
        with one_at_a_time("exercise", wait_s=20):
            done.append("second")

    with one_at_a_time("exercise"):
        thread = Thread(target=second)
        thread.start()
        until(_somebody_waits)
        done.append("first")
    thread.join()
    assert done == ["first", "second"]


def test_other_work_is_not_held_up() -> None:
    """A training beside a build."""
    with one_at_a_time("exercise"), one_at_a_time("another", wait_s=0.1):
        pass


def test_what_ends_by_an_error_is_over() -> None:
    """Whatever ended it."""
    with pytest.raises(KeyboardInterrupt), one_at_a_time("exercise"):
        raise KeyboardInterrupt
    with one_at_a_time("exercise", wait_s=0.1):
        pass


def _somebody_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return bool(cursor.fetchone()[0])
