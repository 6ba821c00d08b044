"""The tests' servers go when the tests go, however these end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlserve.embedded import Servers
from mlserve.servers.place import far_home
from mlserve.servers.process import processes_in
from mlserve.settings.base import BASE_DIR
from tests.fixtures import servers as plugin

A_TEST_THAT_ENDS_ITS_RUN = """
import os, signal
def test_end():
    print("root", os.environ["MLSERVE_VAR_DIR"], flush=True)
    os.kill(os.getpid(), signal.{name})
    signal.pause()
"""


def _run_to(signal_name: str, folder: Path) -> Path:
    """The root folder of a test run that was ended by a signal."""
    test = folder / "test_end.py"
    test.write_text(A_TEST_THAT_ENDS_ITS_RUN.format(name=signal_name))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "-s", "-p", "tests.fixtures.servers", str(test)],
        cwd=BASE_DIR,
        env={"PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    (root,) = [line.split()[-1] for line in done.stdout.splitlines() if "root /" in line]
    return Path(root)


@pytest.mark.parametrize("name", [signal.SIGINT.name, signal.SIGTERM.name])
def test_an_interrupted_run_removes_its_servers(tmp_path: Path, name: str) -> None:
    """Ctrl-C and a CI job's cancellation leave neither processes nor folders."""
    root = _run_to(name, tmp_path)
    assert not root.exists()
    assert Servers(root).status() == []


def test_a_killed_run_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    """kill -9 leaves servers behind; the next run finds them by the dead process's number and removes them."""
    root = _run_to(signal.SIGKILL.name, tmp_path)
    data = root / "servers" / "postgres" / "data"
    if not data.exists():
        data = far_home(root) / "postgres" / "data"
    assert processes_in(data, executable="postgres") != []

    plugin._sweep()

    assert not root.exists()
    assert processes_in(data, executable="postgres") == []
