"""Twenty minutes of live traffic while one thing after the other breaks: nothing is lost, and nothing hangs."""

import os
from pathlib import Path

import pytest

from tests.torture.bad_day.day import run_day

MINUTES = float(os.environ.get("BAD_DAY_MINUTES", "20"))
"""Of the faults; some two more go into the testbed and the verdict. Three are enough for a part of them."""
SEED = int(os.environ.get("BAD_DAY_SEED", "1"))
KEEP = os.environ.get("BAD_DAY_KEEP")
"""A folder for the logs and what clients were told."""


@pytest.mark.torture
@pytest.mark.timeout(MINUTES * 60 * 2 + 900)
def test_a_bad_day_leaves_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    """Every decision that a client was told is stored once, every copy is PostgreSQL's, and every process answers."""

    def say(line: str) -> None:
        with capfd.disabled():
            print(line, flush=True)

    report = run_day(seconds=MINUTES * 60, seed=SEED, say=say, keep=Path(KEEP) if KEEP else None)
    say("\n".join(report.lines()))
    assert [str(violation) for violation in report.violations] == []
