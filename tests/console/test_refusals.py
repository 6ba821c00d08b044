"""What a browser shows instead of a page of the admin."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, RequestFactory

from mlserve.api.problems import server_error

pytestmark = pytest.mark.django_db


def _said(response: Any, status: int) -> str:
    """The page, after a look at what all of them promise: a way back, and nothing that the policy forbids."""
    html: str = response.content.decode()
    assert response.status_code == status
    assert '<a href="/admin/">To the first page</a>' in html
    assert "<style" not in html and not re.findall(r"<[^>]+\s(?:style|on\w+)\s*=", html)
    return html


def test_a_page_that_is_not_there(as_operator: Client) -> None:
    """Named as such, with a way back."""
    assert "There is no such page" in _said(as_operator.get("/admin/nothing/"), 404)


def test_what_the_account_may_not_do_says_who_can_help(as_operator: Client) -> None:
    """A bare `403 Forbidden` would leave people alone."""
    assert "A superuser can give it" in _said(as_operator.get("/admin/api/apikey/"), 403)


def test_a_form_with_an_old_token_says_what_to_do(operator: User) -> None:
    """And the page needs no inline style, which Django's own has."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(operator)
    response = client.post("/admin/features/ttlpolicy/merchant_risk/change/", {"fresh_for_s": "1"})
    assert "Reload the form" in _said(response, 403)


def test_a_wrong_host(client: Client) -> None:
    """Refused before any view."""
    response = client.get("/admin/", headers={"host": "elsewhere.example"})
    assert "is the address right" in _said(response, 400)


def test_an_error_that_nobody_foresaw_names_the_id_in_the_log(rf: RequestFactory) -> None:
    """And nothing else of it."""
    assert "Request-Id" in _said(server_error(rf.get("/admin/")), 500)
