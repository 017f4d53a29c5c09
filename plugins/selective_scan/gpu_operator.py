"""The scan, and the hybrid block's steps, as operators of ONNX Runtime's CUDA: a bundle's compiled kernels.

The native library launches them on the session's own stream by the functions of NVIDIA's driver, which is
loaded here, when a session is opened on CUDA.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from ...errors import BackendError
from . import cpu
from .gpu_launch import BLOCK_SHAPES, dotted
from .gpu_package import BLOCK_STATES, CompiledKernel, KernelPackage

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
"""File of NVIDIA's driver."""
DRIVER_FUNCTIONS = (
    *("cuGetErrorName", "cuStreamGetCtx", "cuStreamIsCapturing", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"),
    *("cuCtxGetDevice", "cuDeviceGetAttribute", "cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc_v2"),
    *("cuMemFree_v2", "cuLaunchKernel"),
)
"""What the native library calls of it, in the order of its table (native/gpu_driver.h)."""
_ELEMENT_TYPES = {"float32": 0, "float16": 1}  # as in native/problem.h


class _GpuKernel(ctypes.Structure):
    """``MsmambaGpuKernel`` of native/ort_gpu_scan.cpp."""

    _fields_ = (
        ("element", ctypes.c_int32),
        ("compute_capability", ctypes.c_int32),
        ("states", ctypes.c_int64),
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_char_p),
        ("cubin", ctypes.c_char_p),
        ("cubin_bytes", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("hidden_pointers", ctypes.c_int32),
    )


def packages_of(files: Mapping[str, bytes], compute_capability: int) -> tuple[KernelPackage, ...]:
    """The kernels of a bundle's files that are for one GPU: the scan's, and the block's where it has them.

    Args:
        files: content by name, as `export.engine.kernels` makes them.
        compute_capability: ``10 * major + minor``.

    Raises:
        BackendError: there are none, or a file is damaged.
    """
    packages = [KernelPackage.from_bytes(content) for _, content in sorted(files.items())]
    scans = [package for package in packages if package.states != BLOCK_STATES]
    if not scans:
        raise BackendError(
            "it carries no scan kernels: open a bundle that was exported where Triton is installed"
        )
    for package in scans:
        if compute_capability not in package.compute_capabilities:
            raise BackendError(
                f"its scan kernels are for compute capability {dotted(package.compute_capabilities)}, and "
                f"this GPU has {dotted([compute_capability])}: export the bundle again with a newer msmamba"
            )
    fitting = [package for package in packages if compute_capability in package.compute_capabilities]
    return tuple(package.only([compute_capability]) for package in fitting)


@contextmanager
def offered(packages: tuple[KernelPackage, ...], driver: str = DRIVER) -> Iterator[None]:
    """Inside the block, session options of this thread get operators for CUDA from the native library.

    Those that the packages have kernels for, in the place of the operators for the CPU:
    ``options.register_custom_ops_library(cpu.library_path())``.

    Args:
        packages: the kernels, of one or both types; the scan's, and the block's or not.
        driver: file of NVIDIA's driver.

    Raises:
        BackendError: the native library or the driver is missing or does not start, or the kernels are not
            such as it launches.
    """
    with offering(_handed_over(packages, driver)):
        yield


_NOT_LAUNCHED = "the GPU kernels are not such as this version launches: export the bundle again"
_HANDED_OVER: dict[tuple[str, ...], int] = {}
"""Packages in the native library, which keeps them for good, by their content."""


def _handed_over(packages: tuple[KernelPackage, ...], driver: str) -> int:
    key = (driver, *(package.digest for package in packages))
    if key not in _HANDED_OVER:
        _HANDED_OVER[key] = native_package(packages, _driver_functions(driver))
    return _HANDED_OVER[key]


def native_package(packages: tuple[KernelPackage, ...], functions: tuple[int | None, ...]) -> int:
    """Packages as the native library reads them, which keeps what it makes of them for good.

    Args:
        packages: the kernels.
        functions: the addresses of `DRIVER_FUNCTIONS`, which are not called before a kernel is launched.

    Raises:
        BackendError: the kernels are not such as the library launches, or it is missing.
    """
    try:
        given = [
            _as_given(package, compute_capability, name, kernel)
            for package in packages
            for compute_capability, kernels in package.kernels.items()
            for name, kernel in kernels.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a file may hold any JSON
        raise BackendError(_NOT_LAUNCHED) from error
    (block,) = set(BLOCK_SHAPES.values())  # one for all GPUs, as native/gpu_scan.h has it
    array = (_GpuKernel * len(given))(*given)
    table = (ctypes.c_void_p * len(functions))(*functions)
    shape = (block.channels, block.steps)
    made: int | None = _library().msmamba_gpu_package(table, len(functions), *shape, len(given), array)
    if made is None:
        raise BackendError(_NOT_LAUNCHED)
    return made


def _as_given(
    package: KernelPackage, compute_capability: int, name: str, kernel: CompiledKernel
) -> _GpuKernel:
    """One kernel as the native library takes it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a value is none of its field's.
    """
    made = _GpuKernel(
        _ELEMENT_TYPES[package.element_type],
        compute_capability,
        package.states,
        name.encode(),
        kernel.name.encode(),
        kernel.cubin,
        len(kernel.cubin),
        kernel.threads,
        kernel.shared_bytes,
        kernel.hidden_pointers,
    )
    whole = {
        "compute_capability": compute_capability,
        "states": package.states,
        **{each: getattr(kernel, each) for each in ("threads", "shared_bytes", "hidden_pointers")},
    }
    for field, value in whole.items():
        if getattr(made, field) != value or value < 0:  # ctypes cuts off what does not fit
            raise ValueError(f"{field} is {value}")
    return made


@contextmanager
def offering(package: int) -> Iterator[None]:
    """`offered` for a `native_package`."""
    library = _library()
    library.msmamba_gpu_offer(package)
    try:
        yield
    finally:
        library.msmamba_gpu_offer(None)


@cache
def _driver_functions(driver: str) -> tuple[int | None, ...]:
    """The addresses of `DRIVER_FUNCTIONS`, in a driver that has been started.

    Raises:
        BackendError: there is no driver, it does not start, or it is too old to have them.
    """
    try:
        loaded = ctypes.CDLL(driver)
        if status := loaded.cuInit(0):
            raise BackendError(f"NVIDIA's driver gives error {status}: check nvidia-smi")
        found = [getattr(loaded, name) for name in DRIVER_FUNCTIONS]
    except OSError as error:
        raise BackendError(f"no {driver}, NVIDIA's driver") from error
    except AttributeError as error:
        raise BackendError(f"NVIDIA's driver is too old ({error}): update it") from error
    return tuple(ctypes.cast(function, ctypes.c_void_p).value for function in found)


@cache
def _library() -> ctypes.CDLL:
    """The native library with this module's functions declared.

    Raises:
        BackendError: it was not built, or does not load.
    """
    if (obstacle := cpu.why_unavailable()) is not None:
        raise BackendError(obstacle)
    library = ctypes.CDLL(str(cpu.library_path()))
    library.msmamba_gpu_package.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),
        *[ctypes.c_int32] * 4,
        ctypes.POINTER(_GpuKernel),
    ]
    library.msmamba_gpu_package.restype = ctypes.c_void_p
    library.msmamba_gpu_offer.argtypes = [ctypes.c_void_p]
    library.msmamba_gpu_offer.restype = None
    return library
