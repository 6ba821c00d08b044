"""How often a missing guard is found: the arithmetic, and one real run that ends at what it finds."""

import json
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command

from features.checker.ablations import ABLATIONS
from features.checker.rates import Rate, line, measure, wilson
from features.checker.run import Report
from features.checker.schedule import FAULTS
from features.checker.verdict import Verdict
from mlserve.settings.base import BASE_DIR


def _report(seed: int, *, found: bool, failures: list[str] | None = None) -> Report:
    verdict = Verdict(reads=100, over_bound=3 if found else 0)
    return Report(seed, 10.0 + seed, 1.0, "lease", verdict, {}, 0, 0, failures or [], 10.0, 1.0)


def test_a_share_has_an_interval() -> None:
    """That of Wilson: never empty, never beyond 0 and 1."""
    assert wilson(0, 0) == (0.0, 1.0)
    assert list(wilson(20, 20)) == pytest.approx([0.8389, 1.0], abs=1e-4)
    assert list(wilson(0, 10)) == pytest.approx([0.0, 0.2775], abs=1e-4)
    assert list(wilson(5, 10)) == pytest.approx([0.2366, 0.7634], abs=1e-4)


def test_runs_that_were_none_are_no_evidence() -> None:
    """They are counted by themselves; times are those of the runs that found something."""
    outcomes = {1: _report(1, found=True), 2: _report(2, found=False), 3: _report(3, found=True, failures=["broke"])}
    rate = measure("lease", seeds=[1, 2, 3], faults=["evict"], run=outcomes.__getitem__)
    assert (rate.runs, rate.found, rate.failed, rate.median_s) == (2, 1, 1, 11.0)
    assert "1 of 2" in line(rate) and "1 failed" in line(rate)


@pytest.mark.parametrize(
    ("guard", "found", "as_promised"),
    [("lease", 19, True), ("lease", 18, False), ("cas", 0, True), ("", 0, True), ("", 1, False)],
)
def test_what_is_promised(guard: str, found: int, as_promised: bool) -> None:
    """19 of 20 where a run is said to find it; nothing at all with the proof whole."""
    found_by = ABLATIONS[guard].found_by if guard else ""
    assert Rate(guard, found_by, (), 20, found, 0, 0.0, 1.0, None).as_promised is as_promised


def test_aims_are_faults() -> None:
    """Also those of guards that only the model finds: all of them."""
    for ablation in ABLATIONS.values():
        assert set(ablation.faults) <= set(FAULTS)


def test_all_guards_at_once_need_seeds() -> None:
    """A single run has one guard less."""
    with pytest.raises(CommandError, match="--seeds") as refusal:
        call_command("check_freshness", "--ablate", "all")
    assert refusal.value.returncode == 2


@pytest.mark.torture
@pytest.mark.timeout(240)
def test_a_run_ends_at_what_it_finds() -> None:
    """Long before its time is over."""
    arguments = ("--json", "--seconds", "120", "--seeds", "1", "--ablate", "wrong_byte")
    command = [sys.executable, "manage.py", "check_freshness", *arguments]
    done = subprocess.run(command, cwd=BASE_DIR, capture_output=True, text=True, timeout=220)
    (rate,) = json.loads(done.stdout)["rates"]
    assert done.returncode == 0, done.stderr
    assert (rate["found"], rate["runs"]) == (1, 1)
    assert rate["median_s"] < 100
