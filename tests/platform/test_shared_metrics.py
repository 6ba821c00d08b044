"""Whoever serves counts into the files that `/metrics` and the console add up, however it was started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlserve.settings.base import BASE_DIR

_COUNT = "from mlserve.observability import metrics; metrics.CHAIN_GAPS.inc()"


@pytest.mark.parametrize(
    "start",
    [
        "import mlserve.wsgi",
        "import mlserve.celery",
        *(
            f"from mlserve import embedded; embedded.prepare_command(['manage.py', '{command}']); "
            "import django; django.setup()"
            for command in ("relay", "inspect", "runserver")
        ),
    ],
)
def test_a_process_that_serves_shares_its_figures(start: str, tmp_path: Path) -> None:
    """Without anything set: the folder lies under `var`. prometheus-client decides when it is first imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    environment |= {"MLSERVE_VAR_DIR": str(tmp_path), "PYTHONPATH": str(BASE_DIR)}
    subprocess.run([sys.executable, "-c", f"{start}; {_COUNT}"], env=environment, check=True, timeout=60)
    assert list((tmp_path / "metrics").glob("counter_*.db"))
