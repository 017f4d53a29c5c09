"""The 2D selective scan on the CPU, compiled: NumPy arrays or bare pointers in, threads and vectors inside.

The shared library of ``native/`` does the work; this module finds it, loads it with ctypes and checks what
goes in. Dims, arguments and meaning are the package's contract: ``x (batch, H, W, D)``, ``delta (batch, H,
W, K, D)``, ``A (K, D, N)``, ``B`` and ``C (batch, H, W, K, N)``, ``D`` and ``delta_bias (K, D)``.

``x``, ``delta``, ``B`` and ``C`` are float32, float16 or bfloat16 (as NumPy knows it through ml_dtypes);
accumulation is in float32. ``A``, ``D`` and ``delta_bias`` are float32. The same input gives the same bits
whatever the number of threads.

The library is optional: msmamba's wheels bring it, and it is missing where the package was installed from
source without a C++ compiler.
``why_unavailable()`` tells; every function that needs it raises BackendError with that reason.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from . import DIRECTIONS, ScanShape

_ELEMENT_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # as in native/problem.h
_STEM = "_native"

__all__ = [
    "ScanShape",
    "backward_pointers",
    "forward_pointers",
    "kernels",
    "library_path",
    "select_kernels",
    "selective_scan_2d",
    "selective_scan_2d_backward",
    "set_threads",
    "threads",
    "why_unavailable",
]


def library_path() -> Path | None:
    """The shared library of the native scan, or None where the package was installed without it.

    Both doors are in it: ctypes (this module) and ONNX Runtime's
    ``SessionOptions.register_custom_ops_library``.
    """
    folder = Path(__file__).parent
    # Built here it has the suffix of this Python; in a wheel that of any, `.so` or, on Windows, `.pyd`.
    candidates = (folder / f"{_STEM}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def why_unavailable() -> str | None:
    """Why the native scan cannot be used, in one line, or None if it can."""
    try:
        _library()
    except BackendError as error:
        return str(error)
    return None


def kernels() -> str:
    """The instruction set in use: `avx512`, `avx2+vnni`, `avx2`, `neon+dotprod`, `neon` or `baseline`."""
    name: bytes = _library().msmamba_scan_kernels()
    return name.decode()


def select_kernels(name: str) -> None:
    """Uses the kernels of that instruction set from now on, in this process (for tests and comparisons).

    Raises:
        ValueError: this machine or build has no such kernels.
    """
    if not _library().msmamba_scan_select_kernels(name.encode()):
        raise ValueError(f"no {name!r} kernels on this machine; the best it has are in use by default")


def threads() -> int:
    """Threads that one call uses at most; at first, the processors this process may run on."""
    return int(_library().msmamba_scan_threads())


def set_threads(count: int) -> None:
    """Sets the number of threads of later calls through this module (ONNX Runtime brings its own).

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"the number of threads is {count}, expected at least 1")
    _library().msmamba_scan_set_threads(count)


def selective_scan_2d(
    x: NDArray[Any],
    delta: NDArray[Any],
    A: NDArray[np.float32],
    B: NDArray[Any],
    C: NDArray[Any],
    D: NDArray[np.float32],
    delta_bias: NDArray[np.float32],
) -> NDArray[Any]:
    """The scan of the package's contract. Arrays that are not contiguous are copied first.

    Args:
        x: (batch, H, W, D).
        delta: (batch, H, W, K, D), raw.
        A: (K, D, N), float32.
        B: (batch, H, W, K, N).
        C: (batch, H, W, K, N).
        D: (K, D), float32.
        delta_bias: (K, D), float32.

    Returns:
        (batch, H, W, D) in ``x``'s type.

    Raises:
        ValueError: the arguments break the contract; the message names every mismatch.
        BackendError: the native library is missing, or out of memory.
    """
    inputs = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    shape = _checked_shape(inputs)
    held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    y = np.empty(x.shape, x.dtype)
    pointers = {name: array.ctypes.data for name, array in held.items()}
    forward_pointers(shape, x.dtype.name, **pointers, y=y.ctypes.data)
    return y


def forward_pointers(
    shape: ScanShape,
    element_type: str,
    *,
    x: int,
    delta: int,
    A: int,
    B: int,
    C: int,
    D: int,
    delta_bias: int,
    y: int,
) -> None:
    """The scan over memory of the caller, contiguous and at any address; writes all of ``y``.

    Nothing is checked but the element type: the caller vouches for shapes, types and lifetimes.

    Args:
        shape: the sizes, none of them zero.
        element_type: type of ``x``, ``delta``, ``B``, ``C`` and ``y``: "float32", "float16" or "bfloat16".
        x: address of (batch, H, W, D).
        delta: address of (batch, H, W, K, D).
        A: address of (K, D, N), float32.
        B: address of (batch, H, W, K, N).
        C: address of (batch, H, W, K, N).
        D: address of (K, D), float32.
        delta_bias: address of (K, D), float32.
        y: address of (batch, H, W, D), apart from the inputs.

    Raises:
        ValueError: an element type other than those.
        BackendError: the native library is missing, or out of memory.
    """
    if element_type not in _ELEMENT_TYPES:
        raise ValueError(f"element type {element_type!r}, expected one of {', '.join(_ELEMENT_TYPES)}")
    failure: bytes | None = _library().msmamba_scan_forward(
        _ELEMENT_TYPES[element_type],
        *(shape.batch, shape.height, shape.width, shape.channels, shape.states),
        *(x, delta, A, B, C, D, delta_bias, y),
    )
    if failure is not None:
        raise BackendError(f"the native scan failed: {failure.decode()}")


def selective_scan_2d_backward(
    dy: NDArray[np.float32],
    x: NDArray[np.float32],
    delta: NDArray[np.float32],
    A: NDArray[np.float32],
    B: NDArray[np.float32],
    C: NDArray[np.float32],
    D: NDArray[np.float32],
    delta_bias: NDArray[np.float32],
) -> dict[str, NDArray[np.float32]]:
    """The gradients of all inputs, in float32. Arrays that are not contiguous are copied first.

    States are computed again in tiles rather than stored: beside the gradients the scan holds about
    ``H * W * D * N / 16`` floats a thread.

    Args:
        dy: (batch, H, W, D), gradient of the result.
        x: (batch, H, W, D).
        delta: (batch, H, W, K, D), raw.
        A: (K, D, N).
        B: (batch, H, W, K, N).
        C: (batch, H, W, K, N).
        D: (K, D).
        delta_bias: (K, D).

    Returns:
        For each input's name its gradient, in its shape.

    Raises:
        ValueError: the arguments break the contract or are not all float32.
        BackendError: the native library is missing, or out of memory.
    """
    inputs = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    shape = _checked_shape(inputs)
    if x.dtype != np.float32 or dy.dtype != np.float32 or dy.shape != x.shape:
        raise ValueError(
            f"selective_scan_2d_backward: dy is {dy.dtype.name} {dy.shape} and x {x.dtype.name} {x.shape}, "
            "expected float32 and equal shapes"
        )
    held = [np.ascontiguousarray(array) for array in (dy, *inputs.values())]
    gradients = {name: np.empty(array.shape, np.float32) for name, array in inputs.items()}
    backward_pointers(
        shape,
        dy=held[0].ctypes.data,
        inputs=[array.ctypes.data for array in held[1:]],
        gradients=[array.ctypes.data for array in gradients.values()],
    )
    return gradients


def backward_pointers(shape: ScanShape, *, dy: int, inputs: Sequence[int], gradients: Sequence[int]) -> None:
    """The gradients over memory of the caller, float32, contiguous; writes all of ``gradients``.

    Nothing is checked: the caller vouches for shapes, types and lifetimes.

    Args:
        shape: the sizes, none of them zero.
        dy: address of (batch, H, W, D).
        inputs: addresses of ``x``, ``delta``, ``A``, ``B``, ``C``, ``D`` and ``delta_bias``.
        gradients: addresses of their gradients, in the same order.

    Raises:
        BackendError: the native library is missing, or out of memory.
    """
    failure: bytes | None = _library().msmamba_scan_backward(
        *(shape.batch, shape.height, shape.width, shape.channels, shape.states), dy, *inputs, *gradients
    )
    if failure is not None:
        raise BackendError(f"the native scan failed: {failure.decode()}")


def _checked_shape(inputs: dict[str, NDArray[Any]]) -> ScanShape:
    """The sizes of the scan, once all arrays fit together."""
    x, A = inputs["x"], inputs["A"]
    if x.ndim != 4 or A.ndim != 3:
        raise ValueError(
            f"selective_scan_2d: x is {x.shape} and A is {A.shape}, expected (batch, H, W, D) and (K, D, N)"
        )
    batch, height, width, channels = x.shape
    states = A.shape[-1]
    projection = (batch, height, width, DIRECTIONS, states)
    float32 = np.dtype(np.float32)
    expected = {
        "delta": ((batch, height, width, DIRECTIONS, channels), x.dtype),
        "A": ((DIRECTIONS, channels, states), float32),
        "B": (projection, x.dtype),
        "C": (projection, x.dtype),
        "D": ((DIRECTIONS, channels), float32),
        "delta_bias": ((DIRECTIONS, channels), float32),
    }
    wrong = []
    if x.dtype.name not in _ELEMENT_TYPES:
        wrong.append(f"x is {x.dtype.name}, expected one of {', '.join(_ELEMENT_TYPES)}")
    for name, (shape, dtype) in expected.items():
        found = inputs[name]
        if found.shape != shape:
            wrong.append(f"{name} is {found.shape}, expected {shape}")
        if found.dtype != dtype:
            wrong.append(f"{name} is {found.dtype.name}, expected {dtype.name}")
    if 0 in x.shape or states == 0:
        wrong.append(f"x is {x.shape} with {states} states, expected no empty dimension")
    if wrong:
        raise ValueError("selective_scan_2d: " + "; ".join(wrong))
    return ScanShape(batch, height, width, channels, states)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The loaded library with its functions declared.

    Raises:
        BackendError: it was not built, or does not load.
    """
    path = library_path()
    if path is None:
        raise BackendError(
            "the native scan was not built when msmamba was installed: "
            "install its wheel for this platform, or a C++17 compiler (GCC or Clang) and msmamba again"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"the native scan {path.name} does not load ({error}): reinstall msmamba"
        ) from error
    library.msmamba_scan_forward.argtypes = [ctypes.c_int32, *[ctypes.c_int64] * 5, *[ctypes.c_void_p] * 8]
    library.msmamba_scan_forward.restype = ctypes.c_char_p
    library.msmamba_scan_backward.argtypes = [*[ctypes.c_int64] * 5, *[ctypes.c_void_p] * 15]
    library.msmamba_scan_backward.restype = ctypes.c_char_p
    library.msmamba_scan_kernels.restype = ctypes.c_char_p
    library.msmamba_scan_select_kernels.argtypes = [ctypes.c_char_p]
    library.msmamba_scan_threads.restype = ctypes.c_int32
    library.msmamba_scan_set_threads.argtypes = [ctypes.c_int32]
    library.msmamba_scan_set_threads.restype = None
    return library
