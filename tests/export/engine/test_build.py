"""Engines from ONNX, built by TensorRT-RTX itself, which needs no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from recording_gpu import RecordingDriver

from msmamba.errors import BackendError, ExportError
from msmamba.export.engine import build as engine
from msmamba.export.engine.build import EngineOptions, engine_from_onnx
from msmamba.export.engine.program import product_types
from msmamba.export.graph.onnx_model import flat_model
from msmamba.export.graph.precision import fp16_from_fp32
from msmamba.plugins import cuda_driver
from msmamba.plugins.selective_scan.gpu_package import MAGIC, KernelPackage
from msmamba.plugins.selective_scan.onnx_function import scan_function
from msmamba.plugins.tensorrt_library import import_tensorrt, link_parser_library


@pytest.fixture(scope="module", autouse=True)
def _parser_library() -> None:
    link_parser_library()


@pytest.fixture(scope="module")
def fp32(small_onnx: ModelProto) -> ModelProto:
    """The small network, with a scan in each of its four stages."""
    return flat_model(small_onnx)


@pytest.fixture(scope="module")
def fp16(fp32: ModelProto) -> ModelProto:
    return fp16_from_fp32(fp32)


def test_a_float16_engine_for_two_gpus(fp16: ModelProto) -> None:
    phases: list[tuple[str, float]] = []
    options = EngineOptions(compute_capabilities=(86, 120), batches=(1, 2, 5))
    built = engine_from_onnx(fp16, options, lambda phase, done: phases.append((phase, done)))

    assert len(built.proof.plugins) == 4
    for plugin in built.proof.plugins:
        assert plugin.inputs == ("HALF", "HALF", "FLOAT", "HALF", "HALF", "FLOAT", "FLOAT")
        assert plugin.outputs == ("HALF",)
    meant = ("ReduceMean", "Gemm", "Broadcast")  # the last is what the parser makes of Gemm's bias
    kept = [name for name in built.proof.float32_layers if not any(part in name for part in meant)]
    assert kept == []
    assert built.proof.layers["HALF"] > 20 * built.proof.layers["FLOAT"] // 2
    assert built.proof.to_dict()["layers"] == dict(built.proof.layers)

    package = KernelPackage.from_bytes(built.plan[built.plan.index(MAGIC) :])
    assert package.compute_capabilities == (86, 120)
    assert package.element_type == "float16"
    assert built.plan.count(MAGIC) == 4 * 2  # each GPU has its own copy of the network
    assert phases[:2] == [("parse", 0.0), ("parse", 1.0)]
    assert len(phases) > 2
    assert all(0 <= done <= 1 for _, done in phases)
    assert "Engine generation completed" in built.log
    assert built.build_s > 0
    assert built.library_version.startswith("1.")


def test_a_float32_engine(fp32: ModelProto) -> None:
    built = engine_from_onnx(fp32, EngineOptions(compute_capabilities=(89,)))
    assert "HALF" not in built.proof.layers
    assert {plugin.outputs for plugin in built.proof.plugins} == {("FLOAT",)}


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


def test_kernels_that_cannot_be_had_stop_the_build_before_it_starts(fp16: ModelProto) -> None:
    def none(element_type: str, states: int, targets: tuple[int, ...]) -> KernelPackage:
        raise BackendError(f"no {element_type} kernels for {states} states and {targets}")

    phases: list[str] = []
    with pytest.raises(BackendError, match=r"no float16 kernels for 16 states and \(86, 89\)"):
        engine_from_onnx(fp16, EngineOptions((86, 89)), lambda phase, done: phases.append(phase), none)
    assert phases == ["parse"]


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
            r"compute capability 8\.7 is not among .* for: 8\.0, 8\.6, 8\.9, 12\.0, 12\.1",
            id="jetson-with-rtx",
        ),
        pytest.param(
            EngineOptions(compute_capabilities=(75,)),
            r"compute capability 7\.5 is not among those that .* builds these networks for: 8\.0",
            id="no-float32-head",
        ),
        pytest.param(EngineOptions(compute_capabilities=()), "--sm", id="no-gpu"),
        pytest.param(
            EngineOptions(compute_capabilities=(89,), batches=(2, 1, 4)), r"\(2, 1, 4\)", id="batches"
        ),
        pytest.param(
            EngineOptions(
                (89,),
                version_compatible=True,
                hardware_compatibility="ampere-plus",
                timing_cache=Path("cache"),
            ),
            r"--version-compatible out; .*--sm 8\.6,8\.9; .*--timing-cache out",
            id="what-rtx-has-no-use-for",
        ),
        pytest.param(
            EngineOptions((89,), hardware_compatibility="pascal"),
            r"'pascal' is unknown: choose one of none, ampere-plus",
            id="unknown-compatibility",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(options: EngineOptions, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        engine_from_onnx(onnx.ModelProto(), options)


def test_a_compute_capability_that_is_named_twice_is_built_for_once() -> None:
    assert EngineOptions.of("tensorrt-rtx", ["8.9", "8.6", "8.9"]).compute_capabilities == (89, 86)


def test_without_tensorrt_the_error_says_where_to_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    options = EngineOptions(compute_capabilities=(87,), library="tensorrt")
    with pytest.raises(BackendError, match=r"JetPack.*mmdeploy export BUNDLE --target tensorrt"):
        engine_from_onnx(onnx.ModelProto(), options)


class OneGpu:
    """As much of ``cuda.bindings.driver`` as says which GPU there is."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=7,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16,
        CU_DEVICE_ATTRIBUTE_INTEGRATED=1,
    )

    def __getattr__(self, call: str) -> Callable[..., tuple[object, ...]]:
        done = SimpleNamespace(value=0, name="CUDA_SUCCESS")
        answers: dict[str, Callable[..., tuple[object, ...]]] = {
            "cuInit": lambda flags: (done,),
            "cuDeviceGetCount": lambda: (done, 1),
            "cuDeviceGet": lambda ordinal: (done, ordinal),
            "cuDeviceGetName": lambda length, device: (done, b"Orin\0\0"),
            "cuDeviceGetAttribute": lambda name, device: (done, name),
        }
        return answers[call]


@pytest.mark.parametrize("asked", [(), (87,)], ids=["none-named", "its-own"])
def test_tensorrt_builds_for_the_gpu_of_the_machine(
    asked: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "driver", OneGpu)
    options = engine._for_this_gpu(EngineOptions(asked, library="tensorrt"))
    assert options.compute_capabilities == options.kernel_targets == (87,)


def test_tensorrt_builds_inside_a_context_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin's kernels load into the current one; TensorRT-RTX needs none, and no GPU."""
    driver = RecordingDriver(87)
    monkeypatch.setattr(cuda_driver, "driver", lambda: driver)
    with engine._gpu_of(EngineOptions(library="tensorrt")):
        assert len(driver.stack) == 1
    driver.check_nothing_is_left()
    driver.calls.clear()
    with engine._gpu_of(EngineOptions(library="tensorrt_rtx")):
        assert driver.calls == []


def test_tensorrt_builds_for_no_other_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "driver", OneGpu)
    with pytest.raises(ExportError, match=r"this machine, Orin with compute capability 8\.7, not for 8\.9"):
        engine._for_this_gpu(EngineOptions((89,), library="tensorrt"))


def test_without_a_driver_tensorrt_builds_nothing(no_gpu: None) -> None:
    with pytest.raises(BackendError, match="no NVIDIA driver on this machine"):
        engine._for_this_gpu(EngineOptions(library="tensorrt"))


def test_a_hardware_compatibility_that_this_tensorrt_lacks_is_refused() -> None:
    """TensorRT 10.3, of JetPack 6, has two levels."""
    trt = SimpleNamespace(
        __version__="10.3.0.30",
        BuilderFlag=SimpleNamespace(TF32=0),
        HardwareCompatibilityLevel=SimpleNamespace(NONE=0, AMPERE_PLUS=1),
    )
    config = SimpleNamespace(clear_flag=lambda flag: None)
    options = EngineOptions(library="tensorrt", hardware_compatibility="same-compute-capability")
    with pytest.raises(ExportError, match=r"10\.3\.0\.30 has no hardware compatibility 'same-compute"):
        engine._configure(trt, None, None, config, options, lambda phase, done: None)


def test_an_engine_for_many_gpus_carries_their_kernels() -> None:
    options = EngineOptions((86,), library="tensorrt", hardware_compatibility="ampere-plus")
    assert options.kernel_targets == (80, 86, 87, 89, 90, 100, 110, 120, 121)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_is_attached_through_tensorrts_own_interface(tmp_path: Path) -> None:
    """TensorRT-RTX still has the interface, though it times nothing."""
    trt = import_tensorrt("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    config = builder.create_builder_config()
    made = bytes(engine._attach_timing_cache(config, tmp_path / "new").serialize())
    (tmp_path / "old").write_bytes(made)
    assert engine._attach_timing_cache(config, tmp_path / "old") is not None


@pytest.mark.parametrize("made", [None, object()], ids=["no-cache", "of-another-gpu"])
def test_a_timing_cache_that_tensorrt_does_not_take_is_refused(made: object, tmp_path: Path) -> None:
    """TensorRT's part is played here: TensorRT-RTX takes whatever it is given."""
    config = SimpleNamespace(
        create_timing_cache=lambda content: made, set_timing_cache=lambda cache, ignore_mismatch: False
    )
    (tmp_path / "other").write_bytes(b"of another GPU")
    with pytest.raises(ExportError, match="other' is no timing cache of this GPU"):
        engine._attach_timing_cache(config, tmp_path / "other")


def test_without_the_plugin_the_scan_is_built_from_standard_operators() -> None:
    model = _one_scan()
    model.functions.append(scan_function(20))
    options = EngineOptions(compute_capabilities=(89,), plugin=False)
    built = engine_from_onnx(model, options)
    assert built.proof.plugins == ()
    assert MAGIC not in built.plan


def test_the_program_inside_an_engine_is_read() -> None:
    tensor = b'tensor={ alignment=128 dims={ 48 4 3 3 } name="%s" offset=0 strides={ 36 1 } type=%s }\n'
    product = b'corrltn={ name="first/Conv" output={"y" } input={"x" "w" "bias" } stream=0 }\n'
    eight = tensor % (b"x", b"int8") + tensor % (b"w", b"int8") + product
    half = tensor % (b"w", b"half") + product
    assert product_types(b"\0\xff" + eight) == {"first/Conv": ("int8", "int8")}
    assert product_types(eight + half)["first/Conv"] == ("int8", "half")
    assert product_types(tensor % (b"x", b"int8") + half + eight)["first/Conv"] == ("int8", "half")
    assert product_types(product) == product_types(b"nothing") == {}
