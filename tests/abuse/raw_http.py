"""Requests byte by byte, as no well-behaved client would write them."""

import json
import socket
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

from mlserve.errors import STATUS_OF, TITLE_OF, ErrorCode
from tests.fixtures.population import API_KEY

KEY = f"Authorization: Bearer {API_KEY}"
JSON = "Content-Type: application/json"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self, code: str) -> dict[str, Any]:
        """The body, which is a whole problem of this code."""
        assert self.headers.get("content-type") == "application/problem+json", (self.status, self.body[:300])
        problem: dict[str, Any] = json.loads(self.body)
        assert (problem["code"], problem["type"]) == (code, f"urn:mlserve:error:{code}"), problem
        assert problem["title"] == TITLE_OF[ErrorCode(code)]
        assert self.status == problem["status"] == STATUS_OF[ErrorCode(code)]
        assert problem["request_id"] == self.headers["request-id"]
        assert 0 < len(problem["detail"]) < 600
        return problem


def exchange(port: int, message: bytes, *, method: str = "GET", half_close: bool = False) -> Reply:
    """What comes back on a connection of its own. `half_close`: this side says that it has nothing more to send."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(message)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        response = HTTPResponse(connection, method=method)
        response.begin()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def request(port: int, line: str, *headers: str, body: bytes = b"", half_close: bool = False) -> Reply:
    """`line` is the request line without its version; Host is sent unless a header names it."""
    lines = list(headers)
    if not any(header.lower().startswith("host:") for header in lines):
        lines.insert(0, f"Host: 127.0.0.1:{port}")
    head = "\r\n".join((f"{line} HTTP/1.1", *lines, "Connection: close", "", "")).encode("latin-1")
    return exchange(port, head + body, method=line.split(" ", 1)[0], half_close=half_close)


def post(port: int, body: bytes, *headers: str) -> Reply:
    """A score with its key, its type and its true length."""
    return request(port, "POST /v1/scores", KEY, JSON, f"Content-Length: {len(body)}", *headers, body=body)
