"""Which model serves where PostgreSQL cannot supply the one that is active: it is away, or what it stores is broken."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections

from features.definitions import BASELINE_FEATURES
from mlserve.cache.outcome import Degradation
from mlserve.errors import STATUS_OF
from mlserve.observability import metrics
from predictions.models import Activation, ModelArtifact, ModelVersion
from predictions.registry import active
from predictions.registry.active import (
    NoActiveModel,
    OtherModelServes,
    Standing,
    current_model,
    model_is_the_active_one,
    refresh,
    standing_of_model,
)
from predictions.registry.artifact import ArtifactRefused, artifact_digest
from predictions.registry.model_copy import MAX_ARTIFACTS, ModelCopy, _path_of
from predictions.registry.register import ActivationRefused, activate
from tests.console.records import make_model
from tests.fixtures.population import forget_copies
from tests.fixtures.servers import ServerHandle
from tests.fixtures.waiting import until
from tests.predictions.registry import examples

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    active.forget()
    forget_copies()
    yield
    active.forget()
    forget_copies()


def _serve(version: int) -> ModelVersion:
    """Activated, loaded, and kept on the disk."""
    model_version = make_model(version)
    activation = activate(model_version)
    current_model()
    refresh()
    until(lambda: (kept := ModelCopy().load()) is not None and kept.content.activation_id == activation.pk)
    return model_version


def _restart() -> None:
    """As a new process begins, on the same host."""
    active.forget()


def _mend(postgres: ServerHandle) -> None:
    postgres.start()
    connections.close_all()
    for one in connections.all():
        one.close_pool()  # type: ignore[attr-defined]


def _change_a_byte(version: ModelVersion) -> bytes:
    """Returns what was stored."""
    stored = ModelArtifact.objects.get(pk=version.pk)
    good = bytes(stored.onnx)
    stored.onnx = bytes([*good[:-1], good[-1] ^ 1])
    stored.save()
    return good


def _update(**changes: Any) -> Callable[[ModelVersion], object]:
    return lambda version: ModelVersion.objects.filter(pk=version.pk).update(**changes)


def _word_that_nobody_knows(version: ModelVersion) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE predictions_modelversion DROP CONSTRAINT model_version_on_missing_source")
    _update(on_missing_source="perhaps")(version)


@pytest.fixture
def _constraints() -> Iterator[None]:
    yield
    with connection.cursor() as cursor:
        cursor.execute("UPDATE predictions_modelversion SET on_missing_source = 'follow'")
        cursor.execute("ALTER TABLE predictions_modelversion DROP CONSTRAINT IF EXISTS model_version_on_missing_source")
        cursor.execute(
            "ALTER TABLE predictions_modelversion ADD CONSTRAINT model_version_on_missing_source "
            "CHECK (on_missing_source IN ('follow', 'default', 'fail'))"
        )


DAMAGE: dict[str, Callable[[ModelVersion], object]] = {
    "a changed byte": _change_a_byte,
    "no artifact": lambda version: ModelArtifact.objects.filter(pk=version.pk).delete(),
    "no bytes": lambda version: ModelArtifact.objects.filter(pk=version.pk).update(onnx=b""),
    "another digest": _update(digest="0" * 64),
    "an unknown feature": _update(feature_names=["of_an_older_release", *BASELINE_FEATURES[1:]]),
    "no features": _update(feature_names=[], feature_baseline=[]),
    "a short baseline": _update(feature_baseline=[1.0]),
    "a baseline that is no number": _update(feature_baseline=[math.nan] * len(BASELINE_FEATURES)),
    "thresholds out of order": _update(review_from=0.9),
    "a threshold that is no number": _update(decline_from=math.nan),
    "another name": _update(name="another"),
    "an unknown rule": _word_that_nobody_knows,
}
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


@damaged
@pytest.mark.usefixtures("_constraints")
def test_without_anything_else_it_is_a_503_that_may_pass(damage: Callable[[ModelVersion], object]) -> None:
    """One error with a code of its own and the time to come back, whatever is wrong with the version."""
    version = make_model(1)
    Activation.objects.create(model_version=version)
    damage(version)
    for _ in range(2):
        with pytest.raises(ArtifactRefused) as refused:
            current_model()
    assert STATUS_OF[refused.value.code] == 503 and refused.value.retry_after_s
    with pytest.raises(ActivationRefused):
        activate(ModelVersion.objects.get(pk=version.pk))


@damaged
@pytest.mark.usefixtures("_constraints")
def test_what_serves_goes_on_and_says_that_it_is_not_the_active_one(damage: Callable[[ModelVersion], object]) -> None:
    """In the process that had it, and in a new one by the copy on disk; flagged, in health and in the metric."""
    _serve(1)
    good, second = current_model(), make_model(2, seed=1)
    damage(second)
    Activation.objects.create(model_version=second)
    with pytest.raises(ArtifactRefused):
        refresh()
    assert current_model() is good
    _says_fallback()
    _restart()
    assert (current_model().version, current_model().activation_id) == (1, good.activation_id)
    _says_fallback()
    assert active._active.copied_at is not None


def _says_fallback() -> None:
    assert standing_of_model() is Standing.FALLBACK
    assert Standing.FALLBACK.degradation is Degradation.MODEL_FALLBACK
    with pytest.raises(OtherModelServes, match=r"refused: .*fraud 1 serves"):
        model_is_the_active_one()
    assert metrics.UNCONFIRMED.labels("model")._value.get() == 1


def test_the_very_same_bytes_on_the_disk_are_the_model() -> None:
    """Not flagged: PostgreSQL says which it is, and the digest that they are it. Health says what is stored is not."""
    version = _serve(1)
    good = _change_a_byte(version)
    refresh()
    assert model_is_the_active_one()
    _restart()
    assert current_model().version == 1
    assert standing_of_model() is Standing.ACTIVE
    with pytest.raises(OtherModelServes, match=r"fraud 1 serves, but what is stored .*SHA-256"):
        model_is_the_active_one()
    ModelArtifact.objects.filter(pk=version.pk).update(onnx=good)
    _forget_when_it_was_refused()
    refresh()
    assert model_is_the_active_one() == f"activation {current_model().activation_id}"


def _forget_when_it_was_refused() -> None:
    """As if the time to look again had come."""
    refusal = active._active.refusal
    assert refusal is not None
    active._active.refusal = refusal._replace(at=0.0)


def test_a_refused_artifact_is_not_read_again_and_again_but_once_it_is_repaired() -> None:
    """Every ten seconds: no restart is needed after a repair."""
    _serve(1)
    second = make_model(2, seed=1)
    good = _change_a_byte(second)
    Activation.objects.create(model_version=second)
    for _ in range(2):
        with pytest.raises(ArtifactRefused):
            refresh()
    ModelArtifact.objects.filter(pk=second.pk).update(onnx=good)
    with pytest.raises(ArtifactRefused):
        refresh()
    _forget_when_it_was_refused()
    refresh()
    assert current_model().version == 2
    assert standing_of_model() is Standing.ACTIVE
    assert model_is_the_active_one()


def test_a_rollback_ends_the_fallback() -> None:
    """Another activation, of the model that serves already, or the refused one taken back."""
    first = _serve(1)
    second = make_model(2, seed=1)
    _change_a_byte(second)
    refused = Activation.objects.create(model_version=second)
    with pytest.raises(ArtifactRefused):
        refresh()
    refused.delete()
    refresh()
    assert standing_of_model() is Standing.ACTIVE and model_is_the_active_one()
    Activation.objects.create(model_version=second)
    with pytest.raises(ArtifactRefused):
        refresh()
    activate(first)
    refresh()
    assert standing_of_model() is Standing.ACTIVE and model_is_the_active_one()


def test_a_rule_that_nobody_knows_leaves_the_one_before(_constraints: None) -> None:
    """In the process that serves."""
    version = _serve(1)
    _word_that_nobody_knows(version)
    with pytest.raises(ArtifactRefused, match="perhaps"):
        refresh()
    assert current_model().on_missing_source == "follow"
    _update(on_missing_source="fail")(version)
    refresh()
    assert current_model().on_missing_source == "fail"
    assert standing_of_model() is Standing.ACTIVE


def test_postgres_away_at_the_start_is_the_copy_until_it_answers(postgres: ServerHandle) -> None:
    """The same model in every respect, with its rule; no further load when it is confirmed."""
    version = _serve(1)
    _update(on_missing_source="fail")(version)
    refresh()
    served = current_model()
    until(lambda: (kept := ModelCopy().load()) is not None and kept.content.on_missing_source == "fail")
    _restart()
    postgres.kill()
    try:
        copied = current_model()
        assert copied == served
        assert standing_of_model() is Standing.UNCONFIRMED
        with pytest.raises(OtherModelServes, match=r"PostgreSQL has not answered: fraud 1 serves.* copy of 20"):
            model_is_the_active_one()
    finally:
        _mend(postgres)
    until(lambda: standing_of_model() is Standing.ACTIVE)
    assert current_model() is copied
    assert model_is_the_active_one()


@pytest.mark.parametrize("harm", ["no manifest", "no artifact", "a changed byte", "a manifest of another release"])
def test_a_copy_that_cannot_be_used_is_none(postgres: ServerHandle, harm: str) -> None:
    """The error is that of PostgreSQL, as without a copy."""
    version = _serve(1)
    _restart()
    artifact = _path_of(version.digest)
    if harm == "no manifest":
        ModelCopy().discard()
    elif harm == "no artifact":
        artifact.unlink()
    elif harm == "a changed byte":
        artifact.write_bytes(artifact.read_bytes()[:-1] + b"\0")
    else:
        manifest = ModelCopy()._manifest
        kept = manifest.read()
        manifest._schema += 1
        manifest.save(kept.content, confirmed_at=kept.confirmed_at + 1)
    postgres.kill()
    try:
        with pytest.raises(DatabaseError):
            current_model()
    finally:
        _mend(postgres)
    until(lambda: active._active.model is not None)
    assert standing_of_model() is Standing.ACTIVE
    until(lambda: ModelCopy().load() is not None)  # and is whole again


def test_postgres_decides_over_the_copy() -> None:
    """An older activation after a restore; another model under the same number; none at all."""
    first = _serve(1)
    _serve(2)
    newer = Activation.objects.first()
    assert newer is not None
    Activation.objects.filter(pk=newer.pk).delete()
    refresh()
    assert (current_model().version, standing_of_model()) == (1, Standing.ACTIVE)
    third = make_model(3)
    Activation.objects.filter(model_version=first).update(model_version=third)
    refresh()
    assert current_model().version == 3
    Activation.objects.all().delete()
    with pytest.raises(NoActiveModel):
        refresh()
    until(lambda: ModelCopy().load() is None)


def test_only_the_newest_artifacts_are_kept() -> None:
    """The folder does not grow with every model."""
    copy = ModelCopy()
    for number in range(MAX_ARTIFACTS + 2):
        onnx = examples.onnx_of() + b"\0" * number  # never opened: only kept
        loaded = examples.loaded()
        assert copy.save(
            replace(loaded, activation_id=1, digest=artifact_digest(onnx)), onnx, confirmed_at=1e9 + number
        )
    kept = [path.stem for path in _path_of("any").parent.glob("*.onnx")]
    assert len(kept) == MAX_ARTIFACTS and artifact_digest(onnx) in kept


def test_an_artifact_that_somebody_deleted_is_written_again() -> None:
    """By a process that has long loaded its model."""
    version = _serve(1)
    _path_of(version.digest).unlink()
    until(lambda: ModelCopy().load() is not None)
