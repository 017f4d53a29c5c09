"""What a foreign file ends in is seen, and its probabilities stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msmamba.errors import ArtefactError
from msmamba.runtime import open_session
from msmamba.runtime.onnx_answer import Answer, told_by

LABELS = ("red", "green", "blue")
GIVEN: dict[str, Any] = {"labels": LABELS, "mean": (0.0,) * 3, "std": (1.0,) * 3}

node = helper.make_node


def ending(*nodes: onnx.NodeProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
    """The channels' means times nine, as ``z``, and what ``nodes`` make of them, as ``y``."""
    first = [
        node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
        node("MatMul", ["means", "weight"], ["z"]),
    ]
    constants = {
        "axes": np.array([2, 3]),
        "weight": 9 * np.eye(3, dtype=np.float32),
        "rows": np.array([1]),
        "shape": np.array([-1, 3]),
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
    }
    used = {name for each in (*first, *nodes) for name in each.input}
    graph = helper.make_graph(
        [*first, *nodes],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in constants.items()
            if name in used
        ],
    )
    domains = [helper.make_opsetid("", 20), *(helper.make_opsetid(each.domain, 1) for each in functions)]
    return helper.make_model(graph, functions=list(functions), opset_imports=domains, ir_version=10)


def function(name: str, inputs: list[str], outputs: list[str], *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("theirs", 1)]
    return helper.make_function("theirs", name, inputs, outputs, list(nodes), opsets)


HEAD = function("Head", ["x"], ["a"], node("Softmax", ["x"], ["a"]))
WRAPPED = function(
    "Wrapped", ["x"], ["a"], node("Head", ["x"], ["b"], domain="theirs"), node("Identity", ["b"], ["a"])
)
UNTOUCHED = function("Untouched", ["other", "x"], ["a"], node("Identity", ["x"], ["a"]))
SCALED = function("Scaled", ["x"], ["a"], node("Softmax", ["x"], ["s"]), node("Add", ["x", "s"], ["a"]))

PROBABILITIES = {
    "softmax": ending(node("Softmax", ["z"], ["y"])),
    "softmax of the last axis, named": ending(node("Softmax", ["z"], ["y"], axis=1)),
    "identity after": ending(node("Softmax", ["z"], ["s"]), node("Identity", ["s"], ["y"])),
    "cast and reshape after": ending(
        node("Softmax", ["z"], ["s"]),
        node("Cast", ["s"], ["d"], to=TensorProto.DOUBLE),
        node("Cast", ["d"], ["f"], to=TensorProto.FLOAT),
        node("Reshape", ["f", "shape"], ["y"]),
    ),
    "quantised": ending(
        node("Softmax", ["z"], ["s"]),
        node("QuantizeLinear", ["s", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ),
    "written out": ending(
        node("Exp", ["z"], ["e"]), node("ReduceSum", ["e", "rows"], ["t"]), node("Div", ["e", "t"], ["y"])
    ),
    "in a function": ending(node("Head", ["z"], ["y"], domain="theirs"), functions=(HEAD,)),
    "in a function's function": ending(
        node("Wrapped", ["z"], ["y"], domain="theirs"), functions=(HEAD, WRAPPED)
    ),
    "before a function": ending(
        node("Softmax", ["z"], ["s"]),
        node("Untouched", ["z", "s"], ["y"], domain="theirs"),
        functions=(UNTOUCHED,),
    ),
}
LOGITS = {
    "product": ending(node("Identity", ["z"], ["y"])),
    "log-softmax": ending(node("LogSoftmax", ["z"], ["y"])),
    "a softmax that is not the end": ending(node("Softmax", ["z"], ["s"]), node("Add", ["z", "s"], ["y"])),
    "the same in a function": ending(node("Scaled", ["z"], ["y"], domain="theirs"), functions=(SCALED,)),
    "a quotient": ending(node("Exp", ["z"], ["e"]), node("Div", ["e", "z"], ["y"])),
}


@pytest.mark.parametrize("model", PROBABILITIES.values(), ids=PROBABILITIES.keys())
def test_probabilities_stay_what_they_are(tmp_path: Path, model: onnx.ModelProto) -> None:
    assert told_by(model.SerializeToString()).answer is Answer.PROBABILITIES
    path = tmp_path / "theirs.onnx"
    onnx.save(model, path)
    image = np.full((8, 8, 3), 20, np.uint8)
    image[..., 1] = 120
    with open_session(path, **GIVEN) as session:
        (prediction,) = session.classify([image])
        assert session.path.endswith("a softmax at its end")
    powers = np.exp(9 * np.array([20, 120, 20]) / 255)
    tolerance = 0.5 / 255 if len(model.graph.node) == 5 else 1e-6  # one of them rounds to 1/255
    np.testing.assert_allclose(prediction.probabilities, powers / powers.sum(), atol=tolerance)
    assert prediction.label == "green"


@pytest.mark.parametrize("model", LOGITS.values(), ids=LOGITS.keys())
def test_logits_are_handed_out_as_they_are(tmp_path: Path, model: onnx.ModelProto) -> None:
    assert told_by(model.SerializeToString()).answer is Answer.LOGITS
    path = tmp_path / "theirs.onnx"
    onnx.save(model, path)
    with open_session(path) as session:
        logits = session.run(np.full((1, 3, 8, 8), 0.5, np.float32))
        assert "softmax" not in session.path
    assert not (np.isclose(logits.sum(), 1) and (logits > 0).all())


def test_a_probability_of_nothing_has_a_finite_logit(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    onnx.save(ending(node("Softmax", ["z"], ["y"])), path)
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[:, 0] = 1000
    with open_session(path, **GIVEN) as session:
        (prediction,) = session.predictions(session.run(image))
    assert prediction.probability == 1


@pytest.mark.parametrize("operator", ["Sigmoid", "HardSigmoid"])
def test_classes_that_do_not_exclude_each_other_are_refused(tmp_path: Path, operator: str) -> None:
    path = tmp_path / "theirs.onnx"
    onnx.save(ending(node(operator, ["z"], ["s"]), node("Identity", ["s"], ["y"])), path)
    with pytest.raises(ArtefactError, match=r"ends in a sigmoid.*export it without that layer"):
        open_session(path)


def test_a_softmax_over_the_batch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    onnx.save(ending(node("Softmax", ["z"], ["y"], axis=0)), path)
    with (
        open_session(path, **GIVEN) as session,
        pytest.raises(ArtefactError, match="not the probabilities of an image's classes"),
    ):
        session.classify([np.zeros((8, 8, 3), np.uint8)])


def test_nodes_that_go_round_in_circles_come_to_an_end() -> None:
    model = ending(
        node("Identity", ["b"], ["a"]), node("Identity", ["a"], ["b"]), node("Identity", ["a"], ["y"])
    )
    assert told_by(model.SerializeToString()).answer is Answer.LOGITS
    recursive = function("Head", ["x"], ["a"], node("Head", ["x"], ["a"], domain="theirs"))
    model = ending(node("Head", ["z"], ["y"], domain="theirs"), functions=(recursive,))
    assert told_by(model.SerializeToString()).answer is Answer.LOGITS


def test_every_truncation_of_a_file_has_an_answer() -> None:
    content = PROBABILITIES["in a function's function"].SerializeToString()
    for length in range(len(content)):
        assert told_by(content[:length]).answer in (Answer.LOGITS, Answer.PROBABILITIES)


def test_operators_are_known_by_their_domains_wherever_they_stand() -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    branch = helper.make_graph([node("Ours", ["z"], ["y"], domain="inside")], "branch", [], [y])
    model = ending(node("If", ["sure"], ["y"], then_branch=branch, else_branch=branch), functions=(HEAD,))
    assert told_by(model.SerializeToString()).domains == {"", "theirs"}
    model.opset_import.append(helper.make_opsetid("inside", 1))
    assert told_by(model.SerializeToString()).domains == {"", "theirs", "inside"}
    del model.opset_import[:]
    model.functions[0].opset_import.append(helper.make_opsetid("deeper", 1))
    assert told_by(model.SerializeToString()).domains == {"", "theirs", "deeper"}
