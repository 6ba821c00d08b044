"""`manage.py demo` as a person runs it: in an empty folder, with servers of its own, stopped with Ctrl-C."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings

from mlserve.embedded import NAMES, Servers
from mlserve.settings.env import child_environment
from tests.fixtures.waiting import until
from warmup.demo.recipes import WEB_WORKERS

PATIENCE_S = 100.0
SMALL = ("--customers", "150", "--merchants", "40", "--days", "28", "--port", "0")


@pytest.fixture
def var_dir() -> Iterator[Path]:
    """An empty folder that the servers' user can reach. What a failed test leaves running there is stopped."""
    path = Path(tempfile.mkdtemp(prefix="mlserve-demo-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    for demo in _started:
        if demo.process.poll() is None:
            demo.stop(signal.SIGTERM)
    _started.clear()
    Servers(path).destroy()
    shutil.rmtree(path, ignore_errors=True)


_started: "list[_Demo]" = []


@dataclass
class _Demo:
    process: "subprocess.Popen[str]"
    output: Path

    def summary(self) -> dict[str, Any]:
        """What it printed as JSON after its first score."""
        _until(lambda: self._line().endswith("}"), self)
        summary: dict[str, Any] = json.loads(self._line())
        return summary

    def _line(self) -> str:
        return next((line for line in self.text().splitlines() if line.startswith('{"url"')), "")

    def text(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def web_workers(self) -> int:
        for process in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "granian" in process.cmdline():
                    return len(process.children())
        return 0

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), *arguments]


def _environment(var_dir: Path) -> dict[str, str]:
    environment = child_environment(MLSERVE_VAR_DIR=str(var_dir), PROMETHEUS_MULTIPROC_DIR=str(var_dir / "metrics"))
    for name in ("DATABASE_URL", "REDIS_CACHE_URL", "REDIS_BROKER_URL", "DJANGO_SETTINGS_MODULE"):
        environment.pop(name, None)
    return environment


def _start(var_dir: Path, *arguments: str) -> _Demo:
    output = var_dir / f"output-{time.monotonic_ns()}"
    with output.open("wb") as file:
        process = subprocess.Popen(
            _command("demo", *SMALL, "--json", *arguments),
            env=_environment(var_dir),
            stdout=file,
            stderr=file,
            text=True,
            start_new_session=True,
        )
    _started.append(_Demo(process, output))
    return _started[-1]


def _curl_of(text: str) -> str:
    """The command that the demo printed, to the letter."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith("curl "))
    last = next(number for number in range(first, len(lines)) if not lines[number].endswith("\\"))
    return "\n".join(lines[first : last + 1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(condition, demo: _Demo) -> None:
    """Fails at once, with what the demo said, if it has ended without."""
    until(lambda: condition() or demo.process.poll() is not None, within_s=PATIENCE_S, tells=demo.text, pause_s=0.1)
    assert condition(), demo.text()


@pytest.mark.timeout(300)
def test_the_demo_scores_from_an_empty_folder_and_leaves_nothing_running(var_dir: Path) -> None:
    """First score, printed curl, live traffic, a second demo refused, Ctrl-C; then a second run that starts faster."""
    demo = _start(var_dir)
    summary = demo.summary()
    port = int(summary["url"].rpartition(":")[2])
    assert 0 <= summary["first_score"]["score"] <= 1
    assert not summary["first_score"]["degraded"], summary["first_score"]
    assert {"servers", "database", "data", "features", "model", "warm-up", "web"} <= summary["seconds"].keys()
    _until(lambda: "Ctrl-C" in demo.text(), demo)

    if shutil.which("curl"):
        shown = subprocess.run(["sh", "-c", _curl_of(demo.text())], capture_output=True, check=True, timeout=30)
        assert json.loads(shown.stdout)["decision"] in ("approve", "review", "decline")
    key = (var_dir / "demo" / "api_key").read_text().strip()
    assert key in shlex.split(_curl_of(demo.text()).replace("\\\n", " "))[4]
    for name in ("api_key", "admin_password"):
        assert (var_dir / "demo" / name).stat().st_mode & 0o777 == 0o600

    second = _start(var_dir)
    assert second.process.wait(60) == 1
    assert "already runs" in second.text() and str(demo.process.pid) in second.text()

    with urllib.request.urlopen(f"{summary['url']}/metrics", timeout=10) as response:
        assert b"mlserve_scores_total" in response.read()
    log = var_dir / "log"
    _until(lambda: all("ready" in (log / f"worker-{queue}.log").read_text() for queue in ("refresh", "build")), demo)
    assert key not in " ".join(" ".join(process.cmdline()) for process in demo.family())

    family = demo.family()
    assert demo.stop(signal.SIGINT) == 0, demo.text()
    _gone, alive = psutil.wait_procs(family, timeout=0)
    assert [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert not _listens(port)
    assert [Servers(var_dir).pids(name) for name in NAMES] == [[], [], []]
    assert "Traceback" not in demo.text()

    again = _start(var_dir, "--no-traffic", "--duration", "0")
    assert again.process.wait(PATIENCE_S) == 0, again.text()
    seconds = _seconds(again)
    assert seconds["data"] + seconds["features"] + seconds["model"] < 5.0


def _seconds(demo: _Demo) -> dict[str, float]:
    line = next(line for line in demo.text().splitlines() if line.startswith('{"url"'))
    seconds: dict[str, float] = json.loads(line)["seconds"]
    return seconds


@pytest.mark.timeout(120)
def test_a_port_that_is_taken_is_said_before_anything_long_begins(var_dir: Path) -> None:
    """With the fix."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = _start(var_dir, "--port", str(port))
        assert demo.process.wait(PATIENCE_S) == 1
    assert f"port {port}" in demo.text() and f"make demo PORT={port + 1}" in demo.text()
    assert "database" not in demo.text()


@pytest.mark.timeout(120)
def test_a_demo_that_is_stopped_while_it_prepares_ends_cleanly(var_dir: Path) -> None:
    """TERM in the middle of a stage: exit code 0, no traceback, no server left."""
    demo = _start(var_dir)
    _until(lambda: "data " in demo.text(), demo)
    assert demo.stop(signal.SIGTERM) == 0, demo.text()
    assert "Traceback" not in demo.text()
    assert [Servers(var_dir).pids(name) for name in NAMES] == [[], [], []]
    assert not (var_dir / "demo" / "children.json").exists()
    assert (var_dir / "demo" / "api_key").exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("said", ["starting PostgreSQL", "starting Valkey (broker)"])
def test_a_demo_that_is_stopped_while_servers_start_leaves_none(var_dir: Path, said: str) -> None:
    """One line, the exit code of an interrupted command, and what had begun to start is stopped."""
    demo = _start(var_dir)
    _until(lambda: said in demo.text(), demo)
    assert demo.stop(signal.SIGINT) == 130, demo.text()
    assert "Traceback" not in demo.text()
    # A process that was about to become a server may hold the lock for a moment longer; that is waited for, and said.
    said_by_the_end = [line for line in demo.text().splitlines() if "waiting for another command" not in line]
    assert "interrupted" in said_by_the_end[-1]
    assert [Servers(var_dir).pids(name) for name in NAMES] == [[], [], []]


@pytest.mark.timeout(120)
def test_two_signals_while_the_web_process_starts_do_not_delay_the_end(var_dir: Path) -> None:
    """Its workers do not heed a request to stop while they load; it is not waited for until patience ends."""
    demo = _start(var_dir)
    _until(lambda: demo.web_workers() >= WEB_WORKERS, demo)
    demo.process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert demo.stop(signal.SIGINT) == 0, demo.text()
    assert time.monotonic() - begun < 8.0
    assert "Traceback" not in demo.text()
    assert [Servers(var_dir).pids(name) for name in NAMES] == [[], [], []]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "abc"], "argument --port: 'abc' is not a whole number from 0 to 65535"),
        (["--customers", "0"], "argument --customers: '0' is not a whole number from 1 to 5,000,000"),
        (["--days", "20"], "argument --days: '20' is not a whole number from 21 to 3660"),
        (["--rate", "nan"], "--rate nan"),
        (["--duration", "-1"], "--duration -1"),
        (["--api-key", "short"], "--api-key or MLSERVE_API_KEY: needs 16 to 128"),
        (["--data", "/nowhere/at-all.csv"], "--data: /nowhere/at-all.csv: no such file"),
        (["--data", "COLUMNS"], "--data: "),
    ],
)
def test_a_wrong_argument_is_refused_before_a_server_starts(var_dir: Path, arguments: list[str], named: str) -> None:
    """Exit code 2, the option named, the folder as it was."""
    file = var_dir / "columns.csv"
    file.write_text("what,ever\n1,2\n")
    demo = _start(var_dir, *(str(file) if argument == "COLUMNS" else argument for argument in arguments))
    assert demo.process.wait(PATIENCE_S) == 2, demo.text()
    assert named in demo.text()
    assert "Traceback" not in demo.text()
    assert not (var_dir / "servers").exists() and "starting" not in demo.text()
