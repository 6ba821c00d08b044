"""Reasons of decisions that were given without them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from predictions import explaining
from predictions.reasons import explain
from predictions.registry.active import NoActiveModel, current_model
from tests.fixtures.population import API_KEY, World


def _asked_later(transaction_id: str, query: str = "?include=reasons") -> tuple[int, dict[str, Any]]:
    client = Client(headers={"authorization": f"Bearer {API_KEY}"})
    response = client.get(f"/v1/scores/{transaction_id}{query}")
    return response.status_code, json.loads(response.content)


def _no_model() -> None:
    raise NoActiveModel


@pytest.mark.parametrize("active", [current_model, _no_model])
def test_an_approval_is_explained_later(
    world: World, monkeypatch: pytest.MonkeyPatch, active: Callable[[], object]
) -> None:
    """From the values that it was given with, by the version that gave it; nothing else changes."""
    model = current_model()
    given = world.score("", amount=180.0).body
    assert (given["decision"], given["reasons"]) == ("approve", [])
    monkeypatch.setattr(explaining, "current_model", active)
    status, answer = _asked_later(given["transaction_id"])
    stored = world.stored(given["transaction_id"])
    assert status == 200 and stored is not None
    reasons = explain(model, [feature["value"] for feature in stored["features"]], currency="EUR")
    assert reasons and [reason["text"] for reason in answer["reasons"]] == [reason.text for reason in reasons]
    assert {**answer, "reasons": []} == stored


def test_who_asks_for_nothing_gets_what_was_given(world: World) -> None:
    """Features and trace are there in any case; another option is refused, and an unknown id is not found."""
    given = world.score("").body["transaction_id"]
    assert _asked_later(given, "?include=features")[1] == world.stored(given)
    assert _asked_later(given, "?include=everything")[0] == 400
    assert _asked_later(given, "?dry_run=true")[0] == 400
    assert _asked_later("nobody-scored-this")[0] == 404
