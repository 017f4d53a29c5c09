"""The scan plugin through TensorRT-RTX's own registry, ONNX parser and builder, which need no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msmamba.errors import BackendError
from msmamba.plugins.selective_scan import tensorrt_plugin
from msmamba.plugins.selective_scan.gpu_launch import (
    BLOCK_SHAPES,
    MAX_CHUNKS,
    ScanShape,
    block_shape,
    launch_plan,
)
from msmamba.plugins.selective_scan.gpu_package import MAGIC, CompiledKernel, KernelPackage
from msmamba.plugins.tensorrt_library import import_tensorrt, link_parser_library

HEIGHT, WIDTH, CHANNELS, STATES = 7, 7, 24, 16


@pytest.fixture(scope="module")
def trt() -> Any:
    link_parser_library()
    return import_tensorrt("tensorrt_rtx")


def one_scan(
    element: int = TensorProto.FLOAT16,
    directions: int = 4,
    delta_element: int | None = None,
    weight_element: int = TensorProto.FLOAT,
    squeeze_x: bool = False,
    **attributes: str,
) -> onnx.ModelProto:
    """A model of one scan node with a dynamic batch; the keywords say what is wrong with it."""
    positions = ["batch", HEIGHT, WIDTH]
    x_dims = ["batch", HEIGHT * WIDTH, CHANNELS] if squeeze_x else [*positions, CHANNELS]
    info = helper.make_tensor_value_info
    inputs = [
        info("x", element, x_dims),
        info("delta", delta_element or element, [*positions, directions, CHANNELS]),
        info("B", element, [*positions, directions, STATES]),
        info("C", element, [*positions, directions, STATES]),
    ]
    weights = {"A": (directions, CHANNELS, STATES), "D": (directions, CHANNELS)}
    weights["delta_bias"] = weights["D"]
    dtype = helper.tensor_dtype_to_np_dtype(weight_element)
    node = helper.make_node(
        "SelectiveScan2D",
        ["x", "delta", "A", "B", "C", "D", "delta_bias"],
        ["y"],
        name="scan",
        domain="msmamba",
        **{"plugin_namespace": "msmamba", "plugin_version": "1", **attributes},
    )
    graph = helper.make_graph(
        [node],
        "one_scan",
        inputs,
        [info("y", element, x_dims)],
        [numpy_helper.from_array(np.full(shape, -1, dtype), name) for name, shape in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("msmamba", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class Parsed:
    """A network parsed from a model, with everything that has to outlive it."""

    def __init__(self, trt: Any, model: onnx.ModelProto) -> None:
        self.trt = trt
        tensorrt_plugin.take_refusals()
        self.logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        self.builder = trt.Builder(self.logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(flags)
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.accepted = self.parser.parse(model.SerializeToString())

    def plugin_layer(self) -> Any:
        """The network's only plugin layer."""
        layers = [self.network.get_layer(i) for i in range(self.network.num_layers)]
        (layer,) = (layer for layer in layers if layer.type == self.trt.LayerType.PLUGIN_V3)
        return layer

    def engine(self, compute_capabilities: Sequence[int]) -> bytes | None:
        """The serialised engine for batches 1 to 16, or None where the builder fails."""
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = len(compute_capabilities)
        for i, sm in enumerate(compute_capabilities):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, f"SM{sm}"), i)
        profile = self.builder.create_optimization_profile()
        for i in range(self.network.num_inputs):
            tensor = self.network.get_input(i)
            dims = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *dims), (4, *dims), (16, *dims))
        config.add_optimization_profile(profile)
        plan = self.builder.build_serialized_network(self.network, config)
        return None if plan is None else bytes(plan)


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        pytest.param(TensorProto.FLOAT16, "HALF", id="float16"),
        pytest.param(TensorProto.FLOAT, "FLOAT", id="float32"),
    ],
)
def test_parser_makes_a_plugin_layer_in_the_graphs_own_type(trt: Any, element: int, expected: str) -> None:
    tensorrt_plugin.register(trt, (89,))
    parsed = Parsed(trt, one_scan(element))
    assert parsed.accepted, tensorrt_plugin.take_refusals()
    layer = parsed.plugin_layer()
    types = [layer.get_input(i).dtype.name for i in range(layer.num_inputs)]
    assert types == [expected, expected, "FLOAT", expected, expected, "FLOAT", "FLOAT"]
    assert layer.get_output(0).dtype.name == expected
    assert tuple(layer.get_output(0).shape) == (-1, HEIGHT, WIDTH, CHANNELS)


@pytest.mark.parametrize(
    ("element", "targets"),
    [
        pytest.param(TensorProto.FLOAT16, (86, 89, 120), id="float16-three-gpus"),
        pytest.param(TensorProto.FLOAT, (75,), id="float32-one-gpu"),
    ],
)
def test_engine_carries_the_kernels_of_every_target(trt: Any, element: int, targets: tuple[int, ...]) -> None:
    tensorrt_plugin.register(trt, targets)
    engine = Parsed(trt, one_scan(element)).engine(targets)
    assert engine is not None, tensorrt_plugin.take_refusals()
    start = engine.index(MAGIC)
    package = KernelPackage.from_bytes(engine[start:])
    assert package.compute_capabilities == targets
    assert package.element_type == ("float16" if element == TensorProto.FLOAT16 else "float32")
    assert package.states == STATES
    for kernels in package.kernels.values():
        assert set(kernels) == {"chunk_state", "scan", "sum_directions"}
        assert all(kernel.cubin.startswith(b"\x7fELF") for kernel in kernels.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"directions": 3}, "A is (3, 24, 16), expected (4, 24, 16)", id="three-directions"),
        pytest.param({"squeeze_x": True}, "x has 3 dimensions, expected 4", id="flat-map"),
        pytest.param({"delta_element": TensorProto.FLOAT}, "delta is FLOAT, expected HALF", id="mixed-types"),
        pytest.param({"element": TensorProto.BFLOAT16}, "x is BF16, expected HALF or FLOAT", id="bfloat16"),
        pytest.param({"weight_element": TensorProto.FLOAT16}, "A is HALF, expected FLOAT", id="half-weights"),
    ],
)
def test_a_wrong_node_is_refused_by_name(trt: Any, wrong: dict[str, Any], message: str) -> None:
    tensorrt_plugin.register(trt, (89,))
    parsed = Parsed(trt, one_scan(**wrong))
    refused = not parsed.accepted or parsed.engine((89,)) is None
    assert refused
    assert any(message in refusal for refusal in tensorrt_plugin.take_refusals())


def test_a_node_of_another_version_finds_no_plugin(trt: Any) -> None:
    tensorrt_plugin.register(trt, (89,))
    assert not Parsed(trt, one_scan(plugin_version="2")).accepted


def test_registering_for_an_unknown_gpu_names_the_known_ones(trt: Any) -> None:
    with pytest.raises(BackendError, match=r"compute capability 7\.0 .* choose from 7\.5, 8\.0"):
        tensorrt_plugin.register(trt, (70,))


def test_building_without_a_target_is_refused(trt: Any) -> None:
    tensorrt_plugin.register(trt, ())
    assert not Parsed(trt, one_scan()).accepted
    assert any("no compute capability" in refusal for refusal in tensorrt_plugin.take_refusals())


def test_kernels_that_cannot_be_had_are_a_refusal_and_not_an_exception(trt: Any) -> None:
    """TensorRT-RTX does not survive an exception while it configures a plugin among many layers."""

    def none(element_type: str, states: int, targets: tuple[int, ...]) -> KernelPackage:
        raise BackendError("no kernels here")

    tensorrt_plugin.register(trt, (89,), none)
    Parsed(trt, one_scan()).engine((89,))
    assert set(tensorrt_plugin.take_refusals()) == {"no kernels here"}


def test_a_package_is_cut_down_to_what_an_engine_needs() -> None:
    kernel = CompiledKernel("scan", b"\x7fELF", threads=32, shared_bytes=256, hidden_pointers=2)
    package = KernelPackage("float16", STATES, {sm: {"scan": kernel} for sm in (86, 89, 120)})
    assert package.only([120, 86]).compute_capabilities == (86, 120)
    with pytest.raises(BackendError, match=r"for compute capability 8\.6, 8\.9, 12\.0, not for 7\.5, 8\.7"):
        package.only([75, 86, 87])


def _package() -> KernelPackage:
    kernel = CompiledKernel("scan", b"\x7fELF", threads=32, shared_bytes=256, hidden_pointers=2)
    return KernelPackage("float16", STATES, {89: {"scan": kernel}})


def _creator(trt: Any) -> Any:
    tensorrt_plugin.register(trt, (89,))
    return trt.get_plugin_registry().get_creator("SelectiveScan2D", "1", "msmamba")


_FIELD_DATA: list[Any] = []  # a PluginField points at its data without owning it


def _fields(trt: Any, **fields: bytes) -> Any:
    made = []
    for name, data in fields.items():
        _FIELD_DATA.append(np.frombuffer(data, np.int8))
        made.append(trt.PluginField(name, _FIELD_DATA[-1], trt.PluginFieldType.CHAR))
    return trt.PluginFieldCollection(made)


def test_a_plugin_survives_its_serialisation(trt: Any) -> None:
    runtime = trt.TensorRTPhase.RUNTIME
    creator = _creator(trt)
    plugin = creator.create_plugin("scan", _fields(trt, kernels=_package().to_bytes()), runtime)
    fields = plugin.get_fields_to_serialize()
    assert plugin.serialised[0] is fields  # TensorRT reads it after the call
    (field,) = fields
    again = creator.create_plugin(
        "scan", _fields(trt, **{field.name: np.asarray(field.data).tobytes()}), runtime
    )
    assert again.package == _package()
    assert again.clone().package == _package()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({}, r"has the fields \[\], expected \['kernels'\]", id="no-field"),
        pytest.param({"kernel": b"x"}, r"has the fields \['kernel'\], expected \['kernels'\]", id="misnamed"),
        pytest.param({"kernels": b"nonsense"}, "built by another version", id="not-a-package"),
        pytest.param({"kernels": _package().to_bytes()[:-5]}, "damaged", id="truncated"),
    ],
)
def test_an_engines_wrong_fields_are_refused(trt: Any, fields: dict[str, bytes], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        _creator(trt).create_plugin("scan", _fields(trt, **fields), trt.TensorRTPhase.RUNTIME)


def test_only_linear_tensors_of_matching_types_are_taken(trt: Any) -> None:
    plugin = _creator(trt).create_plugin("scan", _fields(trt), trt.TensorRTPhase.BUILD)

    def desc(dtype: Any, layout: Any = trt.TensorFormat.LINEAR) -> Any:
        made = trt.DynamicPluginTensorDesc()
        made.desc.type, made.desc.format = dtype, layout
        return made

    half, single = trt.DataType.HALF, trt.DataType.FLOAT
    good = [desc(t) for t in (half, half, single, half, half, single, single, half)]
    assert all(plugin.supports_format_combination(i, good, 7) for i in range(8))
    vectorised = [desc(half, trt.TensorFormat.CHW2), *good[1:]]
    assert not plugin.supports_format_combination(0, vectorised, 7)
    for position in range(8):
        wrong = good.copy()
        wrong[position] = desc(trt.DataType.INT8)
        assert not plugin.supports_format_combination(position, wrong, 7), position


@pytest.mark.parametrize("side", [7, 14, 33, 56])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_workspace_is_enough_for_every_split(side: int, batch: int) -> None:
    largest = ScanShape(5, side, side, CHANNELS, STATES)
    reserved = tensorrt_plugin.workspace_bytes(largest, tuple(BLOCK_SHAPES))
    shape = ScanShape(batch, side, side, CHANNELS, STATES)
    for sm in BLOCK_SHAPES:
        needed = [launch_plan(shape, block_shape(sm), n).workspace_bytes for n in range(1, MAX_CHUNKS + 1)]
        assert max(needed) <= reserved
