"""The CUDA driver calls of the scan: load the kernels' machine code, launch them on a stream.

A launch allocates no device memory and synchronises nothing, so it may be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from ...errors import BackendError
from .. import cuda_driver
from ..cuda_driver import checked
from .gpu_launch import KERNEL_POINTERS, POINTER_ALIGNMENT, LaunchPlan
from .gpu_package import CompiledKernel, KernelPackage

_LOADED: dict[tuple[int, str], LoadedKernels] = {}
"""Kernels by CUDA context and machine code: an engine's layers share them, as long as the context lives."""


class LoadedKernels:
    """The kernels of a package for the current device, loaded into the current CUDA context.

    They stay loaded as long as the context lives; that is what TensorRT's execution contexts need.
    """

    def __init__(self, package: KernelPackage) -> None:
        """Loads the kernels.

        Raises:
            BackendError: The package holds none for this device, or the driver refuses them.
        """
        library = cuda_driver.driver()
        device = cuda_driver.current_device()
        self.compute_capability, self.multiprocessors = device.compute_capability, device.multiprocessors
        self._functions: dict[str, tuple[CompiledKernel, Any]] = {}
        for name, kernel in package.for_device(self.compute_capability).items():
            call = "cuModuleLoadData (where the driver is older than the kernels, update it)"
            module = checked(library.cuModuleLoadData(kernel.cubin), call)
            function = checked(
                library.cuModuleGetFunction(module, kernel.name.encode()), "cuModuleGetFunction"
            )
            self._functions[name] = (kernel, function)

    @classmethod
    def of(cls, package: KernelPackage) -> LoadedKernels:
        """The kernels of ``package`` in the current context, loaded at most once.

        Raises:
            BackendError: There is no context, no kernel for this device, or the driver refuses them.
        """
        # Not its handle, which a later context may have too.
        key = (cuda_driver.current_context_id(), package.digest)
        if key not in _LOADED:
            _LOADED[key] = cls(package)
        return _LOADED[key]

    def launch(self, plan: LaunchPlan, tensors: Mapping[str, int], workspace: int, stream: int) -> None:
        """Enqueues the scan on ``stream``.

        Args:
            plan: The launches, planned for this device.
            tensors: Device addresses of x, delta, A, B, C, D, delta_bias and y.
            workspace: Device address of ``plan.workspace_bytes`` bytes.
            stream: The CUDA stream.

        Raises:
            BackendError: An address is not aligned as the kernels assume, or a launch failed.
        """
        addresses = {**tensors, **plan.workspace_addresses(workspace)}
        for name, address in addresses.items():
            if address % POINTER_ALIGNMENT:
                raise BackendError(
                    f"the scan's {name} lies at {address:#x}, expected a multiple of {POINTER_ALIGNMENT}"
                )
        library = cuda_driver.driver()
        for launch in plan.launches:
            kernel, function = self._functions[launch.kernel]
            pointers = [addresses[name] for name in KERNEL_POINTERS[launch.kernel]]
            values = kernel_arguments(kernel, pointers, launch.scalars)
            slots = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            block = (kernel.threads, 1, 1)
            arguments = (kernel.shared_bytes, stream, ctypes.addressof(slots), 0)
            checked(
                library.cuLaunchKernel(function, *launch.grid, *block, *arguments),
                f"cuLaunchKernel({launch.kernel})",
            )


def kernel_arguments(
    kernel: CompiledKernel, pointers: list[int], scalars: tuple[int, ...]
) -> list[ctypes.c_uint64 | ctypes.c_int32]:
    """A kernel's parameters in order: pointers, 32-bit scalars, and the null pointers that Triton appends."""
    return [
        *(ctypes.c_uint64(pointer) for pointer in pointers),
        *(ctypes.c_int32(scalar) for scalar in scalars),
        *(ctypes.c_uint64(0) for _ in range(kernel.hidden_pointers)),
    ]
