"""Rows that cannot be read, by hand or by another release: flagged and counted, and no reason to refuse a score."""

import pytest
from django.db import connection

from mlserve.observability import metrics
from tests.fixtures.population import World


@pytest.mark.parametrize(
    ("group", "entity_id", "values"),
    [
        ("merchant_profile", "M1", []),
        ("merchant_profile", "M1", [1.0]),
        ("merchant_risk", "M1", [0.0] * 7),
        ("merchant_risk", "M1", [0.0] * 5 + [float("nan")]),
        ("customer_profile", "C1", [1.0, float("inf"), 1.0]),
        ("customer_profile", "C1", [1.0, float("inf"), float("-inf")]),
        ("customer_activity", "C1", []),
        ("customer_activity", "C1", [0.0, 1.0]),
        ("customer_embedding", "C1", [1.0]),
    ],
)
def test_a_row_that_does_not_fit_is_no_value(world: World, group: str, entity_id: str, values: list[float]) -> None:
    """The others count; once the row is mended, its values do too."""
    kept = _write(group, entity_id, values)
    before = metrics.SOURCE_ERRORS.labels("unfit_row")._value.get()
    answer = world.score(customer_id="C1", merchant_id="M1", max_age_s=0)
    assert (answer.status, answer.body["degraded"]) == (200, True), answer.body
    assert "source_unavailable" in answer.body["degraded_reasons"]
    assert metrics.SOURCE_ERRORS.labels("unfit_row")._value.get() > before
    peeked = world.client.get(f"/v1/features/{'customer' if entity_id == 'C1' else 'merchant'}/{entity_id}")
    assert peeked.status_code == 200
    _write(group, entity_id, kept)
    assert "source_unavailable" not in world.score(customer_id="C1", merchant_id="M1").body["degraded_reasons"]


def _write(group: str, entity_id: str, values: list[float]) -> list[float]:
    """Past all that knows what belongs there. What was there."""
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT "values" FROM features_featurerow WHERE "group" = %s AND entity_id = %s', (group, entity_id)
        )
        [(before,)] = cursor.fetchall()
        cursor.execute(
            'UPDATE features_featurerow SET "values" = %s::float8[] WHERE "group" = %s AND entity_id = %s',
            (values, group, entity_id),
        )
    return list(before)
