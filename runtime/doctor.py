"""What this machine is best for, what else it can do, and what the rest needs: what `mmdeploy doctor` prints.

Each cause is told once, where it belongs: an ability that only lacks another one names it in `Ability.needs`.

Nothing heavy is imported: a library's presence and version are read from its installation, and those that
can take the process down with them are imported in a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .. import machine
from ..errors import BackendError, MsmambaError
from ..plugins import cuda_driver, tensorrt_library
from ..plugins.image_resize.cpu import why_unavailable as why_no_native_resize
from ..plugins.selective_scan import cpu
from ..plugins.selective_scan.gpu_launch import BLOCK_SHAPES, OLDEST_TRITON, dotted, is_too_old
from ..schema import as_json
from ..version import __version__
from . import onnxruntime_library, probe
from .engine_plan import NAMES as ENGINE_LIBRARIES
from .manifest import Manifest
from .onnxruntime_backend import GPU_PROVIDERS, NV_PLUGIN, compute_capability, register_native_kernels
from .onnxruntime_library import import_onnxruntime
from .session import open_session

_INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_tile", "asimddp", "i8mm")
_IMPORT_SECONDS = 120
_CUDA_SUCCESS = 0
_CLASSIFY, _NATIVE, _GPU = "classify on the CPU", "native kernels of the network", "NVIDIA GPU"
_TRAIN, _EXPORT, _ON_CUDA = "train", "export to ONNX", "ONNX Runtime on CUDA"
_SLIDES, _PAGE = "slides and fields", "the live page"
_SCAN_ON_CUDA = "the scan on ONNX Runtime's CUDA"


def _builds(title: str) -> str:
    return f"build {title} engines"


def _runs(title: str) -> str:
    return f"run {title} engines"


_OF_EXTRAS = {
    "slides": (_SLIDES, ("openslide-python", "tifffile", "scipy", "shapely", "jinja2")),
    "czi": ("slides of Zeiss's (CZI)", ("pylibCZIrw",)),
    "fields": ("PNG and JPEG of any size", ("pyvips",)),
    "live": (_PAGE, ("starlette", "uvicorn", "websockets", "jinja2")),
    "camera": ("cameras, streams and videos", ("av",)),
    "screen": ("the screen as a source", ("mss",)),
    "micromanager": ("Micro-Manager as a source", ("pymmcore",)),
    "calibrate": ("fit guards", ("scipy", "matplotlib", "jinja2")),
    "train": (_TRAIN, ("torch", "safetensors", "scikit-learn", "matplotlib")),
    "export": (_EXPORT, ("torch", "safetensors", "onnx", "onnxscript")),
}
"""What the packages of msmamba's extras are for, by the extra."""
_OTHER_WORK = {
    _SLIDES: "classify slides",
    _PAGE: "show live pictures in a browser",
    _TRAIN: "train",
    _EXPORT: "export",
    _ON_CUDA: "run ONNX files on its GPU",
    _SCAN_ON_CUDA: "run bundles on its GPU without TensorRT",
    _builds("TensorRT"): "build TensorRT engines for its GPU",
    _builds("TensorRT-RTX"): "build TensorRT-RTX engines for other machines",
}
"""What an ability is good for besides classifying in the best way, in the words of `Report.best_for`."""
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h


@dataclass(frozen=True)
class Ability:
    """One thing that the machine can or cannot do.

    Attributes:
        name: what it is.
        works: whether it does.
        found: what was found; empty where the cause is another ability's.
        fix: what to do about it; empty when it works, and where the cause is another ability's.
        needs: the name of the ability whose cause keeps this one from working; empty otherwise.
        is_wrong: whether something is there that does not do what it should, so that answers may be others;
            what is missing is no error.
    """

    name: str
    works: bool
    found: str = ""
    fix: str = ""
    needs: str = ""
    is_wrong: bool = False

    def waiting(self, name: str) -> Ability:
        """Another ability, which does not work because this one does not."""
        return Ability(name, False, needs=self.needs or self.name)


@dataclass(frozen=True)
class Report:
    """The machine, and what it can do.

    Attributes:
        machine: facts by name.
        abilities: in the order of examination.
    """

    machine: dict[str, str]
    abilities: tuple[Ability, ...]
    unopened: str = ""
    """Why the artefact that was asked about cannot be opened; empty where it can, or none was."""

    @property
    def can_infer(self) -> bool:
        """Whether images can be classified at all."""
        return self._works(_CLASSIFY)

    @property
    def wrong(self) -> tuple[Ability, ...]:
        """What there is that does not do what it should."""
        return tuple(ability for ability in self.abilities if ability.is_wrong)

    @property
    def failure(self) -> str:
        """Why answers here may not be those that were proven, or the artefact gives none; empty otherwise."""
        if self.unopened:
            return self.unopened
        said = "; ".join(f"{each.name}: no, {each.found}: {each.fix}" for each in self.wrong)
        return f"answers may be others here than those that were proven: {said}" if said else ""

    @property
    def best_for(self) -> str:
        """What this machine is best for, in words: the fastest way to classify, and what else it can do."""
        if not self.can_infer:
            return "This machine cannot classify images yet: see the first 'no' below."
        if self.wrong:
            names = " and ".join(f"'{ability.name}'" for ability in self.wrong)
            return f"This machine may answer otherwise than was proven: see {names} below."
        engines = [title for title in ENGINE_LIBRARIES.values() if self._works(_runs(title))]
        if engines:
            best = f"This machine is best for classifying on its GPU, by {engines[0]} engines."
        elif self._works(_NATIVE):
            best = "This machine is best for classifying on the CPU: float32 files, by native kernels."
        else:
            best = "This machine can classify on the CPU, slowly: it lacks the native kernels."
        others = [said for name, said in _OTHER_WORK.items() if self._works(name)]
        if not others:
            return best
        listed = " and ".join(filter(None, (", ".join(others[:-1]), others[-1])))
        return f"{best}\nIt can also {listed}."

    @property
    def roads(self) -> str:
        """Which ways there are for a bundle to its GPU and which it takes, in lines; empty without a GPU."""
        if not self._works(_GPU):
            return ""
        ways = {f"{title} engine": _runs(title) for title in ENGINE_LIBRARIES.values()}
        ways["ONNX Runtime on CUDA, with the scan's kernels"] = _SCAN_ON_CUDA
        lines = [
            "A bundle gets to this machine's GPU by an engine that it holds, else where --device cuda asks:"
        ]
        for way, ability in ways.items():
            there = "yes" if self._works(ability) else f"no, see '{ability}'"
            lines.append(f"  {way}: {there}")
        return "\n".join(lines)

    def _works(self, name: str) -> bool:
        return any(ability.works for ability in self.abilities if ability.name == name)

    def to_json(self) -> str:
        """The report as one JSON object."""
        abilities = [asdict(ability) for ability in self.abilities]
        report = {
            "best_for": self.best_for,
            "roads": self.roads,
            "machine": self.machine,
            "abilities": abilities,
        }
        return as_json(report, indent=2)

    def to_text(self) -> str:
        """The report as lines for a reader: the verdict, the facts, what works, what does not."""
        width = max(map(len, [*self.machine, *(ability.name for ability in self.abilities)]))
        lines = [self.best_for, *([self.roads] if self.roads else []), ""]
        lines += [f"     {name:<{width}}  {value}" for name, value in self.machine.items()]
        lines.append("")
        for ability in sorted(self.abilities, key=lambda ability: not ability.works):
            found = f"needs: {ability.needs}" if ability.needs else ability.found
            lines.append(f"{'yes' if ability.works else 'no':<3}  {ability.name:<{width}}  {found}")
            if ability.fix:
                lines.append(f"     {'':<{width}}  fix: {ability.fix}")
        return "\n".join(lines)


def examine(artefact: str | None = None) -> Report:
    """Examines this machine; takes a few seconds where TensorRT is installed.

    Args:
        artefact: a bundle, ONNX file or engine, whose probe of pictures is compared with what becomes of
            them here.
    """
    _library.cache_clear()
    manifest, unopened = _manifest_of(artefact)
    checks: tuple[Callable[[], Ability], ...] = (
        _onnxruntime,
        _one_onnxruntime,
        _native_kernels,
        _int8_products,
        _pictures,
        *([partial(_pictures_of, artefact, manifest, unopened)] if artefact is not None else []),
        *(partial(_packages, extra) for extra in _OF_EXTRAS),
        _triton,
        _cuda_driver,
        _cuda_bindings,
        *(partial(_installed, library) for library in ENGINE_LIBRARIES),
        *(partial(_builds_engines, library) for library in ENGINE_LIBRARIES),
        *(partial(_runs_engines, library) for library in ENGINE_LIBRARIES),
        *(partial(_onnxruntime_on, provider) for provider in GPU_PROVIDERS),
        _scan_on_cuda,
    )
    return Report(_machine(), tuple(check() for check in checks), unopened)


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
    try:
        onnxruntime = import_onnxruntime()
    except BackendError as error:
        said = f"ONNX Runtime does not import: {error.__cause__}"
        return Ability(_CLASSIFY, False, said, onnxruntime_library.how_to_install())
    return Ability(_CLASSIFY, True, f"ONNX Runtime {onnxruntime.__version__}")


def _one_onnxruntime() -> Ability:
    """Whether one package alone has ONNX Runtime: of two, each has overwritten files of the other."""
    name = "one ONNX Runtime"
    try:
        onnxruntime = import_onnxruntime()
    except BackendError:
        return _onnxruntime().waiting(name)
    installed = onnxruntime_library.versions()
    found = [f"{package} {number}" for package, number in installed.items()]
    imported = f"{onnxruntime.__version__}, with {', '.join(onnxruntime.get_available_providers())}"
    if len(found) > 1 or (found and onnxruntime.__version__ not in installed.values()):
        said = f"{' and '.join(found)} installed, in one folder; what imports is {imported}"
        return Ability(name, False, said, onnxruntime_library.how_to_install(), is_wrong=True)
    return Ability(name, True, (found or [f"onnxruntime {onnxruntime.__version__}"])[0])


def _native_kernels() -> Ability:
    name = _NATIVE
    fix = "until then the network runs as plain ONNX, slower and with the same answers"
    try:
        onnxruntime = import_onnxruntime()
    except BackendError:
        return _onnxruntime().waiting(name)
    obstacle = register_native_kernels(onnxruntime.SessionOptions())
    if obstacle is not None:
        return Ability(name, False, obstacle, fix)
    return Ability(name, True, f"{cpu.kernels()}, {cpu.library_path()}")


def _int8_products() -> Ability:
    name = "int8 products in hardware"
    found = [feature for feature in machine.processor_features() if feature in _INT8_FEATURES]
    if not found:
        fix = "none: int8 files run, no faster than float32 ones"
        return Ability(name, False, f"none of {', '.join(_INT8_FEATURES)}", fix)
    return Ability(name, True, ", ".join(found))


_OTHER_DECODERS = "install pillow and simplejpeg as in msmamba's constraints.txt; then reinstall msmamba"


def _pictures() -> Ability:
    name = "prepare pictures as everywhere"
    found = probe.differences_here()
    if found:
        return Ability(name, False, "; ".join(found), _OTHER_DECODERS, is_wrong=True)
    resize = "resize in NumPy" if why_no_native_resize() else f"native resize ({cpu.kernels()})"
    decoders = (f"{library} {version(library)}" for _, library in probe.PICTURES.values())
    return Ability(name, True, f"{', '.join(decoders)}, {resize}")


def _manifest_of(artefact: str | None) -> tuple[Manifest | None, str]:
    """What an artefact says of itself, and why it cannot be opened; empty where it can, or there is none."""
    if artefact is None:
        return None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is told here
            with open_session(artefact) as session:
                return session.manifest, ""
    except MsmambaError as error:
        return None, str(error)


def _pictures_of(artefact: str, manifest: Manifest | None, unopened: str) -> Ability:
    name = "prepare pictures as its exporter"
    if unopened:
        return Ability(name, False, unopened, "see there")
    if manifest is None:
        fix = "compare its answers on some pictures with those of whoever made it"
        return Ability(name, False, f"'{artefact}' has no manifest of msmamba's, and so no probe", fix)
    if not manifest.probe:
        fix = "export it again: artefacts carry a probe of pictures now"
        return Ability(name, False, f"'{artefact}' carries no probe", fix)
    said = "; ".join([*probe.differences(manifest), *manifest.notes])
    if probe.differences(manifest):
        return Ability(name, False, said, _OTHER_DECODERS, is_wrong=True)
    return Ability(name, True, said or f"'{artefact}': the same values of {', '.join(manifest.probe)}")


def _cuda_driver() -> Ability:
    name = _GPU
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
    try:
        found = cuda_driver.device()
    except BackendError as error:
        gpu = _cuda_driver()
        if not gpu.works:
            return gpu.waiting(name)
        if number is None:
            return Ability(name, False, "cuda-bindings is not installed", fix)
        return Ability(name, False, f"cuda-bindings {number}: {error}", fix)
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
    name = _ON_CUDA if provider == "cuda" else f"ONNX Runtime on {short}"
    try:
        onnxruntime = import_onnxruntime()
    except BackendError:
        return _onnxruntime().waiting(name)
    gpu = _cuda_driver()
    if not gpu.works:
        return gpu.waiting(name)
    offered = onnxruntime.get_available_providers()
    plugin = provider == "nv-tensorrt-rtx" and find_spec(NV_PLUGIN) is not None
    if package not in offered and not plugin:
        return Ability(name, False, f"ONNX Runtime {onnxruntime.__version__} does not offer {short}", remedy)
    return Ability(name, True, f"ONNX Runtime {onnxruntime.__version__}, {package}")


def _scan_on_cuda() -> Ability:
    """The road to a GPU that needs no TensorRT."""
    name = _SCAN_ON_CUDA
    for needed in (_onnxruntime_on("cuda"), _native_kernels()):
        if not needed.works:
            return needed.waiting(name)
    capability = compute_capability()
    if capability not in BLOCK_SHAPES:
        said = f"the GPU has compute capability {dotted([capability])}; the scan has kernels for"
        return Ability(name, False, f"{said} {dotted(BLOCK_SHAPES)}", "none: the CPU's native kernels run it")
    return Ability(name, True, "bundles with kernels run with --device cuda; not tried on a device yet")


def _packages(extra: str) -> Ability:
    """An ability that needs packages of one of msmamba's extras."""
    name, wanted = _OF_EXTRAS[extra]
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
    if is_too_old(number):
        fix = f"pip install 'triton>={OLDEST_TRITON}'"
        return Ability(name, False, f"triton {number}, which is too old", fix)
    return Ability(name, True, f"triton {number}")


_HOW_TO_GET = {
    "tensorrt": "install TensorRT from NVIDIA (on a Jetson it comes with JetPack)",
    "tensorrt_rtx": "pip install tensorrt-rtx (needs no GPU to build)",
}


def _installed(library: str) -> Ability:
    found, obstacle = _library(library)
    if obstacle:
        return Ability(ENGINE_LIBRARIES[library], False, obstacle, _HOW_TO_GET[library])
    return Ability(ENGINE_LIBRARIES[library], True, str(found))


def _builds_engines(library: str) -> Ability:
    name = _builds(ENGINE_LIBRARIES[library])
    installed = _installed(library)
    if not installed.works:
        return installed.waiting(name)
    link = tensorrt_library.missing_parser_link() if library == "tensorrt_rtx" else None
    if link is not None:
        said = f"its ONNX parser would abort the process: {link} is missing"
        return Ability(name, False, said, tensorrt_library.link_command(link))
    if find_spec("onnx") is None:
        return Ability(name, False, "onnx is not installed", "pip install onnx")
    if library == "tensorrt":  # which builds for the GPU that it runs on
        gpu = _cuda_bindings()
        return Ability(name, True, "for the GPU of this machine") if gpu.works else gpu.waiting(name)
    return Ability(name, True, "for any GPU, without one")


def _runs_engines(library: str) -> Ability:
    name = _runs(ENGINE_LIBRARIES[library])
    installed, gpu = _installed(library), _cuda_bindings()
    for needed in (installed, gpu):
        if not needed.works:
            return needed.waiting(name)
    return Ability(name, True, f"{installed.found}, {gpu.found}")


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
        command = machine.python_command(code)
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_IMPORT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        if error.returncode < 0:
            return None, f"the process died of signal {-error.returncode}"
        said = error.stderr.strip().splitlines()[-1:] or [f"the process ended with status {error.returncode}"]
        return None, said[0]
    return done.stdout.strip(), None
