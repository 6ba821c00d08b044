"""A byte of the stored artifact is changed, over HTTP."""

import json
from collections.abc import Iterator

import pytest

from predictions.models import ModelArtifact
from predictions.registry import active
from predictions.registry.model_copy import ModelCopy
from tests.fixtures.population import World, forget_copies
from tests.fixtures.waiting import until


@pytest.fixture
def changed(world: World) -> Iterator[World]:
    """The process has its model, and its host a copy."""
    world.score()
    until(lambda: ModelCopy().load() is not None)
    stored = ModelArtifact.objects.get(pk=active.current_model().model_version_id)
    good = bytes(stored.onnx)
    ModelArtifact.objects.filter(pk=stored.pk).update(onnx=good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    yield world
    ModelArtifact.objects.filter(pk=stored.pk).update(onnx=good)


def test_what_serves_goes_on_and_a_new_process_takes_the_copy_of_the_same_bytes(changed: World) -> None:
    """Neither is degraded: it is the model that is active."""
    active.refresh()
    assert changed.score().body["degraded_reasons"] == []
    active.forget()
    assert changed.score().body["degraded_reasons"] == []
    ready = changed.client.get("/healthz/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert "SHA-256" in ready.json()["checks"]["activation"]["detail"]


def test_without_a_copy_it_is_a_503_with_the_time_to_come_back(changed: World) -> None:
    """Single, batch and health; nothing is decided."""
    active.forget()
    forget_copies()
    for _ in range(2):
        refused = changed.score()
        assert (refused.status, refused.body["code"]) == (503, "model_unusable")
        assert int(refused.headers["Retry-After"]) > 0
    batch = json.dumps({"transactions": [changed.request()]})
    answer = changed.client.post("/v1/scores/batch", batch, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_unusable")
    assert int(answer.headers["Retry-After"]) > 0
    ready = changed.client.get("/healthz/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
