"""The Triton scan and its gradients: compiled for any NVIDIA GPU without one, and launched on tensors.

Importing this module imports Triton and PyTorch; import it only where a kernel is compiled or run. Dims
as in the package: batch, H W map, D channels, N states, K = 4 directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError

from ...errors import BackendError
from . import ScanShape
from .gpu_launch import (
    BACKWARD_BLOCK,
    FLOAT32_BYTES,
    KERNEL_POINTERS,
    OLDEST_TRITON,
    POINTER_ALIGNMENT,
    SUM_ELEMENTS,
    SUM_WARPS,
    WARP,
    BlockShape,
    Launch,
    backward_plan,
    block_shape,
    chosen_chunks,
    dotted,
    is_too_old,
    launch_plan,
)
from .gpu_package import CompiledKernel, KernelPackage
from .triton_kernel import chunk_state, scan, scan_backward, sum_directions, tile_states

KERNELS = {"chunk_state": chunk_state, "scan": scan, "sum_directions": sum_directions}
"""The scan's, which engines and bundles carry."""
BACKWARD_KERNELS = {"tile_states": tile_states, "scan_backward": scan_backward}
"""The gradients', for training in PyTorch."""
# In the tensors' type; all others are float32.
_ELEMENT_POINTERS = {"x", "delta", "B", "C", "y", "grad", "delta_gradient"}
_TRITON_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
MOST_REGISTERS = 255
"""What a thread may have at most."""
INTERPRETED_AS = 87
"""The compute capability whose block shape the interpreter takes."""


def _kernel(name: str) -> Any:
    return BACKWARD_KERNELS[name] if name in BACKWARD_KERNELS else KERNELS[name]


def constants(kernel: str, states: int, block: BlockShape) -> dict[str, int]:
    """The compile-time arguments of a kernel."""
    if kernel == "sum_directions":
        return {"ELEMENTS": SUM_ELEMENTS}
    return {"STATES": states, "BLOCK": block.channels, "STEPS": block.steps}


def _options(kernel: str) -> dict[str, Any]:
    """How Triton compiles a kernel, ahead of time and at its first launch alike."""
    warps = SUM_WARPS if kernel == "sum_directions" else 1
    # Fused multiply-add is asked for explicitly: Triton's default changes in 3.10.
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    # Left to itself, the compiler stops at 168 registers and spills two.
    return {**options, "maxnreg": MOST_REGISTERS} if kernel == "scan_backward" else options


def compile_kernel(name: str, element_type: str, states: int, compute_capability: int) -> Any:
    """Compiles one kernel for one compute capability, without a GPU.

    Args:
        name: A key of `KERNELS` or `BACKWARD_KERNELS`.
        element_type: ``float16``, ``bfloat16`` or ``float32``, of x, delta, B, C and y.
        states: N, a power of two.
        compute_capability: ``10 * major + minor``.

    Returns:
        Triton's compiled kernel: ``asm["ptx"]``, ``asm["cubin"]`` and ``metadata``.

    Raises:
        BackendError: Another type, number of states or compute capability, or one that Triton does not know.
    """
    if element_type not in _TRITON_TYPES:
        raise BackendError(f"scan kernels exist for {', '.join(_TRITON_TYPES)}; found {element_type}")
    if states < 2 or states & (states - 1):
        raise BackendError(f"the scan kernel takes a power of two of states; found {states}")
    block = block_shape(compute_capability)
    fixed = constants(name, states, BACKWARD_BLOCK if name in BACKWARD_KERNELS else block)
    element = _TRITON_TYPES[element_type]
    types = [f"*{element if pointer in _ELEMENT_POINTERS else 'fp32'}" for pointer in KERNEL_POINTERS[name]]
    return compile_function(_kernel(name), types, fixed, _options(name), compute_capability)


def compile_function(
    function: Any,
    pointers: Sequence[str],
    constants: Mapping[str, int],
    options: Mapping[str, Any],
    compute_capability: int,
) -> Any:
    """Compiles a kernel for one compute capability, without a GPU.

    Args:
        function: The kernel: pointers, then sizes, then compile-time arguments.
        pointers: Triton's types of its pointers, which are aligned to `POINTER_ALIGNMENT`.
        constants: Its compile-time arguments.
        options: Triton's options.
        compute_capability: ``10 * major + minor``.

    Returns:
        Triton's compiled kernel.

    Raises:
        BackendError: Triton does not know the compute capability, or is too old.
    """
    if is_too_old(triton.__version__):
        raise BackendError(
            f"Triton {triton.__version__} is too old: {OLDEST_TRITON} and later compile the kernels"
        )
    names = function.arg_names
    sizes = len(names) - len(pointers) - len(constants)
    types = [*pointers, *["i32"] * sizes, *["constexpr"] * len(constants)]
    source = ASTSource(
        fn=function,
        signature=dict(zip(names, types, strict=True)),
        constexprs={(names.index(key),): value for key, value in constants.items()},
        attrs={(i,): [["tt.divisibility", POINTER_ALIGNMENT]] for i in range(len(pointers))},
    )
    target = GPUTarget("cuda", compute_capability, WARP)
    printed = redirect_stdout(StringIO())  # the whole kernel, where `ptxas` refuses it
    try:
        with triton.knobs.compilation.scope(), printed:
            # Line information would double the machine code and put this machine's paths into engines.
            triton.knobs.compilation.disable_line_info = True
            return triton.compile(source, target=target, options=dict(options))
    except (TritonError, RuntimeError) as error:  # the latter where LLVM gives up
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if " fatal " in line), lines[0])
        raise BackendError(
            f"Triton {triton.__version__} does not compile {function.__name__} for compute capability "
            f"{dotted([compute_capability])} ({' '.join(reason.split())})"
        ) from error


def packed_kernel(function: Any, compiled: Any) -> CompiledKernel:
    """A compiled kernel as packages hold it.

    Args:
        function: The kernel as `compile_function` took it.
        compiled: What that returned.

    Raises:
        BackendError: It asks for what our launchers do not provide.
    """
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise BackendError(
            f"Triton {metadata.triton_version} asks for scratch memory for {metadata.name}, "
            "which this launcher does not provide: use Triton 3.5 to 3.9"
        )
    # Pointers that Triton appended (two since 3.5: scratch memories, which ours do not use).
    declared = len(re.findall(r"^\s*\.param\s", compiled.asm["ptx"], re.MULTILINE))
    return CompiledKernel(
        name=metadata.name,
        cubin=compiled.asm["cubin"],
        threads=metadata.num_warps * WARP,
        shared_bytes=metadata.shared,
        hidden_pointers=declared - sum(argument.islower() for argument in function.arg_names),
    )


def compile_package(element_type: str, states: int, compute_capabilities: tuple[int, ...]) -> KernelPackage:
    """Compiles all kernels for several compute capabilities into one package, without a GPU.

    Raises:
        BackendError: Another type, number of states or compute capability than `compile_kernel` takes.
    """
    kernels = {
        compute_capability: {
            name: packed_kernel(function, compile_kernel(name, element_type, states, compute_capability))
            for name, function in KERNELS.items()
        }
        for compute_capability in compute_capabilities
    }
    return KernelPackage(element_type, states, kernels)


def selective_scan_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    chunks: int | None = None,
    block: BlockShape | None = None,
) -> Tensor:
    """The scan of the package's contract on a CUDA device, or in Triton's interpreter on the CPU.

    Args:
        x: (batch, H, W, D), contiguous like all others.
        delta: (batch, H, W, K, D), raw.
        A: (K, D, N) float32, negative; N a power of two.
        B: (batch, H, W, K, N).
        C: (batch, H, W, K, N).
        D: (K, D) float32.
        delta_bias: (K, D) float32.
        chunks: Pieces to split each direction's lines into; by default what suits the device.
        block: What one program owns; by default what the table says for the device.

    Returns:
        (batch, H, W, D) in ``x``'s type.

    Raises:
        BackendError: The scan is larger than a launch grid.
    """
    batch, height, width, channels = x.shape
    shape = ScanShape(batch, height, width, channels, A.shape[-1])
    if x.is_cuda:
        device = torch.cuda.get_device_properties(x.device)
        block = block or block_shape(10 * device.major + device.minor)
        multiprocessors = device.multi_processor_count
    else:
        block, multiprocessors = block or block_shape(INTERPRETED_AS), 1
    plan = launch_plan(shape, block, chunks or chosen_chunks(shape, block, multiprocessors))
    workspace = x.new_empty(plan.workspace_bytes // FLOAT32_BYTES, dtype=torch.float32)
    y = torch.empty_like(x)
    tensors = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "y": y}
    for array, offset in plan.workspace_addresses(0).items():
        start = offset // FLOAT32_BYTES
        tensors[array] = workspace.narrow(0, start, workspace.numel() - start)
    run_launches(plan.launches, tensors, shape.states, block)
    return y


def selective_scan_2d_backward(
    grad: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    block: BlockShape = BACKWARD_BLOCK,
) -> Gradients:
    """The gradients of the scan on a CUDA device, or in Triton's interpreter on the CPU.

    The same inputs give the same bits: nothing is added by atomics. Beside the gradients it takes, per
    position, channel and direction, nine float32 numbers for a while with 16 states (`BackwardPlan`).

    Args:
        grad: (batch, H, W, D), the gradient of the output, in ``x``'s type and contiguous like all others.
        x: As in `selective_scan_2d`, like all that follow.
        block: What one program owns.

    Returns:
        The gradients of ``x, delta, A, B, C, D, delta_bias``, each in its input's shape and type.

    Raises:
        BackendError: The scan is larger than a launch grid.
    """
    batch, height, width, channels = x.shape
    shape = ScanShape(batch, height, width, channels, A.shape[-1])
    plan = backward_plan(shape, block)
    arrays = {name: x.new_empty(dims, dtype=torch.float32) for name, dims in plan.arrays.items()}
    inputs = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    delta_gradient = torch.empty_like(delta)
    tensors = {**inputs, "grad": grad, "delta_gradient": delta_gradient, **arrays}
    run_launches(plan.launches, tensors, shape.states, block)
    return (
        arrays["x_partial"].sum(1).to(x.dtype),
        delta_gradient,
        arrays["A_partial"].sum(0),
        arrays["B_partial"].sum(0).to(B.dtype),
        arrays["C_partial"].sum(0).to(C.dtype),
        arrays["D_partial"].sum(0),
        arrays["bias_partial"].sum(0),
    )


def run_launches(
    launches: Sequence[Launch], tensors: Mapping[str, Tensor], states: int, block: BlockShape
) -> None:
    """Launches kernels one after another on the GPU that holds the tensors, named as in `KERNEL_POINTERS`."""
    with torch.cuda.device_of(
        tensors["x"]
    ):  # Triton launches on the current device, whosever the tensors are
        for launch in launches:
            pointers = [tensors[name] for name in KERNEL_POINTERS[launch.kernel]]
            fixed = constants(launch.kernel, states, block)
            kernel = _kernel(launch.kernel)[launch.grid]
            kernel(*pointers, *launch.scalars, **fixed, **_options(launch.kernel))
