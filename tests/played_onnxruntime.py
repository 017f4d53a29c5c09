"""ONNX Runtime's C interface, played, for operators on a GPU that is not there; tensors are NumPy's."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmamba.plugins.selective_scan import cpu

STREAM, OTHER_GPUS_STREAM = 0x1001, 0x2001
POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t
FLOAT, HALF = 1, 10
Arrays = list[NDArray[np.generic]]


class CustomOp(ctypes.Structure):
    """``OrtCustomOp`` up to its shape inference."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("create_kernel", POINTER),
        ("get_name", ctypes.CFUNCTYPE(ctypes.c_char_p, POINTER)),
        ("get_execution_provider", ctypes.CFUNCTYPE(ctypes.c_char_p, POINTER)),
        ("get_input_type", ctypes.CFUNCTYPE(ctypes.c_int, POINTER, SIZE)),
        ("get_input_count", ctypes.CFUNCTYPE(SIZE, POINTER)),
        ("get_output_type", ctypes.CFUNCTYPE(ctypes.c_int, POINTER, SIZE)),
        ("get_output_count", POINTER),
        ("compute", POINTER),
        ("destroy_kernel", ctypes.CFUNCTYPE(None, POINTER)),
        *((name, POINTER) for name in ("a", "b", "c", "d", "e", "f", "g")),
        ("create_kernel_v2", ctypes.CFUNCTYPE(POINTER, POINTER, POINTER, POINTER, ctypes.POINTER(POINTER))),
        ("compute_v2", ctypes.CFUNCTYPE(POINTER, POINTER, POINTER)),
    )


class ApiBase(ctypes.Structure):
    _fields_ = (("get_api", POINTER), ("get_version_string", POINTER))


class PlayedRuntime:
    """As much of ONNX Runtime's C interface as the operator calls; tensors are NumPy's.

    Attributes:
        ops: the custom operators that were registered.
        tensors: the inputs of the next call, and behind them its outputs.
        attributes: of the next node.
        stream: the stream that calls run on.
    """

    def __init__(self, driver: ctypes.CDLL | None) -> None:
        self._driver = driver
        self.ops: list[CustomOp] = []
        self.tensors: list[Any] = []
        self.attributes: Mapping[str, int] = {}
        self.stream = STREAM
        self._messages: list[str] = []
        self._table = (POINTER * 300)()
        self._kept: list[Any] = []
        status, out = POINTER, ctypes.POINTER(POINTER)
        dims = ctypes.POINTER(ctypes.c_int64)
        for slot, types, function in (
            (0, (status, ctypes.c_int, ctypes.c_char_p), self._create_status),
            (26, (status, ctypes.c_char_p, out), lambda name, domain: self._give(domain, 1)),
            (27, (status, POINTER, ctypes.POINTER(CustomOp)), self._add),
            (28, (status, POINTER, POINTER), lambda options, domain: None),
            (51, (status, POINTER, out), lambda v, data: self._give(data, self.address(v - 1))),
            (61, (status, POINTER, ctypes.POINTER(SIZE)), lambda v, rank: self._give(rank, self._at(v).ndim)),
            (62, (status, POINTER, dims, SIZE), self._dimensions),
            (65, (status, POINTER, out), lambda v, info: self._give(info, v)),
            (86, (status, POINTER, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64)), self._attribute),
            (90, (status, POINTER, SIZE, out), lambda context, index, v: self._give(v, index + 1)),
            (91, (status, POINTER, SIZE, dims, SIZE, out), self._output),
            (99, (None, POINTER), lambda info: None),
            (193, (status, POINTER, out), lambda context, stream: self._give(stream, self.stream)),
        ):
            made = ctypes.CFUNCTYPE(*types)(function)
            self._kept.append(made)
            self._table[slot] = ctypes.cast(made, POINTER).value
        get_api = ctypes.CFUNCTYPE(POINTER, ctypes.c_uint32)(lambda version: ctypes.addressof(self._table))
        self._kept.append(get_api)
        self._base = ApiBase(ctypes.cast(get_api, POINTER).value, None)

    @staticmethod
    def _give(target: Any, value: Any) -> None:
        target[0] = value

    def _at(self, value: int) -> NDArray[np.generic]:
        return self.tensors[value - 1]

    def _create_status(self, code: int, message: bytes) -> int:
        self._messages.append(message.decode())
        return len(self._messages)

    def _add(self, domain: int, op: Any) -> None:
        self.ops.append(op.contents)

    def _dimensions(self, value: int, dimensions: Any, rank: int) -> None:
        for axis, length in enumerate(self._at(value).shape):
            dimensions[axis] = length

    def _attribute(self, info: int, name: bytes, value: Any) -> None:
        value[0] = self.attributes[name.decode()]

    def _output(self, context: int, index: int, dimensions: Any, rank: int, value: Any) -> None:
        self.made(tuple(dimensions[:rank]))
        value[0] = len(self.tensors)

    def address(self, index: int) -> int:
        """Where a tensor lies for the GPU."""
        return self.tensors[index].ctypes.data

    def made(self, shape: tuple[int, ...]) -> None:
        """Adds an output, of the inputs' type."""
        self.tensors.append(device_array(np.full(shape, np.nan, self.tensors[0].dtype)))
        self._show(self.tensors[-1], writable=True)

    def taken(self, inputs: list[Any]) -> None:
        """Takes the inputs of the next call."""
        self.tensors = list(inputs)
        for array in inputs:
            self._show(array, writable=False)

    def answers(self, count: int) -> list[Any]:
        """The outputs, ``count`` of them."""
        return self.tensors[-count:] if count else []

    def _show(self, array: NDArray[np.generic], *, writable: bool) -> None:
        """Tells the driver of memory that kernels may touch."""
        assert self._driver is not None
        self._driver.played_buffer(array.ctypes.data, array.nbytes, int(writable))

    def register(self) -> None:
        """What ``SessionOptions.register_custom_ops_library`` does."""
        library = ctypes.CDLL(str(cpu.library_path()))
        library.RegisterCustomOps.restype = POINTER
        assert library.RegisterCustomOps(POINTER(1), ctypes.byref(self._base)) is None

    def kernel(self, name: str, element: int) -> tuple[CustomOp, int]:
        """A node's kernel of an operator, for an element type.

        Raises:
            RuntimeError: it refuses the node, with its message.
        """
        (op,) = (
            op
            for op in self.ops
            if op.get_name(ctypes.addressof(op)) == name.encode()
            and op.get_input_type(ctypes.addressof(op), 0) == element
        )
        kernel = POINTER()
        api = ctypes.addressof(self._table)
        status = op.create_kernel_v2(ctypes.addressof(op), api, None, ctypes.byref(kernel))
        if status:
            raise RuntimeError(self._messages[status - 1])
        assert kernel.value
        return op, kernel.value

    def compute(self, op: CustomOp, kernel: int, inputs: list[Any]) -> list[Any]:
        """A call of a kernel: its outputs.

        Raises:
            RuntimeError: it failed, with its message.
        """
        self.taken(inputs)
        status = op.compute_v2(kernel, POINTER(1))
        if status:
            raise RuntimeError(self._messages[status - 1])
        return self.answers(len(self.tensors) - len(inputs))


def device_array(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A copy aligned as device memory is."""
    memory = np.empty(array.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Node:
    """One operator of a session on the played GPU."""

    def __init__(self, runtime: PlayedRuntime, element: int, name: str = "SelectiveScan2D") -> None:
        self.runtime = runtime
        self._op, self._kernel = runtime.kernel(name, element)

    def __call__(self, inputs: list[Any]) -> list[Any]:
        return self.runtime.compute(self._op, self._kernel, inputs)

    def close(self) -> None:
        self._op.destroy_kernel(self._kernel)
