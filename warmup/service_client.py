"""The scoring API as a client sees it: over HTTP, with a key, on one connection that is kept."""

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

TIMEOUT_S = 10.0


class Unreachable(Exception):
    """Nobody answers at the URL, or what answers does not speak HTTP."""


class Reply(msgspec.Struct, frozen=True):
    status: int
    body: bytes

    def document(self) -> dict[str, Any]:
        """The body as JSON. Raises ValueError if it is none."""
        document: dict[str, Any] = json.loads(self.body)
        return document


class ServiceClient:
    """Of one thread. A connection that broke is made anew by the next call."""

    def __init__(self, url: str, *, api_key: str = "", timeout_s: float = TIMEOUT_S) -> None:
        """`url` is where the service begins, such as http://127.0.0.1:8000. Raises ValueError if it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of the service; write it like http://127.0.0.1:8000")
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = make(parts.hostname, parts.port, timeout=timeout_s)
        self._base = parts.path.rstrip("/")
        self._authorization = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def get(self, path: str) -> Reply:
        """Raises Unreachable."""
        return self._ask("GET", path, None)

    def score(self, transaction: Mapping[str, Any], *, query: str = "") -> Reply:
        """`POST /v1/scores`. Raises Unreachable; the transaction may then have been scored or not."""
        return self._ask("POST", "/v1/scores" + query, json.dumps(transaction).encode())

    def close(self) -> None:
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None) -> Reply:
        headers = {**self._authorization, **({"Content-Type": "application/json"} if body is not None else {})}
        try:
            self._connection.request(method, self._base + path, body, headers)
            response = self._connection.getresponse()
            return Reply(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unreachable(f"{type(error).__name__}: {error}") from error
