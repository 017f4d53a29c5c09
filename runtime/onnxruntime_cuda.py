"""ONNX Runtime's runs on a GPU: images and answers in fixed places of its memory, replayed as CUDA graphs.

ONNX Runtime captures a graph at the first run of a number that it is given (``gpu_graph_id``) and replays it
from then on, which spares the processor the launch of some hundred kernels. A graph keeps the addresses that
it was captured with, so each shape of a batch has memory of its own; after the first few shapes, further
ones run plainly.

Dims: B images of a batch, S side of the square input in pixels. Nothing here has been executed on a GPU yet.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError, InputError
from ..plugins import cuda_driver
from .device_arrays import DeviceArray
from .onnxruntime_library import failure_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPTIONS = {"enable_cuda_graph": "1"}
"""Options of the provider with which runs may be captured."""
DEVICE = "cuda"
"""As ONNX Runtime names it."""
_MOST_SHAPES = 4
_NO_GRAPH = "-1"
_GRAPH_ID = "gpu_graph_id"  # since ONNX Runtime 1.18


@dataclass(frozen=True)
class _Bound:
    """What a shape of a batch has on the GPU."""

    image: Any
    outputs: dict[str, Any]
    binding: Any
    options: Any


class BoundRuns:
    """Runs of one session; calls from several threads wait for each other, since they share memory."""

    def __init__(
        self, runtime: Any, session: Any, image: str, outputs: Mapping[str, int], *, graphs: bool
    ) -> None:
        """Takes a session on the first GPU.

        Args:
            runtime: ONNX Runtime.
            session: its session.
            image: name of its input, float32.
            outputs: all of its outputs in order, and how many values an image they have.
            graphs: whether the session was made with `OPTIONS`. Then nobody else may run it, since a graph
                that was captured uses this object's memory.
        """
        self._runtime, self._session, self._image, self._outputs = runtime, session, image, outputs
        self._graphs = graphs
        self._lock = threading.Lock()
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def run(self, images: NDArray[np.float32] | DeviceArray) -> list[NDArray[np.float32]]:
        """Runs the network.

        Args:
            images: (B, 3, S, S), in NumPy's or the GPU's memory.

        Returns:
            The outputs' values (B, values).

        Raises:
            InputError: the images lie on another GPU.
            BackendError: ONNX Runtime fails; or they are in the GPU's memory, and cuda-bindings does or is
                missing.
        """
        try:
            with self._lock:
                bound = self._bound.get(images.shape) or self._bind(images.shape)
                self._put(bound, images)
                self._session.run_with_iobinding(bound.binding, bound.options)
                # Copies: on the CPU, where tests run it, `numpy` gives the memory itself.
                return [np.array(value.numpy()) for value in bound.outputs.values()]
        except RuntimeError as error:  # what ONNX Runtime raises here, and none of its own exceptions
            raise BackendError(f"ONNX Runtime failed: {failure_of(error)}") from error

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        """Takes memory for a shape; it is kept for the first few, which are captured."""
        kept = len(self._bound) < _MOST_SHAPES
        image = self._value(shape)
        values = {name: self._value((shape[0], count)) for name, count in self._outputs.items()}
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._image, image)
        for name, value in values.items():
            binding.bind_ortvalue_output(name, value)
        options = self._runtime.RunOptions()
        if self._graphs:
            number = str(len(self._bound)) if kept else _NO_GRAPH
            options.add_run_config_entry(_GRAPH_ID, number)
        bound = _Bound(image, values, binding, options)
        if kept:
            self._bound[shape] = bound
        return bound

    def _value(self, shape: tuple[int, ...]) -> Any:
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, DEVICE, 0)

    def _put(self, bound: _Bound, images: NDArray[np.float32] | DeviceArray) -> None:
        if not isinstance(images, DeviceArray):
            bound.image.update_inplace(np.ascontiguousarray(images))
            return
        context = cuda_driver.Context()
        with closing(context), context.entered(), closing(cuda_driver.Stream()) as stream:
            found = cuda_driver.pointer_device(images.address)
            if found != context.device.ordinal:
                raise InputError(
                    f"'image' lies on GPU {found}; this session runs on GPU {context.device.ordinal}: "
                    "copy it there"
                )
            if images.stream is not None:
                stream.wait_for(images.stream)
            stream.copy_on_device(bound.image.data_ptr(), images.address, images.size_bytes)
            stream.synchronize()
