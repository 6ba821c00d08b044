"""Scores over HTTP: request in, answer, headers and record out, with everything real behind."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import msgspec
import pytest
from django.db import connections

from features.definitions import GROUPS, GROUPS_OF_ENTITY
from mlserve.observability.metrics import SCORES
from predictions.messages import ScoreResponse
from tests.fixtures.population import World

_CLIENTS = 4
"""As many threads as a web process has; its pool has a connection for each, the journal and the pollers."""


def test_a_score_is_answered_as_documented(world: World) -> None:
    """The body is a `ScoreResponse`; the headers say how long each step took and that nobody may keep it."""
    answer = world.score("include=features,trace,reasons")
    assert answer.status == 200
    response = msgspec.convert(answer.body, ScoreResponse)
    assert 0 <= response.score <= 1 and response.decision in ("approve", "review", "decline")
    assert response.features and response.trace
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    steps = [part.partition(";dur=")[0] for part in answer.headers["Server-Timing"].split(", ")]
    assert steps == ["features", "predict", "decide", "journal"]
    assert answer.headers["Request-Id"]
    assert "Idempotent-Replayed" not in answer.headers


def test_what_was_not_asked_for_is_left_out(world: World) -> None:
    """Features and trace stand there on request only."""
    body = world.score("").body
    assert "features" not in body and "trace" not in body


def test_the_same_request_again_is_replayed(world: World) -> None:
    """With the first answer and a header that says so; the stored score has features and trace as well."""
    request = world.request()
    first = world.post(request, "")
    again = world.post(request, "")
    assert again.body == first.body
    assert again.headers["Idempotent-Replayed"] == "true"
    stored = world.stored(request["transaction_id"])
    assert stored is not None and stored["features"] and stored["trace"]
    assert stored.items() >= first.body.items()


def test_another_request_under_the_same_id_is_a_conflict(world: World) -> None:
    """The first decision stays."""
    request = world.request()
    first = world.post(request, "")
    answer = world.post({**request, "amount": request["amount"] + 1})
    assert 400 <= answer.status < 500
    assert answer.body["code"] == "transaction_conflict"
    stored = world.stored(request["transaction_id"])
    assert stored is not None and stored["score"] == first.body["score"]


def test_a_dry_run_is_not_stored(world: World) -> None:
    """It answers like a score, and the id stays free."""
    request = world.request()
    dry = world.post(request, "dry_run=true")
    assert dry.status == 200 and 0 <= dry.body["score"] <= 1
    assert world.stored(request["transaction_id"]) is None
    assert "Idempotent-Replayed" not in world.post(request, "").headers


def test_strangers_are_scored_and_said_to_be_strangers(world: World) -> None:
    """Unknown customers and merchants are no error."""
    answer = world.score(customer_id=world.newcomer(), merchant_id=world.newcomer("merchant"))
    assert answer.status == 200
    assert (answer.body["degraded"], answer.body["cold_start"]) == (False, True)
    assert answer.body["degraded_reasons"] == []
    assert world.score().body["cold_start"] is False


def test_clients_at_once_all_get_answers(world: World) -> None:
    """And the same request from several of them is decided once."""
    same = world.request()
    world.score()
    barrier = Barrier(_CLIENTS)

    def send(number: int) -> tuple[int, str]:
        barrier.wait(20)
        try:
            answer = world.post(same if number % 2 else world.request(), "")
        finally:
            connections.close_all()  # as the end of each request of a web process does
        return answer.status, answer.body["decided_at"] if number % 2 else "-"

    with ThreadPoolExecutor(_CLIENTS) as pool:
        answers = list(pool.map(send, range(_CLIENTS)))
    assert {status for status, _ in answers} == {200}
    assert len({decided for _, decided in answers}) == 2


@pytest.mark.parametrize("name", ["occurred_at", "amount", "merchant_id"])
def test_a_wrong_field_costs_nothing(world: World, name: str) -> None:
    """It is refused with its pointer before anything is read, recorded or counted."""
    before = {sample.name: sample.value for metric in SCORES.collect() for sample in metric.samples}
    request = {**world.request(), name: None}
    answer = world.post(request, "")
    assert answer.status == 422
    assert [error["pointer"] for error in answer.body["errors"]] == [f"/{name}"]
    assert world.stored(request["transaction_id"]) is None
    assert before == {sample.name: sample.value for metric in SCORES.collect() for sample in metric.samples}


def test_a_peek_changes_nothing_and_an_invalidation_clears(world: World) -> None:
    """L2 holds what scores read; looking fills nothing; dropping empties L1 and L2 and leaves the source."""

    def tiers() -> set[str]:
        groups = json.loads(world.client.get(f"/v1/features/merchant/{world.merchant}").content)["groups"]
        return {copy["tier"] for group in groups for copy in group["copies"]}

    assert tiers() == tiers() == {"l3"}
    world.score()
    world.settle()
    assert tiers() == {"l1", "l2", "l3"}
    dropped = world.client.delete(f"/v1/features/merchant/{world.merchant}").json()
    assert dropped["delivered"] is True and len(dropped["groups"]) == len(GROUPS_OF_ENTITY["merchant"])
    assert tiers() == {"l3"}


def test_models_policies_and_readiness(world: World) -> None:
    """The score names the model and the policy version that the lists show."""
    score = world.score().body
    (active,) = [model for model in world.client.get("/v1/models").json()["models"] if model["active"]]
    assert {"name": active["name"], "version": active["version"]} == score["model"]
    policies = world.client.get("/v1/policies").json()
    assert policies["policy_version"] == score["policy_version"]
    written = {policy["name"]: policy["write"] for policy in policies["policies"]}
    assert written == {name: group.write for name, group in GROUPS.items()} | {"prediction": None}
    ready = world.client.get("/healthz/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
