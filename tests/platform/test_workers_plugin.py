"""Test runs of several processes: who has the machine alone, how many workers there are, what is left of them."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlserve.embedded import Servers
from mlserve.settings.base import BASE_DIR
from tests.fixtures import servers, workers
from tests.fixtures.waiting import until
from tests.fixtures.workers import Floor

_SHORT_S = 0.3
"""What is not to happen has not happened after this; a guard that is removed lets it happen at once."""

MEETING = """
import json, os, time
from pathlib import Path
import pytest

HERE = Path(__file__).parent

def _meet(me, others):
    began = time.monotonic()
    (HERE / me).touch()
    while time.monotonic() < began + 1.0 and not all((HERE / other).exists() for other in others):
        time.sleep(0.01)
    (HERE / f"{me}.json").write_text(json.dumps([began, time.monotonic(), os.getpid()]))

@pytest.mark.quiet
def test_quiet():
    _meet("quiet", ["loud"])

def test_loud():
    _meet("loud", ["quiet"])

def test_another():
    pass
"""

STOPPING_ALL = """
import os, signal
import pytest

@pytest.mark.parametrize("number", range(2))
def test_end(number):
    os.write(2, f"root {os.environ['MLSERVE_VAR_DIR']} of {os.environ['DATABASE_URL']}\\n".encode())
    if number == 0:
        os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
"""


def _run(folder: Path, code: str, *plugins: str) -> "subprocess.CompletedProcess[str]":
    """Two workers, and nothing of this project but the plugins."""
    (folder / "test_them.py").write_text(code)
    loaded = [part for plugin in ("xdist", *plugins) for part in ("-p", plugin)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "-s", "-n", "2", *loaded, str(folder / "test_them.py")],
        cwd=BASE_DIR,
        env={"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_quiet_test_and_another_never_run_at_once(tmp_path: Path) -> None:
    """Two workers, each with one that waits a second for the other's to begin."""
    done = _run(tmp_path, MEETING, "tests.fixtures.workers")
    assert done.returncode == 0, done.stdout + done.stderr
    quiet, loud = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("quiet", "loud"))
    assert quiet[2] != loud[2], "they ran in one worker, which proves nothing"
    (_, first_ends, _), (second_begins, _, _) = sorted([quiet, loud])
    assert first_ends <= second_begins


def test_interrupted_workers_remove_their_servers(tmp_path: Path) -> None:
    """Each has its own; Ctrl-C in the process that deals the tests out ends them all."""
    done = _run(tmp_path, STOPPING_ALL, "tests.fixtures.servers")
    assert done.returncode != 0
    lines = {line.partition("root ")[2] for line in done.stderr.splitlines() if "root /" in line}
    roots, urls = zip(*(line.split(" of ") for line in lines), strict=True)
    assert len(set(roots)) == len(set(urls)) == 2
    for root in map(Path, roots):
        assert not root.exists()
        assert Servers(root).status() == []


@pytest.mark.parametrize(
    ("options", "deals_out"),
    [
        ({"numprocesses": 2}, True),
        ({"numprocesses": "auto"}, True),
        ({"tx": ["2*popen"]}, True),
        ({"numprocesses": 0}, False),
        ({"numprocesses": None, "tx": []}, False),
        ({"numprocesses": "auto", "usepdb": True}, False),
        ({}, False),
    ],
)
def test_who_runs_tests_has_servers(options: dict[str, object], deals_out: bool) -> None:
    """With a debugger pytest-xdist starts no workers for `-n auto`."""
    assert servers._deals_out(SimpleNamespace(**{"usepdb": False, **options})) is deals_out  # type: ignore[arg-type]


# --- the floor ---


def _enter(folder: Path, order: list[str], name: str, *, alone: bool) -> threading.Thread:
    """In a thread: enters, says so and leaves."""

    def work() -> None:
        floor = Floor(folder)
        floor.enter(alone=alone)
        order.append(name)
        floor.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_others_share_the_floor(tmp_path: Path) -> None:
    """Neither waits for the other."""
    one, other = Floor(tmp_path), Floor(tmp_path)
    one.enter(alone=False)
    other.enter(alone=False)
    one.close()
    other.close()


def test_who_waits_to_be_alone_is_not_overtaken(tmp_path: Path) -> None:
    """Who comes later waits too, or there would always be somebody on the floor."""
    order: list[str] = []
    first = Floor(tmp_path)
    first.enter(alone=False)
    quiet = _enter(tmp_path, order, "quiet", alone=True)
    until(lambda: _is_taken(tmp_path / "gate"))
    late = _enter(tmp_path, order, "late", alone=False)
    late.join(_SHORT_S)
    assert order == []
    first.leave()
    quiet.join(20)
    late.join(20)
    assert order == ["quiet", "late"]
    first.close()


def test_who_is_alone_stays_so_until_it_leaves(tmp_path: Path) -> None:
    """Also from one quiet test to the next."""
    order: list[str] = []
    quiet = Floor(tmp_path)
    quiet.enter(alone=True)
    other = _enter(tmp_path, order, "other", alone=False)
    quiet.enter(alone=True)
    other.join(_SHORT_S)
    assert order == []
    quiet.leave()
    other.join(20)
    assert order == ["other"]
    quiet.close()


def _is_taken(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# --- how many ---


@pytest.mark.parametrize(
    ("text", "processors"),
    [("max 100000\n", 4), ("200000 100000\n", 2), ("150000 100000\n", 1), ("50000 100000\n", 0), ("\n", 4)],
)
def test_a_container_may_have_less_than_its_machine(tmp_path: Path, text: str, processors: int) -> None:
    """As control groups write it; part of a processor is none, and there is one worker all the same."""
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert workers._quota(file) == processors
    assert workers._quota(tmp_path / "none") == 4
    assert 1 <= workers.pytest_xdist_auto_num_workers() <= 4
