"""A million reads and a hundred thousand writes while everything is broken again and again; and then without guards."""

import json
import subprocess
import sys

import pytest

from features.checker.ablations import ABLATIONS
from features.checker.schedule import FAULTS
from mlserve.settings.base import BASE_DIR

SECONDS = 720
READS, WRITES = 1_000_000, 100_000
SECONDS_WITHOUT_A_GUARD = 60
FOUND_BY = {
    "lease": "over_bound",
    "chain": "over_bound",
    "atomic_batch": "over_bound",
    "gap_flush": "over_bound",
    "ring": "over_bound",
    "bound": "over_bound",
    "ttl": "over_bound",
    "wrong_byte": "wrong_bytes",
    "old_record": "over_bound",
}
"""The figure that tells that a guard is missed."""


@pytest.mark.torture
@pytest.mark.timeout(SECONDS + 300)
def test_a_million_reads_keep_the_promise() -> None:
    """Not one is staler than the bound unflagged, wrong, or still old in the end; every fault has struck."""
    command = [sys.executable, "manage.py", "check_freshness", "--json", "--seconds", str(SECONDS), "--seed", "1"]
    done = subprocess.run(command, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True, timeout=SECONDS + 280)
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["violations"] == {}, report["examples"]
    assert done.returncode == 0
    assert (report["reads"] >= READS, report["writes"] >= WRITES) == (True, True), (report["reads"], report["writes"])
    assert {fault for fault, counts in report["faults"].items() if counts["fired"]} == set(FAULTS)
    (of_a_second,) = (each for each in report["nines"] if each["horizon_s"] == 1.0)
    assert of_a_second["failed"] == 0


def test_every_guard_that_a_run_can_miss_is_taken_away_here() -> None:
    """The others are the model check's."""
    assert set(FOUND_BY) == {name for name, ablation in ABLATIONS.items() if ablation.found_by == "run"}


@pytest.mark.torture
@pytest.mark.timeout(SECONDS_WITHOUT_A_GUARD + 200)
@pytest.mark.parametrize("guard", FOUND_BY)
def test_a_guard_that_is_taken_away_is_missed(guard: str) -> None:
    """A checker that never failed would prove nothing."""
    options = ("--seconds", str(SECONDS_WITHOUT_A_GUARD), "--seed", "2", "--ablate", guard)
    command = [sys.executable, "manage.py", "check_freshness", "--json", *options]
    done = subprocess.run(command, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True, timeout=190)
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["violations"].get(FOUND_BY[guard], 0) > 0
    assert done.returncode == 1
