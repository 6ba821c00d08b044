"""What is made for pages is made for pages alone, and no protection goes with it."""

from collections.abc import Callable

import pytest
from django.test import Client
from rest_framework.request import Request
from rest_framework.views import APIView

from mlserve.api.api_view import ApiView
from tests.api.test_permissions import KEYED

MADE_FOR_PAGES = ("session", "_messages", "csp_nonce")


@pytest.mark.parametrize("address", ["/v1/models", "/v1/no-such-address"])
def test_a_request_of_the_api_has_nothing_of_a_page(client_with: Callable[..., Client], address: str) -> None:
    """Neither if its address is unknown; its headers are those of the API."""
    response = client_with("score").get(address)
    assert not [name for name in MADE_FOR_PAGES if hasattr(response.wsgi_request, name)]
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.django_db
def test_a_page_has_all_of_it() -> None:
    """Session, messages, and a policy that lets it load its own scripts."""
    response = Client().get("/admin/login/")
    assert all(hasattr(response.wsgi_request, name) for name in MADE_FOR_PAGES)
    assert "script-src 'self'" in response.headers["Content-Security-Policy"]


@pytest.mark.django_db
def test_forms_still_need_their_token() -> None:
    """Without it a log-in is refused."""
    assert Client(enforce_csrf_checks=True).post("/admin/login/", {"username": "a", "password": "b"}).status_code == 403


def test_a_host_that_is_not_ours_is_refused(client_with: Callable[..., Client]) -> None:
    """On the API as on pages."""
    assert client_with("score").get("/v1/models", headers={"host": "evil.example"}).status_code == 400


def _methods_by_the_framework(view: APIView) -> list[str]:
    return [name.upper() for name in view.http_method_names if hasattr(view, name)]


def test_a_views_methods_are_those_of_the_framework(client_with: Callable[..., Client]) -> None:
    """Worked out once, they say what REST framework works out for each request, a HEAD for each GET included."""
    for method, address, scope in KEYED:
        response = getattr(client_with(scope), method)(address)
        view = response.resolver_match.func.cls()
        view.setup(response.wsgi_request)
        assert isinstance(view, ApiView)
        assert sorted(view.allowed_methods) == sorted(_methods_by_the_framework(view)), address
        assert response.headers["Allow"] == ", ".join(view.allowed_methods)


@pytest.mark.parametrize("accepted", [None, "*/*", "application/json", "application/*", "text/html, */*;q=0.1"])
def test_what_is_negotiated_is_what_the_framework_negotiates(
    client_with: Callable[..., Client], accepted: str | None
) -> None:
    """The short answer and the long one are the same."""
    headers = {} if accepted is None else {"accept": accepted}
    request = client_with("score").get("/v1/models", headers=headers).wsgi_request
    view = ApiView()
    view.format_kwarg = None
    ours = view.perform_content_negotiation(Request(request))
    framework = APIView.perform_content_negotiation(view, Request(request))
    assert (type(ours[0]), ours[1]) == (type(framework[0]), framework[1])


def test_who_takes_no_json_is_refused(client_with: Callable[..., Client]) -> None:
    """With 406."""
    assert client_with("score").get("/v1/models", headers={"accept": "text/html"}).status_code == 406
