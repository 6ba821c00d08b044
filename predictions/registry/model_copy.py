"""The model that served last, on this host's disk: what a process needs of it while PostgreSQL cannot supply it.

Two parts: a manifest (a `LocalCopy`, signed) that says which model it is and how it decides, and its artifact in a file
that is named by its digest. The artifact is written first; the manifest vouches for its bytes.
"""

import os
from pathlib import Path

import msgspec
import structlog

from mlserve.local_copy import Kept, LocalCopy, Unusable, folder, read_bounded, write_atomically
from mlserve.observability import metrics
from predictions.decisions import Thresholds
from predictions.missing import OnMissingSource
from predictions.registry.artifact import ArtifactRefused, LoadedModel, artifact_digest, load_artifact

MAX_ARTIFACT_BYTES = 512 * 1024 * 1024
MAX_ARTIFACTS = 3
"""Files that are kept, the newest: a process that has not seen an activation yet may still write the one before."""
_SCHEMA = 1
_log = structlog.get_logger(__name__)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a `LoadedModel` but its session."""

    activation_id: int
    model_version_id: int
    name: str
    version: int
    digest: str
    feature_names: tuple[str, ...]
    review_from: float
    decline_from: float
    baseline: tuple[float, ...]
    on_missing_source: str


class ModelCopy:
    """Of this host. Nothing raises but `read`. For one thread at a time."""

    def __init__(self) -> None:
        self._manifest: LocalCopy[Manifest] = LocalCopy("model", Manifest, schema=_SCHEMA)
        self._problem: str | None = None
        self._kept: Path | None = None
        """The artifact that this process has compared with its digest."""

    def save(self, model: LoadedModel, onnx_bytes: bytes | None, *, confirmed_at: float) -> bool:
        """Keep the model that PostgreSQL said at `confirmed_at` to be active. False if its artifact is wanted: it is
        not there and was not given."""
        assert model.activation_id is not None, "what was not active does not serve"
        manifest = Manifest(
            activation_id=model.activation_id,
            model_version_id=model.model_version_id,
            name=model.name,
            version=model.version,
            digest=model.digest,
            feature_names=model.feature_names,
            review_from=model.thresholds.review_from,
            decline_from=model.thresholds.decline_from,
            baseline=model.baseline,
            on_missing_source=model.on_missing_source.value,
        )
        try:
            if not self._keep_artifact(model.digest, onnx_bytes):
                return False
            if self._manifest.save(manifest, confirmed_at=confirmed_at):
                self._remove_old_artifacts(keep=model.digest)
        except OSError as error:
            self._note("save_failed", f"{error.filename or folder()}: {error.strerror}")
        return True

    def load(self) -> Kept[LoadedModel] | None:
        """The model that was kept last, ready to score; None if there is none that can be believed, and counted."""
        kept = self._manifest.load()
        if kept is None:
            return None
        try:
            return Kept(_loaded(kept.content), kept.confirmed_at)
        except (OSError, Unusable, ArtifactRefused) as error:
            self._note("refused", str(error))
            return None

    def read(self) -> Kept[LoadedModel]:
        """The same for whoever wants to know why not. Raises Unusable, ArtifactRefused or OSError."""
        kept = self._manifest.read()
        return Kept(_loaded(kept.content), kept.confirmed_at)

    def artifact(self, digest: str) -> bytes | None:
        """The bytes with this digest, if this host has them."""
        try:
            found = read_bounded(_path_of(digest), MAX_ARTIFACT_BYTES)
        except (OSError, Unusable, ValueError):  # ValueError: a digest that makes no path
            return None
        return found if artifact_digest(found) == digest else None

    def discard(self) -> None:
        """PostgreSQL says that no model is active."""
        self._manifest.discard()

    def _keep_artifact(self, digest: str, onnx_bytes: bytes | None) -> bool:
        path = _path_of(digest)
        if self._kept == path and path.exists():
            return True
        if self.artifact(digest) is None:
            if onnx_bytes is None:
                return False
            write_atomically(path, onnx_bytes)
        os.utime(path)  # the newest are kept
        self._kept = path
        return True

    def _remove_old_artifacts(self, *, keep: str) -> None:
        others = [path for path in _path_of(keep).parent.glob("*.onnx") if path.stem != keep]
        others.sort(key=lambda path: -path.stat().st_mtime)
        for path in others[MAX_ARTIFACTS - 1 :]:
            path.unlink(missing_ok=True)

    def _note(self, outcome: str, problem: str) -> None:
        metrics.LOCAL_COPIES.labels("artifact", outcome).inc()
        before, self._problem = self._problem, problem
        if problem != before:
            _log.warning("local_copy_failed", copy="artifact", outcome=outcome, error=problem)


def _path_of(digest: str) -> Path:
    return folder() / "artifacts" / f"{digest}.onnx"


def _loaded(manifest: Manifest) -> LoadedModel:
    onnx_bytes = read_bounded(_path_of(manifest.digest), MAX_ARTIFACT_BYTES)
    try:
        thresholds = Thresholds(review_from=manifest.review_from, decline_from=manifest.decline_from)
        rule = OnMissingSource(manifest.on_missing_source)
    except ValueError as error:
        raise Unusable(f"the copy of model {manifest.name} {manifest.version}: {error}") from None
    return load_artifact(
        onnx_bytes,
        activation_id=manifest.activation_id,
        model_version_id=manifest.model_version_id,
        name=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        feature_names=manifest.feature_names,
        thresholds=thresholds,
        baseline=manifest.baseline,
        on_missing_source=rule,
    )
