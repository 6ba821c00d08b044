"""Which model serves: known in every process within a second, without asking Postgres on the request path.

The newest `Activation` says it. A poller asks for its id, loads what is new and puts it in place by one assignment, so
that a request scores with one model from beginning to end. The one thing of a model that operators may change, its rule
for a missing source, comes the same way.
"""

from dataclasses import replace
from typing import ClassVar

from mlserve.errors import ErrorCode, MlserveError
from mlserve.poller import Poller
from predictions.decisions import Thresholds
from predictions.missing import OnMissingSource
from predictions.models import Activation, ModelVersion
from predictions.registry.artifact import ArtifactRefused, LoadedModel, load_artifact

POLL_INTERVAL_S = 0.5


class NoActiveModel(MlserveError):
    """No model version has ever been activated here."""

    code: ClassVar[ErrorCode] = ErrorCode.NO_ACTIVE_MODEL
    retry_after_s: ClassVar[int | None] = 5

    def __init__(self) -> None:
        super().__init__("no model is active: run `manage.py train`, or `manage.py model activate VERSION`")


class _Active:
    """The model of this process and the poller that keeps it current."""

    def __init__(self) -> None:
        self.model: LoadedModel | None = None
        self.poller = Poller("active-model", POLL_INTERVAL_S, self._poll)
        self._refused: tuple[tuple[int, int, str], ArtifactRefused] | None = None

    def _poll(self) -> None:
        found = Activation.objects.values_list(
            "id", "model_version_id", "model_version__digest", "model_version__on_missing_source"
        ).first()
        if found is None:
            self.model = None
            raise NoActiveModel
        # Not the number alone: in a database that was restored it may stand for another model.
        activation_id, model_version_id, digest, rule = found
        newest = (activation_id, model_version_id, digest)
        if self.model is not None and _identity(self.model) == newest:
            if self.model.on_missing_source != rule:
                self.model = replace(self.model, on_missing_source=OnMissingSource(rule))
            return
        if self._refused is not None and self._refused[0] == newest:  # artifacts never change: no use reading it again
            raise self._refused[1]
        activation = Activation.objects.select_related("model_version__artifact").get(pk=activation_id)
        try:
            self.model = load_model_version(activation.model_version, activation_id=activation_id)
        except ArtifactRefused as refused:
            self._refused = (newest, refused)
            raise


def _identity(model: LoadedModel) -> tuple[int | None, int, str]:
    return model.activation_id, model.model_version_id, model.digest


_active = _Active()


def current_model() -> LoadedModel:
    """The model that serves in this process. An activation is seen within `POLL_INTERVAL_S` and the time to load it.

    The first call of a process loads it and waits for Postgres; later ones read a variable. With Postgres away, or an
    artifact that is refused, the last one goes on serving. Without one raises NoActiveModel, ArtifactRefused, or
    Django's OperationalError where Postgres does not answer; only the first callers wait to find that out.
    """
    active = _active
    active.poller.ensure_started()
    model = active.model
    if model is not None:
        return model
    failure = active.poller.error
    if failure is not None and not isinstance(failure, NoActiveModel):
        raise failure.with_traceback(None)  # the poller tries on; a queue of requests would wait one time-out each
    active.poller.poll_now()
    if active.model is None:
        raise NoActiveModel
    return active.model


def refresh() -> None:
    """Looks now instead of at the next poll. Raises NoActiveModel, ArtifactRefused or Django's OperationalError."""
    _active.poller.poll_now()


def forget() -> None:
    """Stops polling and drops the model; the next `current_model` begins anew."""
    global _active
    _active.poller.stop()
    _active = _Active()


def load_model_version(model_version: ModelVersion, *, activation_id: int | None = None) -> LoadedModel:
    """A registered model version, ready to score. Raises ArtifactRefused."""
    return load_artifact(
        bytes(model_version.artifact.onnx),
        activation_id=activation_id,
        model_version_id=model_version.pk,
        name=model_version.name,
        version=model_version.version,
        digest=model_version.digest,
        feature_names=model_version.feature_names,
        thresholds=Thresholds(review_from=model_version.review_from, decline_from=model_version.decline_from),
        baseline=model_version.feature_baseline,
        on_missing_source=OnMissingSource(model_version.on_missing_source),
    )
