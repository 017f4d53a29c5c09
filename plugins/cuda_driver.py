"""The CUDA driver calls that msmamba makes, all of them but the launch of the scan's kernels (`gpu_driver`).

Everything goes through ``cuda-bindings``, which works on the current CUDA context like PyCUDA, CuPy and
PyTorch do: their arrays, streams and contexts may be mixed with these. Whatever owns memory or a handle is
closed explicitly and keeps nothing alive that it does not own. Copies and graphs are enqueued, so the
memory that they use must stay until the stream was synchronised.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError

LEGACY_DEFAULT_STREAM = 1
"""Handle of the stream that code without streams of its own works on."""

_REMEDIES = {
    "CUDA_ERROR_NO_DEVICE": "no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_OUT_OF_MEMORY": "the GPU's memory is full: close what else uses it, or take smaller batches",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated since the machine started: restart it",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the machine code is for another GPU: build the engine again",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the kernels: update it",
}


def driver() -> Any:
    """The module ``cuda.bindings.driver``.

    Raises:
        BackendError: it is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendError(
            f"GPUs are reached through cuda-bindings, which does not import ({error}): "
            "pip install cuda-bindings, of the CUDA version that this machine's driver supports"
        ) from error
    return driver


def checked(result: tuple[Any, ...], call: str) -> Any:
    """The value of a driver call, a tuple of several, or its error raised.

    Raises:
        BackendError: the call failed.
    """
    status, *values = result
    if status.value:
        remedy = _REMEDIES.get(status.name)
        raise BackendError(f"CUDA driver call {call} failed: {status.name}{f': {remedy}' if remedy else ''}")
    return values[0] if len(values) == 1 else tuple(values)


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        ordinal: its number among the visible ones.
        name: what the driver calls it.
        compute_capability: ``10 * major + minor``.
        multiprocessors: their number.
        shares_memory: whether it shares its memory with the processor, as on a Jetson.
    """

    ordinal: int
    name: str
    compute_capability: int
    multiprocessors: int
    shares_memory: bool = False


def initialise() -> None:
    """Starts the driver; further calls do nothing.

    Raises:
        BackendError: cuda-bindings or the driver is missing, or there is no device.
    """
    library = driver()
    try:
        checked(library.cuInit(0), "cuInit")
        count = checked(library.cuDeviceGetCount(), "cuDeviceGetCount")
    except RuntimeError as error:  # what cuda-bindings raises where libcuda is missing
        raise _no_driver(error) from error
    if not count:
        raise BackendError(f"CUDA driver finds {_REMEDIES['CUDA_ERROR_NO_DEVICE']}")


def _no_driver(error: RuntimeError) -> BackendError:
    said = " ".join(str(error).split())[:60]
    return BackendError(f"no NVIDIA driver on this machine (cuda-bindings: {said}…)")


def device(ordinal: int = 0) -> Device:
    """The GPU of that number, without a context on it.

    Raises:
        BackendError: there is none, or no driver.
    """
    initialise()
    library = driver()
    return _device(library, checked(library.cuDeviceGet(ordinal), "cuDeviceGet"), ordinal)


def current_context_id() -> int:
    """The number of the current context, which no other context of this process ever has.

    Raises:
        BackendError: there is no current context, or no driver.
    """
    library = driver()
    try:
        context = checked(library.cuCtxGetCurrent(), "cuCtxGetCurrent")
    except RuntimeError as error:  # what cuda-bindings raises where libcuda is missing
        raise _no_driver(error) from error
    return int(checked(library.cuCtxGetId(context), "cuCtxGetId"))


def current_device() -> Device:
    """The GPU of the current context.

    Raises:
        BackendError: there is no current context, or a driver call failed.
    """
    library = driver()
    handle = checked(library.cuCtxGetDevice(), "cuCtxGetDevice")
    return _device(library, handle, int(handle))


def _device(library: Any, handle: Any, ordinal: int) -> Device:
    attribute = library.CUdevice_attribute
    major, minor, multiprocessors, integrated = (
        checked(library.cuDeviceGetAttribute(name, handle), "cuDeviceGetAttribute")
        for name in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED,
        )
    )
    label = checked(library.cuDeviceGetName(128, handle), "cuDeviceGetName")
    name = bytes(label).split(b"\0")[0].decode(errors="replace")
    return Device(ordinal, name, 10 * major + minor, multiprocessors, bool(integrated))


class Context:
    """A CUDA context to work in: the one that is current on this thread, or else the first GPU's primary one.

    The primary context is the one that PyTorch, CuPy and the CUDA runtime use; a context that PyCUDA made
    current is taken as it is and must outlive this object. `entered` makes it current for a while on any
    thread and leaves what was current before.

    Attributes:
        device: the context's GPU.
    """

    def __init__(self) -> None:
        """Takes the current context, or retains the primary one until `close`.

        Raises:
            BackendError: there is no device or driver.
        """
        initialise()
        library = driver()
        self._retained: Any = None
        self._handle = checked(library.cuCtxGetCurrent(), "cuCtxGetCurrent")
        if not int(self._handle):
            self._retained = checked(library.cuDeviceGet(0), "cuDeviceGet")
            call = library.cuDevicePrimaryCtxRetain(self._retained)
            self._handle = checked(call, "cuDevicePrimaryCtxRetain")
        with self.entered():
            self.device = current_device()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Makes the context current on this thread inside the block."""
        library = driver()
        checked(library.cuCtxPushCurrent(self._handle), "cuCtxPushCurrent")
        try:
            yield
        finally:
            checked(library.cuCtxPopCurrent(), "cuCtxPopCurrent")

    def close(self) -> None:
        """Gives a retained primary context back; all that lives in it must be closed before."""
        if self._retained is not None:
            checked(driver().cuDevicePrimaryCtxRelease(self._retained), "cuDevicePrimaryCtxRelease")
            self._retained = None


def free_memory_bytes() -> int:
    """Free memory of the current context's GPU."""
    free, _ = checked(driver().cuMemGetInfo(), "cuMemGetInfo")
    return int(free)


class DeviceBuffer:
    """Memory on the current context's GPU, aligned to 256 bytes and more; owned until `close`.

    Attributes:
        address: the device address where it begins.
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        """Allocates.

        Raises:
            BackendError: the GPU's memory is full.
        """
        self.size = size
        self.address = int(checked(driver().cuMemAlloc(size), f"cuMemAlloc({size})"))

    def close(self) -> None:
        """Frees the memory; nothing enqueued may use it any more."""
        if self.address:
            checked(driver().cuMemFree(self.address), "cuMemFree")
            self.address = 0


class PinnedArray:
    """A NumPy array in page-locked host memory, which copies need to run beside other work.

    Attributes:
        array: the array; dead after `close`.
        address: the device address where it begins.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Allocates; the content is undefined.

        Raises:
            BackendError: no such memory is left.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.address = int(checked(driver().cuMemHostAlloc(size, 0), f"cuMemHostAlloc({size})"))
        memory = (ctypes.c_byte * size).from_address(self.address)
        self.array: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)

    def close(self) -> None:
        """Frees the memory; nothing enqueued may use it any more."""
        if self.address:
            self.array = np.empty(0, self.array.dtype)
            checked(driver().cuMemFreeHost(self.address), "cuMemFreeHost")
            self.address = 0


def pointer_device(address: int) -> int:
    """The ordinal of the GPU whose memory an address is in.

    Raises:
        BackendError: it is no address that this process' CUDA knows.
    """
    library = driver()
    attribute = library.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(checked(library.cuPointerGetAttribute(attribute, address), "cuPointerGetAttribute"))


class Stream:
    """A stream that does not wait for the legacy default stream; owned until `close`.

    Attributes:
        handle: what TensorRT and kernel launches take.
    """

    def __init__(self) -> None:
        library = driver()
        flags = library.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.handle = int(checked(library.cuStreamCreate(flags), "cuStreamCreate"))
        flags = library.CUevent_flags.CU_EVENT_DISABLE_TIMING
        self._event = checked(library.cuEventCreate(flags), "cuEventCreate")

    def wait_for(self, other: int) -> None:
        """Lets what comes next on this stream wait for what is on another one by now."""
        library = driver()
        checked(library.cuEventRecord(self._event, other), "cuEventRecord")
        checked(library.cuStreamWaitEvent(self.handle, self._event, 0), "cuStreamWaitEvent")

    def copy_to_device(self, target: int, source: int, size: int) -> None:
        """Enqueues a copy from pinned memory."""
        checked(driver().cuMemcpyHtoDAsync(target, source, size, self.handle), "cuMemcpyHtoDAsync")

    def copy_to_host(self, target: int, source: int, size: int) -> None:
        """Enqueues a copy into pinned memory."""
        checked(driver().cuMemcpyDtoHAsync(target, source, size, self.handle), "cuMemcpyDtoHAsync")

    def copy_on_device(self, target: int, source: int, size: int) -> None:
        """Enqueues a copy between two places of the GPU's memory."""
        checked(driver().cuMemcpyDtoDAsync(target, source, size, self.handle), "cuMemcpyDtoDAsync")

    def synchronize(self) -> None:
        """Waits until all that was enqueued is done.

        Raises:
            BackendError: some of it failed.
        """
        checked(driver().cuStreamSynchronize(self.handle), "cuStreamSynchronize")

    def capture(self) -> Capture:
        """What is enqueued inside ``with stream.capture() as capture`` becomes a graph and does not run."""
        return Capture(self)

    def close(self) -> None:
        """Destroys the stream, after what is on it."""
        if self.handle:
            handle, self.handle = self.handle, 0
            synchronised = driver().cuStreamSynchronize(handle)
            destroyed = driver().cuEventDestroy(self._event), driver().cuStreamDestroy(handle)
            checked(synchronised, "cuStreamSynchronize")  # told once all is given back
            checked(destroyed[0], "cuEventDestroy")
            checked(destroyed[1], "cuStreamDestroy")


class Capture:
    """The recording of a stream; `graph` is there once its block has ended well."""

    def __init__(self, stream: Stream) -> None:
        """Use `Stream.capture`."""
        self._stream = stream
        self.graph: Graph | None = None

    def __enter__(self) -> Capture:
        library = driver()
        # Thread-local: other threads may allocate and the like meanwhile.
        mode = library.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(library.cuStreamBeginCapture(self._stream.handle, mode), "cuStreamBeginCapture")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        library = driver()
        # Always ended, or the stream would stay in capture; the graph of a failed block is thrown away.
        result = library.cuStreamEndCapture(self._stream.handle)
        if kind is not None:
            status, graph = result
            if not status.value and int(graph):
                library.cuGraphDestroy(graph)
            return
        graph = checked(result, "cuStreamEndCapture")
        try:
            self.graph = Graph(checked(library.cuGraphInstantiate(graph, 0), "cuGraphInstantiate"))
        finally:
            checked(library.cuGraphDestroy(graph), "cuGraphDestroy")


class Graph:
    """An executable CUDA graph; owned until `close`, and using the memory that it was captured with."""

    def __init__(self, handle: Any) -> None:
        """Use `Stream.capture`."""
        self._handle = handle

    def launch(self, stream: Stream) -> None:
        """Enqueues the whole graph."""
        checked(driver().cuGraphLaunch(self._handle, stream.handle), "cuGraphLaunch")

    def close(self) -> None:
        """Destroys it; the stream that it was last launched on must have been synchronised."""
        handle, self._handle = self._handle, None
        if handle is not None:
            checked(driver().cuGraphExecDestroy(handle), "cuGraphExecDestroy")
