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
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..plugins import tensorrt_library
from ..plugins.selective_scan import cpu
from . import machine
from .onnxruntime_backend import register_native_kernels

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
    checks: tuple[Callable[[], Ability], ...] = (
        _onnxruntime,
        _native_kernels,
        _int8_products,
        _cuda_driver,
        _onnxruntime_cuda,
        _training,
        _export,
        _triton,
        _tensorrt_rtx,
        _tensorrt,
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


def _onnxruntime_cuda() -> Ability:
    name, fix = "classify on CUDA", "pip uninstall onnxruntime; pip install onnxruntime-gpu"
    try:
        import onnxruntime
    except ImportError:
        return Ability(name, False, "needs ONNX Runtime", fix)
    offered = ", ".join(
        item.removesuffix("ExecutionProvider") for item in onnxruntime.get_available_providers()
    )
    if "CUDA" not in offered:
        return Ability(name, False, f"this ONNX Runtime offers {offered}", fix)
    if not _cuda_driver().works:
        return Ability(name, False, "ONNX Runtime offers CUDA, but there is no GPU", "see above")
    return Ability(name, True, f"ONNX Runtime offers {offered}")


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
        return Ability(name, False, "triton is not installed", "pip install triton (Linux; needs no GPU)")
    return Ability(name, True, f"triton {number}")


def _tensorrt_rtx() -> Ability:
    name, number = "build TensorRT-RTX engines", _version("tensorrt-rtx")
    if number is None:
        return Ability(name, False, "not installed", "pip install tensorrt-rtx (needs no GPU)")
    link = tensorrt_library.missing_parser_link()
    if link is not None:
        found = f"tensorrt-rtx {number}, whose ONNX parser would abort: {link} is missing"
        return Ability(name, False, found, f"ln -s {link.name}.1 {link}")
    obstacle = _why_not_importable("tensorrt_rtx")
    if obstacle is not None:
        return Ability(name, False, f"tensorrt-rtx {number} does not import: {obstacle}", "install it again")
    return Ability(name, True, f"tensorrt-rtx {number}")


def _tensorrt() -> Ability:
    name, number = "build TensorRT engines", _version("tensorrt")
    fix = "install TensorRT from NVIDIA (on a Jetson it comes with JetPack)"
    if number is None:
        return Ability(name, False, "not installed", fix)
    obstacle = _why_not_importable("tensorrt")
    if obstacle is not None:
        return Ability(name, False, f"tensorrt {number} does not import: {obstacle}", fix)
    return Ability(name, True, f"tensorrt {number}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _why_not_importable(module: str) -> str | None:
    """Why a module does not import, tried in a process of its own; None if it does."""
    try:
        subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_IMPORT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        if error.returncode < 0:
            return f"the process died of signal {-error.returncode}"
        return str(error.stderr).strip().splitlines()[-1]
    return None
