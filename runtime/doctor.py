"""What this machine can run, and what the rest would need: what `mmdeploy doctor` prints.

Nothing heavy is imported: a library's presence and version are read from its installation, and those that
can take the process down with them are imported in a process of their own.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .. import machine
from ..errors import BackendError
from ..plugins import cuda_driver, tensorrt_library
from ..plugins.selective_scan import cpu
from ..plugins.selective_scan.gpu_launch import BLOCK_SHAPES, dotted
from ..version import __version__
from .engine_plan import NAMES as ENGINE_LIBRARIES
from .onnxruntime_backend import GPU_PROVIDERS, NV_PLUGIN, register_native_kernels

_INT8_FEATURES = ("avx512_vnni", "amx_tile", "asimddp", "i8mm")
_IMPORT_SECONDS = 120
_CUDA_SUCCESS = 0
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h


@dataclass(frozen=True)
class Ability:
    """One thing that the machine can or cannot do.

    Attributes:
        name: what it is.
        works: whether it does.
        found: what was found.
        fix: what to do about it; empty when it works.
    """

    name: str
    works: bool
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """The machine, and what it can do.

    Attributes:
        machine: facts by name.
        abilities: the first is classification on the CPU, without which there is nothing.
    """

    machine: dict[str, str]
    abilities: tuple[Ability, ...]

    @property
    def can_infer(self) -> bool:
        """Whether images can be classified at all."""
        return self.abilities[0].works

    def to_json(self) -> str:
        """The report as one JSON object."""
        abilities = [asdict(ability) for ability in self.abilities]
        return json.dumps({"machine": self.machine, "abilities": abilities}, indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """The report as lines for a reader."""
        width = max(map(len, [*self.machine, *(ability.name for ability in self.abilities)]))
        lines = [f"     {name:<{width}}  {value}" for name, value in self.machine.items()]
        lines.append("")
        for ability in self.abilities:
            lines.append(f"{'yes' if ability.works else 'no':<3}  {ability.name:<{width}}  {ability.found}")
            if ability.fix:
                lines.append(f"     {'':<{width}}  fix: {ability.fix}")
        return "\n".join(lines)


def examine() -> Report:
    """Examines this machine; takes a few seconds where TensorRT is installed."""
    _library.cache_clear()
    checks: tuple[Callable[[], Ability], ...] = (
        _onnxruntime,
        _native_kernels,
        _int8_products,
        _training,
        _export,
        _triton,
        _cuda_driver,
        _cuda_bindings,
        *(partial(_builds_engines, library) for library in ENGINE_LIBRARIES),
        *(partial(_runs_engines, library) for library in ENGINE_LIBRARIES),
        *(partial(_onnxruntime_on, provider) for provider in GPU_PROVIDERS),
    )
    return Report(_machine(), tuple(check() for check in checks))


def _machine() -> dict[str, str]:
    memory = machine.memory_bytes()
    facts = {
        "msmamba": __version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "processor": machine.processor(),
        "instruction sets": " ".join(machine.processor_features()) or "not known",
        "usable cores": str(machine.usable_cores()),
    }
    return facts if memory is None else {**facts, "memory": f"{memory / 2**30:.1f} GiB"}


def _onnxruntime() -> Ability:
    name, fix = "classify on the CPU", "pip install onnxruntime"
    try:
        import onnxruntime
    except ImportError as error:
        return Ability(name, False, f"ONNX Runtime does not import: {error}", fix)
    return Ability(name, True, f"ONNX Runtime {onnxruntime.__version__}")


def _native_kernels() -> Ability:
    name = "native kernels of the network"
    fix = "until then the network runs as plain ONNX, slower and with the same answers"
    try:
        import onnxruntime
    except ImportError:
        return Ability(name, False, "needs ONNX Runtime", "pip install onnxruntime")
    obstacle = register_native_kernels(onnxruntime.SessionOptions())
    if obstacle is not None:
        return Ability(name, False, obstacle, fix)
    return Ability(name, True, f"{cpu.kernels()}, {cpu.library_path()}")


def _int8_products() -> Ability:
    name = "int8 products in hardware"
    found = [feature for feature in machine.processor_features() if feature in _INT8_FEATURES]
    if not found:
        fix = "none: int8 files run, more slowly; prefer the float32 file on this processor"
        return Ability(name, False, f"none of {', '.join(_INT8_FEATURES)}", fix)
    return Ability(name, True, f"{', '.join(found)}; with native kernels the float32 file is still faster")


def _cuda_driver() -> Ability:
    name = "NVIDIA GPU"
    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Ability(name, False, f"no {library}", "with an NVIDIA GPU in the machine: install its driver")
    status = driver.cuInit(0)
    if status != _CUDA_SUCCESS:
        return Ability(name, False, f"the driver does not start: cuInit gives {status}", "check nvidia-smi")
    count, number = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    driver.cuDriverGetVersion(ctypes.byref(number))
    devices = [_device(driver, index) for index in range(count.value)]
    cuda = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    if not devices:
        return Ability(name, False, f"{cuda}, but no device", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return Ability(name, True, f"{cuda}; {', '.join(devices)}")


def _device(driver: ctypes.CDLL, index: int) -> str:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    label = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(label, len(label), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return f"{label.value.decode()} (compute capability {major.value}.{minor.value})"


def _cuda_bindings() -> Ability:
    name, number = "reach the GPU from Python", _version("cuda-bindings")
    fix = "pip install cuda-bindings, of the driver's CUDA version or an older one"
    if number is None:
        return Ability(name, False, "cuda-bindings is not installed", fix)
    try:
        found = cuda_driver.device()
    except BackendError as error:
        return Ability(name, False, f"cuda-bindings {number}: {error}", "see above")
    if found.compute_capability not in BLOCK_SHAPES:
        known = dotted(BLOCK_SHAPES)
        capability = f"compute capability {found.compute_capability / 10:.1f}"
        fix = "build engines with --no-plugin, or take ONNX Runtime"
        return Ability(name, False, f"{found.name} has {capability}; the scan has kernels for {known}", fix)
    return Ability(name, True, f"cuda-bindings {number}")


def _onnxruntime_on(provider: str) -> Ability:
    """One of ONNX Runtime's execution providers for GPUs."""
    package, remedy = GPU_PROVIDERS[provider]
    short = package.removesuffix("ExecutionProvider")
    name = f"ONNX Runtime on {'CUDA' if provider == 'cuda' else short}"
    try:
        import onnxruntime
    except ImportError:
        return Ability(name, False, "needs ONNX Runtime", remedy)
    offered = onnxruntime.get_available_providers()
    plugin = provider == "nv-tensorrt-rtx" and find_spec(NV_PLUGIN) is not None
    if package not in offered and not plugin:
        shown = ", ".join(item.removesuffix("ExecutionProvider") for item in offered)
        return Ability(name, False, f"this ONNX Runtime offers {shown}", remedy)
    if not _cuda_driver().works:
        return Ability(name, False, f"ONNX Runtime offers {short}, but there is no GPU", "see above")
    return Ability(name, True, f"ONNX Runtime {onnxruntime.__version__}, {package}")


def _training() -> Ability:
    return _packages("train", "train", ("torch", "safetensors", "scikit-learn", "matplotlib"))


def _export() -> Ability:
    return _packages("export to ONNX", "export", ("torch", "safetensors", "onnx", "onnxscript"))


def _packages(name: str, extra: str, wanted: tuple[str, ...]) -> Ability:
    """An ability that needs packages of one of msmamba's extras."""
    found = {package: _version(package) for package in wanted}
    missing = [package for package, number in found.items() if number is None]
    if missing:
        return Ability(name, False, f"missing: {', '.join(missing)}", f"pip install 'msmamba[{extra}]'")
    return Ability(name, True, ", ".join(f"{package} {number}" for package, number in found.items()))


def _triton() -> Ability:
    name, number = "compile the scan for GPUs", _version("triton")
    if number is None:
        fix = "pip install triton (Linux; needs no GPU), or build engines from bundles that carry the kernels"
        return Ability(name, False, "triton is not installed", fix)
    return Ability(name, True, f"triton {number}")


_HOW_TO_GET = {
    "tensorrt": "install TensorRT from NVIDIA (on a Jetson it comes with JetPack)",
    "tensorrt_rtx": "pip install tensorrt-rtx (needs no GPU to build)",
}


def _builds_engines(library: str) -> Ability:
    name = f"build {ENGINE_LIBRARIES[library]} engines"
    found, obstacle = _library(library)
    if obstacle:
        return Ability(name, False, obstacle, _HOW_TO_GET[library])
    link = tensorrt_library.missing_parser_link() if library == "tensorrt_rtx" else None
    if link is not None:
        said = f"{found}, whose ONNX parser would abort the process: {link} is missing"
        return Ability(name, False, said, tensorrt_library.link_command(link))
    if find_spec("onnx") is None:
        return Ability(name, False, f"{found}, but no onnx", "pip install onnx")
    if library == "tensorrt":  # which builds for the GPU that it runs on
        gpu = _cuda_bindings()
        if not gpu.works:
            return Ability(name, False, f"{found}, but {gpu.found}", gpu.fix)
    return Ability(name, True, str(found))


def _runs_engines(library: str) -> Ability:
    name = f"run {ENGINE_LIBRARIES[library]} engines"
    found, obstacle = _library(library)
    if obstacle:
        return Ability(name, False, obstacle, _HOW_TO_GET[library])
    gpu = _cuda_bindings()
    if not gpu.works:
        return Ability(name, False, f"{found}, but {gpu.found}", gpu.fix)
    return Ability(name, True, f"{found}, {gpu.found}")


@cache
def _library(name: str) -> tuple[str | None, str | None]:
    """A TensorRT library with its version, or why there is none; imported in a process of its own."""
    if find_spec(name) is None:
        return None, "not installed"
    number, obstacle = _import_elsewhere(name)
    if obstacle is not None:
        return None, f"{name} does not import: {obstacle}"
    return f"{name} {number}", None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _import_elsewhere(module: str) -> tuple[str | None, str | None]:
    """A module's version, or why it does not import; tried in a process of its own."""
    code = f"import {module}; print(getattr({module}, '__version__', 'of no known version'))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=_IMPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_IMPORT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        if error.returncode < 0:
            return None, f"the process died of signal {-error.returncode}"
        return None, str(error.stderr).strip().splitlines()[-1]
    return done.stdout.strip(), None
