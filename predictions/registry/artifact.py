"""The served model: an ONNX artifact in an onnxruntime session, checked before it may score.

Scores are float32, as the artifact computes them, returned as Python floats without rounding. A session is
safe to share between threads, runs in the thread that calls it and starts none of its own, so it survives a fork.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
import numpy as np
import onnxruntime

from mlserve.errors import MlserveError
from predictions.decisions import Thresholds

INPUT_NAME = "features"
SCORES_NAME = "probabilities"
"""The artifact's output [n, 2]: the probabilities of genuine and of fraud."""
MODEL_NAME_KEY = "model_name"
FEATURE_NAMES_KEY = "feature_names"
"""Keys of the artifact's metadata; the feature names are a JSON list."""


class ArtifactRefused(MlserveError):
    """The bytes are not what the model version says. The message names what differs and both values."""


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
    activation_id: int | None = None,
) -> LoadedModel:
    """Opens an artifact. Raises ArtifactRefused unless digest, model name, feature list and width are as said."""
    found = artifact_digest(onnx_bytes)
    if found != digest:
        raise ArtifactRefused(f"model {name} {version}: the artifact's SHA-256 is {found}, registered was {digest}")
    if len(baseline) != len(feature_names):
        raise ArtifactRefused(
            f"model {name} {version}: {len(baseline)} baseline values for {len(feature_names)} features"
        )
    session = open_session(onnx_bytes)
    _check_metadata(session, name=name, version=version, feature_names=feature_names)
    return LoadedModel(
        activation_id=activation_id,
        model_version_id=model_version_id,
        name=name,
        version=version,
        digest=digest,
        feature_names=tuple(feature_names),
        thresholds=thresholds,
        baseline=tuple(baseline),
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


def _check_metadata(
    session: onnxruntime.InferenceSession, *, name: str, version: int, feature_names: Sequence[str]
) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get(MODEL_NAME_KEY) != name:
        raise ArtifactRefused(f"model {name} {version}: the artifact is of model {metadata.get(MODEL_NAME_KEY)!r}")
    inside = msgspec.json.decode(metadata.get(FEATURE_NAMES_KEY, "null"))
    if inside != list(feature_names):
        raise ArtifactRefused(
            f"model {name} {version}: the artifact takes {inside}, the model version says {list(feature_names)}"
        )
    width = session.get_inputs()[0].shape[1]
    if width != len(feature_names):
        raise ArtifactRefused(
            f"model {name} {version}: the artifact takes {width} inputs, the model version has {len(feature_names)}"
        )
