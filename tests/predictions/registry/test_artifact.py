"""The served model: right scores, and no scores from wrong bytes."""

import json
import os
import threading
from typing import Any

import numpy as np
import onnx
import pytest

from features.definitions import ALL_FEATURES, BASELINE_FEATURES
from predictions.registry.artifact import ArtifactRefused, artifact_digest, load_artifact
from predictions.registry.estimators import EstimatorKind
from tests.predictions.registry import examples


def _load(onnx_bytes: bytes, **changes: Any) -> None:
    said: dict[str, Any] = {
        "model_version_id": 1,
        "name": "fraud",
        "version": 1,
        "digest": artifact_digest(onnx_bytes),
        "feature_names": BASELINE_FEATURES,
        "thresholds": examples.THRESHOLDS,
        "baseline": (0.0,) * len(BASELINE_FEATURES),
    }
    load_artifact(onnx_bytes, **(said | changes))


@pytest.mark.parametrize("kind", list(EstimatorKind))
def test_one_by_one_and_together_the_scores_are_the_same(kind: EstimatorKind) -> None:
    """A batch scores every row as it would be scored alone and as scikit-learn does, to 1e-6."""
    model = examples.loaded(kind)
    rows = examples.rows().X[:200]
    together = model.score_many([tuple(row) for row in rows.tolist()])
    assert together == pytest.approx([model.score_one(tuple(row)) for row in rows.tolist()], abs=1e-6)
    assert together == pytest.approx(examples.estimator(kind).predict_proba(rows)[:, 1], abs=1e-6)


def test_no_rows_give_no_scores() -> None:
    """An empty batch is not an error."""
    assert examples.loaded().score_many([]) == []


def test_scores_are_plain_floats_of_float32_precision() -> None:
    """A score survives JSON and Redis without a change of its bits."""
    score = examples.loaded().score_one(tuple(examples.rows().X[0].tolist()))
    assert type(score) is float
    assert float(np.float32(score)) == score


def test_changed_bytes_are_refused() -> None:
    """One flipped bit is enough; the message shows both digests."""
    good = examples.onnx_of()
    bad = bytes([*good[:-1], good[-1] ^ 1])
    with pytest.raises(ArtifactRefused, match=artifact_digest(bad)) as caught:
        _load(bad, digest=artifact_digest(good))
    assert artifact_digest(good) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "of model 'fraud'"),
        ({"feature_names": BASELINE_FEATURES[::-1]}, "the artifact takes"),
        ({"feature_names": ALL_FEATURES, "baseline": (0.0,) * len(ALL_FEATURES)}, "the artifact takes"),
        ({"baseline": (0.0,)}, "1 baseline values for 15 features"),
    ],
)
def test_an_artifact_of_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    """Another model's name, another order of features or another width do not load."""
    with pytest.raises(ArtifactRefused, match=message):
        _load(examples.onnx_of(), **changes)


def _graph(weights: np.ndarray, *, input_name: str = "features", output_name: str = "probabilities") -> bytes:
    """An artifact that multiplies its input by `weights`."""
    node = onnx.helper.make_node("MatMul", [input_name, "weights"], [output_name])
    graph = onnx.helper.make_graph(
        [node],
        "fraud",
        [onnx.helper.make_tensor_value_info(input_name, onnx.TensorProto.FLOAT, [None, len(weights)])],
        [onnx.helper.make_tensor_value_info(output_name, onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)
    return _with_metadata(model, json.dumps(BASELINE_FEATURES))


def _with_metadata(model: onnx.ModelProto, feature_names: str) -> bytes:
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"model_name": "fraud", "feature_names": feature_names})
    return bytes(model.SerializeToString())


_WIDTH = len(BASELINE_FEATURES)


@pytest.mark.parametrize(
    ("onnx_bytes", "message"),
    [
        (_with_metadata(onnx.load_from_string(examples.onnx_of()), "[not JSON"), "is not JSON"),
        (_with_metadata(onnx.load_from_string(examples.onnx_of()), "5"), "the artifact takes 5"),
        (_graph(np.full((_WIDTH, 2), np.nan)), "no probability"),
        (_graph(np.full((_WIDTH, 2), 9.0)), "no probability"),
        (_graph(np.full((_WIDTH, 2), -9.0)), "no probability"),
        (_graph(np.zeros((_WIDTH, 1))), r"shape \(2, 1\)"),
        (_graph(np.zeros((_WIDTH, 3))), r"shape \(2, 3\)"),
        (_graph(np.zeros((_WIDTH, 2)), input_name="rows"), "one table named features"),
        (_graph(np.zeros((_WIDTH, 2)), output_name="scores"), "cannot be run"),
        (_graph(np.zeros((_WIDTH + 1, 2))), "the artifact takes"),
    ],
)
def test_an_artifact_that_opens_and_gives_no_score_is_refused(onnx_bytes: bytes, message: str) -> None:
    """It is found out when it is loaded, and not by every score."""
    with pytest.raises(ArtifactRefused, match=message):
        _load(onnx_bytes, baseline=(1.0,) * _WIDTH)


def test_an_artifact_without_a_number_for_a_huge_amount_is_refused() -> None:
    """It scores what is usual, and one request in a million would find it out."""
    model = onnx.load_from_string(_graph(np.full((_WIDTH, 2), 0.01), output_name="sum"))
    model.graph.node.append(onnx.helper.make_node("Exp", ["sum"], ["e"]))
    model.graph.node.append(onnx.helper.make_node("Div", ["e", "e"], ["probabilities"]))  # infinite: no number
    model.graph.output[0].name = "probabilities"
    with pytest.raises(ArtifactRefused, match=r"no number for 1e\+09 everywhere"):
        _load(_with_metadata(model, json.dumps(BASELINE_FEATURES)), baseline=(1.0,) * _WIDTH)


def test_a_graph_of_probabilities_is_taken() -> None:
    """What the refused ones above differ from."""
    _load(_graph(np.full((_WIDTH, 2), 0.01)), baseline=(1.0,) * _WIDTH)


def test_bytes_that_are_no_model_are_refused() -> None:
    """A digest that matches rubbish makes no model of it."""
    with pytest.raises(ArtifactRefused, match="cannot open"):
        _load(b"rubbish")


def test_threads_share_one_session() -> None:
    """Eight threads that score at once get what each would get alone."""
    model = examples.loaded(EstimatorKind.BOOSTED_TREES)
    rows = [tuple(row) for row in examples.rows().X[:80].tolist()]
    expected = [model.score_one(row) for row in rows]
    barrier, found = threading.Barrier(8), {}

    def score(part: int) -> None:
        barrier.wait()
        for i in range(part, len(rows), 8):
            found[i] = model.score_one(rows[i])

    threads = [threading.Thread(target=score, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(rows))] == expected


def test_a_forked_child_scores_with_its_parents_model() -> None:
    """The session starts no threads of its own, so it works on the other side of a fork."""
    model = examples.loaded(EstimatorKind.BOOSTED_TREES)
    row = tuple(examples.rows().X[0].tolist())
    expected = model.score_one(row)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if model.score_one(row) == expected else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
