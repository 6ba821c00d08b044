"""The source of truth goes away: what is known goes on; what is decided is kept and arrives when Postgres is back."""

import json

import pytest

from mlserve.cache.breaker import State
from mlserve.cache.wiring import engine
from predictions import spool
from predictions.delivery import deliver_spooled
from predictions.models import Decision
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until

SPOOLED = "decision_spooled"


@pytest.fixture
def warm(world: World) -> World:
    """The customer's and the merchant's groups are in L2, and the process knows its key, model and policies."""
    world.score()
    world.settle()
    return world


def test_what_is_cached_is_scored_and_the_decision_kept_until_postgres_is_back(
    warm: World, postgres: ServerHandle
) -> None:
    """The first request waits for the pool once; the decision lies on the disk, and arrives as it was given."""
    postgres.stop()
    answers = [warm.score() for _ in range(3)]
    for answer in answers:
        assert answer.status == 200
        assert answer.body["degraded_reasons"] == [SPOOLED]
        assert not any(feature["stale"] for feature in answer.body["features"])
    assert engine().l3_breaker.state is not State.CLOSED
    assert max(sum(answer.steps_ms.values()) for answer in answers[1:]) < 500
    assert sum(path.read_bytes().count(b"\n") for path in spool.pending_files()) == 3
    assert deliver_spooled() == 0
    postgres.start()
    ids = [answer.body["transaction_id"] for answer in answers]
    until(lambda: engine().l3_breaker.state is State.CLOSED)
    deliver_spooled()
    until(lambda: not spool.pending_files())
    assert Decision.objects.filter(pk__in=ids).count() == 3
    for answer in answers:
        assert warm.stored(answer.body["transaction_id"]) == answer.body
    after = warm.score()
    assert after.body["degraded_reasons"] == []
    assert after.values["customer_count_1d"] == answers[0].values["customer_count_1d"] + 3


def test_a_copy_past_its_limit_serves_flagged(warm: World, postgres: ServerHandle) -> None:
    """Within the grace period, with its true age."""
    warm.edit_policy("customer_activity", fresh_for_s=0.001)
    postgres.stop()
    answer = warm.score()
    assert answer.status == 200
    assert answer.body["degraded_reasons"] == [SPOOLED, "stale", "stale_source_unavailable"]
    for feature in answer.body["features"]:
        activity = feature["name"].startswith(("customer_count", "customer_mean"))
        assert feature["stale"] == activity
        if activity:
            assert (feature["tier"], feature["max_age_s"]) == ("l2", 0.001)
            assert feature["age_s"] > 0.001


def test_who_is_not_cached_is_scored_with_defaults(warm: World, postgres: ServerHandle) -> None:
    """It is said that the source is away, and not that the customer is unknown."""
    postgres.stop()
    answer = warm.score(customer_id="C5", merchant_id="M5")
    assert answer.status == 200
    assert answer.body["degraded_reasons"] == [SPOOLED, "source_unavailable"]
    assert {tier for tier in answer.tiers.values() if tier != "request"} == {"default"}
    # Nothing of it was cached: with Postgres back the same customer is known.
    postgres.start()
    until(lambda: engine().l3_breaker.state is State.CLOSED)
    back = warm.score(customer_id="C5", merchant_id="M5")
    assert back.body["degraded_reasons"] == []
    assert back.values["customer_age_days"] > 1


def test_a_policy_may_refuse_the_score_instead(warm: World, postgres: ServerHandle) -> None:
    """A problem with Retry-After; nothing is decided. What the cache still has is good enough."""
    warm.edit_policy("merchant_risk", on_missing="fail")
    postgres.stop()
    request = warm.request(merchant_id="M6")
    refused = warm.post(request)
    assert (refused.status, refused.body["code"]) == (503, "features_unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert "merchant_risk" in refused.body["detail"]
    assert spool.pending_files() == []
    assert warm.score().status == 200
    # Unknown at the source is another matter: then a default is the truth.
    postgres.start()
    until(lambda: engine().l3_breaker.state is State.CLOSED)
    assert warm.score(merchant_id=warm.newcomer("merchant")).status == 200
    assert warm.post(request).status == 200


def test_a_model_may_refuse_the_score_whatever_the_policies_say(warm: World, postgres: ServerHandle) -> None:
    """503 with Retry-After for any group of its own; what the cache still has is good enough."""
    warm.edit_model(on_missing_source="fail")
    postgres.stop()
    refused = warm.score(merchant_id="M6")
    assert (refused.status, refused.body["code"]) == (503, "features_unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert "merchant_profile, " in refused.body["detail"] and "the model says" in refused.body["detail"]
    batch = json.dumps({"transactions": [warm.request(merchant_id="M6"), warm.request()]})
    results = warm.client.post("/v1/scores/batch", batch, content_type="application/json").json()["results"]
    assert [result["status"] for result in results] == [503, 200]
    assert warm.score().status == 200


def test_a_model_may_score_with_defaults_whatever_the_policies_say(warm: World, postgres: ServerHandle) -> None:
    """Flagged, as always."""
    warm.edit_policy("merchant_risk", on_missing="fail")
    warm.edit_model(on_missing_source="default")
    postgres.stop()
    answer = warm.score(merchant_id="M6")
    assert answer.status == 200
    assert "source_unavailable" in answer.body["degraded_reasons"]


def test_a_restart_between_two_scores_is_not_noticed(warm: World, postgres: ServerHandle) -> None:
    """The journal's connection is dead and replaced; the decision is in Postgres, not in the spool."""
    postgres.restart()
    answer = warm.score()
    assert answer.body["degraded_reasons"] == []
    assert warm.stored(answer.body["transaction_id"]) == answer.body


def test_both_away_is_a_score_with_defaults(warm: World, postgres: ServerHandle, valkey_cache: ServerHandle) -> None:
    """The decision is kept all the same."""
    warm.forget_l1()
    postgres.stop()
    valkey_cache.kill()
    answer = warm.score()
    assert answer.status == 200
    assert answer.body["degraded_reasons"] == ["cache_unavailable", SPOOLED, "source_unavailable"]
    assert {tier for tier in answer.tiers.values() if tier != "request"} == {"default"}
    assert len(spool.pending_files()) == 1


def test_a_frozen_postgres_costs_each_wait_its_limit_once(warm: World, postgres: ServerHandle) -> None:
    """Connections stay open and nothing answers: the limits of `answer_within` end it, then the breaker is open."""
    postgres.freeze()
    first = warm.score()
    assert first.status == 200
    assert SPOOLED in first.body["degraded_reasons"]
    assert first.seconds < 10
    assert engine().l3_breaker.state is not State.CLOSED
    second = warm.score(customer_id="C7", merchant_id="M7")
    assert second.status == 200
    assert second.body["degraded_reasons"] == [SPOOLED, "source_unavailable"]
    assert sum(second.steps_ms.values()) < 500
    postgres.thaw()
    until(lambda: engine().l3_breaker.state is State.CLOSED)
    until(lambda: deliver_spooled() == 0 and not spool.pending_files())
    assert warm.stored(first.body["transaction_id"]) == first.body


def test_an_id_that_was_spooled_is_recognised(warm: World, postgres: ServerHandle) -> None:
    """While Postgres is away too: the same body is replayed, another one is a conflict, and one decision arrives."""
    postgres.stop()
    request = warm.request()
    first, again = warm.post(request), warm.post(request)
    assert first.body["degraded_reasons"] == [SPOOLED]
    assert again.body == first.body
    assert again.headers["Idempotent-Replayed"] == "true"
    conflict = warm.post({**request, "amount": request["amount"] + 1})
    assert (conflict.status, conflict.body["code"]) == (422, "transaction_conflict")
    assert sum(path.read_bytes().count(b"\n") for path in spool.pending_files()) == 1
    postgres.start()
    until(lambda: engine().l3_breaker.state is State.CLOSED)
    until(lambda: deliver_spooled() == 0 and not spool.pending_files())
    assert warm.stored(request["transaction_id"]) == first.body
