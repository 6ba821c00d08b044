"""Embeddings of two builds: what a score says, and how soon that is over."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
from django.db import connection

from features import embedding_builds
from features.definitions import EMBEDDINGS
from features.models import FeatureRow
from features.vectors import invalidate_entity
from mlserve.cache.wiring import engine
from tests.fixtures.population import Answer, World

DIFFER = "embedding_builds_differ"


@contextmanager
def _rows(world: World, change: str, groups: Sequence[str]) -> Iterator[None]:
    """The embeddings of the world's customer and merchant changed by SQL, and put back with all copies dropped."""
    rows = FeatureRow.objects.filter(group__in=groups, entity_id__in=[world.customer, world.merchant])
    held = {row.pk: row.values for row in rows}
    with connection.cursor() as cursor:
        cursor.execute(
            f'UPDATE features_featurerow SET "values" = {change} WHERE "group" = ANY(%s) AND entity_id = ANY(%s)',
            ([*groups], [world.customer, world.merchant]),
        )
    try:
        yield
    finally:
        for (group, entity_id), values in held.items():
            FeatureRow.objects.filter(group=group, entity_id=entity_id).update(values=values)
        _drop(world, "customer", "merchant")


def _drop(world: World, *entities: str) -> None:
    for entity in entities:
        assert invalidate_entity(entity=entity, entity_id=world.customer if entity == "customer" else world.merchant)[
            "delivered"
        ]


def _warm(world: World) -> Answer:
    answer = world.score()
    world.settle()
    return answer


_NEXT_BUILD = '"values"[:16] || ("values"[17] + 1)'
_OF_AN_EARLIER_RELEASE = '"values"[:16]'


@pytest.mark.parametrize("in_batch", [False, True])
def test_an_old_copy_of_one_side_costs_one_score(world: World, monkeypatch: pytest.MonkeyPatch, in_batch: bool) -> None:
    """As after a build of which the merchant's copy was not dropped: it is read anew in the background."""
    monkeypatch.setattr(embedding_builds, "MIN_COPY_AGE_S", 0.0)
    affinity = _warm(world).values["affinity"]
    with _rows(world, _NEXT_BUILD, EMBEDDINGS):
        _drop(world, "customer")
        if in_batch:
            body = json.dumps({"transactions": [world.request()]})
            response = world.client.post("/v1/scores/batch", body, content_type="application/json")
            assert response.json()["results"][0]["answer"]["degraded_reasons"] == [DIFFER]
        else:
            assert world.score().body["degraded_reasons"] == [DIFFER]
        engine().refresher.flush()
        world.settle()
        after = world.score()
        assert after.body["degraded_reasons"] == []
        assert after.values["affinity"] == affinity != 0
        world.forget_l1()
        assert world.score().body["degraded_reasons"] == [], "L2 has the new one too"


def test_a_dry_run_reads_nothing_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves no trace: the next one finds the same copies."""
    monkeypatch.setattr(embedding_builds, "MIN_COPY_AGE_S", 0.0)
    _warm(world)
    with _rows(world, _NEXT_BUILD, EMBEDDINGS):
        _drop(world, "customer")
        for _ in range(2):
            dry = world.score(options="include=features&dry_run=true")
            assert dry.body["degraded_reasons"] == [DIFFER]
            engine().refresher.flush()


def test_a_source_of_two_builds_is_not_read_again_and_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read a moment ago is left alone, however many scores ask."""
    with _rows(world, _NEXT_BUILD, EMBEDDINGS[1:]):
        _drop(world, "customer", "merchant")
        refresh = Mock()
        monkeypatch.setattr(engine().refresher, "refresh", refresh)
        for _ in range(3):
            assert _warm(world).body["degraded_reasons"] == [DIFFER]
        asked = [key for call in refresh.call_args_list for key in call.args[0]]
        assert not [key for key in asked if key.group in EMBEDDINGS]


def test_rows_of_an_earlier_release_are_flagged_cached_and_shown(world: World) -> None:
    """They have no number: the default until the next build, from L2 as from PostgreSQL, and 0 where it is shown."""
    with _rows(world, _OF_AN_EARLIER_RELEASE, EMBEDDINGS):
        _drop(world, "customer", "merchant")
        cold = _warm(world)
        world.forget_l1()
        warm = world.score()
        assert cold.tiers["merchant_age_days"] == "l3"
        for answer in (cold, warm):
            assert answer.body["degraded_reasons"] == [DIFFER]
            assert (answer.values["affinity"], answer.tiers["affinity"]) == (0.0, "default")
        assert warm.tier("l3") is None, "what is in L2 is no damaged record"
        response = world.client.get(f"/v1/features/merchant/{world.merchant}")
        assert response.status_code == 200
        (shown,) = [group for group in response.json()["groups"] if group["group"] == "merchant_embedding"]
        assert shown["values"]["build"] == 0.0 and shown["values"]["e0"] != 0.0
        assert {copy["tier"] for copy in shown["copies"]} >= {"l2", "l3"}
