"""A process starts while the source of truth is away, and scores with what this host knew last."""

from typing import Any

import pytest

from mlserve import local_copy
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.fixtures.web_process import WebProcess, web_process

UNCONFIRMED = ["decision_spooled", "model_unconfirmed", "policies_unconfirmed"]


def _copies_are_written() -> bool:
    return {path.name for path in local_copy.folder().glob("*.json")} == {"keys.json", "model.json", "policies.json"}


def _is_confirmed(web: WebProcess) -> bool:
    return bool(web.ask("GET", "/healthz/ready").json["status"] == "ready")


@pytest.mark.parametrize("harm", ["kill", pytest.param("freeze", marks=pytest.mark.torture)])
def test_a_process_that_starts_meanwhile_scores_as_the_one_before(
    world: World, postgres: ServerHandle, harm: str
) -> None:
    """Same model, policies and key; flagged until PostgreSQL confirms them; the decision is kept and arrives."""
    world.edit_policy("merchant_risk", use_l1=False, use_l2=False)  # as the inspector switches a group off
    before = _scored_by_a_process_that_was_killed(world) if harm == "kill" else world.score().body
    world.settle()
    until(_copies_are_written)
    getattr(postgres, harm)()
    with web_process() as web:
        during = web.ask("POST", "/v1/scores?include=features,trace", world.request())
        assert during.status == 200, during.body
        assert during.seconds < 10
        assert [reason for reason in during.json["degraded_reasons"] if reason in UNCONFIRMED] == UNCONFIRMED
        assert during.json["model"] == before["model"]
        assert during.json["policy_version"] == before["policy_version"]
        tiers = {feature["name"]: feature["tier"] for feature in during.json["features"]}
        assert tiers["merchant_risk_1d"] == "default"
        assert tiers["customer_age_days"] == "l2"
        ready = web.ask("GET", "/healthz/ready")
        assert (ready.status, ready.json["status"]) == (200, "degraded")
        checks = ready.json["checks"]
        assert checks["model"]["status"] == "ok"
        for check in ("activation", "policies"):
            assert checks[check]["status"] == "failed"
            assert "this host's copy of 20" in checks[check]["detail"]
        postgres.mend()
        until(lambda: _is_confirmed(web))
        until(lambda: web.post(world.request())["degraded_reasons"] == [])
        until(lambda: world.stored(during.json["transaction_id"]))
    assert world.stored(during.json["transaction_id"]) == during.json


def _scored_by_a_process_that_was_killed(world: World) -> dict[str, Any]:
    """Its answer. It has kept copies of what it served with."""
    with web_process() as web:
        answer = web.post(world.request())
        until(_copies_are_written)
        web.kill()
    return answer
