"""Servers to break, in a folder of their own, and subprocesses that start them."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg

from mlserve.embedded import Servers
from mlserve.settings.base import BASE_DIR

START = """
import sys
from pathlib import Path
from mlserve.embedded import Servers
print(Servers(Path(sys.argv[1]), durable=False).up(sys.argv[2:]))
"""


def start_in_subprocess(root: Path, *names: str, before: str = "") -> subprocess.Popen[str]:
    """Another process that starts the servers `names` below `root`, after running the Python code `before`."""
    return subprocess.Popen(
        [sys.executable, "-c", before + START, str(root), *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=BASE_DIR,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(BASE_DIR)},
    )


def select_one(servers: Servers) -> int:
    """Asks PostgreSQL below the root, through a connection of its own."""
    url = servers.running().get("postgres")
    assert url is not None
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute("SELECT 1").fetchone()
    assert row is not None
    return int(row[0])
