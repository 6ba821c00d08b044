"""Every example of the served OpenAPI document, sent to a running service, is answered as the document says."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jsonschema
import pytest

from mlserve.api.bodies import MAX_BODY_BYTES
from mlserve.api.keys import issue_key
from mlserve.errors import STATUS_OF, ErrorCode
from tests.abuse.raw_http import JSON, KEY, Reply, request
from tests.fixtures.population import World
from tests.fixtures.web_process import WebProcess

PLACES = {"{transaction_id}": "example-1", "{entity}": "merchant", "{entity_id}": "M1"}
NEEDS_MORE = {
    ErrorCode.INTERNAL,
    ErrorCode.SOURCE_UNAVAILABLE,
    ErrorCode.SOURCE_READ_ONLY,
    ErrorCode.SOURCE_CONTENTION,
    ErrorCode.NO_ACTIVE_MODEL,
    ErrorCode.MODEL_UNUSABLE,
    ErrorCode.FEATURES_UNAVAILABLE,
    ErrorCode.RATE_LIMITED,
    ErrorCode.OVERLOADED,
}
"""No single request brings these about; the tests of faults, limits and overload do."""


class Operation(NamedTuple):
    method: str
    path: str
    described: dict[str, Any]

    @property
    def line(self) -> str:
        path = self.path
        for name, value in PLACES.items():
            path = path.replace(name, value)
        return f"{self.method} {path}"

    def codes(self) -> Iterator[ErrorCode]:
        for response in self.described["responses"].values():
            for example in response["content"].get("application/problem+json", {}).get("examples", {}).values():
                yield ErrorCode(example["value"]["code"])


@pytest.fixture
def document(service: WebProcess) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(request(service.port, "GET /openapi.json").body)
    return loaded


def _operations(document: dict[str, Any]) -> list[Operation]:
    found = [
        Operation(method.upper(), path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]
    return sorted(found, key=lambda each: each.method != "POST")  # scores are asked for after they were given


def _check(document: dict[str, Any], operation: Operation, reply: Reply) -> dict[str, Any]:
    """The body, after a look whether this status has such a body."""
    media = operation.described["responses"][str(reply.status)]["content"][reply.headers["content-type"]]
    body: dict[str, Any] = json.loads(reply.body)
    jsonschema.validate(body, {**media["schema"], "components": document["components"]})
    return body


def _bodies(operation: Operation) -> list[bytes]:
    content = operation.described.get("requestBody", {}).get("content", {})
    examples = content.get("application/json", {}).get("examples", {}).values()
    return [json.dumps(example["value"]).encode() for example in examples]


def _send(port: int, operation: Operation, body: bytes = b"", *headers: str, query: str = "") -> Reply:
    of_body = (JSON, f"Content-Length: {len(body)}") if body else ()
    return request(port, operation.line + query, *(headers or (KEY,)), *of_body, body=body)


def test_every_example_is_answered(service: WebProcess, document: dict[str, Any]) -> None:
    """With 200, a body of the schema, and the fields that the example of the answer shows."""
    sent = 0
    for operation in _operations(document):
        (shown,) = operation.described["responses"]["200"]["content"]["application/json"]["examples"].values()
        query = "?include=features,trace" if "features" in shown["value"] and operation.method == "POST" else ""
        for body in _bodies(operation) or [b""]:
            reply = _send(service.port, operation, body, query=query)
            assert reply.status == 200, reply.body
            assert set(_check(document, operation, reply)) == set(shown["value"])
            sent += 1
    assert sent >= 9


def test_every_problem_that_a_client_can_cause(service: WebProcess, document: dict[str, Any], world: World) -> None:
    """Each code that an operation lists is what it answers to the mistake of that name; no code is left out."""
    scorer, onlooker = (issue_key(name=f"may {scope}", scopes=[scope]).key for scope in ("score", "debug"))
    caused = set()
    for operation in _operations(document):
        for body in _bodies(operation):  # a conflict is one with something that was taken before
            _send(service.port, operation, body)
    for operation in _operations(document):
        for code in operation.codes():
            if code in NEEDS_MORE:
                continue
            other = scorer if operation.path.startswith(("/v1/features", "/v1/labels")) else onlooker
            reply = _cause(service.port, operation, code, stranger=other)
            assert (reply.status, _check(document, operation, reply)["code"]) == (STATUS_OF[code], code), operation.line
            caused.add(code)
    assert caused == set(ErrorCode) - NEEDS_MORE - {ErrorCode.METHOD_NOT_ALLOWED}


def _cause(port: int, operation: Operation, code: ErrorCode, *, stranger: str) -> Reply:
    body = next(iter(_bodies(operation)), b"")
    match code:
        case ErrorCode.MALFORMED_REQUEST:
            return _send(port, operation, body, KEY, "Host: elsewhere.example")
        case ErrorCode.INVALID_PARAMETER:
            return _send(port, operation, body, query="?no_such_parameter=1")
        case ErrorCode.UNAUTHENTICATED:
            return _send(port, operation, body, "X-Nothing: 1")
        case ErrorCode.FORBIDDEN:
            return _send(port, operation, body, f"Authorization: Bearer {stranger}")
        case ErrorCode.NOT_FOUND:
            return request(port, operation.line.replace("example-1", "never-scored"), KEY)
        case ErrorCode.NOT_ACCEPTABLE:
            return _send(port, operation, body, KEY, "Accept: text/html")
        case ErrorCode.TRANSACTION_CONFLICT:
            return _send(port, operation, body.replace(b"62.5", b"63.5"))
        case ErrorCode.LENGTH_REQUIRED:
            return request(port, operation.line, KEY, JSON, "Transfer-Encoding: chunked", body=b"0\r\n\r\n")
        case ErrorCode.BODY_TOO_LARGE:
            return request(port, operation.line, KEY, JSON, f"Content-Length: {MAX_BODY_BYTES + 1}")
        case ErrorCode.UNSUPPORTED_MEDIA_TYPE:
            return request(port, operation.line, KEY, "Content-Type: text/plain", "Content-Length: 2", body=b"{}")
        case ErrorCode.INVALID_FIELDS:
            return _send(port, operation, b"{}")
    raise AssertionError(f"{code}: how does a client cause that?")
