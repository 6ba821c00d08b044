"""Requests that are wrong as HTTP, over a socket: each gets a problem, and the service lives on."""

import json
import re
import socket
from collections import Counter
from contextlib import suppress
from datetime import datetime

import pytest

from mlserve.api.bodies import MAX_BODY_BYTES
from tests.abuse.raising_urls import SECRET
from tests.abuse.raw_http import JSON, KEY, Reply, exchange, post, request
from tests.fixtures.web_process import WebProcess, web_process

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(autouse=True)
def _lives_on(service: WebProcess):
    yield
    assert request(service.port, "GET /healthz/live").body == b'{"status":"ok"}'


def test_a_handler_that_raises_tells_nothing_but_its_request_id(_population: datetime) -> None:
    """No trace of the stack, no class, no detail; inside REST framework and beside it."""
    with web_process("tests.abuse.raising_service:application") as raising:
        for address in ("/v1/raises", "/v1/raises/plainly"):
            reply = request(raising.port, f"GET {address}", KEY)
            assert UUID.fullmatch(reply.problem("internal")["request_id"])
            told = reply.body.decode() + str(reply.headers)
            assert not [word for word in (SECRET, "Traceback", "Error(", ".py", "raising") if word in told]
        assert request(raising.port, "GET /v1/models", KEY).status == 200


@pytest.mark.parametrize("host", ["elsewhere.example", "", "a b", "\xff", "127.0.0.1, evil", "[::1"])
def test_a_wrong_host(service: WebProcess, host: str) -> None:
    """Whatever stands in the header, and on addresses that do not exist too."""
    for address in ("/v1/models", "/v1/nothing", "/healthz/live"):
        request(service.port, f"GET {address}", f"Host: {host}").problem("malformed_request")


def test_no_host(service: WebProcess) -> None:
    """HTTP/1.1 demands one."""
    exchange(service.port, b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n").problem("malformed_request")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "BREW", "X" * 300])
def test_a_wrong_method(service: WebProcess, method: str) -> None:
    """405 with `Allow` where something is, 404 where nothing is; a long name is not repeated whole."""
    refused = request(service.port, f"{method} /v1/models", KEY)
    refused.problem("method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD"
    request(service.port, f"{method} /v1/nothing", KEY).problem("not_found")


@pytest.mark.parametrize("line", ["POST /", "DELETE /favicon.ico", "BREW /", "CONNECT 127.0.0.1:80"])
def test_what_is_sent_to_where_only_pages_lead(service: WebProcess, line: str) -> None:
    """A problem as everywhere; only the admin's own forms get a page."""
    request(service.port, line).problem("unauthenticated")
    request(service.port, line, KEY).problem("method_not_allowed")
    page = request(service.port, "POST /admin/login/", "Content-Length: 1", body=b"x")
    assert (page.status, page.headers["content-type"]) == (403, "text/html; charset=utf-8")


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("/v1/nothing", "not_found"),
        ("/v1/nothing/" + "x" * 60_000, "not_found"),
        ("//v1/models", "not_found"),
        ("/v1/models/", "not_found"),
        ("*", "not_found"),
        ("/v1/%2e%2e/admin/", "not_found"),
        ("/%ff%00%f0", "not_found"),
        ("/v1/scores/a%2Fb", "not_found"),
        ("/v1/scores/" + "x" * 60_000, "invalid_parameter"),
        ("/v1/scores/%ff", "invalid_parameter"),
        ("/v1/scores/%ed%a0%80", "invalid_parameter"),
        ("/v1/features/customer/%00", "invalid_parameter"),
        ("/v1/features/" + "x" * 60_000 + "/1", "invalid_parameter"),
        ("/v1/models?format=xml", "invalid_parameter"),
        ("/v1/models?%ff=%ff", "invalid_parameter"),
        ("/v1/models?" + "x" * 60_000, "invalid_parameter"),
        ("/v1/scores/x?" + "a=1&" * 15_000, "invalid_parameter"),
    ],
)
def test_a_wrong_address(service: WebProcess, address: str, code: str) -> None:
    """Of any length and any bytes; the answer repeats little of it."""
    request(service.port, f"GET {address}", KEY).problem(code)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Accept: application/xml", "not_acceptable"),
        ("Accept: ;;;", "not_acceptable"),
        ("Accept: " + "a/b," * 5_000, "not_acceptable"),
        ("Accept: \xff/\xff", "not_acceptable"),
        ("Authorization: Basic Zm9vOmJhcg==", "unauthenticated"),
        ("Authorization: Bearer", "unauthenticated"),
        ("Authorization: Bearer \xff\xfe", "unauthenticated"),
        ("Authorization: Bearer " + "x" * 60_000, "unauthenticated"),
        ("Authorization: \t", "unauthenticated"),
    ],
)
def test_a_wrong_header(service: WebProcess, header: str, code: str) -> None:
    """Of any length and any bytes."""
    headers = [header] if header.startswith("Authorization") else [header, KEY]
    reply = request(service.port, "GET /v1/models", *headers)
    reply.problem(code)
    if code == "unauthenticated":
        assert reply.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("token", ["x", "A" * 5_000, "=" * 30, "AAAA," * 700])
def test_a_wrong_version_token(service: WebProcess, token: str) -> None:
    """What no answer gave is refused by the name of its header, before the transaction is scored."""
    reply = post(service.port, _transaction("token"), f"X-Data-Version: {token}")
    assert [error["parameter"] for error in reply.problem("invalid_parameter")["errors"]] == ["X-Data-Version"]
    request(service.port, "GET /v1/scores/abuse-token", KEY).problem("not_found")


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "\xff",
        ";",
    ],
)
def test_a_wrong_media_type(service: WebProcess, media_type: str) -> None:
    """415, whatever the body is."""
    headers = (KEY, f"Content-Type: {media_type}", "Content-Length: 2")
    request(service.port, "POST /v1/scores", *headers, body=b"{}").problem("unsupported_media_type")


@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 1, 9_000_000_000_000])
def test_a_body_that_says_it_is_too_large(service: WebProcess, length: int) -> None:
    """Is refused before any of it has come."""
    headers = (KEY, JSON, f"Content-Length: {length}")
    request(service.port, "POST /v1/scores", *headers).problem("body_too_large")


@pytest.mark.parametrize("size", [5, MAX_BODY_BYTES * 4])
def test_a_body_in_chunks(service: WebProcess, size: int) -> None:
    """However large: none of it is read; nor if it names a length besides."""
    chunk = f"{size:x}\r\n".encode() + b" " * size + b"\r\n"
    for also in ((), ("Content-Length: 5",)):
        headers = (KEY, JSON, "Transfer-Encoding: chunked", *also)
        reply = request(service.port, "POST /v1/scores", *headers, body=chunk[: 64 * 1024])
        reply.problem("length_required")


def test_a_body_that_ends_early(service: WebProcess) -> None:
    """A whole document in it does not make it whole: who knows what was cut off?"""
    body = _transaction("cut-off")
    headers = (KEY, JSON, f"Content-Length: {len(body) + 3}")
    reply = request(service.port, "POST /v1/scores", *headers, body=body, half_close=True)
    assert f"{len(body)} of {len(body) + 3} bytes" in reply.problem("malformed_request")["detail"]
    request(service.port, "GET /v1/scores/abuse-cut-off", KEY).problem("not_found")


def test_a_body_that_is_longer_than_it_says(service: WebProcess) -> None:
    """What lies beyond its length is not read as part of it."""
    headers = (KEY, JSON, "Content-Length: 2")
    request(service.port, "POST /v1/scores", *headers, body=b"{}" + b"x" * 1000).problem("invalid_fields")


def test_every_refusal_is_counted(service: WebProcess) -> None:
    """Under its route, and its status: whether Django, REST framework or the decoder refuses it."""

    def counted() -> Counter[tuple[str, str, str]]:
        exposed = request(service.port, "GET /metrics").body.decode()
        form = r'mlserve_http_requests_total{method="(\w+)",route="([^"]+)",status="(\d+)"} (\S+)'
        return Counter(
            {(method, route, status): int(float(n)) for method, route, status, n in re.findall(form, exposed)}
        )

    before, refused = counted(), Counter[tuple[str, str, str]]()
    deep, digits = b'{"a":' + b"[" * 17 + b"]" * 17 + b"}", b'{"amount":' + b"1" * 5_000 + b"}"
    for body in (
        deep,
        digits,
        b'{"amount":NaN}',
        b'{"amount":1e400}',
        b'{"a":1,"a":2}',
        b'"\xff"',
        b"[" * 90_000,
        b"{}",
    ):
        refused["POST", "/v1/scores", str(post(service.port, body).status)] += 1
    for line, *headers in (
        ("POST /v1/scores", KEY, JSON, f"Content-Length: {MAX_BODY_BYTES + 1}"),
        ("POST /v1/scores", KEY, JSON, "Transfer-Encoding: chunked"),
        ("POST /v1/scores", KEY, "Content-Type: text/plain", "Content-Length: 0"),
        ("POST /v1/scores", JSON),
        ("BREW /v1/scores", KEY),
        ("GET /v1/scores/%00", KEY),
        ("GET /v1/nothing", KEY),
        ("GET /v1/models", KEY, "Host: elsewhere.example"),
    ):
        status = request(service.port, line, *headers).status
        method, path = line.split()
        route = {"/v1/scores/%00": "/v1/scores/{transaction_id}", "/v1/nothing": "unmatched"}.get(path, path)
        route = "unmatched" if "Host: elsewhere.example" in headers else route
        refused["other" if method == "BREW" else method, route, str(status)] += 1
    assert all(status.startswith("4") for _, _, status in refused)
    rest = counted() - before
    assert refused <= rest
    assert set(rest - refused) == {("GET", "/metrics", "200")}


def test_http_2_is_not_spoken(service: WebProcess) -> None:
    """Its preface ends the connection: a request of it could come among hundreds on one connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""


def test_pointers_name_the_fields(service: WebProcess) -> None:
    """Over the wire as in the decoder's own tests, slashes escaped."""
    reply = post(service.port, b'{"transaction_id": "", "a/b": 1, "amount": "1"}')
    pointers = [error["pointer"] for error in reply.problem("invalid_fields")["errors"]]
    assert pointers == ["/transaction_id", "/occurred_at", "/customer_id", "/merchant_id", "/amount", "/a~1b"]


@pytest.mark.parametrize(
    "message",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100,
        b"hello\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\na b: c\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \x00\r\n\r\n",
        b"GET /v1/scores/\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: +2\r\n\r\n{}",
        b"POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/scores HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_by_the_server(service: WebProcess, message: bytes) -> None:
    """With a bare status: the service itself never sees it."""
    reply: Reply = exchange(service.port, message)
    assert reply.status in (400, 414, 431)
    assert reply.body == b""


def _transaction(name: str) -> bytes:
    transaction = {
        "transaction_id": f"abuse-{name}",
        "occurred_at": "2026-01-05T14:30:00Z",
        "customer_id": "C1",
        "merchant_id": "M1",
        "amount": 20.0,
    }
    return json.dumps(transaction).encode()
