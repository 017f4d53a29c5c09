"""A GPU that is not there, for the logic around CUDA and TensorRT, which forgives as little as a real one.

`RecordingDriver` plays ``cuda.bindings.driver``. Its memory is real memory, poisoned when allocated; its
streams run nothing before somebody waits for them; and it fails the test when memory is freed twice or while
enqueued work uses it, when unpinned memory is copied asynchronously, when a call needs a context and none is
current, or when something is left behind (`RecordingDriver.check_nothing_is_left`). The name and the number
of arguments of every call are held against the real bindings.

`RecordingTensorRT` is the real ``tensorrt_rtx`` but for what needs a device: its runtime "deserialises" any
plan to an engine whose logits are the means of the channels B, G and R.

Neither shows that a GPU would compute anything; tests marked ``gpu`` are there for that.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

POISON = 0xFF  # four of them are a NaN
ALIGNMENT = 256
LEGACY = 1


@dataclass
class Allocation:
    """Memory of the device or pinned memory of the host."""

    kind: str
    memory: NDArray[np.uint8]
    address: int

    @property
    def end(self) -> int:
        return self.address + len(self.memory)


@dataclass
class Operation:
    """Something enqueued: what it does, and the addresses that it uses until it is done."""

    name: str
    run: Callable[[], None]
    uses: tuple[int, ...] = ()


@dataclass
class Stream:
    pending: list[Operation] = field(default_factory=list)
    captured: list[Operation] | None = None


@dataclass
class Event:
    stream: Stream | None = None
    after: int = 0


class RecordingDriver:
    """As much of ``cuda.bindings.driver`` as msmamba calls.

    Attributes:
        calls: names of the calls made, in order.
        failing: calls that fail, and with which status.
        free: bytes that the device says are free.
        foreign: streams of other libraries by handle.
    """

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="multiprocessors",
        CU_DEVICE_ATTRIBUTE_INTEGRATED="integrated",
    )
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL="ordinal")
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING="non-blocking")
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING="no-timing")
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread-local")

    def __init__(self, compute_capability: int = 89, devices: int = 1) -> None:
        self.capability, self.devices = compute_capability, devices
        self.calls: list[str] = []
        self.integrated = 0
        self.failing: dict[str, str] = {}
        self.free = 8 << 30
        self.allocations: dict[int, Allocation] = {}
        self.streams: dict[int, Stream] = {LEGACY: Stream()}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.executables: dict[int, list[Operation]] = {}
        self.retained = 0
        self.ordinals: dict[int, int] = {}
        self._contexts = threading.local()
        self._handles = iter(range(0x1000, 0x100000, 0x10))

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return self._checked(name, found) if name.startswith("cu") else found

    def _checked(self, name: str, call: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """The call, held against the real one's name and arguments, noted, and failing where it shall."""
        from cuda.bindings import driver

        signature = re.match(rf"{name}\((.*)\)", getattr(driver, name).__doc__)
        assert signature, f"{name} has no signature in the bindings"
        expected = len([part for part in signature.group(1).split(",") if part.strip()])

        def checked(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == expected, f"{name} takes {expected} arguments, found {arguments}"
            self.calls.append(name)
            if name not in _WITHOUT_CONTEXT:
                assert self.stack, f"{name} was called without a current context"
            if name in self.failing:
                return (SimpleNamespace(value=1, name=self.failing[name]), *_NOTHING.get(name, ()))
            return (SimpleNamespace(value=0, name="CUDA_SUCCESS"), *call(*arguments))

        return checked

    # Device and context

    @property
    def stack(self) -> list[int]:
        """The contexts made current on this thread."""
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        stack: list[int] = self._contexts.stack
        return stack

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return ()

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return (self.devices,)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return (ordinal,)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Any, ...]:
        return (b"Recording".ljust(length, b"\0"),)

    def cuDeviceGetAttribute(self, name: str, device: int) -> tuple[Any, ...]:
        major, minor = divmod(self.capability, 10)
        known = {"major": major, "minor": minor, "multiprocessors": 128, "integrated": self.integrated}
        return (known[name],)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        self.retained += 1
        return (0xC0 + device,)

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any, ...]:
        self.retained -= 1
        assert self.retained >= 0
        return ()

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return (self.stack[-1] if self.stack else 0,)

    def cuCtxGetDevice(self) -> tuple[Any, ...]:
        return (self.stack[-1] - 0xC0,)

    def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:
        self.stack.append(context)
        return ()

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return (self.stack.pop(),)

    # Memory

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return self.free, 8 << 30

    def allocate(self, kind: str, size: int) -> int:
        """Poisoned memory, aligned as CUDA's."""
        memory = np.full(size + ALIGNMENT, POISON, np.uint8)
        offset = -memory.ctypes.data % ALIGNMENT
        taken = Allocation(kind, memory[offset : offset + size], memory.ctypes.data + offset)
        self.allocations[taken.address] = taken
        return taken.address

    def _release(self, kind: str, address: int) -> None:
        assert address in self.allocations, f"{kind} memory {address:#x} was freed twice, or never allocated"
        assert self.allocations[address].kind == kind
        for stream in self.streams.values():
            used = [operation.name for operation in stream.pending if address in self._bases(operation.uses)]
            assert not used, f"memory is freed while {used} may use it"
        del self.allocations[address]

    def _bases(self, addresses: tuple[int, ...]) -> set[int]:
        return {self.allocation(address).address for address in addresses}

    def allocation(self, address: int) -> Allocation:
        """The memory that an address is in."""
        for allocation in self.allocations.values():
            if allocation.address <= address < allocation.end:
                return allocation
        raise AssertionError(f"{address:#x} is not in memory that CUDA knows, or was freed")

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        return (self.allocate("device", size),)

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        self._release("device", address)
        return ()

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return (self.allocate("host", size),)

    def cuMemFreeHost(self, address: int) -> tuple[Any, ...]:
        self._release("host", address)
        return ()

    def cuPointerGetAttribute(self, attribute: str, address: int) -> tuple[Any, ...]:
        return (self.ordinals.get(self.allocation(address).address, 0),)

    # Streams

    def cuStreamCreate(self, flags: str) -> tuple[Any, ...]:
        assert flags == "non-blocking"
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return (handle,)

    def cuStreamDestroy(self, handle: int) -> tuple[Any, ...]:
        assert not self.streams[handle].pending, "a stream is destroyed with work on it"
        del self.streams[handle]
        return ()

    def cuStreamSynchronize(self, handle: int) -> tuple[Any, ...]:
        stream = self.streams[handle]
        assert stream.captured is None, "a stream in capture was synchronised"
        self.run(stream, len(stream.pending))
        return ()

    def run(self, stream: Stream, count: int) -> None:
        """Does the first operations of a stream; other threads go on meanwhile, as beside a device."""
        time.sleep(1e-4)
        done, stream.pending = stream.pending[:count], stream.pending[count:]
        for operation in done:
            self._bases(operation.uses)  # the memory is still there
            operation.run()

    def enqueue(self, handle: int, operation: Operation) -> None:
        """Puts an operation on a stream, or into its capture."""
        self._bases(operation.uses)
        stream = self.streams[handle]
        (stream.pending if stream.captured is None else stream.captured).append(operation)

    def _copy(
        self, target: int, source: int, size: int, handle: int, kinds: tuple[str, str], name: str
    ) -> None:
        for address, kind in ((target, kinds[0]), (source, kinds[1])):
            allocation = self.allocation(address)
            assert allocation.kind == kind, f"{name} of {allocation.kind} memory in the place of {kind}"
            assert address + size <= allocation.end, f"{name} runs over the end of its memory"
        self.enqueue(
            handle, Operation(name, lambda: ctypes.memmove(target, source, size) and None, (target, source))
        )

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, handle: int) -> tuple[Any, ...]:
        self._copy(target, source, size, handle, ("device", "host"), "copy to the device")
        return ()

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, handle: int) -> tuple[Any, ...]:
        self._copy(target, source, size, handle, ("host", "device"), "copy to the host")
        return ()

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, handle: int) -> tuple[Any, ...]:
        self._copy(target, source, size, handle, ("device", "device"), "copy on the device")
        return ()

    def cuEventCreate(self, flags: str) -> tuple[Any, ...]:
        handle = next(self._handles)
        self.events[handle] = Event()
        return (handle,)

    def cuEventDestroy(self, handle: int) -> tuple[Any, ...]:
        del self.events[handle]
        return ()

    def cuEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        found = self.streams[stream]
        self.events[event] = Event(found, len(found.pending))
        return ()

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        waited = self.events[event]
        assert waited.stream is not None
        other, count = waited.stream, waited.after
        self.enqueue(stream, Operation("wait", lambda: self.run(other, count)))
        return ()

    # Graphs

    def cuStreamBeginCapture(self, handle: int, mode: str) -> tuple[Any, ...]:
        self.streams[handle].captured = []
        return ()

    def cuStreamEndCapture(self, handle: int) -> tuple[Any, ...]:
        operations, self.streams[handle].captured = self.streams[handle].captured, None
        assert operations is not None, "a capture ends that never began"
        graph = next(self._handles)
        self.graphs[graph] = operations
        return (graph,)

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        executable = next(self._handles)
        self.executables[executable] = self.graphs[graph]
        return (executable,)

    def cuGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return ()

    def cuGraphLaunch(self, executable: int, handle: int) -> tuple[Any, ...]:
        for operation in self.executables[executable]:
            self.enqueue(handle, operation)
        return ()

    def cuGraphExecDestroy(self, executable: int) -> tuple[Any, ...]:
        operations = self.executables.pop(executable)
        pending = [entry for stream in self.streams.values() for entry in stream.pending]
        assert not any(operation is entry for operation in operations for entry in pending)
        return ()

    def check_nothing_is_left(self) -> None:
        """Fails if memory, streams, events, graphs or contexts were not given back."""
        assert self.allocations == {}
        assert set(self.streams) == {LEGACY}
        assert (self.events, self.graphs, self.executables) == ({}, {}, {})
        assert (self.retained, self.stack) == (0, [])


_WITHOUT_CONTEXT = {
    *("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"),
    *("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxGetCurrent", "cuCtxPushCurrent"),
}
_NOTHING = {"cuStreamEndCapture": (0,)}  # what a failing call answers beside its status


class Array:
    """An array of another library: device memory with ``__cuda_array_interface__``."""

    def __init__(self, driver: RecordingDriver, content: NDArray[Any], **changes: Any) -> None:
        self.address = driver.allocate("device", content.nbytes)
        ctypes.memmove(self.address, np.ascontiguousarray(content).ctypes.data, content.nbytes)
        self._driver = driver
        self.__cuda_array_interface__ = {
            "shape": content.shape,
            "typestr": content.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
            **changes,
        }
        for name in [name for name, value in changes.items() if value is ...]:
            del self.__cuda_array_interface__[name]

    def free(self) -> None:
        """Frees it, as its owner does when the call is over."""
        self._driver._release("device", self.address)


class Engine:
    """An engine whose logits are the means of the channels B, G and R; what it answers may be changed.

    With ``features`` among `shapes` it gives the means as R, G and B, too.
    """

    def __init__(self, driver: RecordingDriver, size: int, batches: tuple[int, int, int]) -> None:
        self.driver, self.size, self.batches = driver, size, batches
        self.device_memory_size_v2 = 1 << 20
        self.shapes = {"image": (-1, 3, size, size), "logits": (-1, 3)}
        self.dtypes = {"image": "FLOAT", "logits": "FLOAT"}
        self.starts = self.capturable = True
        self.contexts: list[Context] = []
        self.configs: list[RuntimeConfig] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.shapes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return getattr(_real().TensorIOMode, "INPUT" if name == "image" else "OUTPUT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(_real().DataType, self.dtypes[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, 3, self.size, self.size) for batch in self.batches]

    def create_runtime_config(self) -> RuntimeConfig:
        self.configs.append(RuntimeConfig())
        return self.configs[-1]

    def create_execution_context(self, config: RuntimeConfig | None = None) -> Context | None:
        self.contexts.append(Context(self, config))
        return self.contexts[-1] if self.starts else None


class RuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content


class Context:
    """An execution context; the engine's work is enqueued on the recording driver's stream."""

    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self.engine, self.config = engine, config
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self.warmed: set[int] = set()
        self.enqueued = 0
        self.fails = self.fails_captured = False
        self.captured: int | None = None

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory % ALIGNMENT == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.captured in (None, shape[0]), "a context serves the graph of one shape"
        self.batch = shape[0]
        least, _, largest = self.engine.batches
        return shape[1:] == self.engine.shapes["image"][1:] and least <= shape[0] <= largest

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self.fails:
            return False
        driver, batch, size = self.engine.driver, self.batch, self.engine.size
        capturing = driver.streams[stream].captured is not None
        if capturing and self.fails_captured:
            return False
        assert batch in self.warmed or not capturing, "captured before the first plain run of this batch"
        self.warmed.add(batch)
        self.captured = batch if capturing else self.captured
        self.enqueued += 1
        assert set(self.addresses) == set(self.engine.shapes), "a tensor has no memory"
        image, logits, features = (self.addresses.get(name, 0) for name in ("image", "logits", "features"))
        if self.config is not None and self.config.cache is not None:
            self.config.cache.content += bytes(0 if capturing else 8)  # a kernel is compiled

        def compute() -> None:
            images = _floats(image, (batch, 3, size, size))
            _floats(logits, (batch, 3))[:] = images.mean(axis=(2, 3))[:, ::-1]
            if features:
                _floats(features, (batch, 3))[:] = images.mean(axis=(2, 3))

        used = (image, logits, features) if features else (image, logits)
        driver.enqueue(stream, Operation("network", compute, used))
        return True


def _floats(address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32).reshape(shape)


def _real() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


class RecordingTensorRT:
    """The module ``tensorrt_rtx``, with a runtime that needs no device.

    Attributes:
        engine: what every plan becomes; None for plans that do not load.
        says: errors that loading logs.
        runtimes: those that were made.
    """

    def __init__(self, engine: Engine | None, name: str = "tensorrt_rtx", version: str | None = None) -> None:
        self.engine = engine
        self.says: list[str] = []
        self.runtimes: list[Any] = []
        self.__name__ = name
        self.__version__ = version or _real().__version__

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(), name)

    def get_plugin_registry(self) -> Any:
        # The real one takes a plugin once in a process.
        return SimpleNamespace(register_creator=lambda creator, namespace: True)

    def Runtime(self, logger: Any) -> Any:
        def deserialize(plan: bytes) -> Engine | None:
            for message in self.says:
                logger.log(_real().ILogger.Severity.ERROR, message)
            return self.engine

        self.runtimes.append(SimpleNamespace(deserialize_cuda_engine=deserialize))
        return self.runtimes[-1]


@contextmanager
def owned(context: int, driver: RecordingDriver) -> Iterator[None]:
    """A context that another library, PyCUDA say, has made current on this thread."""
    driver.stack.append(context)
    yield
    assert driver.stack.pop() == context, "another context was left current"
