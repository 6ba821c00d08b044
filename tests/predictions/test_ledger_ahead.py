"""A change of the ledger that no score made is seen, or flagged, in the next answers."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.db import connection

from features.catch_up import catch_up
from features.definitions import EMBEDDINGS
from features.models import OutdatedFeature
from features.refresh import build
from tests.fixtures.population import Answer, World

FLAGS = ["stale", "stale_ledger_ahead"]
_INSERT = """
INSERT INTO features_transaction (id, occurred_at, customer_id, merchant_id, amount)
SELECT 'ahead-' || n, now() - interval '3 days' - n * interval '1 second', %s, %s, 900 FROM generate_series(1, 40) AS n
"""


@pytest.fixture
def changed(world: World) -> Iterator[World]:
    """Forty payments of the world's customer and merchant that nobody scored; afterwards all is as it was."""
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, [world.customer, world.merchant])
    yield world
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM features_transaction WHERE id LIKE 'ahead-%%'")
    moment = datetime.now(UTC)
    catch_up(now=moment)
    build(EMBEDDINGS, as_of=moment, now=moment)
    assert not OutdatedFeature.objects.exists()


def _stale(answer: Answer) -> set[str]:
    return {feature["name"] for feature in answer.body["features"] if feature["stale"]}


def test_a_score_is_flagged_until_its_features_follow(changed: World) -> None:
    """By feature and with the reason; then the forty are counted and nothing of it is flagged but the embeddings."""
    before = changed.score(max_age_s=0, options="include=features,trace&dry_run=true")
    assert before.body["degraded"] and before.body["degraded_reasons"] == FLAGS
    assert {"customer_count_30d", "amount_to_usual", "amount_to_ticket", "affinity"} <= _stale(before)
    assert not {"amount", "merchant_risk_7d"} & _stale(before)
    catch_up(now=datetime.now(UTC))
    after = changed.score(max_age_s=0)
    assert after.values["customer_count_30d"] == before.values["customer_count_30d"] + 40
    assert _stale(after) == {"affinity"}
    moment = datetime.now(UTC)
    build(EMBEDDINGS, as_of=moment, now=moment)
    healed = changed.score(max_age_s=0)
    assert not healed.body["degraded"] and not _stale(healed)


def test_items_of_a_batch_are_flagged_under_limits_of_their_own(changed: World) -> None:
    """An item that allows more age than another one is behind the ledger all the same; a stranger to it is not."""
    items = [
        changed.request(max_age_s=0.001),
        changed.request(max_age_s=3600),
        changed.request(customer_id="C5", merchant_id="M5", max_age_s=3600),
    ]
    response = changed.client.post(
        "/v1/scores/batch?dry_run=true", json.dumps({"transactions": items}), content_type="application/json"
    )
    answers = [result["answer"] for result in response.json()["results"]]
    assert all(set(FLAGS) <= set(answer["degraded_reasons"]) for answer in answers[:2])
    assert answers[2]["degraded_reasons"] == []
