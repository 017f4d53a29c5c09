"""The exported graph: what is in it, what its numbers are, and that any batch goes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from msmamba.errors import ExportError
from msmamba.export.graph.onnx_model import flat_model, onnx_from_network, scan_nodes
from msmamba.export.graph.precision import fp16_from_fp32, precision_proof
from msmamba.model import MicroscopicMamba
from msmamba.model.networks.microscopic_mamba import Architecture
from msmamba.plugins.hybrid_block import OF_EARLIER_FILES, OPERATORS, STEPS

Images = npt.NDArray[np.float32]


TWO_STAGES = {"depths": (1, 1), "dims": (32, 64)}
"""What suffices where it is not the network that is tested: half the time."""


@pytest.fixture(scope="module")
def model(network: MicroscopicMamba) -> onnx.ModelProto:
    return onnx_from_network(network, 32, metadata={"key": "value"})


@pytest.fixture(scope="module")
def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    return flat_model(model)


STATES = (".scan.A", ".scan.D", ".scan.delta_bias")
"""Ends of the names of what the scan takes in float32 whatever the file's type is."""


def some_images(batch: int, size: int = 32) -> Images:
    return np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)


def run(model: onnx.ModelProto, images: Images) -> Images:
    """The logits by ONNX Runtime and nothing of msmamba's: the file's own functions are executed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"image": images})
    return logits


def answers(network: MicroscopicMamba, images: Images) -> Images:
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("batch", [1, 2, 5], ids=["one", "the-traced-batch", "five"])
def test_any_batch_answers_like_pytorch(
    model: onnx.ModelProto, flat: onnx.ModelProto, network: MicroscopicMamba, batch: int
) -> None:
    images = some_images(batch)
    for form in (model, flat):
        np.testing.assert_allclose(run(form, images), answers(network, images), rtol=0, atol=1e-5)


def test_tiny_has_ten_scans_and_few_nodes(tiny_onnx: onnx.ModelProto) -> None:
    assert len(scan_nodes(tiny_onnx)) == 10
    assert len(tiny_onnx.graph.node) + sum(len(function.node) for function in tiny_onnx.functions) <= 450
    assert [(value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim])
            for value in (*tiny_onnx.graph.input, *tiny_onnx.graph.output)] == [
        ("image", ["batch", 3, 224, 224]),
        ("logits", ["batch", 4]),
        ("features", ["batch", 768]),
    ]  # fmt: skip


def test_features_are_what_the_head_takes_in_every_precision(
    model: onnx.ModelProto, flat: onnx.ModelProto, network: MicroscopicMamba
) -> None:
    images, taken = some_images(3), []
    with network.head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].numpy())):
        answers(network, images)
    for form, bound in ((model, 1e-5), (flat, 1e-5), (fp16_from_fp32(flat), 2e-2)):
        session = onnxruntime.InferenceSession(form.SerializeToString(), providers=["CPUExecutionProvider"])
        logits, features = session.run(None, {"image": images})
        np.testing.assert_allclose(features, taken[0], rtol=0, atol=bound)
        np.testing.assert_array_equal(logits, session.run(["logits"], {"image": images})[0])


def test_shapes_keep_the_names_that_calibration_caches_were_measured_with(flat: onnx.ModelProto) -> None:
    """A cache serves the very bytes of the flat model that it was measured on, names and all."""
    integers = [tensor for tensor in flat.graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
    shapes = {tensor.name.rpartition("/")[2] for tensor in integers}
    assert {"token_shape", "pair_shape", "flat_shape"} <= shapes
    assert not [
        name for name in shapes if "__" in name
    ]  # what the inliner adds to a name that is there twice


def test_every_scan_node_can_be_found_by_tensorrt_and_executed_by_any_runtime(
    model: onnx.ModelProto, flat: onnx.ModelProto
) -> None:
    assert len(scan_nodes(flat)) == len(scan_nodes(model)) == 4
    for node in scan_nodes(flat):
        attributes = {attribute.name: attribute.s.decode() for attribute in node.attribute}
        assert attributes == {"plugin_namespace": "msmamba", "plugin_version": "1"}
    assert {(f.domain, f.name) for f in model.functions} == {
        ("msmamba", name) for name in {"SelectiveScan2D", *OPERATORS, *STEPS} - {*OF_EARLIER_FILES}
    }


def test_weights_are_folded_or_gone(model: onnx.ModelProto, network: MicroscopicMamba) -> None:
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["BatchNormalization"] == operators["Exp"] == operators["Neg"] == 0
    names = {tensor.name for tensor in model.graph.initializer}
    used = {name for node in model.graph.node for name in node.input}
    assert names <= used
    assert not any("out_proj" in name or ".proj." in name or "A_logs" in name for name in names)
    state = next(t for t in model.graph.initializer if t.name == "layers.0.blocks.0.pvm_layer.scan.A")
    logs = network.layers[0].blocks[0].pvm_layer.mamba.A_logs
    expected = -np.exp(logs.detach().numpy()).reshape(4, -1, 16)
    np.testing.assert_allclose(onnx.numpy_helper.to_array(state), expected, rtol=1e-6)


def test_values_are_named_after_modules_and_no_path_of_the_machine_is_left(model: onnx.ModelProto) -> None:
    values = {output for node in model.graph.node for output in node.output}
    assert {"patch_embed.0", "layers.1.blocks.0.MIFA", "layers.2.downsample", "logits"} <= values
    content = model.SerializeToString()
    assert b"site-packages" not in content
    assert b".py" not in content
    assert {entry.key: entry.value for entry in model.metadata_props} == {"key": "value"}


def test_the_flat_form_has_standard_operators_and_the_scan_only(flat: onnx.ModelProto) -> None:
    assert {node.op_type for node in flat.graph.node if node.domain == "msmamba"} == {"SelectiveScan2D"}
    assert [function.name for function in flat.functions] == ["SelectiveScan2D"]
    assert not {node.op_type for node in flat.graph.node} & {"Shape", "Constant", "Gather"}
    assert "layers.0.blocks.0.pvm_layer/ScanFeatures/projected" in {n.output[0] for n in flat.graph.node}
    assert {entry.key: entry.value for entry in flat.metadata_props} == {"key": "value"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mifa": False}, id="without-mifa"),
        pytest.param({"parallel": False}, id="not-parallel"),
        pytest.param({"psffn": False}, id="without-psffn"),
        pytest.param({"d_state": 4, "num_classes": 1}, id="four-states-one-class"),
    ],
)
def test_ablations_export_and_agree(
    make_network: Callable[..., MicroscopicMamba], changes: dict[str, Any]
) -> None:
    network = make_network(**TWO_STAGES, **changes)
    images = some_images(2)
    np.testing.assert_allclose(
        run(onnx_from_network(network, 32), images), answers(network, images), rtol=0, atol=1e-5
    )


def test_the_scans_a_is_a_constant_however_large_and_without_psffn_too() -> None:
    torch.manual_seed(0)
    network = MicroscopicMamba(Architecture(depths=(1,), dims=(768,), num_classes=2, psffn=False)).eval()
    model = onnx_from_network(network, 32)
    written_out = flat_model(model)
    (scan,) = scan_nodes(written_out)
    constants = {tensor.name: tuple(tensor.dims) for tensor in written_out.graph.initializer}
    assert constants[scan.input[2]] == (4, 192, 16)
    images = some_images(1)
    np.testing.assert_allclose(run(model, images), answers(network, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "opset"), [pytest.param(64, 20, id="larger"), pytest.param(32, 22, id="newer-opset")]
)
def test_other_sizes_and_opsets(make_network: Callable[..., MicroscopicMamba], size: int, opset: int) -> None:
    network = make_network(**TWO_STAGES)
    model = onnx_from_network(network, size, opset=opset)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    images = some_images(1, size)
    np.testing.assert_allclose(run(model, images), answers(network, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "opset", "message"),
    [
        pytest.param(100, 20, "multiple of 32", id="size"),
        pytest.param(32, 17, "opset 17 is not supported: choose one from 20", id="old-opset"),
        pytest.param(32, 999, "opset 999", id="unknown-opset"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    network: MicroscopicMamba, size: int, opset: int, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        onnx_from_network(network, size, opset=opset)


def test_float16_stands_in_the_graph(flat: onnx.ModelProto, network: MicroscopicMamba) -> None:
    half = fp16_from_fp32(flat)
    proof = precision_proof(half)
    assert proof.nodes["float16"] > 20 * proof.nodes["float32"]
    reasons = Counter(name.rsplit("/", 1)[1] for name in proof.float32_nodes)
    assert reasons["SelectiveScan2D"] == 4
    assert reasons["ReduceMean"] == 5
    assert reasons["Gemm"] == 1
    images = some_images(4)
    difference = np.abs(run(half, images) - answers(network, images)).max()
    assert 0 < difference < 0.01
    scan = scan_nodes(half)[0]
    types = {t.name: t.data_type for t in half.graph.initializer}
    assert [types.get(name) for name in scan.input] == [None, None, 1, None, None, 1, 1]
    assert half.ByteSize() < 0.6 * flat.ByteSize()


def test_blocks_stay_operators_in_float16_and_mean_what_the_flat_form_does(
    model: onnx.ModelProto, flat: onnx.ModelProto
) -> None:
    half = fp16_from_fp32(model)
    added = Counter(node.op_type for node in half.graph.node)
    added.subtract(node.op_type for node in model.graph.node)
    assert +added == {"Cast": added["Cast"]}  # of the image, the features and the average pool
    assert added["Cast"] <= 4
    types = {t.name: t.data_type for t in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type in OPERATORS:
            found = {types[name] for name in node.input if name in types and not name.endswith(STATES)}
            assert found == {onnx.TensorProto.FLOAT16}
            assert all(types[name] == onnx.TensorProto.FLOAT for name in node.input if name.endswith(STATES))
    written_out, converted = flat_model(half), fp16_from_fp32(flat)
    assert precision_proof(written_out) == precision_proof(converted)
    images = some_images(3)
    answers_of = [run(form, images) for form in (half, written_out, converted)]
    np.testing.assert_array_equal(answers_of[0], answers_of[1])
    np.testing.assert_array_equal(answers_of[1], answers_of[2])


def test_the_float32_proof_names_no_other_type(flat: onnx.ModelProto) -> None:
    proof = precision_proof(flat)
    assert set(proof.nodes) == {"float32"}
    assert proof.float32_nodes == {}


def test_weights_too_large_for_float16_are_named(flat: onnx.ModelProto) -> None:
    huge = onnx.ModelProto()
    huge.CopyFrom(flat)
    tensor = next(t for t in huge.graph.initializer if t.name == "patch_embed.0.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 1e6, np.float32), tensor.name))
    with pytest.raises(ExportError, match=r"patch_embed\.0\.bias \(up to 1e\+06\)"):
        fp16_from_fp32(huge)
