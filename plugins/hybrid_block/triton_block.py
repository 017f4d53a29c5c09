"""The hybrid block's Triton kernels, compiled for any NVIDIA GPU without one.

Importing this module imports Triton and PyTorch; import it only where a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ...errors import BackendError
from ..selective_scan.gpu_launch import block_shape
from ..selective_scan.gpu_package import BLOCK_STATES, ELEMENT_TYPES, KernelPackage
from ..selective_scan.triton_scan import compile_function, packed_kernel
from . import triton_kernel
from .gpu_kernels import CONSTANTS, FLOAT32_POINTERS, STEP_KERNELS, WARPS

KERNELS = {name: getattr(triton_kernel, name) for name in CONSTANTS}
"""The kernels by name."""
_TRITON_TYPES = {"float16": "fp16", "float32": "fp32"}
_OPTIONS = {"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": True}


def compile_kernel(name: str, element_type: str, compute_capability: int) -> Any:
    """Compiles one kernel for one compute capability, without a GPU.

    Args:
        name: A key of `KERNELS`.
        element_type: ``float16`` or ``float32``, of all maps and weights.
        compute_capability: ``10 * major + minor``.

    Returns:
        Triton's compiled kernel: ``asm["ptx"]``, ``asm["cubin"]`` and ``metadata``.

    Raises:
        BackendError: Another type or compute capability, or one that Triton does not know.
    """
    if element_type not in _TRITON_TYPES:
        raise BackendError(f"block kernels exist for {', '.join(ELEMENT_TYPES)}; found {element_type}")
    block_shape(compute_capability)  # of the GPUs that the scan is compiled for
    function = KERNELS[name]
    pointers = [argument for argument in function.arg_names if argument.endswith("_ptr")]
    types = {True: "*fp32", False: f"*{_TRITON_TYPES[element_type]}"}
    typed = [types[pointer.removesuffix("_ptr") in FLOAT32_POINTERS] for pointer in pointers]
    return compile_function(function, typed, CONSTANTS[name], _OPTIONS, compute_capability)


def compile_package(
    element_type: str, steps: Collection[str], compute_capabilities: Iterable[int]
) -> KernelPackage:
    """Compiles the kernels of steps for several compute capabilities into one package, without a GPU.

    Args:
        element_type: As of `compile_kernel`.
        steps: Keys of `STEP_KERNELS`.
        compute_capabilities: ``10 * major + minor``.

    Raises:
        BackendError: Another type or compute capability than `compile_kernel` takes.
    """
    wanted = {name for step in steps for name in STEP_KERNELS[step]}
    kernels = {
        compute_capability: {
            name: packed_kernel(function, compile_kernel(name, element_type, compute_capability))
            for name, function in KERNELS.items()
            if name in wanted
        }
        for compute_capability in compute_capabilities
    }
    return KernelPackage(element_type, BLOCK_STATES, kernels)
