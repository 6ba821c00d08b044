"""Many transactions in one call: each ends as a call of its own would have, and nothing is done once for each."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import redis
from django.db import close_old_connections, connection
from django.test.utils import CaptureQueriesContext

from features.models import FeatureRow, Transaction
from mlserve.api import data_version
from mlserve.cache.keys import Key
from mlserve.cache.wiring import engine
from mlserve.observability.metrics import JOURNAL_BATCH
from mlserve.postgres.sessions import BoundedConnection
from predictions.models import Decision
from predictions.registry.active import current_model
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle


def post(world: World, transactions: Any, options: str = "") -> list[dict[str, Any]]:
    """The results of a batch that is taken."""
    response = send(world, json.dumps({"transactions": transactions}), options)
    assert response.status_code == 200, response.content
    results: list[dict[str, Any]] = json.loads(response.content)["results"]
    return results


def send(world: World, body: str | bytes, options: str = "") -> Any:
    close_old_connections()  # as each request of a web process does
    return world.client.post(f"/v1/scores/batch?{options}", body, content_type="application/json")


def some(world: World, count: int = 5, **changes: Any) -> list[dict[str, Any]]:
    """Of different customers and merchants of the ledger."""
    return [
        world.request(customer_id=f"C{number % 60}", merchant_id=f"M{number % 25}", **changes)
        for number in range(count)
    ]


def commits() -> float:
    """Of the journal, in this process."""
    (metric,) = JOURNAL_BATCH.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_count"))


def test_a_batch_answers_what_single_calls_answer(world: World) -> None:
    """Item by item and in their order, features and reasons included; scores to the last bits of a float32."""
    requests = some(world, 8, occurred_at="2026-01-05T12:00:00Z", amount=260.0)
    singles = [world.post(each, "dry_run=true&include=features,reasons").body for each in requests]
    results = post(world, requests, "dry_run=true&include=features,reasons")
    assert [result["status"] for result in results] == [200] * 8
    for result, single in zip(results, singles, strict=True):
        answer = result["answer"]
        assert set(answer) == set(single)
        assert answer["transaction_id"] == single["transaction_id"]
        assert answer["score"] == pytest.approx(single["score"], abs=1e-6)
        for same in ("decision", "risk_level", "degraded", "degraded_reasons", "model", "policy_version"):
            assert answer[same] == single[same]
        values = [{feature["name"]: feature["value"] for feature in each["features"]} for each in (answer, single)]
        assert values[0] == values[1]
        assert [each["feature"] for each in answer["reasons"]] == [each["feature"] for each in single["reasons"]]
    assert any(result["answer"]["reasons"] for result in results)


def test_every_decision_is_recorded(world: World) -> None:
    """With features and trace, in one commit, and each can be asked for and is replayed by a single call."""
    requests, before = some(world), commits()
    results = post(world, requests)
    assert commits() == before + 1
    assert Decision.objects.filter(pk__in=[each["transaction_id"] for each in requests]).count() == 5
    for request, result in zip(requests, results, strict=True):
        assert "replayed" not in result and "features" not in result["answer"]
        stored = world.stored(request["transaction_id"])
        assert stored is not None and len(stored["features"]) == 21 and stored["trace"]
        assert stored.items() >= result["answer"].items()
        single = world.post(request, "")
        assert (single.body, single.headers["Idempotent-Replayed"]) == (result["answer"], "true")


def test_a_batch_again_is_replayed_item_by_item(world: World) -> None:
    """What was scored before has the answer of then and says so; what is new does not."""
    old, new = some(world, 3), some(world, 2)
    first = post(world, old)
    again = post(world, [*old, *new])
    assert [result.get("replayed", False) for result in again] == [True] * 3 + [False] * 2
    assert [result["answer"] for result in again[:3]] == [result["answer"] for result in first]


def test_what_is_wrong_harms_no_other(world: World) -> None:
    """A wrong field, a conflict, no object at all, a duplicate key: a problem in its place, with its pointer."""
    known = world.request()
    world.post(known)
    good = some(world, 2)
    wrong = {**world.request(), "amount": -1, "extra": 1}
    body = json.dumps({"transactions": [good[0], wrong, {**known, "amount": 99.0}, 7, good[1]]})
    body = body.replace(', "currency"', "")[:-2] + ', {"transaction_id": "a", "transaction_id": "a"}]}'
    results = json.loads(send(world, body).content)["results"]
    assert [result["status"] for result in results] == [200, 422, 422, 422, 200, 400]
    assert [error["pointer"] for error in results[1]["problem"]["errors"]] == [
        "/transactions/1/amount",
        "/transactions/1/extra",
    ]
    assert results[2]["problem"]["code"] == "transaction_conflict"
    assert results[3]["problem"]["errors"][0]["pointer"] == "/transactions/3"
    assert results[5]["problem"]["errors"][0]["pointer"] == "/transactions/5/transaction_id"
    assert all(result["problem"]["request_id"] for result in results if "problem" in result)
    assert [result["answer"]["transaction_id"] for result in (results[0], results[4])] == [
        each["transaction_id"] for each in good
    ]
    assert not Transaction.objects.filter(pk=wrong["transaction_id"]).exists()


@pytest.mark.parametrize("options", ["", "dry_run=true"])
def test_one_id_twice_in_a_batch(world: World, options: str) -> None:
    """The same contents have the same answer, other contents are a conflict, and the first one stands."""
    first = world.request(customer_id=world.newcomer())
    other = {**first, "amount": first["amount"] + 1}
    results = post(world, [first, other, first, {**first, "max_age_s": 5}], options)
    assert [result["status"] for result in results] == [200, 422, 200, 200]
    assert results[1]["problem"]["code"] == "transaction_conflict"
    assert results[2]["answer"] == results[3]["answer"] == results[0]["answer"]
    replayed = [result.get("replayed", False) for result in results]
    assert replayed == ([False] * 4 if options else [False, False, True, True])


def test_what_was_scored_before_the_batch_decides_which_is_the_conflict(world: World) -> None:
    """As it would have been sent one by one: the earlier place is no claim against the journal."""
    known = world.request()
    stored = world.post(known, "").body
    results = post(world, [{**known, "amount": 1.0}, known])
    assert [result["status"] for result in results] == [422, 200]
    assert (results[1]["replayed"], results[1]["answer"]) == (True, stored)


def test_a_dry_run_answers_conflicts_as_a_real_one_does(world: World) -> None:
    """With what was scored, and with what the ledger has, one by one and in a list; a repetition is answered."""
    known = world.request()
    world.post(known, "")
    other = {**known, "amount": 1.0}
    real, dry = world.post(other, ""), world.post(other, "dry_run=true")
    assert (dry.status, dry.body["code"], dry.body["detail"]) == (422, "transaction_conflict", real.body["detail"])
    assert world.post(known, "dry_run=true").status == 200
    imported = Transaction.objects.exclude(pk=known["transaction_id"]).values_list("pk", flat=True)[0]
    clash = world.request(transaction_id=imported)
    real, dry = world.post(clash, ""), world.post(clash, "dry_run=true")
    assert (dry.status, dry.body["detail"]) == (real.status, real.body["detail"]) and dry.status == 422
    results = post(world, [other, known, clash, world.request()], "dry_run=true")
    assert [result["status"] for result in results] == [422, 200, 422, 200]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("nonsense", 400, "malformed_request"),
        ("[]", 400, "malformed_request"),
        ("{}", 400, "malformed_request"),
        ('{"transactions": []}', 400, "malformed_request"),
        ('{"transactions": {}}', 400, "malformed_request"),
        ('{"transactions": null}', 400, "malformed_request"),
        ('{"transactions": [{}], "more": 1}', 400, "malformed_request"),
        ('{"transactions": [{}], "transactions": [{}]}', 400, "malformed_request"),
        ('{"transactions": [], "transactions": [{}]}', 400, "malformed_request"),
        (b'{"transactions": [{}], "\xff": 1}', 400, "malformed_request"),
        ('{"transactions": [{}' + ",{}" * 100 + "]}", 413, "body_too_large"),
        ('{"transactions": [' + " " * 262_144 + "{}]}", 413, "body_too_large"),
        ('{"transactions": ' + "[" * 100_000 + "}", 400, "malformed_request"),
    ],
)
def test_only_a_wrong_envelope_refuses_the_whole(world: World, body: str | bytes, status: int, code: str) -> None:
    """With 400 or 413; nothing is recorded."""
    response = send(world, body)
    assert (response.status_code, json.loads(response.content)["code"]) == (status, code)


def test_a_wrong_parameter_refuses_the_whole(world: World) -> None:
    """As it does for a single call."""
    response = send(world, json.dumps({"transactions": some(world, 1)}), "include=everything")
    assert (response.status_code, json.loads(response.content)["code"]) == (400, "invalid_parameter")


def test_later_transactions_of_a_customer_see_the_earlier_ones(world: World) -> None:
    """As if they had been sent one after another; a repetition counts once, and the source agrees afterwards."""
    customer, at = world.newcomer(), datetime.now(UTC)
    requests = [
        world.request(customer_id=customer, amount=amount, occurred_at=(at + timedelta(seconds=number)).isoformat())
        for number, amount in enumerate((10.0, 20.0, 60.0))
    ]
    requests.insert(1, requests[0])
    results = post(world, requests, "include=features")
    windows = [{each["name"]: each["value"] for each in result["answer"]["features"]} for result in results]
    assert [each["customer_count_1d"] for each in windows] == [1, 1, 2, 3]
    assert [each["customer_mean_amount_7d"] for each in windows] == [10, 10, 15, 30]
    row = FeatureRow.objects.get(group="customer_activity", entity_id=customer)
    assert row.values[2::3] == [10.0, 20.0, 60.0]


def test_a_conflict_within_the_batch_is_in_nobodys_windows(world: World) -> None:
    """The first of its id is; recorded or not, the third transaction is the customer's second."""
    first = world.request(customer_id=world.newcomer())
    third = world.request(customer_id=first["customer_id"])
    other = {**first, "amount": 99.0, "occurred_at": (datetime.now(UTC) - timedelta(minutes=1)).isoformat()}
    results = post(world, [first, other, third], "include=features")
    assert [result["status"] for result in results] == [200, 422, 200]
    windows = {each["name"]: each["value"] for each in results[2]["answer"]["features"]}
    assert (windows["customer_count_1d"], windows["customer_mean_amount_1d"]) == (2, 20.0)


def test_a_late_transaction_counts_none_that_came_after_it(world: World) -> None:
    """Windows end at the transaction's own moment, whatever its place in the batch."""
    customer, at = world.newcomer(), datetime.now(UTC)
    requests = [
        world.request(customer_id=customer, occurred_at=(at - timedelta(seconds=seconds)).isoformat())
        for seconds in (0, 30, 10)
    ]
    results = post(world, requests, "include=features&dry_run=true")
    windows = [{each["name"]: each["value"] for each in result["answer"]["features"]} for result in results]
    assert [each["customer_count_1d"] for each in windows] == [1, 1, 2]


def test_a_dry_run_leaves_no_trace(world: World, redis_client: redis.Redis) -> None:
    """Not a byte in Valkey and no row in Postgres."""
    requests = some(world)
    post(world, requests, "dry_run=true")
    world.settle()
    assert redis_client.keys("ml2:*") == []
    assert not Decision.objects.filter(pk__in=[each["transaction_id"] for each in requests]).exists()


@pytest.fixture
def counted(world: World, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often L2 was asked and the model run."""
    counts = {"l2": 0, "model": 0}
    wire, ask = engine().wire, engine().wire.ask
    model = current_model()
    session = model.session

    def counting_ask(*arguments: Any, **named: Any) -> Any:
        counts["l2"] += 1
        return ask(*arguments, **named)

    class Session:
        def run(self, *arguments: Any) -> Any:
            counts["model"] += 1
            return session.run(*arguments)

    monkeypatch.setattr(wire, "ask", counting_ask)
    object.__setattr__(model, "session", Session())
    yield counts
    object.__setattr__(model, "session", session)


@pytest.mark.parametrize("count", [2, 100])
def test_nothing_is_done_once_for_each_item(world: World, counted: dict[str, int], count: int) -> None:
    """Warm: one round trip to L2, one run of the model, one commit; with reasons one more. Of conflicts it asks."""
    requests = some(world, count)
    post(world, requests, "dry_run=true")
    post(world, requests)
    world.settle()
    fresh = some(world, count)
    counted.update(l2=0, model=0)
    with CaptureQueriesContext(connection) as queries:
        post(world, fresh, "dry_run=true")
    assert (counted, len(queries)) == ({"l2": 1, "model": 1}, 1)
    counted.update(l2=0, model=0)
    with CaptureQueriesContext(connection) as queries:
        post(world, fresh, "dry_run=true&include=reasons")
    assert (counted, len(queries)) == ({"l2": 1, "model": 2}, 1)


@pytest.mark.parametrize("count", [1, 100])
def test_a_cold_batch_is_one_statement(world: World, counted: dict[str, int], count: int) -> None:
    """Whatever the number of items: one statement reads what is missing, and L2 is asked twice, once for leases."""
    requests = some(world, count)
    with CaptureQueriesContext(connection) as queries:
        post(world, requests, "include=trace")
    reads = [query["sql"] for query in queries if "features_featurerow" in query["sql"]]
    assert len(reads) == 1, reads


def test_a_commit_waits_as_often_for_a_hundred_as_for_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of PostgreSQL item by item."""
    waits: list[int] = []
    wait = BoundedConnection.wait

    def counting(self: BoundedConnection, *args: Any, **options: Any) -> Any:
        if threading.current_thread().name == "journal":
            waits[-1] += 1
        return wait(self, *args, **options)

    post(world, some(world, 1))  # connects
    monkeypatch.setattr(BoundedConnection, "wait", counting)
    for count in (1, 100):
        waits.append(0)
        post(world, some(world, count, occurred_at=datetime.now(UTC).isoformat()))
    assert waits[0] == waits[1] > 0


def test_items_that_name_an_age_are_judged_by_their_own(world: World) -> None:
    """The tightest is what is read under, and what one wants flags nobody else; 0 reads the source."""
    (first, *_) = post(world, some(world, 4), "include=features")
    world.settle()
    age_s = next(each["age_s"] for each in first["answer"]["features"] if each["name"] == "customer_age_days")
    ages = [None, age_s / 2, age_s * 1.5 + 60, 0]
    fresh = [each | ({} if age is None else {"max_age_s": age}) for each, age in zip(some(world, 4), ages, strict=True)]
    results = [result["answer"] for result in post(world, fresh, "include=features,trace&dry_run=true")]
    assert [result["degraded_reasons"] for result in results] == [[], ["stale"], [], []]
    profile = [next(each for each in result["features"] if each["name"] == "customer_age_days") for result in results]
    assert [each["stale"] for each in profile] == [False, True, False, False]
    assert [each["max_age_s"] for each in profile] == [86_400, ages[1], ages[2], 86_400]
    assert profile[3]["tier"] == "l3"
    assert {trace["tier"]: trace["asked"] for trace in results[0]["trace"]}["l3"] >= 6


def test_only_those_are_flagged_whose_values_it_concerns(world: World) -> None:
    """A stranger among known customers is nobody else's cold start."""
    requests = [*some(world, 2), world.request(customer_id=world.newcomer(), merchant_id=world.newcomer("merchant"))]
    results = post(world, requests)
    assert [result["answer"]["degraded_reasons"] for result in results] == [[], [], []]
    assert [result["answer"]["cold_start"] for result in results] == [False, False, True]


def test_what_the_policy_forbids_to_miss_fails_alone(world: World, postgres: ServerHandle) -> None:
    """With Postgres away, an item whose group is in L1 is scored; one whose group nobody has is 503 in its place."""
    world.edit_policy("merchant_risk", on_missing="fail")
    held = world.request()
    post(world, [held])
    world.settle()
    unheld = world.request(merchant_id="M7", customer_id="C7")
    postgres.stop()
    results = post(world, [world.request(), unheld])
    assert [result["status"] for result in results] == [200, 503]
    assert results[1]["problem"]["code"] == "features_unavailable"
    assert "decision_spooled" in results[0]["answer"]["degraded_reasons"]
    assert "source_unavailable" not in results[0]["answer"]["degraded_reasons"]


def test_a_score_that_is_no_number_fails_alone(world: World) -> None:
    """500 in its place, nothing recorded of it."""
    requests, model = some(world, 3), current_model()
    session = model.session

    class Broken:
        def run(self, *arguments: Any) -> Any:
            (scores,) = session.run(*arguments)
            scores[1] = np.nan
            return [scores]

    object.__setattr__(model, "session", Broken())
    try:
        results = post(world, requests)
    finally:
        object.__setattr__(model, "session", session)
    assert [result["status"] for result in results] == [200, 500, 200]
    assert results[1]["problem"]["code"] == "internal"
    assert not Decision.objects.filter(pk=requests[1]["transaction_id"]).exists()


def test_with_l2_frozen_every_item_is_scored(world: World, valkey_cache: ServerHandle) -> None:
    """After one wait for all of them; flagged are those that L1 could not serve alone."""
    requests = some(world, 40)
    post(world, requests, "")
    world.settle()
    valkey_cache.freeze()
    started = time.monotonic()
    results = post(world, some(world, 40), "dry_run=true")
    elapsed_s = time.monotonic() - started
    assert [result["status"] for result in results] == [200] * 40
    assert {tuple(result["answer"]["degraded_reasons"]) for result in results} == {("cache_unavailable",)}
    assert elapsed_s < 5, "one wait of 50 ms and a statement, not forty"


def test_what_the_client_has_seen_is_asked_for(world: World) -> None:
    """`X-Data-Version` counts for every item: a copy that is older than it says is not served, in whatever tier."""
    customer = world.newcomer()
    (first,) = post(world, [world.request(customer_id=customer)])
    world.settle()
    key = Key("customer", customer, "customer_activity")
    seen = FeatureRow.objects.get(group=key.group, entity_id=customer).version
    tiers = []
    for version in (seen, seen + 1):
        response = world.client.post(
            "/v1/scores/batch?dry_run=true&include=features",
            json.dumps({"transactions": [world.request(customer_id=customer)]}),
            content_type="application/json",
            headers={"x-data-version": data_version.token_of({key: version})},
        )
        (result,) = json.loads(response.content)["results"]
        tiers += [each["tier"] for each in result["answer"]["features"] if each["name"] == "customer_count_1d"]
    assert first["status"] == 200 and tiers == ["l2", "l3"]
    refused = world.client.post(
        "/v1/scores/batch", "{}", content_type="application/json", headers={"x-data-version": "nonsense"}
    )
    assert refused.status_code == 400


def test_each_result_names_what_it_knew(world: World) -> None:
    """As the header of a single call does: the next call with that token has the transaction, whatever copies say."""
    customer = world.newcomer()
    own = [world.request(customer_id=customer), world.request(customer_id=customer)]
    wrong = world.request(customer_id=customer, amount=-1)
    first, second, refused = post(world, [*own, wrong])
    world.settle()
    written = FeatureRow.objects.get(group="customer_activity", entity_id=customer).version
    key = Key("customer", customer, "customer_activity")
    for result in (first, second):
        assert data_version.read_header(result["data_version"])[key] == written
    assert "data_version" not in refused
    (again,) = post(world, own[:1])
    assert again["replayed"] and data_version.read_header(again["data_version"])[key] >= written


def test_a_dry_run_names_what_a_single_dry_run_does(world: World) -> None:
    """What was read, of both its entities, and nothing of the other items."""
    requests = some(world, 3)
    single = [
        world.client.post("/v1/scores?dry_run=true", json.dumps(each), content_type="application/json")
        for each in requests
    ]
    for result, alone in zip(post(world, requests, "dry_run=true"), single, strict=True):
        versions = data_version.read_header(result["data_version"])
        assert versions and versions == data_version.read_header(alone.headers["X-Data-Version"])


def test_a_transaction_may_be_called_batch(world: World) -> None:
    """Its score is found under its address all the same."""
    world.post(world.request(transaction_id="batch"))
    stored = world.stored("batch")
    assert stored is not None and stored["transaction_id"] == "batch"
