"""The checker itself, on real servers: clean with the proof whole, and not with a part of it taken away."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from features.checker.schedule import FAULTS
from features.checker.stand import directory
from mlserve.settings.base import BASE_DIR
from tests.fixtures.waiting import until

pytestmark = pytest.mark.timeout(240)
SECONDS = 45
FAULTS_OF_A_SHORT_RUN = (
    "reader_kill",
    "reader_stop",
    "relay_kill",
    "primary_kill",
    "lossy_failover",
    "flushall",
    "evict",
)


def check(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report."""
    command = [sys.executable, "manage.py", "check_freshness", "--json", *arguments]
    done = subprocess.run(command, cwd=BASE_DIR, capture_output=True, text=True, timeout=220)
    assert done.stdout, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)


def test_no_fault_breaks_the_proof() -> None:
    """Whatever is killed, frozen, cut off or lost: no read is staler than the bound unflagged, none is wrong."""
    code, report = check("--seconds", str(SECONDS), "--seed", "1", "--faults", ",".join(FAULTS_OF_A_SHORT_RUN))
    assert report["failures"] == []
    assert report["violations"] == {}, report["examples"]
    assert (code, report["clean"]) == (0, True)
    assert {fault for fault, counts in report["faults"].items() if counts["fired"]} == set(FAULTS_OF_A_SHORT_RUN)
    assert report["failovers"] >= 2
    assert report["writer_crashes"] > 0
    assert report["reads"] > 10_000
    assert report["writes"] > 1_000
    assert min(report["reads_by_tier"][tier] for tier in ("l1", "l2", "l3")) > 100
    assert min(report["strong_reads"], report["token_reads"], report["final_reads"], report["rolled_back"]) > 50


def test_wrong_bytes_are_found_out(tmp_path: Path) -> None:
    """Planted under true versions: the run fails, says why, and keeps its histories."""
    arguments = ("--seconds", "10", "--faults", "none", "--ablate", "wrong_byte", "--keep-logs", str(tmp_path))
    code, report = check(*arguments)
    assert report["failures"] == []
    assert report["violations"].get("wrong_bytes", 0) > 0
    assert (code, report["clean"]) == (1, False)
    assert list((tmp_path / "history").glob("*.reads"))
    assert json.loads((tmp_path / "schedule.json").read_text()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--faults", "earthquake"), "no earthquake; known: reader_kill"),
        (("--seconds", "0"), "--seconds"),
        (("--ablate", "everything"), "--ablate"),
    ],
)
def test_what_it_cannot_do_it_says(arguments: tuple[str, ...], says: str) -> None:
    """Before anything is started."""
    with pytest.raises(CommandError, match=says):
        call_command("check_freshness", *arguments)


def test_a_fault_that_does_not_exist_is_a_wrong_command_line() -> None:
    """Exit code 2."""
    with pytest.raises(CommandError) as refusal:
        call_command("check_freshness", "--faults", "earthquake")
    assert refusal.value.returncode == 2


def test_ctrl_c_leaves_nothing_behind() -> None:
    """Neither processes nor a directory; here in the middle of starting them."""
    command = [sys.executable, "manage.py", "check_freshness", "--seconds", "60", "--faults", "none"]
    with subprocess.Popen(command, cwd=BASE_DIR, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        ours = f"mlserve-checker-{os.geteuid()}-{process.pid}-*"
        until(lambda: list(Path("/var/tmp").glob(f"{ours}/cache/sentinel-2/valkey.log")), within_s=40)
        (directory,) = Path("/var/tmp").glob(ours)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not directory.exists()
    deadline = time.monotonic() + 5
    while left := _processes_of(directory):
        assert time.monotonic() < deadline, left


def _processes_of(directory: Path) -> list[str]:
    """Command lines that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(directory) in line:
            found.append(line)
    return found


def test_every_fault_is_in_the_reference() -> None:
    """With what it does."""
    page = (BASE_DIR / "docs" / "reference" / "commands.md").read_text("utf-8")
    assert [fault for fault in FAULTS if f"`{fault}`" not in page] == []


def test_what_a_killed_run_left_the_next_one_removes() -> None:
    """Its directory is named after a process that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = Path(f"/var/tmp/mlserve-checker-{os.geteuid()}-{gone.pid}-left")
    left.mkdir()
    with directory(keep=lambda: None) as own:
        assert not left.exists()
        assert own.exists()
    assert not own.exists()
