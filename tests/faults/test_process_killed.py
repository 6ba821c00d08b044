"""The web process is killed with -9 right after it has acknowledged a decision."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from predictions import spool
from predictions.delivery import deliver_spooled
from predictions.models import Decision
from tests.fixtures.population import API_KEY, World, database_url
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

_HEADERS = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}


class WebProcess:
    """granian with one worker, in a process group of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1", "mlserve.wsgi:application"]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "mlserve.settings.test"},
            start_new_session=True,
        )
        until(self._lives, within_s=60)

    def post(self, request: dict[str, Any]) -> dict[str, Any]:
        status, body = self._ask("POST", "/v1/scores?include=features,trace", json.dumps(request))
        assert status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def kill(self) -> None:
        """All of the group at once, -9."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _lives(self) -> bool:
        assert self._process.poll() is None, "granian has ended"
        try:
            return self._ask("GET", "/healthz/live", None)[0] == 200
        except OSError:
            return False

    def _ask(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, _HEADERS)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextmanager
def _web() -> Iterator[WebProcess]:
    web = WebProcess()
    try:
        yield web
    finally:
        web.kill()


def test_an_acknowledged_decision_survives_the_process(world: World, postgres: ServerHandle) -> None:
    """With Postgres it is there at once; without, the spool has it, and another process delivers what is left there."""
    with _web() as web:
        committed = web.post(world.request())
        postgres.stop()
        spooled = web.post(world.request())
        web.kill()
    assert spooled["degraded_reasons"] == ["decision_spooled"]
    postgres.start()
    until(lambda: world.stored(committed["transaction_id"]))
    assert world.stored(committed["transaction_id"]) == committed
    assert world.stored(spooled["transaction_id"]) is None
    assert deliver_spooled() == 1
    assert world.stored(spooled["transaction_id"]) == spooled
    assert spool.pending_files() == []
    assert Decision.objects.filter(pk__in=[committed["transaction_id"], spooled["transaction_id"]]).count() == 2
