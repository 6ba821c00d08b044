"""One web process as its clients see it: over HTTP, each request on a connection of its own or on a kept one."""

import http.client
import json
import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

HOST = "127.0.0.1"
TIMEOUT_S = 10.0
"""Of a client. Whoever waits for so long holds the service for dead."""


class NoConnection(Exception):
    """Nobody took the connection, so nobody has read the request."""


class NoAnswer(Exception):
    """The connection broke after the request was sent: what became of it is unknown."""


class TimedOut(NoAnswer):
    """No answer within the client's time-out."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class WebClient:
    """Thread-safe: each thread keeps a connection of its own."""

    def __init__(self, port: int, *, key: str, admin: tuple[str, str]) -> None:
        self.port = port
        self._key = key
        self._admin = admin
        self._session = ""
        self._kept = threading.local()

    def ask(self, method: str, path: str, body: object = None, *, timeout_s: float = TIMEOUT_S) -> Reply:
        """Raises NoConnection, NoAnswer or TimedOut."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        return self._ask(method, path, None if body is None else json.dumps(body), headers, timeout_s)

    def page(self, path: str, *, timeout_s: float = TIMEOUT_S) -> Reply:
        """With the session of a superuser."""
        return self._ask("GET", path, None, {"Cookie": self._session}, timeout_s)

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/healthz/ready", timeout_s=3.0).status == 200
        except (NoConnection, NoAnswer):
            return False

    def log_in(self) -> None:
        name, password = self._admin
        page = self._ask("GET", "/admin/login/", None, {}, TIMEOUT_S)
        token = page.headers["set-cookie"].partition(";")[0]
        form = re.search(rb'name="csrfmiddlewaretoken" value="([^"]+)"', page.body)
        assert form is not None, page.body[:500]
        fields = {"username": name, "password": password, "csrfmiddlewaretoken": form[1].decode(), "next": "/admin/"}
        headers = {"Cookie": token, "Content-Type": "application/x-www-form-urlencoded"}
        done = self._ask("POST", "/admin/login/", urlencode(fields), headers, TIMEOUT_S)
        assert done.status == 302, (done.status, done.body[:500])
        found = re.search(r"sessionid=[^;]+", done.headers["set-cookie"])
        assert found is not None
        self._session = found[0]

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str], timeout_s: float) -> Reply:
        """On the connection that this thread has kept, if the server has not closed it."""
        ends = time.monotonic() + timeout_s
        connection, kept = self._connection(timeout_s)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            reply = Reply(response.status, _joined(response.getheaders()), response.read())
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self._drop()
            if kept and time.monotonic() < ends:
                # A server may close a kept connection at any moment; a client then asks again, which all that the day
                # sends can bear: scores by their id.
                return self._ask(method, path, body, headers, max(0.1, ends - time.monotonic()))
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            self._drop()
            raise TimedOut(f"no answer within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        return reply

    def _connection(self, timeout_s: float) -> tuple[http.client.HTTPConnection, bool]:
        connection: http.client.HTTPConnection | None = getattr(self._kept, "connection", None)
        if connection is not None and connection.sock is not None and not _is_closed(connection.sock):
            connection.sock.settimeout(timeout_s)
            return connection, True
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            connection.connect()
        except TimeoutError as error:
            raise TimedOut(f"no connection within {timeout_s:g} s") from error
        except OSError as error:
            raise NoConnection(f"{type(error).__name__}: {error}") from error
        self._kept.connection = connection
        return connection, False

    def _drop(self) -> None:
        connection, self._kept.connection = self._kept.connection, None
        connection.close()


def _joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        found[name.lower()] = f"{found[name.lower()]}; {value}" if name.lower() in found else value
    return found


def _is_closed(peer: socket.socket) -> bool:
    """Whether the server has closed a kept connection: an end is all that can come without a question."""
    peer.setblocking(False)
    try:
        return len(peer.recv(1, socket.MSG_PEEK)) == 0
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.setblocking(True)
