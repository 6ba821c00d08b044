"""A trained estimator as files: ONNX, which serves, and skops, from which scikit-learn can read it again.

Neither runs code when it is read, as a pickle would. skl2onnx is needed here and nowhere else.
"""

from copy import deepcopy

import msgspec
import numpy as np
import skops.io
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline

from predictions.registry.artifact import FEATURE_NAMES_KEY, INPUT_NAME, MODEL_NAME_KEY, SCORES_NAME
from predictions.registry.estimators import Estimator

_TARGET_OPSET = {"": 18, "ai.onnx.ml": 3}
"""What every onnxruntime that `pyproject.toml` allows can run."""


def export_onnx(estimator: Estimator, *, model_name: str, feature_names: tuple[str, ...]) -> bytes:
    """The estimator as ONNX: float32 [n, k] in, probabilities [n, 2] out, names in the metadata.

    The same estimator gives the same bytes. The conversion can be silently wrong: see `parity.py`.
    """
    estimator = _with_splits_of_float32(estimator)
    model = to_onnx(
        estimator,
        initial_types=[(INPUT_NAME, FloatTensorType([None, len(feature_names)]))],
        final_types=None,
        options={id(estimator): {"zipmap": False}},
        target_opset=_TARGET_OPSET,
        name=model_name,
    )
    model = select_model_inputs_outputs(model, outputs=[SCORES_NAME])
    for key, value in (
        (MODEL_NAME_KEY, model_name),
        (FEATURE_NAMES_KEY, msgspec.json.encode(feature_names).decode()),
    ):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(model.SerializeToString(deterministic=True))


def export_skops(estimator: Estimator) -> bytes:
    """The estimator as a skops archive. Tree models are read back only with their node type named as trusted."""
    return bytes(skops.io.dumps(estimator))


def _with_splits_of_float32(estimator: Estimator) -> Estimator:
    """The same decisions on every float32 input, from splits that ONNX can hold; the estimator itself stays as it is.

    Boosted trees split in float64, half way between two training values. Between neighbouring float32 values the
    nearest float32 may be the upper of the two, and its rows would go the other way. The next float32 below never is:
    `x <= split` holds for the same x. The converter does so itself for the other kinds of trees.
    """
    final = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(final, HistGradientBoostingClassifier):
        return estimator
    copied = deepcopy(estimator)
    final = copied.steps[-1][1] if isinstance(copied, Pipeline) else copied
    for trees in final._predictors:
        for tree in trees:
            tree.nodes["num_threshold"] = _float32_not_above(tree.nodes["num_threshold"])
    return copied


def _float32_not_above(values: np.ndarray) -> np.ndarray:
    nearest = values.astype(np.float32)
    return np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)
