"""Which model serves: known in every process within a second, without asking Postgres on the request path.

The newest `Activation` says it. A poller asks for its id, loads what is new and puts it in place by one assignment, so
that a request scores with one model from beginning to end. The one thing of a model that operators may change, its rule
for a missing source, comes the same way.

Two things can keep a process from the model that is active. Postgres may be away: what serves goes on, and a process
that has just started takes the copy on this host's disk (`model_copy.py`), unconfirmed until Postgres answers. Or what
Postgres stores of the version cannot be loaded: then the host's copy of the very same bytes is as good; without it the
model that served goes on, or the one on the disk, as a fallback. Either is said in every score (`standing`).
"""

from dataclasses import replace
from enum import Enum
from typing import ClassVar, NamedTuple

import structlog
from django.db import DatabaseError, InterfaceError

from mlserve.cache.clock import SystemClock
from mlserve.cache.outcome import Degradation
from mlserve.errors import ErrorCode, MlserveError
from mlserve.local_copy import moment
from mlserve.observability import metrics
from mlserve.poller import Poller
from predictions.decisions import Thresholds
from predictions.missing import OnMissingSource
from predictions.models import Activation, ModelArtifact, ModelVersion
from predictions.registry.artifact import ArtifactRefused, LoadedModel, artifact_digest, check_row, load_artifact
from predictions.registry.model_copy import ModelCopy

POLL_INTERVAL_S = 0.5
REFUSED_RETRY_S = 10.0
"""How often an activation that was refused is looked at again: somebody may have repaired the artifact."""
_log = structlog.get_logger(__name__)


class NoActiveModel(MlserveError):
    """No model version has ever been activated here."""

    code: ClassVar[ErrorCode] = ErrorCode.NO_ACTIVE_MODEL
    retry_after_s: ClassVar[int | None] = 5

    def __init__(self) -> None:
        super().__init__("no model is active: run `manage.py train`, or `manage.py model activate VERSION`")


class OtherModelServes(MlserveError):
    """What serves in this process is not, or not known to be, the model that is active. The message says why."""

    code: ClassVar[ErrorCode] = ErrorCode.MODEL_UNUSABLE


class Standing(Enum):
    """How the model that serves in this process relates to the one that is active."""

    ACTIVE = "active"
    UNCONFIRMED = "unconfirmed"
    """Postgres has not answered since this process began; the model served on this host when it last did."""
    FALLBACK = "fallback"
    """What is active cannot be loaded; this one served before."""

    @property
    def degradation(self) -> Degradation | None:
        """What a score by such a model must say."""
        return _DEGRADATIONS.get(self)


_DEGRADATIONS = {
    Standing.UNCONFIRMED: Degradation.MODEL_UNCONFIRMED,
    Standing.FALLBACK: Degradation.MODEL_FALLBACK,
}


class _Said(NamedTuple):
    """What Postgres says to be active: enough to see whether it is what serves."""

    activation_id: int
    model_version_id: int
    name: str
    version: int
    digest: str
    review_from: float
    decline_from: float
    on_missing_source: str

    def is_of(self, model: LoadedModel) -> bool:
        """After a restore one activation's number may stand for another model."""
        return self[:7] == (
            model.activation_id,
            model.model_version_id,
            model.name,
            model.version,
            model.digest,
            model.thresholds.review_from,
            model.thresholds.decline_from,
        )


_COLUMNS = (
    "id",
    *(
        f"model_version__{name}"
        for name in ("id", "name", "version", "digest", "review_from", "decline_from", "on_missing_source")
    ),
)


class _Refusal(NamedTuple):
    """That what Postgres stores of the active model version was refused, and when it was looked at."""

    said: _Said
    error: ArtifactRefused
    at: float

    def is_due(self, now: float) -> bool:
        return not self.at <= now < self.at + REFUSED_RETRY_S


class _Active:
    """The model of this process and the poller that keeps it current."""

    def __init__(self) -> None:
        self.model: LoadedModel | None = None
        self.standing = Standing.ACTIVE
        self.copied_at: float | None = None
        """Until when the model was confirmed that the copy has brought."""
        self.refusal: _Refusal | None = None
        self.poller = Poller("active-model", POLL_INTERVAL_S, self._poll, then=self._keep)
        self._copy = ModelCopy()
        self._onnx: bytes | None = None
        self._artifact_wanted = False
        self._none_is_active = False
        self._confirmed_at = 0.0

    def _poll(self) -> None:
        asked_at = SystemClock.now()
        try:
            row = Activation.objects.values_list(*_COLUMNS).first()
            self._none_is_active = row is None
            if row is None:
                self.model, self.refusal = None, None
                raise NoActiveModel
            self._follow(_Said(*row), asked_at)
        except (DatabaseError, InterfaceError):
            if self.model is None:
                self._take_copy(Standing.UNCONFIRMED)
            raise
        except ArtifactRefused:
            if self.model is None:
                self._take_copy(Standing.FALLBACK)
            else:
                self._stand(Standing.FALLBACK)
            raise
        self._stand(Standing.ACTIVE)
        self._confirmed_at = asked_at

    def _follow(self, said: _Said, asked_at: float) -> None:
        """Raises ArtifactRefused where what is active cannot serve."""
        if self.refusal is not None and self.refusal.said != said:
            self.refusal = None
        model = self.model
        if model is None or not said.is_of(model):
            self._load(said, asked_at)
            return
        if model.on_missing_source != said.on_missing_source:
            self.model = replace(model, on_missing_source=_rule(said.on_missing_source, model))
        if self._artifact_wanted or (self.refusal is not None and self.refusal.is_due(asked_at)):
            self._look_at_what_is_stored(said, asked_at)

    def _load(self, said: _Said, asked_at: float) -> None:
        """Puts what Postgres stores in place, or what this host has of the very same bytes."""
        if self.refusal is not None and not self.refusal.is_due(asked_at):
            raise self.refusal.error.with_traceback(None)
        version = ModelVersion.objects.get(pk=said.model_version_id)
        refusal = None
        try:
            onnx_bytes = _stored_bytes(version.pk)
            loaded = _open(version, onnx_bytes, activation_id=said.activation_id)
        except ArtifactRefused as refused:
            self.refusal = refusal = _Refusal(said, refused, asked_at)
            copied = self._copy.artifact(said.digest)
            if copied is None:
                raise
            onnx_bytes = copied
            loaded = _open(version, copied, activation_id=said.activation_id)
            _log.error("stored_artifact_refused", model=str(version), error=refused.detail, serves="the copy on disk")
        self.model, self.refusal, self._onnx = loaded, refusal, onnx_bytes

    def _look_at_what_is_stored(self, said: _Said, asked_at: float) -> None:
        """For the copy, which lacks it, or because it was refused and may have been repaired."""
        self._artifact_wanted = False
        try:
            onnx_bytes = _stored_bytes(said.model_version_id)
            if artifact_digest(onnx_bytes) != said.digest:
                raise ArtifactRefused(f"model {said.name} {said.version}: the artifact's SHA-256 is not {said.digest}")
        except ArtifactRefused as refused:
            self.refusal = _Refusal(said, refused, asked_at)
        else:
            self.refusal, self._onnx = None, onnx_bytes

    def _take_copy(self, standing: Standing) -> None:
        kept = self._copy.load()
        if kept is not None:
            self.copied_at = kept.confirmed_at
            self._stand(standing)
            self.model = kept.content
            _log.warning(
                "model_from_disk",
                model=f"{kept.content.name} {kept.content.version}",
                standing=standing.value,
                confirmed_at=moment(kept.confirmed_at),
            )

    def _stand(self, standing: Standing) -> None:
        self.standing = standing
        metrics.UNCONFIRMED.labels("model").set(standing is not Standing.ACTIVE)

    def _keep(self) -> None:
        if self._none_is_active:
            self._copy.discard()
        elif self.model is not None and self.standing is Standing.ACTIVE and self._confirmed_at:
            self._artifact_wanted = not self._copy.save(self.model, self._onnx, confirmed_at=self._confirmed_at)
            self._onnx = None


_active = _Active()


def current_model() -> LoadedModel:
    """The model that serves in this process. An activation is seen within `POLL_INTERVAL_S` and the time to load it.

    Only the first callers of a process wait for Postgres, together; later ones read a variable. With Postgres away, or
    an artifact that is refused, the last one goes on serving, or the copy on disk (`standing_of_model`). Without any
    raises NoActiveModel, ArtifactRefused, or Django's database errors where Postgres does not answer.
    """
    active = _active
    active.poller.ensure_started()
    if active.model is None:
        try:
            if isinstance(active.poller.error, NoActiveModel):
                active.poller.poll_now()
            else:
                active.poller.poll_first()
        except (MlserveError, DatabaseError, InterfaceError):
            if active.model is None:
                raise
    model = active.model
    if model is None:
        raise NoActiveModel
    return model


def standing_of_model() -> Standing:
    """Of the model that `current_model` returns. Reads a variable."""
    return _active.standing


def model_is_the_active_one() -> str:
    """For `/healthz/ready`. Raises OtherModelServes, and what `current_model` raises."""
    model, active = current_model(), _active
    serving, refusal = f"{model.name} {model.version}", active.refusal
    copied = "" if active.copied_at is None else f", this host's copy of {moment(active.copied_at)}"
    if active.standing is Standing.UNCONFIRMED:
        raise OtherModelServes(f"PostgreSQL has not answered: {serving} serves{copied}")
    if active.standing is Standing.FALLBACK:
        why = f": {refusal.error.detail}" if refusal is not None else ""
        raise OtherModelServes(f"the model version that is active is refused{why}; {serving} serves{copied}")
    if refusal is not None:
        raise OtherModelServes(f"{serving} serves, but what is stored of it is refused: {refusal.error.detail}")
    return f"activation {model.activation_id}"


def start_polling() -> None:
    """Does not wait."""
    _active.poller.ensure_started()


def refresh() -> None:
    """Looks now instead of at the next poll. Raises NoActiveModel, ArtifactRefused or Django's database errors."""
    _active.poller.poll_now()


def forget() -> None:
    """Stops polling and drops the model; the next `current_model` begins anew."""
    global _active
    _active.poller.stop()
    _active = _Active()


def load_model_version(model_version: ModelVersion, *, activation_id: int | None = None) -> LoadedModel:
    """A registered model version, ready to score, from what Postgres stores. Raises ArtifactRefused."""
    return _open(model_version, _stored_bytes(model_version.pk), activation_id=activation_id)


def check_version(model_version: ModelVersion) -> None:
    """Whether this release understands the version's row. Reads no artifact. Raises ArtifactRefused."""
    _ruled(model_version)
    check_row(
        name=model_version.name,
        version=model_version.version,
        feature_names=model_version.feature_names,
        baseline=model_version.feature_baseline,
    )


def _ruled(model_version: ModelVersion) -> tuple[Thresholds, OnMissingSource]:
    try:
        thresholds = Thresholds(review_from=model_version.review_from, decline_from=model_version.decline_from)
        return thresholds, OnMissingSource(model_version.on_missing_source)
    except ValueError as error:
        raise ArtifactRefused(f"model {model_version}: {error}") from None


def _open(model_version: ModelVersion, onnx_bytes: bytes, *, activation_id: int | None) -> LoadedModel:
    thresholds, rule = _ruled(model_version)
    return load_artifact(
        onnx_bytes,
        activation_id=activation_id,
        model_version_id=model_version.pk,
        name=model_version.name,
        version=model_version.version,
        digest=model_version.digest,
        feature_names=model_version.feature_names,
        thresholds=thresholds,
        baseline=model_version.feature_baseline,
        on_missing_source=rule,
    )


def _stored_bytes(model_version_id: int) -> bytes:
    stored = ModelArtifact.objects.filter(pk=model_version_id).values_list("onnx", flat=True).first()
    if stored is None:
        raise ArtifactRefused(f"the artifact of model version {model_version_id} is not there any more")
    return bytes(stored)


def _rule(word: str, model: LoadedModel) -> OnMissingSource:
    try:
        return OnMissingSource(word)
    except ValueError as error:
        raise ArtifactRefused(f"model {model.name} {model.version}: {error}") from None
