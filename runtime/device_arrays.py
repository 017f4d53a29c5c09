"""Arrays that lie in a GPU's memory already: PyCUDA, CuPy, PyTorch, Numba, by ``__cuda_array_interface__``.

The protocol is described in Numba's documentation; versions 2 and 3 are read. It says shape, type and
address, and the stream on which the content is produced.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..plugins.cuda_driver import LEGACY_DEFAULT_STREAM

ATTRIBUTE = "__cuda_array_interface__"


@dataclass(frozen=True)
class DeviceArray:
    """An array in a GPU's memory, which belongs to somebody else.

    Attributes:
        shape: its dims.
        dtype: type of its elements.
        address: the device address where it begins.
        stream: the stream whose work must be done before it is read; None where it is ready.
        contiguous: whether it lies in C order without gaps.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    stream: int | None
    contiguous: bool

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @classmethod
    def of(cls, value: Any) -> DeviceArray | None:
        """The array in ``value``, None where it does not have the interface.

        Raises:
            InputError: it has the interface and does not keep to it, or its owner refuses.
        """
        try:
            interface = getattr(value, ATTRIBUTE, None)
        except (RuntimeError, TypeError) as error:  # PyTorch, of a tensor that wants a gradient
            raise InputError(f"'image' is not handed out by its owner: {error}") from error
        if interface is None:
            return None
        try:
            return cls._read(interface, _stream_of(value))
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # whatever stands in its place
            raise InputError(f"'image' has a {ATTRIBUTE} that cannot be read: {error!r}") from error

    @classmethod
    def _read(cls, interface: Mapping[str, Any], unsaid: int) -> DeviceArray:
        if interface.get("mask") is not None:
            raise InputError("'image' is a masked array: expected one without a mask")
        shape = tuple(int(length) for length in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        address, _ = interface["data"]
        strides = interface.get("strides")
        stream = interface.get("stream", unsaid)
        if stream == 0:
            raise InputError("'image' names stream 0, which is ambiguous: expected 1, 2 or a stream's handle")
        contiguous = strides is None or _is_c_order(shape, strides, dtype.itemsize)
        return cls(shape, dtype, int(address), None if stream is None else int(stream), contiguous)


def _stream_of(value: Any) -> int:
    """The stream that an array is made on whose interface names none, as PyTorch's and PyCUDA's do not.

    PyTorch works on its current stream, PyCUDA on the legacy default stream unless told.
    """
    torch = sys.modules.get("torch")  # not imported here: without it, nothing is a tensor of its
    if torch is None or not isinstance(value, torch.Tensor):
        return LEGACY_DEFAULT_STREAM
    return int(torch.cuda.current_stream(value.device).cuda_stream) or LEGACY_DEFAULT_STREAM


def _is_c_order(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether strides, in bytes, are those of C order; a dim of one element may have any."""
    expected = (itemsize * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return all(
        length == 1 or stride == step for length, stride, step in zip(shape, strides, expected, strict=True)
    )
