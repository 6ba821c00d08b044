"""A batch of scores and what became of them, over real HTTP, through the death of the process that answered."""

from datetime import UTC, datetime

from features.models import LabelReport
from predictions.evaluation import evaluate_model
from predictions.models import Decision, ModelVersion
from tests.fixtures.population import World
from tests.fixtures.web_process import web_process


def test_a_batch_is_acknowledged_survives_is_labelled_and_evaluated(world: World) -> None:
    """What was answered is in Postgres after kill -9, is replayed by the next process, and counts once labelled."""
    merchant = world.newcomer("merchant")
    requests = [
        world.request(customer_id=f"C{number % 60}", merchant_id=merchant, amount=float(number))
        for number in range(100)
    ]
    requests[40] = {**requests[40], "amount": "much"}
    good = [request for number, request in enumerate(requests) if number != 40]
    with web_process() as web:
        first = web.send("/v1/scores/batch?include=features", {"transactions": requests})["results"]
        web.kill()
    assert [result["status"] for result in first] == [200] * 40 + [422] + [200] * 59
    assert [result["answer"]["transaction_id"] for result in first if "answer" in result] == [
        request["transaction_id"] for request in good
    ]
    ids = [request["transaction_id"] for request in good]
    assert Decision.objects.filter(pk__in=ids).count() == 99

    before = evaluate_model(ModelVersion.objects.get(), now=datetime.now(UTC)).total
    with web_process() as web:
        again = web.send("/v1/scores/batch?include=features", {"transactions": requests})["results"]
        labels = [{"transaction_id": each, "is_fraud": number % 10 == 0} for number, each in enumerate(ids)]
        labelled = web.send("/v1/labels", {"labels": [*labels, {"transaction_id": "nobody", "is_fraud": True}]})
        web.stop()
    assert [result.get("answer") for result in again] == [result.get("answer") for result in first]
    assert sum(result.get("replayed", False) for result in again) == 99
    assert [result["status"] for result in labelled["results"]] == [200] * 99 + [404]
    assert LabelReport.objects.filter(transaction_id__in=ids).count() == 99

    after = evaluate_model(ModelVersion.objects.get(), now=datetime.now(UTC)).total
    assert (after.decisions, after.labelled, after.frauds) == (
        before.decisions,
        before.labelled + 99,
        before.frauds + 10,
    )
