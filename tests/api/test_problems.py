"""Errors as problem details, whoever raised them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from features.api import views as feature_views
from mlserve.api.bodies import MAX_BODY_BYTES
from mlserve.errors import STATUS_OF, TITLE_OF, ErrorCode

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

pytestmark = pytest.mark.django_db


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:mlserve:error:{code}"
    assert (body["status"], body["code"], body["title"]) == (status, code, TITLE_OF[ErrorCode(code)])
    assert body["request_id"] == response.headers["Request-Id"]
    return body


def test_every_code_has_a_status_and_a_title() -> None:
    """A code without them would be a crash at the worst moment."""
    assert set(STATUS_OF) == set(TITLE_OF) == set(ErrorCode)


def test_an_unknown_address(client: Client) -> None:
    """Django's own 404 is a problem like any other."""
    assert "/v1/nothing" in problem(client.get("/v1/nothing"), 404, "not_found")["detail"]


def test_a_wrong_method_names_the_right_ones(client_with: Callable[..., Client]) -> None:
    """In the body and in `Allow`."""
    response = client_with("score").put("/v1/models")
    assert "GET" in problem(response, 405, "method_not_allowed")["detail"]
    assert response.headers["Allow"] == "GET, HEAD"


def test_a_wrong_host(client: Client) -> None:
    """Refused by Django before any view."""
    problem(client.get("/v1/models", headers={"host": "elsewhere.example"}), 400, "malformed_request")


def test_the_admin_keeps_its_own_pages(client: Client) -> None:
    """People in a browser get no JSON."""
    response = client.get("/admin/nothing/", headers={"host": "elsewhere.example"})
    assert response.status_code == 400
    assert response.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_what_does_not_claim_to_be_json(client_with: Callable[..., Client], media_type: str) -> None:
    """Whatever it is."""
    response = client_with("score").post("/v1/scores", b"{}", content_type=media_type)
    problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"'])
def test_json_is_json_however_it_is_written(client_with: Callable[..., Client], media_type: str) -> None:
    """Media types know no case."""
    response = client_with("score").post("/v1/scores", b"{}", content_type=media_type)
    body = problem(response, 422, "invalid_fields")
    assert [error["pointer"] for error in body["errors"]] == [
        "/transaction_id",
        "/occurred_at",
        "/customer_id",
        "/merchant_id",
        "/amount",
    ]


def test_a_large_body_is_not_read(client_with: Callable[..., Client]) -> None:
    """One byte too many is too many; the largest allowed is looked at."""
    client = client_with("score")
    largest = b" " * MAX_BODY_BYTES
    too_large = client.post("/v1/scores", largest + b" ", content_type="application/json")
    assert f"{MAX_BODY_BYTES + 1} bytes" in problem(too_large, 413, "body_too_large")["detail"]
    problem(client.post("/v1/scores", largest, content_type="application/json"), 400, "malformed_request")


def test_a_body_in_chunks(client_with: Callable[..., Client]) -> None:
    """WSGI would show it as empty, which would be a misleading complaint."""
    response = client_with("score").generic(
        "POST", "/v1/scores", CONTENT_TYPE="application/json", HTTP_TRANSFER_ENCODING="chunked"
    )
    problem(response, 411, "length_required")


def test_an_empty_body(client_with: Callable[..., Client]) -> None:
    """Says so."""
    response = client_with("score").generic("POST", "/v1/scores", CONTENT_TYPE="application/json")
    assert "empty" in problem(response, 400, "malformed_request")["detail"]


def test_an_unforeseen_exception_leaves_nothing_but_its_request_id(
    client_with: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the traceback, under the id that the client was given."""

    def fail() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(feature_views, "list_policies", fail)
    client = client_with("score")
    client.raise_request_exception = False
    response = client.get("/v1/policies")
    problem(response, 500, "internal")
    assert "secret detail" not in response.content.decode()
    assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        "/v1/features/shop/1",
        "/v1/features/customer/a%20b",
        "/v1/scores/a%00b",
        "/v1/features/customer/%2E%2E",
        "/v1/scores/%2E%2E",
    ],
)
def test_an_impossible_part_of_the_path(client_with: Callable[..., Client], address: str) -> None:
    """Is refused with what is allowed, before the database sees it."""
    response = client_with("score", "debug").get(address)
    assert "allowed" in problem(response, 400, "invalid_parameter")["detail"]


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("/v1/models", "none here"),
        ("/v1/policies", "none here"),
        ("/v1/scores/t-1", "include"),
        ("/v1/features/customer/c-1", "none here"),
    ],
)
def test_an_unknown_query_parameter(client_with: Callable[..., Client], address: str, allowed: str) -> None:
    """A misspelled one never passes silently, on whatever endpoint."""
    response = client_with("score", "debug").get(f"{address}?limit=5")
    body = problem(response, 400, "invalid_parameter")
    assert body["errors"] == [{"parameter": "limit", "detail": f"unknown; allowed: {allowed}"}]


def test_a_client_may_name_its_request(client: Client) -> None:
    """If the name is short and plain."""
    assert client.get("/healthz/live", headers={"request-id": "order-17.b"}).headers["Request-Id"] == "order-17.b"


@pytest.mark.parametrize("name", ["", "two words", "x" * 65, "line\r\nSet-Cookie: a=b", "é"])
def test_other_names_are_replaced(client: Client, name: str) -> None:
    """By a UUID of version 7."""
    response = client.get("/healthz/live", headers={"request-id": name})
    assert UUID7.fullmatch(response.headers["Request-Id"])


def test_request_ids_sort_by_time_and_never_repeat(client: Client) -> None:
    """A thousand of them."""
    from mlserve.observability.request_id import new_request_id

    ids = [new_request_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)


def test_answers_of_the_api_are_not_kept_and_not_rendered(client: Client) -> None:
    """No cache stores a score, and no browser takes one for a page."""
    headers = client.get("/healthz/live").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
