import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import redis

from features.definitions import CUSTOMER_ACTIVITY
from features.models import FeatureRow, Transaction
from features.point_in_time import training_vectors
from features.refresh import build
from mlserve.cache.wiring import engine
from mlserve.observability import metrics
from predictions.models import Decision
from tests.fixtures.population import Answer, World

STORED = (
    "customer_profile", "customer_activity", "customer_embedding",
    "merchant_profile", "merchant_risk", "merchant_embedding",
)  # fmt: skip


def _stored_tiers(answer: Answer) -> set[str]:
    """Of the features that derive from stored groups."""
    return {tier for name, tier in answer.tiers.items() if name not in ("amount", "is_weekend", "is_night")}


def _consistent(answer: Answer) -> None:
    """What every answer holds, whatever happened."""
    for feature in answer.body["features"]:
        if feature["age_s"] is None:
            assert feature["tier"] in ("request", "default")
            assert not feature["stale"]
        else:
            assert feature["stale"] == (feature["age_s"] > feature["max_age_s"])
    for trace in answer.body["trace"]:
        assert 0 <= trace["hit"] <= trace["asked"]
    ages = [feature["age_s"] for feature in answer.body["features"] if feature["age_s"] is not None]
    assert answer.body["oldest_feature_age_s"] == max(ages, default=None)
    assert answer.body["degraded"] == bool(answer.body["degraded_reasons"])


def test_a_score_goes_down_the_tiers_as_far_as_it_must(world: World) -> None:
    """Cold it reads the source; then L1 serves what it may keep and L2 the customer's activity, which L1 may not."""
    cold = world.score()
    assert cold.status == 200
    assert _stored_tiers(cold) == {"l3"}
    assert [cold.tier(tier)["hit"] for tier in ("l1", "l2", "l3")] == [0, 0, 6]  # type: ignore[index]
    assert not cold.body["degraded"]
    world.settle()
    warm = world.score()
    assert _stored_tiers(warm) == {"l1", "l2"}
    assert {name for name, tier in warm.tiers.items() if tier == "l2"} == {
        name for name in warm.tiers if name.startswith(("customer_count", "customer_mean"))
    }
    assert warm.tier("l3") is None
    world.forget_l1()
    assert _stored_tiers(world.score()) == {"l2"}
    for answer in (cold, warm):
        _consistent(answer)
    assert 0 < warm.body["oldest_feature_age_s"] <= (datetime.now(UTC) - world.built_at).total_seconds()


def test_the_answer_says_what_was_decided_by_which_model(world: World) -> None:
    """What was not asked for is left out; what GET shows has all of it."""
    plain = world.score(options="")
    assert {"score", "decision", "risk_level", "model", "policy_version", "decided_at"} <= set(plain.body)
    assert not {"features", "trace"} & set(plain.body)
    assert plain.body["model"] == {"name": "fraud", "version": 1}
    assert plain.body["decision"] in ("approve", "review", "decline")
    assert "features;dur=" in plain.headers["Server-Timing"]
    stored = world.stored(plain.body["transaction_id"])
    assert stored is not None
    assert len(stored["features"]) == 21
    assert {name: stored[name] for name in plain.body} == plain.body


def test_an_equal_input_is_not_computed_twice(world: World) -> None:
    """A dry run of the same transaction finds the prediction in L1, under the digest of model and input."""
    request = world.request(occurred_at="2026-01-05T12:00:00Z")
    first = world.post(request)
    again = world.post(request, "include=features,trace&dry_run=true")
    assert first.body["prediction_tier"] == "computed"
    assert again.body["prediction_tier"] == "l1"
    assert again.body["score"] == first.body["score"]


def test_a_request_for_age_0_reads_the_source(world: World) -> None:
    """Past everything that is warm, without being flagged for it."""
    world.score()
    world.settle()
    answer = world.score(max_age_s=0)
    assert _stored_tiers(answer) == {"l3"}
    assert not answer.body["degraded"]
    _consistent(answer)


def test_a_tight_age_is_kept_or_flagged(world: World) -> None:
    """Values built longer ago than the request allows come from the source and are said to be stale all the same."""
    world.score()
    world.settle()
    age_s = (datetime.now(UTC) - world.built_at).total_seconds()
    answer = world.score(max_age_s=age_s / 2)
    risk = next(feature for feature in answer.body["features"] if feature["name"] == "merchant_risk_7d")
    assert risk["stale"]
    assert risk["max_age_s"] == age_s / 2
    assert answer.body["degraded_reasons"] == ["stale"]
    _consistent(answer)


def test_unknown_customers_and_merchants_are_scored_with_defaults(world: World) -> None:
    """It is no error, and the answer says so."""
    answer = world.score(customer_id=world.newcomer(), merchant_id=world.newcomer("merchant"))
    assert answer.status == 200
    assert _stored_tiers(answer) == {"default"}
    assert (answer.body["degraded"], answer.body["degraded_reasons"]) == (False, [])
    assert answer.body["cold_start"] is True
    assert answer.body["oldest_feature_age_s"] is None
    assert answer.values["customer_count_30d"] == 1
    assert answer.values["customer_mean_amount_1d"] == 20
    assert answer.values["amount_to_ticket"] == 1
    _consistent(answer)


def test_the_same_request_again_gets_the_same_answer(world: World) -> None:
    """Word for word, marked as a repetition, however the world has changed; also asked for with fresher features."""
    request = world.request()
    first = world.post(request)
    world.score(customer_id=request["customer_id"])
    again = world.post(request)
    assert again.body == first.body
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert world.post({**request, "max_age_s": 0}).body == first.body
    elsewhere = datetime.fromisoformat(request["occurred_at"]).astimezone(timezone(timedelta(hours=2))).isoformat()
    assert world.post({**request, "occurred_at": elsewhere}).body == first.body
    assert Transaction.objects.filter(pk=request["transaction_id"]).count() == 1


@pytest.mark.parametrize(
    "change", [{"amount": 20.01}, {"merchant_id": "M2"}, {"customer_id": "C2"}, {"currency": "USD"}]
)
def test_an_id_with_other_contents_is_a_conflict(world: World, change: dict[str, Any]) -> None:
    """The first decision stands."""
    request = world.request()
    first = world.post(request)
    conflict = world.post({**request, **change})
    assert (conflict.status, conflict.body["code"]) == (422, "transaction_conflict")
    assert world.post(request).body == first.body


def test_one_id_twice_at_once_is_one_decision(world: World) -> None:
    """Whoever is second gets the answer of the first."""
    request = world.request(customer_id=world.newcomer())
    world.score()
    barrier, answers = threading.Barrier(4), []

    def post() -> None:
        barrier.wait()
        answers.append(world.post(request))

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [200] * 4
    assert all(answer.body == answers[0].body for answer in answers)
    assert sorted(answer.headers.get("Idempotent-Replayed", "first") for answer in answers) == ["first"] + ["true"] * 3
    assert Decision.objects.filter(transaction_id=request["transaction_id"]).count() == 1


def test_a_customers_next_transaction_sees_the_one_before(world: World) -> None:
    """Ledger and activity are updated at once, and L2 with them: the windows come from there and are exact."""
    customer, at = world.newcomer(), datetime.now(UTC)
    for number, amount in enumerate((10.0, 20.0, 60.0), start=1):
        answer = world.score(
            customer_id=customer, amount=amount, occurred_at=(at + timedelta(seconds=number)).isoformat()
        )
        assert answer.values["customer_count_1d"] == number
        world.settle()
    assert answer.values["customer_mean_amount_7d"] == 30
    assert answer.tiers["customer_count_1d"] == "l2"
    assert not next(each for each in answer.body["features"] if each["name"] == "customer_count_1d")["stale"]
    row = FeatureRow.objects.get(group=CUSTOMER_ACTIVITY.name, entity_id=customer)
    assert len(row.values) == 1 + 3 * 3


def test_one_look_up_of_l2_per_score(world: World, redis_client: redis.Redis) -> None:
    """One pipeline with one command for each of the two entities, whatever the number of groups."""
    world.score()
    world.settle()
    world.forget_l1()
    redis_client.config_resetstat()
    world.score(options="dry_run=true")
    assert redis_client.info("commandstats")["cmdstat_hmget"]["calls"] == 2


def test_a_dry_run_leaves_no_trace(world: World, redis_client: redis.Redis) -> None:
    """Not a byte in Valkey, no count, no hot key, no row in Postgres, and the features are those of a real run."""
    world.score()
    world.settle()
    cache = engine()
    cache.stop()
    cache.publish()
    before = _traces(redis_client)
    request = world.request(customer_id="C7", merchant_id="M7")
    dry = world.post(request, "include=features,trace&dry_run=true")
    world.settle()
    cache.publish()
    assert dry.status == 200
    assert _traces(redis_client) == before
    assert len(cache.l1.store) == before["l1"]
    assert world.stored(request["transaction_id"]) is None
    assert not Transaction.objects.filter(pk=request["transaction_id"]).exists()
    real = world.post(request)
    assert real.values == dry.values
    assert "Idempotent-Replayed" not in real.headers


def _traces(client: redis.Redis) -> dict[str, Any]:
    return {
        "keys": {name: (client.dump(name), client.expiretime(name)) for name in sorted(client.scan_iter())},
        "counts": dict(engine().recorder.totals()),
        "hot": dict(engine().hot_keys._counts),
        "l1": len(engine().l1.store),
        "rows": FeatureRow.objects.count(),
        "decisions": Decision.objects.count(),
    }


def test_an_edited_policy_judges_what_is_cached_already(world: World) -> None:
    """A shorter TTL makes existing copies misses; the revision that the score names is the edit's."""
    world.score()
    world.settle()
    before = world.score()
    assert before.tiers["merchant_risk_7d"] == "l1"
    world.edit_policy("merchant_risk", fresh_for_s=0.001)
    after = world.score()
    risk = next(feature for feature in after.body["features"] if feature["name"] == "merchant_risk_7d")
    assert (risk["tier"], risk["stale"], risk["max_age_s"]) == ("l3", True, 0.001)
    assert after.tiers["merchant_age_days"] == "l1"
    assert after.body["policy_version"] > before.body["policy_version"]


def test_a_bypassed_tier_is_not_asked(world: World) -> None:
    """By policy, group by group."""
    for name in STORED:
        world.edit_policy(name, use_l1=False, use_l2=False)
    world.score()
    world.settle()
    answer = world.score()
    assert _stored_tiers(answer) == {"l3"}
    assert [answer.tier(tier) for tier in ("l2",)] == [None]


def test_serving_and_training_derive_the_same_vector(world: World) -> None:
    """To 1e-6, for a transaction that was scored online and then read back from the ledger as training reads it.

    Merchant windows are those of their last build, so they are built for the transaction's moment.
    """
    request = world.request(customer_id="C3", merchant_id="M3", amount=33.33)
    moment = datetime.fromisoformat(request["occurred_at"])
    build(["merchant_risk"], as_of=moment, now=moment)
    online = world.post(request).values
    names = tuple(name for name in online if name in ("amount", "is_weekend", "is_night") or "_count_" in name
                  or "mean_amount" in name or name.startswith("merchant_risk"))  # fmt: skip
    offline = training_vectors(moment.date(), moment.date(), names)
    (row,) = [i for i, name in enumerate(offline.transaction_ids) if name == request["transaction_id"]]
    derived = dict(zip(names, offline.X[row].tolist(), strict=True))
    assert len(names) == 15
    assert {name: online[name] for name in names} == pytest.approx(derived, abs=1e-6)


def test_embeddings_of_two_builds_give_the_default_and_a_flag(world: World) -> None:
    """As after a build of which one side is still the copy of before; singly and in a batch, counted."""
    before = world.score()
    assert before.values["affinity"] != 0
    row = FeatureRow.objects.filter(group="merchant_embedding", entity_id=world.merchant)
    (values,) = row.values_list("values", flat=True)
    try:
        row.update(values=[*values[:-1], values[-1] + 1])
        counted = metrics.EMBEDDING_BUILDS_DIFFER._value.get()
        answer = world.score(max_age_s=0)
        (affinity,) = [feature for feature in answer.body["features"] if feature["name"] == "affinity"]
        assert answer.body["degraded_reasons"] == ["embedding_builds_differ"]
        assert (affinity["value"], affinity["tier"], affinity["as_of"]) == (0.0, "default", None)
        requests = {"transactions": [world.request(max_age_s=0), world.request(max_age_s=0, merchant_id="M2")]}
        response = world.client.post("/v1/scores/batch", json.dumps(requests), content_type="application/json")
        reasons = [result["answer"]["degraded_reasons"] for result in response.json()["results"]]
        assert reasons == [["embedding_builds_differ"], []]
        assert metrics.EMBEDDING_BUILDS_DIFFER._value.get() == counted + 2
    finally:
        row.update(values=values)
