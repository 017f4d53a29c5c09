"""Engines from ONNX, built by TensorRT-RTX itself, which needs no GPU."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from msmamba.errors import BackendError, ExportError
from msmamba.export.engine import EngineOptions, engine_from_onnx
from msmamba.export.onnx_model import flat_model, onnx_from_network
from msmamba.export.precision import fp16_from_fp32
from msmamba.model.network import MicroscopicMamba
from msmamba.plugins.selective_scan.gpu_package import MAGIC, KernelPackage
from msmamba.plugins.selective_scan.onnx_function import scan_function
from msmamba.plugins.tensorrt_library import link_parser_library


@pytest.fixture(scope="module", autouse=True)
def _parser_library() -> None:
    link_parser_library()


@pytest.fixture(scope="module")
def fp32(network: MicroscopicMamba) -> ModelProto:
    """The small network, with a scan in each of its four stages."""
    return flat_model(onnx_from_network(network, 32))


@pytest.fixture(scope="module")
def fp16(fp32: ModelProto) -> ModelProto:
    return fp16_from_fp32(fp32)


def test_a_float16_engine_for_two_gpus(fp16: ModelProto) -> None:
    phases: list[tuple[str, float]] = []
    options = EngineOptions(compute_capabilities=(86, 120), batches=(1, 2, 5))
    engine = engine_from_onnx(fp16, options, lambda phase, done: phases.append((phase, done)))

    assert len(engine.proof.plugins) == 4
    for plugin in engine.proof.plugins:
        assert plugin.inputs == ("HALF", "HALF", "FLOAT", "HALF", "HALF", "FLOAT", "FLOAT")
        assert plugin.outputs == ("HALF",)
    meant = ("ReduceMean", "Gemm", "Broadcast")  # the last is what the parser makes of Gemm's bias
    kept = [name for name in engine.proof.float32_layers if not any(part in name for part in meant)]
    assert kept == []
    assert engine.proof.layers["HALF"] > 20 * engine.proof.layers["FLOAT"] // 2
    assert engine.proof.to_dict()["layers"] == dict(engine.proof.layers)

    package = KernelPackage.from_bytes(engine.plan[engine.plan.index(MAGIC) :])
    assert package.compute_capabilities == (86, 120)
    assert package.element_type == "float16"
    assert engine.plan.count(MAGIC) == 4 * 2  # each GPU has its own copy of the network
    assert phases[:2] == [("parse", 0.0), ("parse", 1.0)]
    assert len(phases) > 2
    assert all(0 <= done <= 1 for _, done in phases)
    assert "Engine generation completed" in engine.log
    assert engine.build_s > 0
    assert engine.library_version.startswith("1.")


def test_a_float32_engine(fp32: ModelProto) -> None:
    engine = engine_from_onnx(fp32, EngineOptions(compute_capabilities=(89,)))
    assert "HALF" not in engine.proof.layers
    assert {plugin.outputs for plugin in engine.proof.plugins} == {("FLOAT",)}


def _one_scan(batch: str | int = "batch", directions: int = 4) -> ModelProto:
    """``image`` (batch, 4, 4, 8) through one scan whose other inputs are constant but for the batch."""
    info = helper.make_tensor_value_info
    positions = [batch, 4, 4]
    shapes = {
        "delta": [4, 4, directions, 8],
        "B": [4, 4, directions, 16],
        "C": [4, 4, directions, 16],
    }
    weights = {"A": (directions, 8, 16), "D": (directions, 8), "delta_bias": (directions, 8)}
    nodes = [
        helper.make_node("Shape", ["image"], ["n"], start=0, end=1),
        *(
            node
            for name, shape in shapes.items()
            for node in (
                helper.make_node("Concat", ["n", f"{name}_dims"], [f"{name}_shape"], axis=0),
                helper.make_node("Expand", [f"{name}_value", f"{name}_shape"], [name]),
            )
        ),
        helper.make_node(
            "SelectiveScan2D",
            ["image", "delta", "A", "B", "C", "D", "delta_bias"],
            ["logits"],
            name="scan",
            domain="msmamba",
            plugin_namespace="msmamba",
            plugin_version="1",
        ),
    ]
    constants = [numpy_helper.from_array(np.full(s, -1, np.float32), n) for n, s in weights.items()]
    for name, shape in shapes.items():
        constants.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}_dims"))
        constants.append(numpy_helper.from_array(np.array(0.5, np.float32), f"{name}_value"))
    graph = helper.make_graph(
        nodes,
        "one_scan",
        [info("image", TensorProto.FLOAT, [*positions, 8])],
        [info("logits", TensorProto.FLOAT, [*positions, 8])],
        constants,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("msmamba", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_a_model_that_the_plugin_refuses_is_refused_with_its_reason() -> None:
    with pytest.raises(ExportError, match=r"A is \(3, 8, 16\), expected \(4, 8, 16\)"):
        engine_from_onnx(_one_scan(directions=3), EngineOptions(compute_capabilities=(89,)))


def test_a_layer_of_another_type_than_the_file_states_fails(fp16: ModelProto) -> None:
    lying = ModelProto()
    lying.CopyFrom(fp16)
    convolution = next(node for node in lying.graph.node if node.op_type == "Conv")
    for value in lying.graph.value_info:
        if value.name == convolution.output[0]:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(ExportError, match=r"is HALF, expected FLOAT"):
        engine_from_onnx(lying, EngineOptions(compute_capabilities=(89,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            EngineOptions(compute_capabilities=(87, 89)),
            r"compute capability 8\.7 is not among .*7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1",
            id="jetson-with-rtx",
        ),
        pytest.param(EngineOptions(compute_capabilities=()), "--sm", id="no-gpu"),
        pytest.param(
            EngineOptions(compute_capabilities=(89,), batches=(2, 1, 4)), r"\(2, 1, 4\)", id="batches"
        ),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(options: EngineOptions, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        engine_from_onnx(onnx.ModelProto(), options)


def test_without_tensorrt_the_error_says_where_to_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    options = EngineOptions(compute_capabilities=(87,), library="tensorrt")
    with pytest.raises(BackendError, match=r"JetPack.*export there from an ONNX bundle"):
        engine_from_onnx(onnx.ModelProto(), options)


def test_without_the_plugin_the_scan_is_built_from_standard_operators() -> None:
    model = _one_scan()
    model.functions.append(scan_function(20))
    options = EngineOptions(compute_capabilities=(89,), plugin=False)
    engine = engine_from_onnx(model, options)
    assert engine.proof.plugins == ()
    assert MAGIC not in engine.plan
