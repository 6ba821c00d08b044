"""What the pages tell readers to type: the README's curl as it is printed, and every block marked `runs`."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from django.core.wsgi import get_wsgi_application

from mlserve.settings.base import BASE_DIR
from predictions.messages import ServedFeature
from tests.docs.pages import PAGES, README, code_blocks
from tests.fixtures.population import API_KEY, World, database_url


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest's output is for results."""


@pytest.fixture
def port(world: World) -> Iterator[int]:
    """Of a web server over the population's service."""
    with make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _curl() -> str:
    (command,) = [body for info, body in code_blocks(README) if info == "sh" and "curl" in body]
    return command


def _answer() -> dict[str, object]:
    (shown,) = [body for info, body in code_blocks(README) if info == "json"]
    answer: dict[str, object] = json.loads(shown)
    return answer


def test_the_readmes_curl_works_as_printed(port: int, tmp_path: Path) -> None:
    """In a checkout whose demo runs: the key's file is where the demo puts it. The answer has the fields shown."""
    assert shutil.which("curl"), "this test needs curl, as readers of the README do"
    (tmp_path / "var" / "demo").mkdir(parents=True)
    (tmp_path / "var" / "demo" / "api_key").write_text(API_KEY + "\n")
    command = _curl()
    assert "http://127.0.0.1:8000/" in command
    run = subprocess.run(
        ["bash", "-c", command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer = json.loads(run.stdout)
    assert list(answer) == list(_answer())
    assert answer["decision"] in ("approve", "review", "decline")
    assert set(answer["features"][0]) == set(ServedFeature.__struct_fields__)


_WITH_CURL = {
    page: "".join(body for info, body in code_blocks(page) if info == "sh" and "curl" in body) for page in PAGES
}


@pytest.mark.parametrize("page", [page for page, script in _WITH_CURL.items() if script], ids=lambda page: page.stem)
def test_every_curl_works_as_printed(page: Path, port: int, tmp_path: Path) -> None:
    """All that a page has, one after the other in one shell; none of them is answered with a problem."""
    (tmp_path / "var" / "demo").mkdir(parents=True)
    (tmp_path / "var" / "demo" / "api_key").write_text(API_KEY + "\n")
    script = _WITH_CURL[page].replace(".venv/bin/python", sys.executable)
    run = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "MLSERVE_API_KEY"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert "urn:mlserve:error:" not in run.stdout


def test_all_pages_with_curl_are_found() -> None:
    """The README, the tutorial, and what a client does to see its own writes."""
    assert {page.stem for page, script in _WITH_CURL.items() if script} >= {
        "README",
        "first-score",
        "see-your-own-writes",
    }


_MARKED = [(page, body) for page in PAGES for info, body in code_blocks(page) if "runs" in info.split()]


@pytest.mark.parametrize(("page", "script"), _MARKED, ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_blocks_that_are_marked_run(page: Path, script: str, world: World) -> None:
    """Typed in the checkout, with a ledger and a model there: every line succeeds and says something."""
    run = subprocess.run(
        ["bash", "-e", "-c", script.replace(".venv/bin/python", sys.executable)],
        cwd=BASE_DIR,
        env={**os.environ, "DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "mlserve.settings.local"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_some_blocks_are_marked() -> None:
    """At least those of the tutorial."""
    assert len(_MARKED) >= 4
