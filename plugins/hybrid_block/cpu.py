"""The hybrid block's operators on the CPU, compiled: weights packed once, NumPy maps in and out.

The native library of `plugins.selective_scan.cpu` holds these kernels too; this module is their door for
tests and measurements. In deployments ONNX Runtime calls them from its graph. Dims, arguments and meaning
are the package's contract; maps are float32 or float16, weights float32. Threads and instruction set are
those chosen for the scan.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from ...errors import BackendError
from ..selective_scan import DIRECTIONS
from ..selective_scan.cpu import library_path, why_unavailable
from . import INT8, INT8_OPERATORS, INT8_VALUES, INT8_WEIGHTS, OPERATORS

Array = NDArray[np.float32]
Map = NDArray[np.float32] | NDArray[np.float16]
_ELEMENT_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}

WEIGHTS = {
    "LocalBranch": (
        *("scale", "shift", "depthwise_weight", "depthwise_bias"),
        *("expand_weight", "expand_bias", "project_weight", "project_bias"),
    ),
    "ScanInputs": (
        *("norm_weight", "norm_bias", "in_weight", "conv_weight", "conv_bias"),
        *("step_weight", "step_expand", "input_weight", "output_weight"),
    ),
    "ScanOutputs": (
        *("out_norm_weight", "out_norm_bias", "project_weight", "project_bias", "conv_weight", "conv_bias"),
        *("residual_scale", "norm_weight", "norm_bias"),
    ),
    "MIFA": ("conv_weight", "conv_bias", "attention_weight"),
    "PatchMerging": ("norm_weight", "norm_bias", "reduction_weight"),
    "ScanFeatures": ("norm_weight", "norm_bias", "in_weight", "conv_weight", "conv_bias"),
    "ProjectedScan2D": (
        *("step_weight", "step_expand", "input_weight", "output_weight"),
        *("A", "D", "delta_bias"),
    ),
}
WEIGHTS |= {
    name + INT8: (
        *(
            "features_weight" if weight == "step_weight" else weight
            for weight in WEIGHTS[name]
            if weight not in ("input_weight", "output_weight")
        ),
        *(f"{scaled}_scale" for scaled in (*INT8_WEIGHTS[name], *INT8_VALUES[name])),
    )
    for name in INT8_WEIGHTS
}
"""The weights of each operator, in the contract's order."""

__all__ = ["WEIGHTS", "BlockOperator", "BlockSizes"]


@dataclass(frozen=True)
class BlockSizes:
    """Sizes that the weights fix (those an operator does not have are 0)."""

    half: int  # h; of PatchMerging C; of ProjectedScan2D 0
    groups: int  # G
    model: int  # d
    inner: int  # D
    steps: int  # K*R
    states: int  # K*N
    convolved: int  # q

    @classmethod
    def of_weights(cls, op_type: str, weights: Mapping[str, Array]) -> BlockSizes:
        """The sizes that an operator's weights have, in the contract's shapes.

        Raises:
            ValueError: ``op_type`` is no operator of the block.
        """
        shapes = {name: weight.shape for name, weight in weights.items()}
        model = inner = steps = states = convolved = 0
        in_int8, op_type = op_type.endswith(INT8), op_type.removesuffix(INT8)
        if op_type == "LocalBranch":
            half = shapes["scale"][0]
        elif op_type == "MIFA":
            half = shapes["conv_bias"][0]
        elif op_type == "PatchMerging":
            half = shapes["reduction_weight"][0] // 4
        elif op_type in ("ScanInputs", "ScanFeatures", "ProjectedScan2D"):
            half = 0
            if op_type != "ProjectedScan2D":
                half = shapes["norm_weight"][0]
                model = shapes["in_weight"][0]
            if op_type == "ScanFeatures":
                inner = shapes["conv_bias"][0]
            elif in_int8:
                steps = shapes["step_expand"][0]
                inner, width = shapes["features_weight"]
                states = (width - steps) // 2
            else:
                inner, steps = shapes["step_weight"]
                states = shapes["input_weight"][1]
        elif op_type == "ScanOutputs":
            half = shapes["norm_weight"][0]
            inner, model = shapes["project_weight"]
            convolved = shapes["conv_bias"][0]
        else:
            raise ValueError(f"{op_type!r} is no operator of the block; there are {', '.join(OPERATORS)}")
        return cls(half, half // model if model else 1, model, inner, steps, states, convolved)


class BlockOperator:
    """One operator with its weights packed for the instruction set in use; a context manager.

    Args:
        op_type: one of the package's ``OPERATORS`` or ``INT8_OPERATORS``.
        weights: the weights by the contract's names and in its shapes, float32 or int8; copied.
        dtype: the type of the maps, float32 or float16; either is computed in float32.

    Raises:
        ValueError: ``op_type`` is no operator of the block, a weight is missing, their sizes make none, or
            maps cannot be of that type.
        BackendError: the native library is missing, or out of memory.
    """

    def __init__(self, op_type: str, weights: Mapping[str, Array], dtype: npt.DTypeLike = np.float32) -> None:
        missing = [name for name in WEIGHTS.get(op_type, ()) if name not in weights]
        if missing:
            raise ValueError(f"{op_type} is missing weights: {', '.join(missing)}")
        self.sizes = BlockSizes.of_weights(op_type, weights)
        self.op_type, self.dtype = op_type, np.dtype(dtype)
        if self.dtype not in _ELEMENT_TYPES or (op_type in INT8_OPERATORS and self.dtype != np.float32):
            allowed = "float32" if op_type in INT8_OPERATORS else "float32 or float16"
            raise ValueError(f"{op_type} has maps of {allowed}, not of {self.dtype}")
        held = [np.ascontiguousarray(weights[name], np.float32) for name in WEIGHTS[op_type]]
        sizes = (ctypes.c_int64 * 7)(*astuple(self.sizes))
        number = (*OPERATORS, *INT8_OPERATORS).index(op_type)
        unfit: bytes | None = _library().msmamba_block_unfit(number, sizes)
        if unfit is not None:
            raise ValueError(f"{op_type}: {unfit.decode()}: {self.sizes}")
        self._handle: int | None = _library().msmamba_block_create(
            number, _ELEMENT_TYPES[self.dtype], sizes, _addresses(held)
        )
        if self._handle is None:
            raise BackendError(f"the native {op_type} could not be created: out of memory")

    def __enter__(self) -> BlockOperator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the packed weights."""
        if self._handle is not None:
            _library().msmamba_block_destroy(self._handle)
            self._handle = None

    def output_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        """Shapes of the outputs for ``batch`` images, and maps of these sides, in the contract's order."""
        sizes = self.sizes
        image, grouped = (batch, height, width), (batch * sizes.groups, height, width)
        states = sizes.states // DIRECTIONS
        shapes: dict[str, list[tuple[int, ...]]] = {
            "LocalBranch": [(*image, sizes.half)],
            "ScanInputs": [
                (*grouped, sizes.model),
                (*grouped, sizes.inner),
                (*grouped, sizes.inner),
                (*grouped, DIRECTIONS, sizes.inner),
                (*grouped, DIRECTIONS, states),
                (*grouped, DIRECTIONS, states),
            ],
            "ScanOutputs": [(*image, sizes.half)],
            "MIFA": [(*image, 2 * sizes.half)],
            "PatchMerging": [(batch, height // 2, width // 2, 2 * sizes.half)],
            "ScanFeatures": [(*grouped, sizes.model), (*grouped, sizes.inner), (*grouped, sizes.inner)],
            "ProjectedScan2D": [(*grouped, sizes.inner)],
        }
        return shapes[self.op_type.removesuffix(INT8)]

    def run(self, batch: int, maps: Sequence[Map], outputs: Sequence[Map]) -> None:
        """Computes ``outputs``, which stay the caller's.

        Args:
            batch: images; maps of groups have ``groups`` times as many.
            maps: the operator's maps in the contract's order and shapes, contiguous, of its ``dtype``.
            outputs: arrays of `output_shapes`, contiguous, of that type too; every element is written.

        Raises:
            ValueError: closed, or an array of another shape, type or layout.
            BackendError: out of memory.
        """
        if self._handle is None:
            raise ValueError(f"this {self.op_type} is closed")
        _, height, width, channels = maps[0].shape
        expected = self._map_shapes(batch, *maps[0].shape[1:]), self.output_shapes(batch, height, width)
        wrong = []
        for arrays, shapes in zip((maps, outputs), expected, strict=True):
            for array, shape in zip(arrays, shapes, strict=True):
                if array.shape != shape or array.dtype != self.dtype or not array.flags.c_contiguous:
                    wrong.append(
                        f"found {array.dtype} {array.shape}, expected contiguous {self.dtype} {shape}"
                    )
        if wrong:
            raise ValueError(f"{self.op_type}: {'; '.join(wrong)}")
        failure: bytes | None = _library().msmamba_block_run(
            self._handle, batch, height, width, channels, _addresses(maps), _addresses(outputs)
        )
        if failure is not None:
            raise BackendError(f"the native {self.op_type} failed: {failure.decode()}")

    def __call__(self, batch: int, *maps: Map) -> list[NDArray[Any]]:
        """`run` with outputs of its own."""
        _, height, width, _ = maps[0].shape
        outputs = [np.empty(shape, self.dtype) for shape in self.output_shapes(batch, height, width)]
        self.run(batch, [np.ascontiguousarray(array, self.dtype) for array in maps], outputs)
        return outputs

    def _map_shapes(self, batch: int, height: int, width: int, channels: int) -> list[tuple[int, ...]]:
        sizes = self.sizes
        image, grouped = (batch, height, width), (batch * sizes.groups, height, width)
        shapes: dict[str, list[tuple[int, ...]]] = {
            "LocalBranch": [(*image, 2 * sizes.half)],
            "ScanInputs": [(*image, 2 * sizes.half)],
            "ScanOutputs": [(*grouped, sizes.inner), (*grouped, sizes.inner), (*grouped, sizes.model)],
            "MIFA": [(*image, sizes.half), (*image, sizes.half)],
            "PatchMerging": [(*image, sizes.half)],
            "ScanFeatures": [(*image, max(channels, sizes.half))],
            "ProjectedScan2D": [(*grouped, sizes.inner)],
        }
        return shapes[self.op_type.removesuffix(INT8)]


def _addresses(arrays: Sequence[Map]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The loaded library with this module's functions declared.

    Raises:
        BackendError: it was not built, or does not load.
    """
    reason = why_unavailable()
    if reason is not None:
        raise BackendError(reason)
    library = ctypes.CDLL(str(library_path()))
    pointers = ctypes.POINTER(ctypes.c_void_p)
    library.msmamba_block_unfit.argtypes = [ctypes.c_int32, ctypes.POINTER(ctypes.c_int64)]
    library.msmamba_block_unfit.restype = ctypes.c_char_p
    library.msmamba_block_create.argtypes = [
        *[ctypes.c_int32] * 2,
        ctypes.POINTER(ctypes.c_int64),
        pointers,
    ]
    library.msmamba_block_create.restype = ctypes.c_void_p
    library.msmamba_block_run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, pointers, pointers]
    library.msmamba_block_run.restype = ctypes.c_char_p
    library.msmamba_block_destroy.argtypes = [ctypes.c_void_p]
    library.msmamba_block_destroy.restype = None
    return library
