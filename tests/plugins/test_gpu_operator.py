"""SelectiveScan2D for ONNX Runtime's CUDA: the native library's operator, its launches and what it refuses.

Neither a GPU nor an ONNX Runtime with CUDA is there. ONNX Runtime's part is played by `PlayedRuntime`, a
table of functions as the library expects it; NVIDIA's driver by `played_cuda.cpp`, whose kernels are the
shipped ones' PTX in the emulator where numbers matter.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from gpu_cases import ARGUMENTS, STATES, ScanCase, truth
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotThere
from played_onnxruntime import (
    FLOAT,
    HALF,
    OTHER_GPUS_STREAM,
    STREAM,
    Arrays,
    Node,
    PlayedRuntime,
    device_array,
)

from msmamba.errors import BackendError
from msmamba.plugins.selective_scan import ScanShape, cpu, gpu_operator
from msmamba.plugins.selective_scan.gpu_launch import block_shape, chosen_chunks, launch_plan
from msmamba.plugins.selective_scan.gpu_package import CompiledKernel, KernelPackage

pytestmark = pytest.mark.skipif(cpu.why_unavailable() is not None, reason="the native library is not built")

KERNELS = ("chunk_state", "scan", "sum_directions")


def scan_model() -> bytes:
    """One scan node, without a function that says what it computes."""
    ranks = {"x": 4, "delta": 5, "A": 3, "B": 5, "C": 5, "D": 2, "delta_bias": 2}
    node = onnx.helper.make_node("SelectiveScan2D", list(ranks), ["y"], domain="msmamba")
    values = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank)
        for name, rank in {**ranks, "y": 4}.items()
    }
    y = values.pop("y")
    graph = onnx.helper.make_graph([node], "scan", list(values.values()), [y])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("msmamba", 1)]
    return bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


_number = itertools.count()


def made_up_package(states: int = STATES, capability: int = 87, code: bytes = b"none") -> KernelPackage:
    """Kernels for float32 that do nothing, unlike all before: the library keeps a package for good."""
    entry = f"kernel{next(_number)}"
    kernels = {name: CompiledKernel(entry, code + b"\0", 32, 0, 2) for name in KERNELS}
    return KernelPackage("float32", states, {capability: kernels})


def emulated_package(element_type: str, cache: Path) -> KernelPackage:
    """The shipped kernels, in the emulator."""
    from ptx.emulator import emulate

    from msmamba.plugins.selective_scan import triton_scan

    kernels = {}
    for name, kernel in triton_scan.compile_package(element_type, STATES, (87,)).kernels[87].items():
        compiled = triton_scan.compile_kernel(name, element_type, STATES, 87)
        emulated = emulate(compiled.asm["ptx"], cache)
        code = f"EMULATED {len(emulated.kernel.parameters)} {emulated.library._name}\0".encode()
        kernels[name] = CompiledKernel(
            kernel.name, code, kernel.threads, kernel.shared_bytes, kernel.hidden_pointers
        )
    return KernelPackage(element_type, STATES, {87: kernels})


NodeOf = Callable[..., Node]


@pytest.fixture
def node_of(driver: ctypes.CDLL, driver_file: Path) -> Iterator[NodeOf]:
    """Makes a session with one scan on the played GPU, and closes it."""
    made: list[Node] = []

    def make(*packages: KernelPackage, element: int = FLOAT, library: str = str(driver_file)) -> Node:
        runtime = PlayedRuntime(driver)
        with gpu_operator.offered(packages, library):
            runtime.register()
        made.append(Node(runtime, element))
        return made[-1]

    yield make
    for node in made:
        node.close()


def held(case: ScanCase) -> Arrays:
    """A case's arguments in device memory."""
    inputs = case.inputs()
    return [device_array(inputs[name]) for name in ARGUMENTS]


CASE = ScanCase(1, 5, 3, 13)


def test_the_operator_is_for_cuda_and_of_both_types(node_of: NodeOf) -> None:
    ops = node_of(made_up_package()).runtime.ops
    assert len(ops) == 2
    for op, element in zip(ops, (FLOAT, HALF), strict=True):
        me = ctypes.addressof(op)
        assert (op.get_name(me), op.get_execution_provider(me)) == (
            b"SelectiveScan2D",
            b"CUDAExecutionProvider",
        )
        types = [op.get_input_type(me, i) for i in range(op.get_input_count(me))]
        assert types == [element, element, FLOAT, element, element, FLOAT, FLOAT]
        assert op.get_output_type(me, 0) == element


@pytest.mark.parametrize(
    ("element_type", "element", "multiprocessors"),
    [
        pytest.param("float32", FLOAT, 1, id="float32"),
        pytest.param("float16", HALF, 100, id="float16-split"),
    ],
)
def test_it_scans_as_the_reference_does(
    node_of: NodeOf,
    driver: ctypes.CDLL,
    ptx_cache: Path,
    element_type: str,
    element: int,
    multiprocessors: int,
) -> None:
    """By the shipped kernels' PTX in the emulator."""
    driver.played_reset(87, multiprocessors)
    inputs = held(ScanCase(1, 9, 12, 13, element_type))
    (y,) = node_of(emulated_package(element_type, ptx_cache), element=element)(inputs)
    truth(dict(zip(ARGUMENTS, inputs, strict=True))).check(y)


@pytest.mark.parametrize("multiprocessors", [1, 8, 132])
@pytest.mark.parametrize(
    "shape",
    [
        *(ScanShape(4, 56, 56, 24, 16), ScanShape(64, 28, 28, 48, 16), ScanShape(4, 7, 7, 192, 16)),
        *(ScanShape(3, 1, 1, 7, 16), ScanShape(1, 3, 50, 9, 16), ScanShape(1, 50, 3, 8, 16)),
    ],
    ids=lambda shape: "x".join(map(str, vars(shape).values())),
)
def test_it_launches_what_the_plan_says(
    node_of: NodeOf, driver: ctypes.CDLL, shape: ScanShape, multiprocessors: int
) -> None:
    """The arithmetic stands twice, in Python for engines and in C++ for ONNX Runtime."""
    driver.played_reset(87, multiprocessors)
    node_of(made_up_package())(held(ScanCase(shape.batch, shape.height, shape.width, shape.channels)))
    block = block_shape(87)
    plan = launch_plan(shape, block, chosen_chunks(shape, block, multiprocessors))
    grids = [" ".join(map(str, launch.grid)) for launch in plan.launches]
    log = driver.played_log().decode().splitlines()
    assert [line for line in log if line.startswith("cuLaunchKernel ")] == [
        f"cuLaunchKernel {grid} x 32" for grid in grids
    ]
    assert f"cuMemAlloc {plan.workspace_bytes}" in log


def test_it_allocates_once_and_loads_once(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    """Two nodes of one stream share what they need; later calls only launch."""
    package = made_up_package()
    first = node_of(package)
    second = Node(first.runtime, FLOAT)
    inputs, smaller = held(CASE), held(ScanCase(1, 3, 3, 8))
    first(inputs)
    before = driver.played_log().decode().splitlines()
    assert (before.count("cuModuleLoadData"), before.count("cuMemAlloc")) == (3, 1)
    for node, arrays in ((first, inputs), (second, smaller), (second, inputs)):
        node(arrays)
    after = driver.played_log().decode().splitlines()[len(before) :]
    assert {line.split()[0] for line in after} == {
        *("cuStreamGetCtx", "cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent")
    }
    second.close()
    first(inputs)  # the memory is there as long as a node is


def test_each_stream_has_its_own_memory_in_its_own_context(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    node = node_of(made_up_package())
    for stream in (STREAM, STREAM + 1, OTHER_GPUS_STREAM):
        node.runtime.stream = stream
        node(held(CASE))
    log = driver.played_log().decode().splitlines()
    assert log.count("cuMemAlloc") == 3
    assert log.count("cuModuleLoadData") == 6  # three kernels in each context


def test_memory_that_a_graph_may_use_outlives_its_growth(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    node = node_of(made_up_package())
    node(held(CASE))
    node(held(ScanCase(2, 5, 3, 13)))
    assert driver.played_allocations() == 2
    assert b"cuMemFree" not in driver.played_log()


def test_a_batch_of_none_launches_nothing(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    node_of(made_up_package())(held(ScanCase(0, 5, 3, 13)))
    assert b"cuLaunchKernel" not in driver.played_log()


def changed(index: int, array: NDArray[np.generic]) -> Arrays:
    return [array if i == index else given for i, given in enumerate(held(CASE))]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(changed(0, np.zeros((3, 5, 4), np.float32)), "x must be (batch, H, W, D)", id="x"),
        pytest.param(changed(2, np.zeros((4, 13), np.float32)), "A must be (4, D, N)", id="A"),
        pytest.param(
            changed(3, np.zeros((1, 5, 3, 4, 8), np.float32)),
            "B is (1, 5, 3, 4, 8), expected (1, 5, 3, 4, 16)",
            id="B",
        ),
        pytest.param(held(ScanCase(1, 5, 0, 13)), "a dimension other than the batch is empty", id="empty"),
        pytest.param(
            changed(0, device_array(np.zeros(1 + 5 * 3 * 13, np.float32))[1:].reshape(1, 5, 3, 13)),
            "an address that is no multiple of 16",
            id="misaligned",
        ),
        pytest.param(
            [
                np.broadcast_to(array, (20_000, *array.shape[1:])) if len(array) == 1 else array
                for array in held(ScanCase(1, 1, 1, 1))
            ],
            "exceeds the launch grid: at most batch 16383",
            id="batch",
        ),
    ],
)
def test_wrong_tensors_are_refused_in_one_line(node_of: NodeOf, inputs: Arrays, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        node_of(made_up_package())(inputs)


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("cuStreamGetCtx", 201, "cuStreamGetCtx failed: CUDA_ERROR_INVALID_CONTEXT"),
        ("cuCtxPushCurrent", 201, "cuCtxPushCurrent failed: CUDA_ERROR_INVALID_CONTEXT"),
        ("cuDeviceGetAttribute", 100, "cuDeviceGetAttribute failed: CUDA_ERROR_NO_DEVICE"),
        ("cuModuleLoadData", 209, "CUDA_ERROR_NO_BINARY_FOR_GPU: the machine code is for another GPU"),
        ("cuModuleGetFunction", 7, "cuModuleGetFunction failed: an error without a name"),
        ("cuMemAlloc", 2, "CUDA_ERROR_OUT_OF_MEMORY: the GPU's memory is full: close what else uses it"),
        ("cuStreamIsCapturing", 201, "cuStreamIsCapturing failed: CUDA_ERROR_INVALID_CONTEXT"),
        ("cuLaunchKernel", 719, "cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED"),
    ],
)
def test_what_the_driver_refuses_is_one_line_and_the_next_call_may_work(
    node_of: NodeOf, driver: ctypes.CDLL, call: str, status: int, message: str
) -> None:
    node = node_of(made_up_package())
    driver.played_fail(call.encode(), status)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        node(held(CASE))
    driver.played_fail(call.encode(), 0)
    node(held(CASE))


def test_kernels_that_there_are_not_are_named(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    for package, missing in (
        (made_up_package(capability=90), r"float32 with 16 states on compute capability 8\.7; .* for 9\.0"),
        (made_up_package(states=8), r"float32 with 16 states on compute capability 8\.7"),
    ):
        with pytest.raises(RuntimeError, match=missing):
            node_of(package)(held(CASE))
    assert b"cuModuleLoadData" not in driver.played_log()


def test_damaged_machine_code_is_refused(node_of: NodeOf) -> None:
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_IMAGE: the machine code is damaged, or newer"):
        node_of(made_up_package(code=b"DAMAGED"))(held(CASE))


def test_a_machine_without_the_driver_is_told(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    with pytest.raises(BackendError, match="no libcuda of nowhere, NVIDIA's driver"):
        node_of(made_up_package(), library="libcuda of nowhere")
    with pytest.raises(BackendError, match="NVIDIA's driver is too old"):
        node_of(made_up_package(), library="libc.so.6" if os.name == "posix" else "msvcrt.dll")


def test_a_driver_that_does_not_start_is_told(
    node_of: NodeOf, driver: ctypes.CDLL, driver_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "libcuda-of-its-own.so"
    copy.write_bytes(driver_file.read_bytes())
    ctypes.CDLL(str(copy)).played_fail(b"cuInit", 100)
    with pytest.raises(BackendError, match="NVIDIA's driver gives error 100: check nvidia-smi"):
        node_of(made_up_package(), library=str(copy))


def test_memory_does_not_grow_inside_a_graph(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    """What was run before may be captured; what needs more memory may not."""
    node = node_of(made_up_package())
    node(held(CASE))
    driver.played_capture(1)
    node(held(CASE))
    with pytest.raises(RuntimeError, match="cannot be had while a CUDA graph is captured"):
        node(held(ScanCase(2, 5, 3, 13)))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "resize"},
        {"element_type": "bfloat16"},
        {"element_type": ["float32"]},
        {"states": "16"},
        {"entry": "\ud800"},
        {"entry": 3},
        {"threads": None},
        {"threads": 2**32 + 32},
        {"threads": -32},
        {"states": 2**64 + STATES},
    ],
    ids=str,
)
def test_kernels_of_another_kind_are_not_handed_over(driver_file: Path, changes: dict[str, Any]) -> None:
    """Whatever JSON a bundle's file holds."""
    said = {
        "name": "scan",
        "element_type": "float32",
        "states": STATES,
        "entry": "scan",
        "threads": 32,
        **changes,
    }
    kernel = CompiledKernel(said["entry"], b"none", said["threads"], 0, 2)
    package = KernelPackage(said["element_type"], said["states"], {87: {said["name"]: kernel}})
    files = {"scan.float32.kernels": package.to_bytes()}
    with (
        pytest.raises(BackendError, match="not such as this version launches"),
        gpu_operator.offered(gpu_operator.packages_of(files, 87), str(driver_file)),
    ):
        pass


def test_a_bundles_kernels_must_be_for_the_gpu() -> None:
    files = {"scan.float32.kernels": made_up_package(capability=86).to_bytes()}
    assert gpu_operator.packages_of(files, 86)[0].compute_capabilities == (86,)
    with pytest.raises(BackendError, match=r"are for compute capability 8\.6, and this GPU has 7\.0"):
        gpu_operator.packages_of(files, 70)
    with pytest.raises(BackendError, match="it carries no scan kernels"):
        gpu_operator.packages_of({}, 86)
    with pytest.raises(BackendError, match="damaged"):
        gpu_operator.packages_of({"scan.float32.kernels": files["scan.float32.kernels"][:-9]}, 86)


def test_the_offer_is_the_threads_own_and_ends(driver_file: Path) -> None:
    """Sessions of the real ONNX Runtime on the CPU: with the offer they have no kernel for the CPU."""

    def open_on_cpu() -> bool:
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(cpu.library_path()))
        try:
            onnxruntime.InferenceSession(scan_model(), options, providers=["CPUExecutionProvider"])
        except NotThere:
            return False
        return True

    offer = gpu_operator.offered((made_up_package(),), str(driver_file))
    with offer, ThreadPoolExecutor(1) as other:
        assert other.submit(open_on_cpu).result()
        assert not open_on_cpu()
    assert open_on_cpu()
