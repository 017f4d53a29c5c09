"""The hybrid block's steps for ONNX Runtime's CUDA: the native library's operators, launches and refusals.

As in test_gpu_operator.py, ONNX Runtime's part is played, and NVIDIA's driver, whose kernels are the shipped
ones' PTX in the emulator where numbers matter. What is true is told by `block_steps`, and by the functions.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from block_cases import DOMAIN, OPSET, Gelu
from block_steps import StepCase
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from played_onnxruntime import FLOAT, HALF, Arrays, CustomOp, Node, PlayedRuntime, device_array
from ptx.emulator import ORDERS, emulate

from msmamba.errors import BackendError
from msmamba.plugins.hybrid_block import STEPS
from msmamba.plugins.hybrid_block.gpu_kernels import CONSTANTS, WARPS
from msmamba.plugins.hybrid_block.onnx_functions import block_functions
from msmamba.plugins.selective_scan import cpu, gpu_operator
from msmamba.plugins.selective_scan.gpu_launch import BLOCK_SHAPES
from msmamba.plugins.selective_scan.gpu_package import BLOCK_STATES, CompiledKernel, KernelPackage

pytestmark = pytest.mark.skipif(cpu.why_unavailable() is not None, reason="the native library is not built")

OPERATORS = (*STEPS, "MIFA")
_number = itertools.count()


def made_up_package(capability: int = 87, code: bytes = b"none", leave_out: str = "") -> KernelPackage:
    """Kernels for float32 that do nothing, unlike all before: the library keeps a package for good."""
    kernels = {
        name: CompiledKernel(f"{name}{next(_number)}", code + b"\0", 32 * WARPS, 0, 2)
        for name in CONSTANTS
        if name != leave_out
    }
    return KernelPackage("float32", BLOCK_STATES, {capability: kernels})


@functools.cache
def emulated_package(element_type: str, capability: int, cache: Path) -> KernelPackage:
    """The shipped kernels, in the emulator."""
    from msmamba.plugins.hybrid_block import triton_block

    kernels = {}
    package = triton_block.compile_package(element_type, OPERATORS, (capability,))
    for name, kernel in package.for_device(capability).items():
        compiled = triton_block.compile_kernel(name, element_type, capability)
        emulated = emulate(compiled.asm["ptx"], cache)
        code = f"EMULATED {len(emulated.kernel.parameters)} {emulated.library._name}\0".encode()
        kernels[name] = CompiledKernel(
            kernel.name, code, kernel.threads, kernel.shared_bytes, kernel.hidden_pointers
        )
    return KernelPackage(element_type, BLOCK_STATES, {capability: kernels})


def held(case: StepCase, element_type: str = "float32") -> Arrays:
    """A case's inputs in device memory."""
    return [device_array(array) for array in case.of_type(element_type)]


NodeOf = Callable[..., Node]
_OPS: dict[str, list[CustomOp]] = {}
"""The operators of each package: the library hands them to ONNX Runtime once, for all sessions."""


@pytest.fixture
def node_of(driver: ctypes.CDLL, driver_file: Path) -> Iterator[NodeOf]:
    """Makes a session with one step on the played GPU, and closes it."""
    made: list[Node] = []

    def make(package: KernelPackage, name: str, attributes: Mapping[str, int], element: int = FLOAT) -> Node:
        runtime = PlayedRuntime(driver)
        runtime.attributes = attributes
        with gpu_operator.offered((package,), str(driver_file)):
            runtime.register()
        runtime.ops = _OPS.setdefault(package.digest, runtime.ops)
        made.append(Node(runtime, element, name))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.mark.parametrize("name", OPERATORS)
def test_the_function_computes_what_the_step_is_defined_as(name: str) -> None:
    for case in (StepCase(name, 2, 5, 24), StepCase(name, 1, 3, 16, groups=1)):
        function = {entry.name: entry for entry in block_functions(OPSET)}[name]
        node = onnx.helper.make_node(name, function.input, function.output, domain=DOMAIN, **case.attributes)
        values = [
            [onnx.helper.make_tensor_value_info(value, onnx.TensorProto.DOUBLE, None) for value in names]
            for names in (function.input, function.output)
        ]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], name, *values),
            opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
            functions=[function],
        )
        evaluator = ReferenceEvaluator(onnx.inliner.inline_local_functions(model), new_ops=[Gelu])
        feeds = {key: array.astype(np.float64) for key, array in case.inputs.items()}
        for found, exact in zip(evaluator.run(None, feeds), case.exact(), strict=True):
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-9)  # ONNX has the epsilon in float32


@pytest.mark.parametrize("element_type", ["float32", "float16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_it_computes_what_the_function_says(
    node_of: NodeOf, driver: ctypes.CDLL, ptx_cache: Path, name: str, element_type: str
) -> None:
    """The shipped kernels' PTX in the emulator: sizes that end within a program, one position, a stage.

    For a small GPU and a large one, whose walks are short.
    """
    element = {"float32": FLOAT, "float16": HALF}[element_type]
    package = emulated_package(element_type, 87, ptx_cache)
    for case in (
        StepCase(name, 2, 5, 24),
        StepCase(name, 1, 1, 16),
        StepCase(name, 2, 7, 192),
        StepCase(name, 1, 9, 48, groups=1),
        StepCase(name, 1, 2, 520, groups=2),
    ):
        driver.played_reset(87, 1)
        case.check(node_of(package, name, case.attributes, element)(held(case, element_type)))
        driver.played_reset(87, 132)
        driver.played_ulps(2)  # as a GPU's exponentials and quotients are off
        case.check(node_of(package, name, case.attributes, element)(held(case, element_type)))


@pytest.mark.parametrize("element_type", ["float32", "float16"])
@pytest.mark.parametrize("capability", BLOCK_SHAPES)
def test_the_kernels_of_every_gpu_in_every_order_of_threads(
    node_of: NodeOf, driver: ctypes.CDLL, ptx_cache: Path, capability: int, element_type: str
) -> None:
    """The same bits whatever thread comes first; the emulator finds races and what is out of bounds."""
    element = {"float32": FLOAT, "float16": HALF}[element_type]
    package = emulated_package(element_type, capability, ptx_cache)
    for name in OPERATORS:
        case, answers = StepCase(name, 1, 3, 24), []
        for order in range(len(ORDERS)):
            driver.played_reset(capability, 1)
            driver.played_order(order)
            answers.append(node_of(package, name, case.attributes, element)(held(case, element_type)))
        for found in answers[1:]:
            for answer, first in zip(found, answers[0], strict=True):
                np.testing.assert_array_equal(answer, first)


def test_the_operators_are_for_cuda_and_of_both_types(node_of: NodeOf, ptx_cache: Path) -> None:
    node = node_of(made_up_package(), "MIFA", {"channels": 24})
    described = [
        (op.get_name(ctypes.addressof(op)), op.get_execution_provider(ctypes.addressof(op)))
        for op in node.runtime.ops
    ]
    names = [
        "SelectiveScan2D",
        *OPERATORS,
        "SelectiveScan2D",
    ]  # float16 has the scan alone: no kernels for more
    assert described == [(name.encode(), b"CUDAExecutionProvider") for name in names]


@pytest.mark.parametrize(
    ("batch", "multiprocessors", "grid"),
    [
        # Five walks a program, of 24 pairs of channels each: of 28 lines, of one, of eight
        pytest.param(64, 132, f"{-(-2 * 56 // 5)} 64 1", id="a-server"),
        pytest.param(1, 132, f"{-(-56 * 56 // 5)} 1 1", id="one-image"),
        pytest.param(1, 8, f"{-(-7 * 56 // 5)} 1 1", id="a-small-gpu"),
    ],
)
def test_walks_are_as_long_as_leaves_the_gpu_busy(
    node_of: NodeOf, driver: ctypes.CDLL, batch: int, multiprocessors: int, grid: str
) -> None:
    driver.played_reset(87, multiprocessors)
    case = StepCase("LocalDepthwise", batch, 56, 48)
    node_of(made_up_package(), case.name, case.attributes)(held(case))
    (launch,) = [line for line in driver.played_log().decode().splitlines() if "cuLaunchKernel " in line]
    assert launch == f"cuLaunchKernel {grid} x 128"


def test_what_there_is_no_kernel_for_is_left_to_the_function(node_of: NodeOf) -> None:
    package = made_up_package(leave_out="row_sums")
    node = node_of(package, "GatedNorm", {})
    names = {op.get_name(ctypes.addressof(op)).decode() for op in node.runtime.ops}
    assert names == {"SelectiveScan2D", *STEPS}


def test_only_the_attentions_sums_take_memory(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    """Once for a stream; later calls launch and do nothing else."""
    package = made_up_package()
    for name in STEPS:
        case = StepCase(name, 2, 5, 24)
        node_of(package, name, case.attributes)(held(case))
    assert b"cuMemAlloc" not in driver.played_log()
    case = StepCase("MIFA", 2, 5, 24)
    node = node_of(package, "MIFA", case.attributes)
    node(held(case))
    before = driver.played_log().decode().splitlines()
    assert before.count("cuMemAlloc") == 1
    assert f"cuMemAlloc {2 * 5 * 48 * 4}" in before
    assert before.count("cuModuleLoadData") == len(CONSTANTS)
    node(held(case))
    assert {line.split()[0] for line in driver.played_log().decode().splitlines()[len(before) :]} == {
        *("cuStreamGetCtx", "cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent")
    }


def test_a_batch_of_none_launches_nothing(node_of: NodeOf, driver: ctypes.CDLL) -> None:
    for name in OPERATORS:
        case = StepCase(name, 0, 5, 24)
        for answer in node_of(made_up_package(), name, case.attributes)(held(case)):
            assert answer.shape[0] == 0
    assert b"cuLaunchKernel" not in driver.played_log()


def changed(case: StepCase, name: str, array: NDArray[np.generic]) -> StepCase:
    case.inputs[name] = array
    return case


def with_attribute(case: StepCase, **attributes: int) -> StepCase:
    case.attributes = {**case.attributes, **attributes}
    return case


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param(
            changed(StepCase("GatedNorm", 1, 3, 24), "gate", np.zeros((4, 3, 3, 10), np.float32)),
            "GatedNorm: gate is (4, 3, 3, 10), expected (4, 3, 3, 12)",
            id="channels",
        ),
        pytest.param(
            changed(StepCase("MIFA", 1, 3, 24), "local", np.zeros((3, 24), np.float32)),
            "MIFA: local is (3, 24), expected (1, 3, 3, 24)",
            id="rank",
        ),
        pytest.param(
            changed(StepCase("LocalDepthwise", 1, 3, 24), "x", np.zeros((1, 3, 3, 12), np.float32)),
            "LocalDepthwise: x has 12 channels, fewer than the weights",
            id="narrow",
        ),
        pytest.param(
            StepCase("MergedGroups", 1, 3, 24, width=4),
            "MergedGroups: the map is not square: H = 3, W = 4",
            id="oblong",
        ),
        pytest.param(
            StepCase("MergedGroups", 1, 3, 12), "MergedGroups: channels must be even: d = 3", id="odd-group"
        ),
        *(
            pytest.param(
                StepCase(name, 1, 3, 21, groups=1), f"{name}: channels must be even: h = 21", id=f"odd-{name}"
            )
            for name in ("LocalDepthwise", "LocalExpansion", "GroupedNorm", "ShuffledNorm", "MIFA")
        ),
        pytest.param(
            changed(StepCase("LocalDepthwise", 1, 3, 24), "x", np.zeros((1, 3, 3, 25), np.float32)),
            "LocalDepthwise: channels must be even: c = 25",
            id="odd-stride",
        ),
        pytest.param(
            changed(
                changed(
                    with_attribute(StepCase("MergedGroups", 1, 3, 24), channels=0),
                    "conv_weight",
                    np.zeros((0, 1, 3, 3), np.float32),
                ),
                "conv_bias",
                np.zeros(0, np.float32),
            ),
            "MergedGroups: of a group's channels some must be convolved: d = 6, q = 0",
            id="none-convolved",
        ),
        pytest.param(
            StepCase("GatedNorm", 1, 3, 24, width=0), "a dimension other than the batch is empty", id="empty"
        ),
        pytest.param(
            with_attribute(StepCase("MIFA", 1, 3, 24), channels=12),
            "MIFA: attribute channels is 12, expected 24 by the weights' shapes",
            id="attribute",
        ),
        pytest.param(
            with_attribute(StepCase("GroupedNorm", 1, 3, 24), groups=5),
            "GroupedNorm: 24 channels are no 5 groups",
            id="groups",
        ),
        pytest.param(
            with_attribute(StepCase("GroupedNorm", 1, 3, 24), groups=0),
            "attribute groups is less than 1",
            id="no-groups",
        ),
        pytest.param(
            StepCase("ShuffledNorm", 70_000, 1, 2),
            "a batch of 70000 with 2 channels exceeds the launch grid: at most batch 65535",
            id="batch",
        ),
    ],
)
def test_wrong_tensors_are_refused_in_one_line(
    node_of: NodeOf, driver: ctypes.CDLL, case: StepCase, message: str
) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        node_of(made_up_package(), case.name, case.attributes)(held(case))
    assert b"cuLaunchKernel" not in driver.played_log()


def test_what_the_driver_refuses_is_one_line_and_the_next_call_may_work(
    node_of: NodeOf, driver: ctypes.CDLL
) -> None:
    case = StepCase("MIFA", 1, 3, 24)
    for call, status, message in (
        ("cuMemAlloc", 2, "MIFA: CUDA driver call cuMemAlloc(576) failed: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuLaunchKernel", 719, "MIFA: CUDA driver call cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED"),
    ):
        node = node_of(made_up_package(), case.name, case.attributes)
        driver.played_fail(call.encode(), status)
        with pytest.raises(RuntimeError, match=re.escape(message)):
            node(held(case))
        driver.played_fail(call.encode(), 0)
        node(held(case))


def test_kernels_for_another_gpu_are_named(node_of: NodeOf) -> None:
    case = StepCase("GatedNorm", 1, 3, 24)
    with pytest.raises(
        RuntimeError, match=r"no block kernels for float32 on compute capability 8\.7; .* for 9\.0"
    ):
        node_of(made_up_package(capability=90), case.name, case.attributes)(held(case))


def test_a_bundle_whose_block_kernels_are_for_other_gpus_runs_its_functions() -> None:
    kernels = {
        name: CompiledKernel(name, b"none", 32, 0, 2) for name in ("chunk_state", "scan", "sum_directions")
    }
    files = {
        "scan.float32.kernels": KernelPackage("float32", 16, {87: kernels}).to_bytes(),
        "block.float32.steps": made_up_package(capability=90).to_bytes(),
    }
    (only,) = gpu_operator.packages_of(files, 87)
    assert only.states == 16
    del files["scan.float32.kernels"]
    with pytest.raises(BackendError, match="it carries no scan kernels"):
        gpu_operator.packages_of(files, 90)
