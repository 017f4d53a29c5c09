"""An engine as a backend: pinned and GPU memory, one stream, a CUDA graph for each batch size.

What a batch does: the images go into pinned memory and from there, or straight from another library's GPU
memory, into the engine's input; the engine runs; the logits come back; one wait at the end. The memory is
allocated once, for the largest batch. The first time that a batch size comes it runs plainly, which lets
TensorRT do what it puts off until then, and is captured afterwards; from then on its graph is replayed,
which spares the processor the launch of some hundred kernels and the plugin's Python. So it goes for the
first few batch sizes; further ones run plainly.

CUDA contexts: see `plugins.cuda_driver.Context`. With several GPUs, choose by ``CUDA_VISIBLE_DEVICES`` or by
making a context on one current before opening.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BackendError, InputError, TargetError
from ..files import read_file, write_atomically
from ..plugins import cuda_driver
from ..plugins.tensorrt_library import import_tensorrt
from .device_arrays import DeviceArray
from .engine_plan import NAMES, Plan, check_fit
from .manifest import EngineFacts, Manifest
from .tensorrt_engine import LoadedEngine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_FLOAT_BYTES = 4


class TensorRtBackend:
    """One engine on one GPU; owns its memory there until `close`.

    Calls of `run` from several threads wait for each other: there is one set of buffers.

    Attributes:
        image_size: side of the square input in pixels.
        classes: number of logits.
        features: number of features, None where the engine does not give them.
        max_batch: largest batch.
        metadata: nothing; a plan carries none.
        provider: the library, ``tensorrt`` or ``tensorrt_rtx``.
    """

    takes_device_arrays = True

    def __init__(
        self,
        plan: bytes,
        name: str,
        manifest: Manifest | None = None,
        *,
        graphs: bool = True,
        trust_engine_code: bool = False,
        cache_folder: Path | None = None,
    ) -> None:
        """Checks an engine against this machine, then loads it.

        Args:
            plan: the engine.
            name: what messages call the artefact.
            manifest: its bundle's manifest; None for a bare plan.
            graphs: whether batches are captured and replayed as CUDA graphs.
            trust_engine_code: lets a version-compatible engine run the library that it carries, as a bundle's
                manifest says that it does; a bare plan never may.
            cache_folder: where TensorRT-RTX's compiled kernels are kept between processes; by default
                ``$XDG_CACHE_HOME/msmamba``.

        Raises:
            ArtefactError: the engine is truncated or damaged, or is no image classifier.
            BackendError: a library, the driver or a GPU is missing, the engine was built for others, its
                memory cannot be had, or it carries code that is not trusted.
        """
        read = Plan.of(plan, name)
        cuda_driver.initialise()
        trt = import_tensorrt(read.library, to_parse=False)
        facts = EngineFacts.of(manifest) if manifest else None
        carries_code = facts is not None and facts.version_compatible
        self._cache = _KernelCache(plan, read.library, cache_folder)
        self._why_no_graphs = "" if graphs else "asked for"
        self._lock = threading.Lock()
        self._context = cuda_driver.Context()
        try:
            check_fit(read, manifest, name=name, library_version=trt.__version__, device=self._context.device)
            if carries_code and not trust_engine_code:
                raise BackendError(
                    f"the engine of '{name}' carries a library that would run in this process (it was built "
                    "with --version-compatible): where you trust who built it, open it with "
                    "trust_engine_code=True (--trust-engine-code)"
                )
            with self._context.entered():
                self._loaded: _Loaded | None = _Loaded(
                    trt, plan, name, self._context.device, carries_code, self._cache.read()
                )
        except BaseException:  # an interrupt too: nothing on the GPU may outlive a backend that was not made
            self._context.close()
            raise
        engine = self._loaded.engine
        self.image_size, self.classes = engine.image_size, engine.classes
        self.features = engine.features
        self._least, self.max_batch = engine.batches
        self.metadata: Mapping[str, str] = {}
        self.provider = read.library
        scan = "scan plugin" if read.has_plugin else "no scan plugin"
        self._described = f"{NAMES[read.library]} {trt.__version__} on {self._context.device.name}, {scan}"

    @property
    def path(self) -> str:
        """What executes, in words, and why batches are not replayed as CUDA graphs where they are not."""
        graphs = f"no CUDA graphs ({self._why_no_graphs})" if self._why_no_graphs else "CUDA graphs"
        return f"{self._described}, {graphs}"

    def run(self, images: NDArray[np.float32] | DeviceArray) -> NDArray[np.float32]:
        """(B, 3, S, S) float32, in NumPy's or the GPU's memory, to (B, classes) float32.

        Raises:
            InputError: the batch is larger than the engine takes, or lies on another GPU.
            BackendError: the backend is closed, or CUDA or TensorRT failed.
        """
        return self._run(images, with_features=False)[0]

    def run_with_features(
        self, images: NDArray[np.float32] | DeviceArray
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """As `run`, and the features (B, features) where there are any, which are copied for the asking."""
        return self._run(images, with_features=self.features is not None)

    def _run(
        self, images: NDArray[np.float32] | DeviceArray, with_features: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        batch = images.shape[0]
        if not 1 <= batch <= self.max_batch:
            raise InputError(
                f"'image' is a batch of {batch}; this engine takes 1 to {self.max_batch}: split it, or build "
                f"an engine with --batches 1 1 {batch}"
            )
        with self._lock:
            loaded = self._loaded
            if loaded is None:
                raise BackendError("the session is closed: open the artefact again")
            with self._context.entered():
                # A batch below the engine's least is filled up with what lies in memory.
                shape = max(batch, self._least)
                try:
                    loaded.put(images, self._context.device.ordinal)
                    replayed = loaded.replay(shape)
                    if not replayed:
                        loaded.run(shape)
                    features = loaded.features(batch) if with_features else None
                except BaseException:  # an interrupt too: the caller's array may go once this returns
                    loaded.wait_whatever_comes()
                    raise
                logits = loaded.logits(batch)
                if not replayed:
                    self._capture(loaded, shape)
                    self._cache.write(loaded.engine.runtime_cache())
                return logits, features

    def close(self) -> None:
        """Frees everything, once a call of `run` that has begun is done; may be called more than once."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
            if loaded is not None:
                try:
                    with self._context.entered():
                        loaded.close()
                finally:
                    self._context.close()

    def _capture(self, loaded: _Loaded, batch: int) -> None:
        """Captures what was just run; where that fails, `path` says why and batches keep running plainly."""
        if self._why_no_graphs or not loaded.engine.has_own_context:
            return
        try:
            loaded.capture(batch)
        except BackendError as error:
            self._why_no_graphs = str(error)
            warnings.warn(f"running without CUDA graphs, slower: {error}", RuntimeWarning, stacklevel=3)


class _Loaded:
    """What an engine takes on the GPU. Every call wants the context current.

    Attributes:
        engine: the engine.
    """

    def __init__(
        self,
        trt: ModuleType,
        plan: bytes,
        name: str,
        device: cuda_driver.Device,
        trusts_host_code: bool,
        runtime_cache: bytes | None,
    ) -> None:
        """Loads the engine and takes all memory that it will need.

        Raises:
            ArtefactError, BackendError: as `TensorRtBackend`.
        """
        with ExitStack() as stack:
            engine = stack.enter_context(
                closing(LoadedEngine(trt, plan, name, trusts_host_code=trusts_host_code))
            )
            images = (engine.batches[1], 3, engine.image_size, engine.image_size)
            logits = (engine.batches[1], engine.classes)
            features = (engine.batches[1], engine.features or 0)
            if not device.shares_memory:  # there, Linux gives much back that does not count as free
                _require_memory(name, engine, sum(_bytes(shape) for shape in (images, logits, features)))
            engine.start(runtime_cache)
            self._device_images = stack.enter_context(closing(cuda_driver.DeviceBuffer(_bytes(images))))
            self._device_logits = stack.enter_context(closing(cuda_driver.DeviceBuffer(_bytes(logits))))
            self._device_features = self._host_features = None
            if engine.features is not None:
                buffer = cuda_driver.DeviceBuffer(_bytes(features))
                self._device_features = stack.enter_context(closing(buffer))
                pinned = cuda_driver.PinnedArray(features, np.float32)
                self._host_features = stack.enter_context(closing(pinned))
            self._host_images = stack.enter_context(closing(cuda_driver.PinnedArray(images, np.float32)))
            self._host_logits = stack.enter_context(closing(cuda_driver.PinnedArray(logits, np.float32)))
            # After the memory, so that it is waited for before the memory goes.
            self._stream = stack.enter_context(closing(cuda_driver.Stream()))
            engine.bind(
                self._device_images.address,
                self._device_logits.address,
                self._device_features.address if self._device_features else None,
            )
            self.engine = engine
            self._graphs: dict[int, cuda_driver.Graph] = {}
            self._closing = stack.pop_all()

    def put(self, images: NDArray[np.float32] | DeviceArray, ordinal: int) -> None:
        """Enqueues the copy of a batch into the engine's input.

        Raises:
            InputError: it lies on another GPU than ``ordinal``.
        """
        if not isinstance(images, DeviceArray):
            np.copyto(self._host_images.array[: len(images)], images)
            size = images.size * _FLOAT_BYTES
            self._stream.copy_to_device(self._device_images.address, self._host_images.address, size)
            return
        found = cuda_driver.pointer_device(images.address)
        if found != ordinal:
            raise InputError(
                f"'image' lies on GPU {found}; this session runs on GPU {ordinal}: copy it there"
            )
        if images.stream is not None:
            self._stream.wait_for(images.stream)
        self._stream.copy_on_device(self._device_images.address, images.address, images.size_bytes)

    def run(self, batch: int) -> None:
        """Runs the engine on what was put, and waits."""
        self.engine.set_batch(batch)
        self._enqueue(batch)
        self._stream.synchronize()

    def capture(self, batch: int) -> None:
        """Keeps the batch size that ran last as a graph.

        Raises:
            BackendError: it cannot be captured.
        """
        if not self.engine.is_capturable(self._stream.handle):
            raise BackendError("TensorRT-RTX says that this engine cannot be captured")
        with self._stream.capture() as capture:
            self._enqueue(batch)
        assert capture.graph is not None  # its block has ended well
        self._graphs[batch] = self._closing.enter_context(closing(capture.graph))

    def replay(self, batch: int) -> bool:
        """Runs the graph of a batch size on what was put, and waits; False where there is none."""
        if batch not in self._graphs:
            return False
        self._graphs[batch].launch(self._stream)
        self._stream.synchronize()
        return True

    def logits(self, batch: int) -> NDArray[np.float32]:
        """A copy of what the last run answered."""
        found: NDArray[np.float32] = self._host_logits.array[:batch].copy()
        return found

    def features(self, batch: int) -> NDArray[np.float32]:
        """The features of the last run, which only now are copied from the GPU; waits."""
        assert self._host_features is not None
        assert self._device_features is not None
        size = batch * self._host_features.array.shape[1] * _FLOAT_BYTES
        self._stream.copy_to_host(self._host_features.address, self._device_features.address, size)
        self._stream.synchronize()
        found: NDArray[np.float32] = self._host_features.array[:batch].copy()
        return found

    def close(self) -> None:
        """Frees everything, after what is running; what fails keeps nothing else from being freed."""
        self.wait_whatever_comes()
        self._closing.close()

    def wait_whatever_comes(self) -> None:
        """Waits for what is enqueued, after a failure that is being told already."""
        with suppress(BackendError):
            self._stream.synchronize()

    def _enqueue(self, batch: int) -> None:
        self.engine.enqueue(self._stream.handle)
        size = batch * self.engine.classes * _FLOAT_BYTES
        self._stream.copy_to_host(self._host_logits.address, self._device_logits.address, size)


def _bytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * _FLOAT_BYTES


def _require_memory(name: str, engine: LoadedEngine, buffers: int) -> None:
    """Refuses an engine that would not start for want of memory, before TensorRT tries.

    Raises:
        BackendError: it needs more than is free.
    """
    needed, free = engine.memory_bytes + buffers, cuda_driver.free_memory_bytes()
    if needed > free:
        raise BackendError(
            f"'{name}' needs {needed / 1e6:.0f} MB of GPU memory beside its weights, and {free / 1e6:.0f} MB "
            "are free: close what else uses the GPU, or build the engine for smaller batches than "
            f"{engine.batches[1]} (--batches)"
        )


class _KernelCache:
    """The kernels that TensorRT-RTX compiled for an engine, as a file for the next process.

    TensorRT-RTX itself leaves aside what another GPU, driver or version made.
    """

    def __init__(self, plan: bytes, library: str, folder: Path | None) -> None:
        self._file: Path | None = None
        self._size = 0
        if library == "tensorrt_rtx":
            try:
                folder = folder or _cache_folder()
            except RuntimeError as error:
                self._give_up(error)
            else:
                self._file = folder / f"{hashlib.sha256(plan).hexdigest()[:32]}.rtx-cache"

    def read(self) -> bytes | None:
        """What an earlier process kept."""
        try:
            content = read_file(self._file) if self._file else None
        except FileNotFoundError:  # there is none yet
            return None
        except OSError as error:
            self._give_up(error)
            return None
        self._size = len(content or b"")
        return content

    def write(self, content: bytes | None) -> None:
        """Keeps the kernels where there are more than before; said once where that cannot be."""
        if self._file is None or content is None or len(content) == self._size:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, content)
            self._size = len(content)
        except (OSError, TargetError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._file = None
        said = f"TensorRT-RTX will compile its kernels again in the next process: {error}"
        warnings.warn(said, RuntimeWarning, stacklevel=4)


def _cache_folder() -> Path:
    """Where this user's programs keep what they can make again; a relative XDG_CACHE_HOME counts for nothing.

    Raises:
        RuntimeError: there is no home folder.
    """
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (asked if asked.is_absolute() else Path("~/.cache").expanduser()) / "msmamba"
