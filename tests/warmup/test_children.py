import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlserve.settings.env import child_environment
from tests.fixtures.clock import ManualClock
from tests.fixtures.waiting import until
from warmup.demo.children import SOUND_AFTER_S, ChildFailed, Children, Recipe, stop_leftovers


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def children(tmp_path: Path, said: list[str]) -> Iterator[Children]:
    made = Children(tmp_path / "log", tmp_path / "children.json", said.append)
    yield made
    made.stop()


def _recipe(code: str, *, name: str = "child", essential: bool = False) -> Recipe:
    return Recipe(name=name, argv=[sys.executable, "-c", code], environment=child_environment(), essential=essential)


def _tended(children: Children, condition) -> None:
    def tend_and_look() -> bool:
        children.tend()
        return bool(condition())

    until(tend_and_look)


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _recorded(children: Children) -> int:
    """The process id of the only child."""
    (pid,) = (int(pid) for pid in json.loads(children.record.read_text()))
    return pid


_SLEEP = "import time; time.sleep(600)"


def test_a_child_that_dies_is_started_again_and_reported_once_more(children: Children, said: list[str]) -> None:
    """With the last lines of its log; however often it dies after that."""
    clock = ManualClock()
    children.monotonic = clock.monotonic
    children.start(_recipe("print('something broke', flush=True); raise SystemExit(3)"))
    _tended(children, lambda: len(said) == 2)
    assert "started again" in said[0] and "exit code 3" in said[0]
    assert "ended again" in said[1] and "something broke" in said[1] and "goes on" in said[1]
    (log,) = children.log_dir.iterdir()
    for runs in (3, 4, 5, 6):
        until(lambda: not _alive(_recorded(children)))
        children.tend()  # notes its end, and its pause is not over
        assert log.read_text().count("something broke") == runs - 1
        clock.advance(16.0)
        _tended(children, lambda runs=runs: log.read_text().count("something broke") == runs)
    assert len(said) == 2


def test_a_child_that_has_run_for_a_while_may_die_again(children: Children, said: list[str]) -> None:
    """An essential one too: it was killed, or lost a server, and starting it again has helped before."""
    clock = ManualClock()
    children.monotonic = clock.monotonic
    children.start(_recipe(_SLEEP, essential=True))
    for deaths in (1, 2, 3):
        clock.advance(SOUND_AFTER_S)
        os.kill(_recorded(children), signal.SIGKILL)
        _tended(children, lambda deaths=deaths: len(said) == deaths)
    assert all("signal SIGKILL" in report and "started again" in report for report in said)


def test_an_essential_child_that_dies_twice_ends_the_demo(children: Children) -> None:
    """The error holds what its log says."""
    children.start(_recipe("raise SystemExit('no good')", essential=True))
    with pytest.raises(ChildFailed, match="no good"):
        _tended(children, lambda: False)


def test_stopping_leaves_nothing_of_a_childs_group(children: Children, tmp_path: Path) -> None:
    """Neither the child nor what it started and did not end, nor the record."""
    note = tmp_path / "pids"
    children.start(
        _recipe(
            "import os, pathlib, subprocess, sys, time\n"
            f"grandchild = subprocess.Popen([sys.executable, '-c', {_SLEEP!r}])\n"
            f"pathlib.Path({str(note)!r}).write_text(f'{{os.getpid()}} {{grandchild.pid}} .')\n"
            "time.sleep(600)"
        )
    )
    until(lambda: note.exists() and note.read_text().endswith("."))
    pids = [int(pid) for pid in note.read_text().split()[:2]]
    assert all(_alive(pid) for pid in pids)
    children.stop()
    assert not any(_alive(pid) for pid in pids)
    assert not children.record.exists()


def test_a_child_that_does_not_heed_term_is_killed(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time that it is given."""
    monkeypatch.setattr("warmup.demo.children.STOP_S", 0.3)
    note = tmp_path / "pid"
    children.start(
        _recipe(
            "import os, pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"pathlib.Path({str(note)!r}).write_text(f'{{os.getpid()}} .')\ntime.sleep(600)"
        )
    )
    until(lambda: note.exists() and note.read_text().endswith("."))
    children.stop()
    assert not _alive(int(note.read_text().split()[0]))


def test_what_a_killed_demo_left_behind_is_ended_by_the_next(children: Children) -> None:
    """By the record; and the record goes."""
    children.start(_recipe(_SLEEP))
    (pid,) = (int(pid) for pid in json.loads(children.record.read_text()))
    assert stop_leftovers(children.record) == 1
    assert not _alive(pid)
    assert stop_leftovers(children.record) == 0


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', '{"1": "y"}', '{"999999999": 1.0}'])
def test_a_record_that_makes_no_sense_ends_nothing(tmp_path: Path, text: str) -> None:
    """Whatever a crash has left in it."""
    record = tmp_path / "children.json"
    record.write_text(text)
    assert stop_leftovers(record) == 0


def test_a_process_that_has_got_a_recorded_id_since_is_not_touched(tmp_path: Path) -> None:
    """It is known by the time at which it began."""
    stranger = subprocess.Popen([sys.executable, "-c", _SLEEP], start_new_session=True)
    try:
        record = tmp_path / "children.json"
        record.write_text(json.dumps({stranger.pid: psutil.Process(stranger.pid).create_time() - 1000}))
        assert stop_leftovers(record) == 0
        assert stranger.poll() is None
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()


def test_logs_and_record_are_for_their_owner_only(children: Children) -> None:
    """They may name customers; a log that others could read is closed to them."""
    log = children.log_dir / "child.log"
    log.parent.mkdir()
    log.touch(0o644)
    children.start(_recipe(_SLEEP))
    assert [path.stat().st_mode & 0o777 for path in (log, children.record)] == [0o600, 0o600]


def test_a_log_that_has_become_too_long_makes_way(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """One older copy is kept."""
    monkeypatch.setattr("warmup.demo.children._LOG_LIMIT_BYTES", 10)
    log = children.log_dir / "child.log"
    log.parent.mkdir()
    log.write_text("x" * 11)
    children.start(_recipe(_SLEEP))
    assert log.stat().st_size == 0
    assert log.with_suffix(".log.1").read_text() == "x" * 11


def test_stopping_nobody_keeps_the_record_of_a_killed_demo(children: Children) -> None:
    """It is the next demo's only way to find what is left."""
    children.record.write_text("{}")
    children.stop()
    assert children.record.exists()
