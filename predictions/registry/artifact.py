"""The served model: an ONNX artifact in an onnxruntime session, checked before it may score.

Scores are float32, as the artifact computes them, returned as Python floats without rounding. A session is
safe to share between threads, runs in the thread that calls it and starts none of its own, so it survives a fork.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from typing import ClassVar

import msgspec
import numpy as np
import onnxruntime

from features.compute import VectorPlan
from features.definitions import MODEL_FEATURES
from mlserve.errors import ErrorCode, MlserveError
from predictions.decisions import Thresholds
from predictions.missing import OnMissingSource

INPUT_NAME = "features"
SCORES_NAME = "probabilities"
"""The artifact's output [n, 2]: the probabilities of genuine and of fraud."""
MODEL_NAME_KEY = "model_name"
FEATURE_NAMES_KEY = "feature_names"
"""Keys of the artifact's metadata; the feature names are a JSON list."""
_HUGE = 1e9
"""Above every amount that the API takes."""


class ArtifactRefused(MlserveError):
    """A model version that cannot score: its bytes or its row are not what was registered, or make no sense to this
    release. The message names what differs and both values."""

    code: ClassVar[ErrorCode] = ErrorCode.MODEL_UNUSABLE
    retry_after_s: ClassVar[int | None] = 5


def artifact_digest(onnx_bytes: bytes) -> str:
    """SHA-256 of an artifact, in hex."""
    return sha256(onnx_bytes).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model version ready to score. Inputs are in the order of `feature_names`.

    `baseline` is each feature's median over the training rows. `activation_id` is None for a model that was loaded
    without being active.
    """

    activation_id: int | None
    model_version_id: int
    name: str
    version: int
    digest: str
    feature_names: tuple[str, ...]
    thresholds: Thresholds
    baseline: tuple[float, ...]
    on_missing_source: OnMissingSource
    session: onnxruntime.InferenceSession = field(repr=False, compare=False)

    def score_one(self, values: Sequence[float]) -> float:
        """The probability of fraud of one vector. Not a number where an input is not a number."""
        return self.session.run(_OUTPUTS, {INPUT_NAME: np.array((values,), np.float32)})[0].item(1)

    def score_many(self, rows: Sequence[Sequence[float]] | np.ndarray) -> list[float]:
        """The scores of many vectors in one run, in their order; an empty list for none.

        May differ from `score_one` in the last bits of a float32, because whole registers are computed at once.
        """
        if not len(rows):
            return []
        return run_session(self.session, np.asarray(rows, np.float32)).tolist()


_OUTPUTS = [SCORES_NAME]


def load_artifact(
    onnx_bytes: bytes,
    *,
    model_version_id: int,
    name: str,
    version: int,
    digest: str,
    feature_names: Sequence[str],
    thresholds: Thresholds,
    baseline: Sequence[float],
    on_missing_source: OnMissingSource = OnMissingSource.FOLLOW,
    activation_id: int | None = None,
) -> LoadedModel:
    """Opens an artifact. Raises ArtifactRefused unless digest, model name, feature list and width are as said, this
    release knows the features, and it scores the baseline and what nobody knows anything of."""
    found = artifact_digest(onnx_bytes)
    if found != digest:
        raise ArtifactRefused(f"model {name} {version}: the artifact's SHA-256 is {found}, registered was {digest}")
    check_row(name=name, version=version, feature_names=feature_names, baseline=baseline)
    session = open_session(onnx_bytes)
    _check_metadata(session, name=name, version=version, feature_names=feature_names)
    _check_scores(session, np.array(baseline, np.float32), name=name, version=version)
    _check_extremes(session, feature_names, name=name, version=version)
    return LoadedModel(
        activation_id=activation_id,
        model_version_id=model_version_id,
        name=name,
        version=version,
        digest=digest,
        feature_names=tuple(feature_names),
        thresholds=thresholds,
        baseline=tuple(baseline),
        on_missing_source=on_missing_source,
        session=session,
    )


def open_session(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    """A session that computes in the calling thread only. Raises ArtifactRefused for bytes that are no model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise ArtifactRefused(f"onnxruntime cannot open the artifact: {error}") from error


def run_session(session: onnxruntime.InferenceSession, rows: np.ndarray) -> np.ndarray:
    """The float32 scores [n] of float32 rows [n, k]."""
    scores: np.ndarray = session.run(_OUTPUTS, {INPUT_NAME: rows})[0][:, 1]
    return scores


def check_row(*, name: str, version: int, feature_names: Sequence[str], baseline: Sequence[float]) -> None:
    """Builds the plan of the version's vector. Raises ArtifactRefused where this release cannot, or the baseline is
    none."""
    if len(baseline) != len(feature_names):
        raise ArtifactRefused(
            f"model {name} {version}: {len(baseline)} baseline values for {len(feature_names)} features"
        )
    if not all(isinstance(value, float | int) and isfinite(value) for value in baseline):
        raise ArtifactRefused(f"model {name} {version}: the baseline {list(baseline)} has values that are no numbers")
    try:
        VectorPlan([str(feature) for feature in feature_names])
    except ValueError as error:
        raise ArtifactRefused(f"model {name} {version}: this release cannot derive its vector: {error}") from None


def _check_metadata(
    session: onnxruntime.InferenceSession, *, name: str, version: int, feature_names: Sequence[str]
) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get(MODEL_NAME_KEY) != name:
        raise ArtifactRefused(f"model {name} {version}: the artifact is of model {metadata.get(MODEL_NAME_KEY)!r}")
    try:
        inside = msgspec.json.decode(metadata.get(FEATURE_NAMES_KEY, "null"))
    except msgspec.MsgspecError as error:
        raise ArtifactRefused(f"model {name} {version}: the artifact's feature list is not JSON: {error}") from None
    if inside != list(feature_names):
        raise ArtifactRefused(
            f"model {name} {version}: the artifact takes {inside}, the model version says {list(feature_names)}"
        )
    inputs = [(each.name, each.shape) for each in session.get_inputs()]
    if [(input_name, len(shape), shape[-1:]) for input_name, shape in inputs] != [
        (INPUT_NAME, 2, [len(feature_names)])
    ]:
        raise ArtifactRefused(
            f"model {name} {version}: the artifact takes {inputs}, the model version has {len(feature_names)} inputs "
            f"in one table named {INPUT_NAME}"
        )


def _check_scores(session: onnxruntime.InferenceSession, baseline: np.ndarray, *, name: str, version: int) -> None:
    """Scores two rows, as a batch is scored. An artifact may open and give no score all the same."""
    try:
        found = session.run(_OUTPUTS, {INPUT_NAME: np.stack((baseline, baseline))})[0]
    except Exception as error:  # onnxruntime's errors have no common base
        raise ArtifactRefused(f"model {name} {version}: the artifact cannot be run: {error}") from error
    if not isinstance(found, np.ndarray) or found.shape != (2, 2) or found.dtype != np.float32:
        told = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ArtifactRefused(f"model {name} {version}: the artifact gives {told}, not float32 of shape (2, 2)")
    scores = found[:, 1]
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ArtifactRefused(f"model {name} {version}: the artifact scores its baseline {scores[0]}, no probability")


def _check_extremes(
    session: onnxruntime.InferenceSession, feature_names: Sequence[str], *, name: str, version: int
) -> None:
    """An artifact may score what is usual, and give no number for a customer whom nobody knows or a huge amount."""
    width = len(feature_names)
    rows = {
        "the definitions' defaults": [MODEL_FEATURES[feature].default for feature in feature_names],
        "zeros": [0.0] * width,
        f"{_HUGE:g} everywhere": [_HUGE] * width,
        f"{-_HUGE:g} everywhere": [-_HUGE] * width,
    }
    for row, score in zip(rows, run_session(session, np.array([*rows.values()], np.float32)), strict=True):
        if np.isnan(score):
            raise ArtifactRefused(f"model {name} {version}: the artifact gives no number for {row}")
