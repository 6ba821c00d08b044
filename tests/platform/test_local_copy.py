"""What a host remembers of PostgreSQL: whole or not believed, and never an error."""

import errno
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.db import connections

from mlserve import local_copy
from mlserve.local_copy import CLOCK_SKEW_S, MAX_COPY_BYTES, MAX_DATABASES, Kept, LocalCopy
from mlserve.observability import metrics
from tests.fixtures.clock import ManualClock


class Content(msgspec.Struct, frozen=True):
    words: tuple[str, ...]


FIRST, SECOND = Content(("first",)), Content(("second",))
NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path) -> ManualClock:
    settings.VAR_DIR = tmp_path
    clock = ManualClock(NOW)
    monkeypatch.setattr(local_copy, "_clock", clock)
    return clock


def _copy_of_a_number() -> LocalCopy[Any]:
    return LocalCopy[Any]("test", int, schema=1)


def _copy(schema: int = 1, **more: Any) -> LocalCopy[Content]:
    """As another process has it."""
    return LocalCopy("test", Content, schema=schema, **more)


def _counted(outcome: str) -> float:
    return float(metrics.LOCAL_COPIES.labels("test", outcome)._value.get())


def test_what_is_kept_is_there_for_the_next_process() -> None:
    """With the moment of its confirmation, readable by this user alone."""
    copy = _copy()
    assert copy.load() is None
    assert copy.save(FIRST, confirmed_at=NOW)
    assert _copy().load() == Kept(FIRST, NOW)
    assert copy.path.stat().st_mode & 0o777 == 0o600
    assert copy.path.parent.stat().st_mode & 0o777 == copy.path.parent.parent.stat().st_mode & 0o777 == 0o700
    copy.discard()
    assert _copy().load() is None


def test_it_is_rewritten_when_it_changes_and_once_in_a_while(clock: ManualClock) -> None:
    """An unchanged copy says at most `refresh_s` too early until when it was in force."""
    copy = _copy(refresh_s=60.0)
    for second in range(0, 130, 10):
        assert copy.save(FIRST, confirmed_at=NOW + second)
    clock.advance(130)
    kept = _copy().load()
    assert kept is not None and kept.confirmed_at == NOW + 120
    assert copy.save(SECOND, confirmed_at=NOW + 121)
    assert _copy().load() == Kept(SECOND, NOW + 121)


def test_who_was_answered_last_wins() -> None:
    """A process that has not seen the change yet does not undo it."""
    assert _copy().save(SECOND, confirmed_at=NOW)
    assert _copy().save(FIRST, confirmed_at=NOW - 1)
    assert _copy().load() == Kept(SECOND, NOW)


def test_processes_that_write_at_once_leave_one_whole_copy() -> None:
    """Whatever the interleaving, every reader finds one of them."""
    contents = [Content((str(number) * 50_000,)) for number in range(4)]
    barrier, read = threading.Barrier(5), []

    def write(number: int) -> None:
        copy = _copy()
        barrier.wait()
        for turn in range(10):
            copy.save(contents[number], confirmed_at=NOW + turn)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    while any(thread.is_alive() for thread in threads):
        read.append(_copy().load())
    found = [kept.content for kept in (*read[-5:], _copy().load()) if kept is not None]
    assert found and all(content in contents for content in found)
    assert [path.name for path in local_copy.folder().iterdir()] == ["test.json"]


def _of_another_key(path: Path, settings: Any) -> None:
    settings.SECRET_KEY = "another" * 10


def _of_another_database(path: Path, settings: Any) -> None:
    """Written by this very installation; it lies in another folder, and somebody has copied it."""
    known = connections["default"].settings_dict
    ours, known["NAME"] = known["NAME"], "another"
    try:
        copy = _copy()
        copy.save(FIRST, confirmed_at=NOW)
        elsewhere = copy.path
    finally:
        known["NAME"] = ours
    assert elsewhere != path
    elsewhere.replace(path)


def _link(path: Path, settings: Any) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _pipe(path: Path, settings: Any) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path, settings: Any) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path, Any], object]] = {
    "empty": lambda path, _: path.write_bytes(b""),
    "torn": lambda path, _: path.write_bytes(path.read_bytes()[:-7]),
    "a changed byte": lambda path, _: path.write_bytes(path.read_bytes().replace(b"first", b"fjrst")),
    "garbage": lambda path, _: path.write_bytes(b"\x80\x04\x95" * 100),
    "huge": lambda path, _: os.truncate(path, MAX_COPY_BYTES + 1),
    "of another key": _of_another_key,
    "of another database": _of_another_database,
    "a link": _link,
    "a pipe": _pipe,
    "a folder": _folder,
    "of another schema": lambda _path, _: _copy(schema=2).save(FIRST, confirmed_at=NOW + 1),
    "of other contents": lambda _path, _: _copy_of_a_number().save(5, confirmed_at=NOW + 1),
    "from the future": lambda _path, _: _copy().save(SECOND, confirmed_at=NOW + CLOCK_SKEW_S + 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_cannot_be_believed_is_a_counted_miss(damage: Callable[[Path, Any], object], settings: Any) -> None:
    """Never an error; a pipe does not keep the reader waiting. The next save replaces what can be replaced."""
    copy = _copy()
    copy.save(FIRST, confirmed_at=NOW)
    damage(copy.path, settings)
    before = _counted("refused")
    reader = _copy()
    assert reader.load() is None
    assert _counted("refused") == before + 1
    if not reader.path.is_dir():
        assert reader.save(SECOND, confirmed_at=NOW + 2)
        assert _copy().load() == Kept(SECOND, NOW + 2)


def test_a_key_that_is_being_rotated_still_counts(settings: Any) -> None:
    """As for sessions and version tokens."""
    _copy().save(FIRST, confirmed_at=NOW)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another" * 10
    assert _copy().load() == Kept(FIRST, NOW)


@pytest.mark.parametrize("failing", ["fsync", "replace", "mkstemp"])
def test_a_disk_that_takes_nothing_leaves_the_copy_of_before(
    failing: str, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    """Counted, said once, tried again after a while; nothing half written stays."""
    copy = _copy(refresh_s=60.0)
    copy.save(FIRST, confirmed_at=NOW)
    before = _counted("save_failed")
    with monkeypatch.context() as patched:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        where: Any = {"fsync": os, "replace": Path, "mkstemp": tempfile}[failing]
        patched.setattr(where, failing, full)
        assert not copy.save(SECOND, confirmed_at=NOW + 1)
        assert not copy.save(SECOND, confirmed_at=NOW + 2)
    assert _counted("save_failed") == before + 1
    assert _copy().load() == Kept(FIRST, NOW)
    assert [path.name for path in copy.path.parent.iterdir()] == ["test.json"]
    clock.advance(61)
    assert copy.save(SECOND, confirmed_at=NOW + 61)
    assert _copy().load() == Kept(SECOND, NOW + 61)


def test_no_folder_to_write_to_is_a_failure_like_any_other(settings: Any, tmp_path: Path) -> None:
    """A file where the folder should be; a read-only file system looks the same."""
    (tmp_path / "in-the-way").touch()
    settings.VAR_DIR = tmp_path / "in-the-way"
    copy = _copy()
    assert not copy.save(FIRST, confirmed_at=NOW)
    assert copy.load() is None


def test_what_killed_processes_leave_is_removed(clock: ManualClock) -> None:
    """Their temporary files, once nobody can be writing them any more."""
    copy = _copy()
    copy.save(FIRST, confirmed_at=NOW)
    left, fresh = copy.path.with_name(".new-left"), copy.path.with_name(".new-fresh")
    for path, age_s in ((left, 4000), (fresh, 10)):
        path.write_bytes(b"half")
        os.utime(path, (NOW - age_s, NOW - age_s))
    copy.save(SECOND, confirmed_at=NOW + 1)
    assert not left.exists() and fresh.exists()


def test_databases_of_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder does not grow with every database that this host has known."""
    for number in range(MAX_DATABASES + 3):
        monkeypatch.setitem(connections["default"].settings_dict, "NAME", f"database-{number}")
        assert _copy().save(FIRST, confirmed_at=NOW)
        os.utime(local_copy.folder(), (NOW + number, NOW + number))
    kept = {path.name for path in local_copy.folder().parent.iterdir()}
    assert len(kept) == MAX_DATABASES and local_copy.folder().name in kept
