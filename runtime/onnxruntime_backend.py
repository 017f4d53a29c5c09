"""The network in ONNX Runtime: on the CPU, with msmamba's native kernels where they are built, or on CUDA.

An exported file holds nodes of domain ``msmamba`` and, beside them, functions of standard operators that say
what they compute. ONNX Runtime prefers a registered kernel to a function of the same name: with the native
library registered its kernels run those nodes, without it the functions do, slower and with the same
meaning. Which of the two happened, and why, is in `OnnxRuntimeBackend.path`. On CUDA the native library runs
the scan alone, by the compiled kernels of the bundle, and the functions' standard operators are the
provider's. A file without such nodes, of another network or somebody else's, has nothing to do with either.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import machine
from ..errors import ArtefactError, BackendError
from ..files import open_file
from ..images import MAX_SIZE, is_image_size
from ..plugins.hybrid_block.gpu_kernels import STEP_KERNELS
from ..plugins.selective_scan import cpu, gpu_operator
from ..plugins.selective_scan.gpu_package import BLOCK_STATES
from ..plugins.selective_scan.onnx_function import DOMAIN, OP_TYPE
from . import onnxruntime_cuda
from .backend import FEATURES
from .device_arrays import DeviceArray
from .onnx_answer import Answer, Told, told_by
from .onnxruntime_cuda import BoundRuns
from .onnxruntime_library import failure_of, import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

DEVICES = ("auto", "cpu", "cuda")
KERNELS = ("auto", "native", "functions")
PROVIDERS = ("auto", "engine", "cpu", "cuda", "tensorrt", "nv-tensorrt-rtx")
"""What may be insisted on; ``engine`` is the bundle's own, and not ONNX Runtime's."""

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
# On by default: float32 products would round their inputs to 10 bits of mantissa, as our engines do not.
_OPTIONS = {_CUDA: {"use_tf32": "0"}}
# Without its own kernels there, the smallest network at 224 pixels has 8,722 steps of six nodes. At some
# microseconds a launch, that alone outlasts the CPU's native kernels. With them nobody has measured it.
_NO_SCAN_ON_CUDA = "where the scan's kernels have not been run on any GPU yet: device 'cuda' insists"
_ASK_DOCTOR = "'mmdeploy doctor' shows the driver and libraries that it needs"
NV_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""Module that brings the provider to an ONNX Runtime that lacks it."""
GPU_PROVIDERS = {
    "cuda": (_CUDA, "pip install onnxruntime-gpu in place of onnxruntime"),
    "tensorrt": (
        _TENSORRT,
        "pip install onnxruntime-gpu in place of onnxruntime, and TensorRT of the version that it asks for",
    ),
    "nv-tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
}
"""ONNX Runtime's name of each provider, and how to get it, by what is asked for."""
# Between nodes an idle thread spins this long, as the next node mostly comes sooner than it could be woken,
# and then sleeps. Spinning without end, ONNX Runtime's default, takes the cores from whatever else wants
# them: tiny at 224 pixels on two busy cores took 185 ms and 97 ms of processor time, 122 ms and 62 ms with
# threads that sleep at once.
_SPIN_US = 20
_SPINS_BRIEFLY_SINCE = (1, 26)
"""The version of ONNX Runtime that ends spinning after so long; earlier ones would ignore it, and spin on."""

# How far from 1 probabilities may sum up to: quantised ones of many classes, each rounded to 1/256.
_SUM_TOLERANCE = 0.1

_MAJOR, _MINOR = 75, 76  # CUdevice_attribute, cuda.h
# What the provider is linked with or loads, each before those that need it.
_CUDA_LIBRARIES = ("cudart", "nvrtc", "cublasLt", "cublas", "curand", "cufft", "cudnn")

_FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"
_LOG_NOTHING_BUT_FATAL = 4  # failures are raised, and reported once


class OnnxRuntimeBackend:
    """One model loaded into ONNX Runtime; a `Backend`.

    Attributes:
        image_size: side of the square input in pixels, None where the model leaves it open.
        classes: number of logits.
        features: number of features, None where the file does not give them.
        max_batch: largest batch, None for any.
        metadata: the file's ``metadata_props``.
        provider: what executes the graph, as ONNX Runtime names it.
        path: what executes, in words, and why not something faster.
        takes_device_arrays: whether images may lie in a GPU's memory: on CUDA.
    """

    def __init__(
        self,
        model: bytes | str,
        name: str,
        *,
        device: str = "auto",
        threads: int | None = None,
        kernels: str = "auto",
        provider: str = "auto",
        gpu_kernels: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        """Loads a model.

        Args:
            model: the file's content, or its path (which weights kept in files beside it need).
            name: what messages call the artefact.
            device: ``auto`` (CUDA where it starts and the file has no scan, which the CPU's native kernels
                run faster; else the CPU, and `path` says why), ``cpu`` or ``cuda``.
            threads: CPU threads; None takes every core that this process may use.
            kernels: ``auto`` (native where there are some for the file, on the CPU or CUDA), ``native`` or
                ``functions``.
            provider: one of `PROVIDERS` but ``engine``.
            gpu_kernels: reads the scan's compiled kernels, by file name, when they are needed.

        Raises:
            BackendError: the device, or the kernels, asked for cannot be had.
            InputError: the number of threads is none.
            ArtefactError: ONNX Runtime cannot load the model, or it is no image classifier, or one whose
                classes do not exclude each other.
        """
        check_choices(
            device=(device, DEVICES), kernels=(kernels, KERNELS), provider=(provider, _OWN_PROVIDERS)
        )
        threads = machine.threads_to_use(threads)
        runtime = import_onnxruntime()
        is_free = device == provider == "auto"
        not_cuda = ""
        if is_free:
            provider = "cpu"
            # Native kernels are for the CPU, so who asks for them asks for it.
            if kernels != "native" and _CUDA in runtime.get_available_providers():
                if kernels == "auto" and cpu.why_unavailable() is None and _scans(model):
                    not_cuda = f"; not CUDA, {_NO_SCAN_ON_CUDA}"
                else:
                    provider = "cuda"
        told = _told(model, name)
        is_ours = DOMAIN in told.domains
        wanted = _Wanted(runtime, model, name, threads, device, kernels, provider, gpu_kernels, is_ours)
        try:
            loaded = _load(wanted)
        except (ArtefactError, BackendError) as error:
            if not (is_free and provider == "cuda"):
                raise
            # Opened anew, since the session that fell back to the CPU by itself lacks the native kernels.
            loaded = _load(wanted._replace(provider="cpu"))
            not_cuda = f"; {error}"
        self.takes_device_arrays = loaded.provider == _CUDA
        self._bound: BoundRuns | None = None
        graphs = ""
        if self.takes_device_arrays:
            loaded, self._bound, why_none = _bound_runs(wanted, loaded)
            graphs = f", no CUDA graphs ({why_none})" if why_none else ", CUDA graphs"
        interface = loaded.interface
        self.provider = loaded.provider
        self.metadata: Mapping[str, str] = loaded.metadata
        self._answer = told.answer
        operators = _operators(loaded) if is_ours else "standard operators"
        self.path = _path(self.provider, operators, self._answer) + graphs + not_cuda
        self._name = name
        self._session: onnxruntime.InferenceSession | None = loaded.session
        self._input, self._output = interface.image, interface.logits
        self.max_batch, self.image_size = interface.max_batch, interface.image_size
        self.classes, self.features = interface.classes, interface.features

    def run(self, images: NDArray[np.float32] | DeviceArray) -> NDArray[np.float32]:
        """(B, 3, S, S) float32 to (B, classes) float32; any number of threads may call it at once.

        On CUDA they wait for each other.

        What answers with probabilities gives their logarithms, of which a softmax makes the same ones.

        Raises:
            ArtefactError: the network answers with something else than a row for each image.
            BackendError: the backend is closed, or ONNX Runtime failed (out of memory, say).
        """
        (rows,) = self._rows(images, {self._output: self.classes})
        return self._logits(rows)

    def run_with_features(
        self, images: NDArray[np.float32] | DeviceArray
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """As `run`, and the features (B, features) where the file gives them."""
        if self.features is None:
            return self.run(images), None
        rows, features = self._rows(images, {self._output: self.classes, FEATURES: self.features})
        return self._logits(rows), features

    def _rows(
        self, images: NDArray[np.float32] | DeviceArray, outputs: Mapping[str, int]
    ) -> list[NDArray[np.float32]]:
        """These outputs of the network, each a row of so many values an image."""
        bound, session = self._bound, self._session  # in this order, since `close` takes them in the other
        if session is None:
            raise BackendError("the session is closed: open the artefact again")
        batch = images.shape[0]
        try:
            if bound is not None:
                answers = bound.run(images)[: len(outputs)]
            else:
                answers = session.run(list(outputs), {self._input: images})
        except _errors() as error:
            raise BackendError(f"ONNX Runtime failed: {failure_of(error)}") from error
        found = [np.asarray(answer, np.float32) for answer in answers]
        for rows, (name, values) in zip(found, outputs.items(), strict=True):
            if rows.shape != (batch, values):
                raise ArtefactError(
                    f"'{self._name}' answers {batch} images with '{name}' of shape {rows.shape}, "
                    f"where it promises {(batch, values)}: export it again"
                )
        return found

    def _logits(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return _logarithms(rows, self._name) if self._answer is Answer.PROBABILITIES else rows

    def close(self) -> None:
        """Frees the model, once calls of `run` that have begun are done."""
        self._session = None
        self._bound = None


_OWN_PROVIDERS = tuple(name for name in PROVIDERS if name != "engine")


def check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    """Refuses what is not among the allowed values.

    Raises:
        BackendError: a value is unknown.
    """
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise BackendError(f"{name} '{value}' is unknown: choose one of {', '.join(allowed)}")


def _errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which have no common base."""
    from onnxruntime.capi import (
        onnxruntime_pybind11_state as state,
    )

    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names if hasattr(state, name))  # older ones lack some


def _providers(runtime: Any, options: Any, device: str, provider: str) -> list[str]:
    """The execution providers to try, the first of which is meant.

    Raises:
        BackendError: the one asked for is not installed, or is on another device.
    """
    available = runtime.get_available_providers()
    if provider == "auto":
        if device == "cuda" and _CUDA not in available:
            raise BackendError(
                f"device 'cuda' needs ONNX Runtime with CUDA; this one offers {', '.join(available)}: "
                f"{GPU_PROVIDERS['cuda'][1]}, or use --device cpu"
            )
        return [_CUDA, _CPU] if device == "cuda" else [_CPU]
    if (provider == "cpu") != (device == "cpu") and device != "auto":
        raise BackendError(f"provider '{provider}' and device '{device}' exclude each other: leave one out")
    if provider == "cpu":
        return [_CPU]
    name, remedy = GPU_PROVIDERS[provider]
    if name not in available and not (provider == "nv-tensorrt-rtx" and _add_nv_plugin(runtime, options)):
        raise BackendError(
            f"provider '{provider}' is ONNX Runtime's {name}, and this one offers {', '.join(available)}: "
            f"{remedy}"
        )
    return [name, _CPU]


def _add_nv_plugin(runtime: Any, options: Any) -> bool:
    """Adds NVIDIA's plugin package to a session, for an ONNX Runtime built without; False where it is absent.

    Raises:
        BackendError: the package finds no GPU.
    """
    try:
        plugin = importlib.import_module(NV_PLUGIN)
    except ImportError:
        return False
    name = plugin.get_ep_name()
    try:
        runtime.register_execution_provider_library(name, plugin.get_library_path())
    except _errors() as error:
        if "already" not in str(error):  # an earlier session of this process did it
            raise BackendError(f"{NV_PLUGIN} does not load: {failure_of(error)}") from error
    devices = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise BackendError("provider 'nv-tensorrt-rtx' finds no RTX GPU: 'mmdeploy doctor' shows the driver")
    options.add_provider_for_devices(devices, {})
    return True


class _Interface(NamedTuple):
    image: str
    """The input's name."""
    logits: str
    """The first output's name."""
    max_batch: int | None
    image_size: int | None
    classes: int
    features: int | None


class _Wanted(NamedTuple):
    """What a session is made from; as in `OnnxRuntimeBackend`."""

    runtime: Any
    model: bytes | str
    name: str
    threads: int
    device: str
    kernels: str
    provider: str
    gpu_kernels: Callable[[], Mapping[str, bytes]]
    is_ours: bool
    """Whether the model imports operators that there are native kernels for."""


class _Loaded(NamedTuple):
    session: Any
    provider: str
    metadata: Mapping[str, str]
    interface: _Interface
    no_native_kernels: str | None
    """Why the native kernels do not run."""
    native_kernels: str
    """The native kernels that run, where some do."""


def _load(wanted: _Wanted, graphs: bool = False) -> _Loaded:
    """A session on the provider asked for, and on no other.

    Args:
        wanted: what is asked for.
        graphs: whether CUDA's runs may be captured.

    Raises:
        BackendError: the provider, or the kernels, asked for cannot be had.
        ArtefactError: ONNX Runtime cannot load the model, or it is no image classifier.
    """
    runtime, name = wanted.runtime, wanted.name
    options = runtime.SessionOptions()
    providers = _providers(runtime, options, wanted.device, wanted.provider)
    needs_cuda = providers[0] in (_CUDA, _TENSORRT)
    missing = _start_cuda(runtime, providers[0]) if needs_cuda else ""
    does_not_start = f"{providers[0]} does not start{missing}: {_ASK_DOCTOR}"
    options.intra_op_num_threads = wanted.threads
    options.log_severity_level = _LOG_NOTHING_BUT_FATAL
    for entry, value in _idle_threads(runtime.__version__, wanted.threads).items():
        options.add_session_config_entry(entry, value)
    if isinstance(wanted.model, bytes):  # for which files beside it would be those in the current folder
        options.add_session_config_entry(_FOLDER_OF_WEIGHTS, os.devnull)
    no_native_kernels, native_kernels = _register_native(options, wanted, providers[0])
    own_options = {**_OPTIONS, _CUDA: {**_OPTIONS[_CUDA], **onnxruntime_cuda.OPTIONS}} if graphs else _OPTIONS
    try:
        # No fallback: ONNX Runtime would print a banner and try the same again.
        # One that `options` has from a plugin must not be named again, nor must another be.
        plugged = providers[0] not in runtime.get_available_providers()
        named = None if plugged else [(each, own_options.get(each, {})) for each in providers]
        session = runtime.InferenceSession(wanted.model, options, providers=named, enable_fallback=False)
        metadata = session.get_modelmeta().custom_metadata_map
        interface = _interface(session, name)
    except UnicodeDecodeError as error:
        raise ArtefactError(f"'{name}' holds names that are not text: copy or export it again") from error
    except _errors() as error:
        if providers[0] == _CUDA and _fell_back(error):
            raise BackendError(does_not_start) from error
        raise ArtefactError(f"ONNX Runtime cannot load '{name}': {failure_of(error)}") from error
    found: str = session.get_providers()[0]
    if found != providers[0]:
        raise BackendError(does_not_start)
    return _Loaded(session, found, metadata, interface, no_native_kernels, native_kernels)


def _idle_threads(version: str, threads: int) -> dict[str, str]:
    """Configuration entries that say what a session's idle threads do.

    Args:
        version: ONNX Runtime's.
        threads: the session's; with one there is nothing to wait for.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if threads < 2 or found is None or (int(found[1]), int(found[2])) < _SPINS_BRIEFLY_SINCE:
        return {"session.intra_op.allow_spinning": "0"}
    return {"session.intra_op.allow_spinning": "1", "session.intra_op.spin_duration_us": str(_SPIN_US)}


def _fell_back(error: Exception) -> bool:
    """Whether a session on CUDA fell back to the CPU, for which CUDA's operators of ours are none."""
    without = (f"Could not find an implementation for {name}(" for name in (OP_TYPE, *STEP_KERNELS))
    return any(told in str(error) for told in without)


def _bound_runs(wanted: _Wanted, plain: _Loaded) -> tuple[_Loaded, BoundRuns, str]:
    """Runs on CUDA that are captured, which one has proven; else such as are not, and why.

    Returns:
        The session that runs, its runs, and why they are not captured.
    """

    def bound(loaded: _Loaded, graphs: bool) -> BoundRuns:
        interface = loaded.interface
        outputs = {interface.logits: interface.classes}
        if interface.features is not None:
            outputs[FEATURES] = interface.features
        return BoundRuns(wanted.runtime, loaded.session, interface.image, outputs, graphs=graphs)

    size = plain.interface.image_size
    if size is None:
        obstacle = "the file leaves the size of images open"
    elif plain.no_native_kernels is not None and _scans(wanted.model):
        obstacle = "a loop cannot be captured"
    else:
        try:
            loaded = _load(wanted, graphs=True)
            runs = bound(loaded, graphs=True)
            runs.run(np.zeros((1, 3, size, size), np.float32))
        except _errors() as error:
            obstacle = failure_of(error)
        except (ArtefactError, BackendError) as error:
            obstacle = str(error)
        else:
            return loaded, runs, ""
    return plain, bound(plain, graphs=False), obstacle


def _start_cuda(runtime: Any, provider: str) -> str:
    """Readies CUDA for a provider; what its libraries lack, in words that go on from "does not start".

    Raises:
        BackendError: there is no driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL(gpu_operator.DRIVER)
    except OSError as error:
        raise BackendError(f"{provider} does not start: no {gpu_operator.DRIVER}, NVIDIA's driver") from error
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        why = f"NVIDIA's driver gives error {status}" if status else "NVIDIA's driver shows no GPU"
        raise BackendError(f"{provider} does not start: {why}: check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return _preload(runtime)


@cache
def _preload(runtime: Any) -> str:
    """Loads the CUDA libraries that pip installed, which the system's loader does not find."""
    preload = getattr(runtime, "preload_dlls", None)  # from 1.21 on
    if preload is None:
        return ""
    _load_cuda_from_elsewhere(runtime)
    with redirect_stdout(StringIO()) as printed:  # where it says what it could not load
        preload()
    failures = [line for line in printed.getvalue().splitlines() if line.startswith("Failed to load")]
    return f" ({failures[0]})" if failures else ""


def _load_cuda_from_elsewhere(runtime: Any) -> None:
    """Loads NVIDIA's libraries that pip installed into another folder than ONNX Runtime.

    `preload_dlls` looks in its own alone, and takes what is loaded already for found: with ONNX Runtime in a
    folder on ``PYTHONPATH``, and PyTorch with its libraries where Python is, it found none.
    """
    nvidia = importlib.util.find_spec("nvidia")
    own = Path(runtime.__file__).parents[1] / "nvidia"
    for folder in map(Path, (nvidia and nvidia.submodule_search_locations) or ()):
        if folder != own:
            for name in _CUDA_LIBRARIES:
                for file in sorted(folder.glob(f"*/lib/lib{name}.so.*")):
                    with suppress(OSError):  # what is missing then, `preload_dlls` tells
                        ctypes.CDLL(str(file))


def register_native_kernels(options: onnxruntime.SessionOptions) -> str | None:
    """Registers msmamba's native kernels with the options of a session; returns None, or why it could not."""
    obstacle = cpu.why_unavailable()
    if obstacle is not None:
        return obstacle
    try:
        options.register_custom_ops_library(str(cpu.library_path()))
    except _errors() as error:
        return f"the native library does not register with this ONNX Runtime: {failure_of(error)}"
    return None


def _register_native(options: Any, wanted: _Wanted, provider: str) -> tuple[str | None, str]:
    """Registers the native kernels where they are wanted.

    Returns:
        None when that worked, else why not; and whose the kernels are.

    Raises:
        BackendError: ``kernels`` insists on them.
    """
    if wanted.kernels == "functions":
        return "asked for", ""
    obstacle: str | None
    whose = f"({cpu.kernels()})" if cpu.why_unavailable() is None else ""
    if not wanted.is_ours:
        obstacle = f"'{wanted.name}' has no operator that they run: leave --kernels out (kernels='auto')"
    elif provider == _CPU:
        obstacle = register_native_kernels(options)
    elif provider == _CUDA:
        obstacle, whose = _register_gpu_kernels(options, wanted)
    else:
        obstacle = "the native kernels are for the CPU and CUDA"
    if obstacle is not None and wanted.kernels == "native":
        raise BackendError(f"native kernels were asked for, but {obstacle}")
    return obstacle, whose


def _register_gpu_kernels(options: Any, wanted: _Wanted) -> tuple[str | None, str]:
    """Registers a bundle's compiled kernels with options of a session on CUDA, as `_register_native` does."""
    if not _scans(wanted.model):
        return "it has no scan", ""
    try:
        packages = gpu_operator.packages_of(wanted.gpu_kernels(), compute_capability())
        with gpu_operator.offered(packages):
            obstacle = register_native_kernels(options)
    except BackendError as error:
        return str(error), ""
    has_block = any(package.states == BLOCK_STATES for package in packages)
    whose = "the scan's and the block's" if has_block else "the scan's"
    return obstacle, f"{whose}, by the CUDA driver"


def compute_capability() -> int:
    """The first GPU's, on which sessions run, as ``10 * major + minor``; the driver has started."""
    driver = ctypes.CDLL(gpu_operator.DRIVER)
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return 10 * major.value + minor.value


def _path(provider: str, operators: str, answer: Answer) -> str:
    softmax = ", a softmax at its end" if answer is Answer.PROBABILITIES else ""
    return f"onnxruntime {provider.removesuffix('ExecutionProvider')}, {operators}{softmax}"


def _operators(loaded: _Loaded) -> str:
    """What runs msmamba's operators, and why not the native kernels."""
    if loaded.no_native_kernels is not None:
        return f"ONNX functions ({loaded.no_native_kernels})"
    return f"native kernels {loaded.native_kernels}"


@contextmanager
def _content(model: bytes | str) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a model, or of its file without reading all of it."""
    if isinstance(model, bytes):
        yield model
    else:
        with open_file(model) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _scans(model: bytes | str) -> bool:
    """Whether a selective scan is among the model's nodes; ONNX writes their kinds in plain letters."""
    with _content(model) as content:
        return content.find(OP_TYPE.encode()) >= 0


def _told(model: bytes | str, name: str) -> Told:
    """What the model says of itself.

    Raises:
        ArtefactError: it answers with a probability of each class by itself.
    """
    with _content(model) as content:
        told = told_by(content)
    if told.answer is Answer.ONE_BY_ONE:
        raise ArtefactError(
            f"'{name}' ends in a sigmoid, which gives each class a probability by itself, and here classes "
            "exclude each other: export it without that layer"
        )
    return told


def _logarithms(probabilities: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Logits of which a softmax makes these probabilities; NaN stays what it is.

    Raises:
        ArtefactError: they are none.
    """
    rows = probabilities.astype(np.float64)
    if (rows < 0).any() or (abs(rows.sum(axis=1) - 1) > _SUM_TOLERANCE).any():
        raise ArtefactError(
            f"'{name}' ends in a softmax, and its rows are not the probabilities of an image's classes: "
            "export it without that layer"
        )
    return np.log(np.maximum(rows, np.finfo(np.float32).tiny)).astype(np.float32)


def _interface(session: Any, name: str) -> _Interface:
    """What goes in and comes out.

    Raises:
        ArtefactError: the model is no image classifier; every mismatch is named.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or [value.name for value in outputs[1:]] not in ([], [FEATURES]):
        raise ArtefactError(
            f"'{name}' has {len(inputs)} inputs and {len(outputs)} outputs: expected an image classifier "
            f"with one of each, or with '{FEATURES}' as a second output"
        )
    (image,), (logits, *features) = inputs, outputs
    problems = []
    for value in (image, logits, *features):
        if value.type != "tensor(float)":
            problems.append(f"'{value.name}' is {value.type}, expected tensor(float)")
    sides = image.shape[2:]
    is_open = not any(isinstance(side, int) for side in sides)  # whatever the file calls height and width
    if len(image.shape) != 4 or image.shape[1] != 3 or (sides[0] != sides[1] and not is_open):
        problems.append(f"'{image.name}' has shape {image.shape}, expected (batch, 3, S, S)")
    elif isinstance(sides[0], int) and not is_image_size(sides[0]):
        problems.append(f"'{image.name}' takes {sides[0]}x{sides[0]} pixels, expected 1 to {MAX_SIZE} a side")
    if len(logits.shape) != 2 or not isinstance(logits.shape[1], int) or logits.shape[1] < 2:
        problems.append(
            f"'{logits.name}' has shape {logits.shape}, expected (batch, classes) and at least two classes"
        )
    for value in features:
        if len(value.shape) != 2 or not isinstance(value.shape[1], int) or value.shape[1] < 1:
            problems.append(f"'{value.name}' has shape {value.shape}, expected (batch, features)")
    batch = image.shape[0] if image.shape else None
    if isinstance(batch, int) and batch != 1:
        problems.append(f"'{image.name}' takes batches of exactly {batch}, expected any size or 1")
    if problems:
        raise ArtefactError(f"'{name}' is no image classifier that msmamba can run: {'; '.join(problems)}")
    size = sides[0] if isinstance(sides[0], int) else None
    return _Interface(
        image=image.name,
        logits=logits.name,
        max_batch=batch if isinstance(batch, int) else None,
        image_size=size,
        classes=logits.shape[1],
        features=features[0].shape[1] if features else None,
    )
