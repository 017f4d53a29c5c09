"""The door to the compiled resize: pictures in, squares or network inputs out.

The native library of `plugins.selective_scan.cpu` holds these kernels too; instruction set and threads are
those chosen for the scan. Pictures of more than a megabyte are shared out to threads. The same picture gives
the same bits with any kernels and any number of threads: those of `msmamba.resize`.

Dims: ``H`` and ``W`` pixels of the picture, ``S`` of the square.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...resize import Box, checked_box
from ..selective_scan import cpu as scan

__all__ = ["normalise", "prepare", "resize", "why_unavailable"]


def why_unavailable() -> str | None:
    """Why the native resize cannot be used, in one line, or None if it can."""
    try:
        _library()
    except BackendError as error:
        return str(error)
    return None


def resize(pixels: NDArray[np.uint8], size: int, box: Box | None = None) -> NDArray[np.uint8]:
    """Resizes as `msmamba.resize.resize` does: (H, W, 3) uint8 to (S, S, 3).

    Raises:
        InputError: pixels, size or box are not that.
        BackendError: the native library is missing, or out of memory.
    """
    resized = np.empty((size, size, 3), np.uint8)
    _run(pixels, size, box, resized.ctypes.data, None, None)
    return resized


def prepare(pixels: NDArray[np.uint8], size: int, tables: NDArray[np.float32]) -> NDArray[np.float32]:
    """Resizes and normalises in one pass.

    Args:
        pixels: (H, W, 3) uint8.
        size: ``S``.
        tables: (3, 256), the input value of every pixel value of each channel.

    Returns:
        (3, S, S) float32, contiguous: ``tables[channel, resized[..., channel]]``.

    Raises:
        InputError: pixels or size are not that.
        ValueError: the tables are not.
        BackendError: the native library is missing, or out of memory.
    """
    tensor = np.empty((3, size, size), np.float32)
    _run(pixels, size, None, None, _checked(tables).ctypes.data, tensor.ctypes.data)
    return tensor


def normalise(pixels: NDArray[np.uint8], tables: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Writes ``tables[channel, pixels[..., channel]]``.

    Args:
        pixels: (S, S, 3) uint8.
        tables: (3, 256).
        out: (3, S, S), contiguous.

    Raises:
        ValueError: an array is not that.
        BackendError: the native library is missing.
    """
    pixels = np.ascontiguousarray(pixels)
    height, width, channels = pixels.shape
    if pixels.dtype != np.uint8 or channels != 3:
        raise ValueError(f"the pixels are {pixels.dtype} {pixels.shape}, expected uint8 (S, S, 3)")
    if out.shape != (3, height, width) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype} {out.shape}, expected contiguous float32 (3, {height}, {width})"
        )
    addresses = _checked(tables).ctypes.data, out.ctypes.data
    _library().msmamba_normalise(pixels.ctypes.data, height * width, *addresses)


def _run(
    pixels: NDArray[np.uint8], size: int, box: Box | None, resized: int | None, *normalised: int | None
) -> None:
    """Resizes to one of two addresses: ``resized``, or through ``normalised``, the tables and the tensor."""
    left, top, right, bottom = checked_box(pixels, size, box)
    height, width, _ = pixels.shape
    pixels = np.ascontiguousarray(pixels)
    failure: bytes | None = _library().msmamba_resize(
        *(pixels.ctypes.data, height, width, left, top, right - left, bottom - top, size),
        *(resized, *normalised),
    )
    if failure is not None:
        raise BackendError(f"the native resize failed: {failure.decode()}")


def _checked(tables: NDArray[np.float32]) -> NDArray[np.float32]:
    if tables.shape != (3, 256) or tables.dtype != np.float32 or not tables.flags.c_contiguous:
        raise ValueError(f"tables is {tables.dtype} {tables.shape}, expected contiguous float32 (3, 256)")
    return tables


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The loaded library with this module's functions declared.

    Raises:
        BackendError: it was not built, does not load, or is of a msmamba that had no resize.
    """
    reason = scan.why_unavailable()
    if reason is not None:
        raise BackendError(reason)
    library = ctypes.CDLL(str(scan.library_path()))
    try:
        run, normalise = library.msmamba_resize, library.msmamba_normalise
    except AttributeError as error:
        raise BackendError(
            "the native library is of an older msmamba, which had no resize: reinstall msmamba"
        ) from error
    run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 7, *[ctypes.c_void_p] * 3]
    run.restype = ctypes.c_char_p
    normalise.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 2]
    normalise.restype = None
    return library
