"""Every endpoint against every scope. What is let through is not refused, whatever it then answers."""

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import get_resolver

from mlserve.api.models import ApiKey

KEYED = [
    ("post", "/v1/scores", "score"),
    ("post", "/v1/scores/batch", "score"),
    ("get", "/v1/scores/batch", "score"),
    ("get", "/v1/scores/t-1", "score"),
    ("post", "/v1/labels", "label"),
    ("get", "/v1/models", "score"),
    ("get", "/v1/policies", "score"),
    ("get", "/v1/features/customer/c-1", "debug"),
    ("delete", "/v1/features/customer/c-1", "operate"),
]
PUBLIC = ["/", "/healthz/live", "/healthz/ready", "/openapi.json", "/docs", "/favicon.ico"]
REFUSED = (401, 403)


def test_every_address_is_in_one_of_the_tables() -> None:
    """A new address comes with its row here."""
    routes: set[str] = set()
    for pattern in get_resolver().url_patterns:
        prefix = str(pattern.pattern)
        inner = getattr(pattern, "url_patterns", None) if prefix == "v1/" else None
        routes.update(f"{prefix}{each.pattern}" for each in inner) if inner else routes.add(prefix)
    assert routes == {
        "v1/scores",
        "v1/scores/batch",
        "v1/scores/<str:transaction_id>",
        "v1/labels",
        "v1/models",
        "v1/policies",
        "v1/features/<str:entity>/<str:entity_id>",
        *(address.lstrip("/") for address in PUBLIC),
        "metrics",
        "admin/",
    }


@pytest.mark.parametrize(("method", "address", "scope"), KEYED)
@pytest.mark.parametrize("held", ApiKey.Scope.values)
def test_only_the_stated_scope_opens_an_endpoint(
    client_with: Callable[..., Client], method: str, address: str, scope: str, held: str
) -> None:
    """A key with another scope gets 403, with the name of the one that is missing."""
    response = getattr(client_with(held), method)(address)
    if held == scope:
        assert response.status_code not in REFUSED
    else:
        assert response.status_code == 403
        assert f"`{scope}`" in response.json()["detail"]


@pytest.mark.parametrize(("method", "address", "_scope"), KEYED)
def test_without_a_key_an_endpoint_answers_401(
    client: Client, db: None, method: str, address: str, _scope: str
) -> None:
    """With the challenge that RFC 9110 demands."""
    response = getattr(client, method)(address)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="mlserve"'


@pytest.mark.parametrize(
    "header",
    [
        "Bearer wrong-key-wrong-key",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer " + "x" * 5000,
        "Bearer \xff\x00",
    ],
)
def test_a_wrong_key_answers_401_and_says_nothing_of_it(client: Client, db: None, header: str) -> None:
    """Unknown, empty, another scheme, far too long, no text."""
    response = client.get("/v1/models", headers={"authorization": header})
    assert response.status_code == 401
    assert "error=" in response.headers["WWW-Authenticate"]
    assert "wrong-key" not in response.content.decode()


@pytest.mark.parametrize("method", ["put", "patch", "options", "post", "delete", "get"])
@pytest.mark.parametrize("address", sorted({address for _method, address, _scope in KEYED}))
@pytest.mark.parametrize("scope", ApiKey.Scope.values)
def test_a_method_that_is_not_offered_is_405_for_any_key(
    client: Client, client_with: Callable[..., Client], method: str, address: str, scope: str
) -> None:
    """With what is allowed; without a key it is 401."""
    offered = {one for one, other, _scope in KEYED if other == address}
    if method in offered:
        return
    response = getattr(client_with(scope), method)(address)
    assert response.status_code == 405
    assert {one.upper() for one in offered} == set(response.headers["Allow"].split(", ")) - {"HEAD"}
    assert getattr(client, method)(address).status_code == 401


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_need_no_key(client: Client, db: None, with_a_model: None, address: str) -> None:
    """And a wrong one does no harm there."""
    for headers in ({}, {"authorization": "Bearer wrong-key-wrong-key"}):
        assert client.get(address, headers=headers).status_code not in REFUSED


@pytest.mark.parametrize(
    ("peer", "forwarded", "scope", "status"),
    [
        ("127.0.0.1", None, None, 200),
        ("::1", None, None, 200),
        ("127.0.0.1", "203.0.113.9", None, 401),
        ("203.0.113.9", None, None, 401),
        ("203.0.113.9", None, "score", 403),
        ("203.0.113.9", None, "operate", 200),
        ("", None, None, 401),
    ],
)
def test_metrics_are_open_to_this_host_and_to_operators(
    client: Client,
    client_with: Callable[..., Client],
    peer: str,
    forwarded: str | None,
    scope: str | None,
    status: int,
) -> None:
    """A proxy on this host does not open them to its clients."""
    caller = client_with(scope) if scope else client
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    response = caller.get("/metrics", headers=headers, REMOTE_ADDR=peer)
    assert response.status_code == status
    if status == 200:
        assert b"mlserve_http_requests_total" in response.content


def test_a_view_that_states_no_scope_is_closed(client_with: Callable[..., Client], settings: object) -> None:
    """Forgetting it locks everybody out instead of letting everybody in."""
    from django.http import HttpResponse
    from rest_framework.exceptions import PermissionDenied
    from rest_framework.request import Request
    from rest_framework.test import APIRequestFactory

    from mlserve.api.api_view import ApiView
    from mlserve.api.authentication import HasScope
    from mlserve.api.lookup import ApiClient

    class Forgetful(ApiView):
        def get(self, _request: Request) -> HttpResponse:
            return HttpResponse()

    request = APIRequestFactory().get("/")
    request.user = ApiClient("mls_x", "x", frozenset(ApiKey.Scope.values))  # type: ignore[assignment]
    with pytest.raises(PermissionDenied):
        HasScope().has_permission(request, Forgetful())
