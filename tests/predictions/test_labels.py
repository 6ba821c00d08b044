"""`POST /v1/labels`, and what it tells of the decisions that were given."""

import json
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import close_old_connections

from features.models import LabelReport, Transaction
from predictions.evaluation import evaluate_model
from predictions.models import Activation, Decision, ModelVersion
from tests.fixtures.population import World
from tests.fixtures.servers import ServerHandle


def send(world: World, body: str | bytes) -> tuple[int, dict[str, Any]]:
    close_old_connections()  # as each request of a web process does
    response = world.client.post("/v1/labels", body, content_type="application/json")
    return response.status_code, json.loads(response.content)


def post(world: World, *labels: Any) -> list[dict[str, Any]]:
    """The results of a list that is taken."""
    status, body = send(world, json.dumps({"labels": labels}))
    assert status == 200, body
    results: list[dict[str, Any]] = body["results"]
    return results


def scored(world: World) -> str:
    """The id of a transaction that was scored just now."""
    request = world.request()
    assert world.post(request).status == 200
    return str(request["transaction_id"])


def test_a_label_is_taken_for_what_was_scored_or_imported(world: World) -> None:
    """With the label in force in the answer; who said it is kept."""
    ours = scored(world)
    results = post(world, {"transaction_id": ours, "is_fraud": True}, {"transaction_id": "ledger-17", "is_fraud": True})
    assert [(result["status"], result["is_fraud"]) for result in results] == [(200, True), (200, True)]
    assert results[0]["outcome"] == "recorded"
    assert Transaction.objects.get(pk=ours).is_fraud is True
    assert LabelReport.objects.get(transaction_id=ours).client.startswith("set_")
    (again,) = post(world, {"transaction_id": ours, "is_fraud": True})
    assert again == {"status": 200, "outcome": "unchanged", "is_fraud": True}
    assert LabelReport.objects.filter(transaction_id=ours).count() == 1


def test_what_is_wrong_stays_in_its_place(world: World) -> None:
    """Unknown ids, wrong fields, moments that cannot be; with pointers from the body's root."""
    ours = scored(world)
    results = post(
        world,
        {"transaction_id": "nobody", "is_fraud": True},
        {"transaction_id": ours, "is_fraud": "yes", "reason": 1},
        {"transaction_id": ours, "is_fraud": True, "reported_at": "2020-01-01T00:00:00Z"},
        {"transaction_id": ours, "is_fraud": True, "reported_at": "2999-01-01T00:00:00Z"},
        {"transaction_id": ours, "is_fraud": True},
        "nonsense",
    )
    assert [result["status"] for result in results] == [404, 422, 422, 422, 200, 422]
    assert results[0]["problem"]["code"] == "not_found"
    pointers = [[error["pointer"] for error in result["problem"]["errors"]] for result in results[1:4]]
    assert pointers == [
        ["/labels/1/is_fraud", "/labels/1/reason"],
        ["/labels/2/reported_at"],
        ["/labels/3/reported_at"],
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("nonsense", 400),
        ('{"labels": []}', 400),
        ('{"transactions": [{}]}', 400),
        ('{"labels": [{}], "labels": [{}]}', 400),
        ('{"labels": [{}' + ",{}" * 1_000 + "]}", 413),
    ],
)
def test_only_a_wrong_envelope_refuses_the_whole(world: World, body: str, status: int) -> None:
    """As it is for a batch of scores."""
    assert send(world, body)[0] == status


def test_a_thousand_labels_fit(world: World) -> None:
    """With the longest ids and moments, the body is under its limit."""
    labels = [{"transaction_id": "x" * 64, "is_fraud": False, "reported_at": "2026-01-05T14:30:00.123456+00:00"}]
    results = post(world, *(labels * 1_000))
    assert len(results) == 1_000
    assert {result["status"] for result in results} == {404}


def test_without_postgres_nothing_is_taken(world: World, postgres: ServerHandle) -> None:
    """503, and the same again does no harm."""
    ours = scored(world)
    postgres.stop()
    status, body = send(world, json.dumps({"labels": [{"transaction_id": ours, "is_fraud": True}]}))
    assert (status, body["code"]) == (503, "source_unavailable")
    postgres.start()
    assert [result["status"] for result in post(world, {"transaction_id": ours, "is_fraud": True})] == [200]


# --- evaluation ---


TODAY = date(2026, 6, 30)
NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)


@pytest.fixture
def version(db: None) -> ModelVersion:
    made = ModelVersion.objects.create(
        name="fraud",
        version=1,
        estimator="boosted_trees",
        feature_names=["amount"],
        feature_baseline=[0.0],
        review_from=0.5,
        decline_from=0.9,
        digest="0" * 64,
        metrics={},
        training={},
        parity={},
    )
    Activation.objects.create(model_version=made)
    return made


def decided(version: ModelVersion, name: str, at: datetime, score: float, is_fraud: bool | None) -> None:
    Transaction.objects.create(
        id=name, occurred_at=at, customer_id="c", merchant_id="m", amount="1.00", is_fraud=is_fraud
    )
    Decision.objects.create(
        transaction_id=name,
        client="test",
        request_digest=b"",
        model_version=version,
        policy_version=1,
        score=score,
        decision="approve" if score < 0.5 else "review" if score < 0.9 else "decline",
        degraded=False,
        response=b"{}",
        decided_at=at,
    )


def test_figures_are_those_of_the_labelled_decisions_of_a_day(version: ModelVersion) -> None:
    """Precision, recall and AUC by hand; what has no label counts as a decision and as nothing else."""
    day = NOW - timedelta(days=10)
    for number, (score, is_fraud) in enumerate(
        [(0.95, True), (0.6, False), (0.7, True), (0.3, True), (0.1, False), (0.2, False), (0.99, None)]
    ):
        decided(version, f"t{number}", day, score, is_fraud)
    decided(version, "today", NOW, 0.95, True)
    evaluation = evaluate_model(version, now=NOW, days=30)
    first, last = evaluation.by_day
    assert (first.day, first.decisions, first.labelled, first.frauds) == (day.date(), 7, 6, 3)
    assert (first.flagged, first.caught) == (3, 2)
    assert [first.precision, first.recall] == pytest.approx([2 / 3, 2 / 3])
    assert first.auc_roc == pytest.approx(8 / 9)
    assert (first.mature, last.mature, evaluation.total.mature) == (True, False, False)
    assert (last.day, last.precision, last.recall, last.auc_roc) == (TODAY, 1, 1, None)
    total = evaluation.total
    assert (total.day, total.decisions, total.labelled, total.frauds, total.caught) == (None, 8, 7, 4, 3)


def test_other_versions_and_older_days_do_not_count(version: ModelVersion) -> None:
    """The first of the days begins at midnight, UTC."""
    other = ModelVersion.objects.create(
        **{
            field.name: getattr(version, field.name)
            for field in ModelVersion._meta.fields
            if field.name not in ("id", "version", "created_at")
        },
        version=2,
    )
    midnight = datetime(2026, 6, 29, tzinfo=UTC)
    decided(version, "inside", midnight, 0.95, True)
    decided(version, "before", midnight - timedelta(microseconds=1), 0.95, True)
    decided(other, "another's", midnight, 0.95, True)
    assert evaluate_model(version, now=NOW, days=2).total.decisions == 1


def evaluate(*arguments: str) -> str:
    out = StringIO()
    call_command("evaluate", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_says_it_as_a_table_and_as_json(version: ModelVersion) -> None:
    """Of the active model; another one by its number."""
    assert "no decisions" in evaluate()
    now = datetime.now(UTC)
    decided(version, "t1", now, 0.95, None)
    assert "none of them labelled" in evaluate()
    decided(version, "t2", now, 0.95, True)
    decided(version, "t3", now, 0.05, False)
    lines = evaluate().splitlines()
    assert lines[2].split() == [f"{now:%Y-%m-%d}", "3", "2", "1", "1.000", "1.000", "1.000", "*"]
    assert lines[3].split()[0] == "all"
    document = json.loads(evaluate("--json", "--days", "3"))
    assert (document["model"], document["days"]) == ({"name": "fraud", "version": 1}, 3)
    assert document["total"]["auc_roc"] == 1
    assert [day["day"] for day in document["by_day"]] == [f"{now:%Y-%m-%d}"]
    assert json.loads(evaluate("--json", "--model-version", "1"))["model"]["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--days", "0"], 2), (["--days", "366"], 2), (["--model-version", "9"], 1)]
)
def test_wrong_usage_of_the_command(version: ModelVersion, arguments: list[str], code: int) -> None:
    """2 for what no run could be, 1 for a version that is not there."""
    with pytest.raises(CommandError) as refused:
        call_command("evaluate", *arguments)
    assert refused.value.returncode == code


def test_without_an_active_model_the_command_fails(db: None) -> None:
    """And says what to do."""
    with pytest.raises(CommandError, match="no model is active"):
        call_command("evaluate")
