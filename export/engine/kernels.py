"""Compiled GPU kernels beside an ONNX file: the scan's, and what its functions do between their products.

With the first a device builds its engine without Triton, and ONNX Runtime's CUDA runs the scan; the second is
for ONNX Runtime's CUDA alone. One file of either for each type that the model's maps have, named after it,
with the kernels for every compute capability that there are kernels for and that the installed Triton knows:
about 150 kB and 370 kB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec

from onnx import ModelProto, TensorProto

from ...errors import BackendError, ExportError
from ...plugins.hybrid_block import STATE_INPUTS
from ...plugins.hybrid_block.gpu_kernels import STEP_KERNELS
from ...plugins.selective_scan.gpu_launch import BLOCK_SHAPES, dotted
from ...plugins.selective_scan.gpu_package import (
    BLOCK_STATES,
    ELEMENT_TYPES,
    KERNELS_SUFFIX,
    STEPS_SUFFIX,
    CompiledKernel,
    KernelPackage,
)
from ...plugins.selective_scan.tensorrt_plugin import Compiler, compile_with_triton
from ..graph.inlining import functions_called

_ELEMENT_TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


def kernel_file(element_type: str) -> str:
    """Name of the file in a bundle."""
    return f"scan.{element_type}{KERNELS_SUFFIX}"


def block_kernel_file(element_type: str) -> str:
    """Name of the file in a bundle that has the block's kernels."""
    return f"block.{element_type}{STEPS_SUFFIX}"


def has_triton() -> bool:
    """Whether kernels can be compiled here."""
    return find_spec("triton") is not None


def kernels_for(model: ModelProto, note: Callable[[str], None] = lambda line: None) -> dict[str, bytes]:
    """Compiles the kernels of a model's scans and block steps: files by name, none without Triton.

    Args:
        model: with the types of its values.
        note: is told which compute capabilities the installed Triton compiles nothing for, and why.
    """
    if not has_triton():
        return {}
    from ...plugins.hybrid_block.triton_block import compile_package as compile_block

    files: dict[str, bytes] = {}
    refused: dict[str, dict[int, str]] = {}

    def compiled(
        whose: str, capabilities: Iterable[int], compiler: Callable[[tuple[int, ...]], KernelPackage]
    ) -> dict[int, dict[str, CompiledKernel]]:
        kernels: dict[int, dict[str, CompiledKernel]] = {}
        for compute_capability in capabilities:
            try:
                kernels |= compiler((compute_capability,)).kernels
            except BackendError as error:
                refused.setdefault(whose, {})[compute_capability] = str(error)
        return kernels

    steps = steps_called(model)
    for element_type, states in scan_kinds(model):
        scan = compiled("scan", BLOCK_SHAPES, partial(compile_with_triton, element_type, states))
        if scan:
            files[kernel_file(element_type)] = KernelPackage(element_type, states, scan).to_bytes()
        # Of no use where the scan has none.
        block = compiled("block", scan, partial(compile_block, element_type, steps)) if steps else {}
        if block:
            files[block_kernel_file(element_type)] = KernelPackage(
                element_type, BLOCK_STATES, block
            ).to_bytes()
    for whose, why in refused.items():
        capabilities = dotted(sorted(why))
        note(
            f"the bundle has no {whose} kernels for compute capability {capabilities}: "
            f"{next(iter(why.values()))}"
        )
    return files


def compiler_from(files: Mapping[str, bytes], source: str) -> Compiler:
    """What the plugin takes its kernels from while building an engine: a bundle's files in Triton's place.

    Args:
        files: the kernels by file name, as `kernels_for` made them.
        source: the bundle, for messages.
    """

    def compiler(element_type: str, states: int, compute_capabilities: tuple[int, ...]) -> KernelPackage:
        name = kernel_file(element_type)
        if name not in files:
            raise BackendError(f"{source} holds no '{name}': export it again, where Triton is installed")
        package = KernelPackage.from_bytes(files[name])
        if package.states != states:
            raise BackendError(f"'{name}' in {source} is for {package.states} states; the scan has {states}")
        return package.only(compute_capabilities)

    return compiler


def steps_called(model: ModelProto) -> list[str]:
    """The block's steps that a model calls, itself or in its functions (`STEP_KERNELS`)."""
    functions = {function.name: function for function in model.functions}
    called = functions_called(model.graph.node, functions)
    return [step for step in STEP_KERNELS if step in called]


def scan_kinds(model: ModelProto) -> list[tuple[str, int]]:
    """Element type and number of states of the model's scans: what kernels are compiled for.

    Raises:
        ExportError: the model does not state them, or has a type that there are no kernels for.
    """
    values = (*model.graph.input, *model.graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    states = {tensor.name: tensor.dims[-1] for tensor in model.graph.initializer if tensor.dims}
    found = set()
    for node in model.graph.node:
        if node.op_type not in STATE_INPUTS:
            continue
        element_type = _ELEMENT_TYPES.get(types.get(node.input[0], 0))
        A = node.input[STATE_INPUTS[node.op_type][0]]
        if element_type is None or A not in states:
            raise ExportError(
                f"scan '{node.name}' has no type that kernels exist for ({', '.join(ELEMENT_TYPES)}), "
                "or its A is no constant: export the model with mmdeploy"
            )
        found.add((element_type, states[A]))
    return sorted(found)
