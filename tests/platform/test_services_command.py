"""`manage.py services`, as an operator or a script runs it."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from mlserve.embedded import VARIABLES
from mlserve.settings.base import BASE_DIR


@pytest.fixture(autouse=True)
def _own_servers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSERVE_VAR_DIR", str(root))
    for variable in VARIABLES:
        monkeypatch.delenv(variable)


def _services(*arguments: str) -> str:
    out = StringIO()
    call_command("services", *arguments, stdout=out)
    return out.getvalue()


def _status() -> dict[str, dict[str, Any]]:
    return {server["name"]: server for server in json.loads(_services("status", "--json"))["servers"]}


def test_up_status_down() -> None:
    """Up answers with URLs that work, status with versions, and down stops everything."""
    urls = json.loads(_services("up", "--json"))
    with psycopg.connect(urls["database_url"]) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

    running = _status()
    assert {name: server["health"] for name, server in running.items()} == dict.fromkeys(running, "alive")
    majors = {name: server["version"].split(".")[0] for name, server in running.items()}
    assert majors == {"postgres": "18", "cache": "9", "broker": "9"}

    assert _services("down") == "down; the data stay\n"
    stopped = _status()
    assert {server["health"] for server in stopped.values()} == {"absent"}
    assert [server["pids"] for server in stopped.values()] == [[], [], []]


def test_a_terminal_sees_no_password(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What scrolls by on a screen names the file that holds the passwords."""
    out = _services("up")
    shown = out + "".join(capfd.readouterr())
    for url in json.loads((root / "services.json").read_text()).values():
        password = url.split(":")[2].split("@")[0]
        assert password not in shown
    assert str(root / "services.json") in out


def test_a_configured_url_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts servers while a variable points elsewhere learns that they will not be used."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example.com/production")
    errors = StringIO()
    call_command("services", "status", stdout=StringIO(), stderr=errors)
    assert "DATABASE_URL is set: commands use that server and not the embedded postgres" in errors.getvalue()


def test_delete_data_leaves_nothing(root: Path) -> None:
    """`down --delete-data` is what `make clean` does about servers."""
    _services("up")
    _services("down", "--delete-data")
    assert not (root / "servers").exists()
    assert not (root / "services.json").exists()
    with pytest.raises(CommandError, match="goes with `down` only") as refused:
        _services("up", "--delete-data")
    assert refused.value.returncode == 2


def test_a_command_line_that_makes_no_sense_has_exit_code_2() -> None:
    """The command line itself, in a process of its own: no server is started for it, stdout stays empty."""
    done = subprocess.run(
        [sys.executable, "manage.py", "services", "sideways"],
        cwd=BASE_DIR,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "mlserve.settings.test"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid choice: 'sideways'" in done.stderr
