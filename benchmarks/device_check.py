"""What an NVIDIA GPU makes of msmamba, proved and measured by one command on a bare machine.

    python benchmarks/device_check.py -o FOLDER [--wheels DIR] [--library FILE] [--bundles DIR]
    [--minutes 6] [--steps scan,training] [--images DIR] [--checkpoint FILE --data DIR]

Needs Python, a C++ compiler and, for most steps, PyTorch and Triton; no network. Every step runs in a
process of its own under a time limit, so that a failure, a hang or a crash costs that step alone; what it had
found by then is kept, and whatever it started ends with it. ``FOLDER/device.json`` and ``FOLDER/device.md``
are written anew after each step. A step that cannot run says what it lacks. What takes long and needs no GPU
can be brought along: ``--library`` a native library built elsewhere, ``--bundles`` what the step ``export``
made elsewhere, and ``--wheels`` packages, which are installed without their dependencies into
``FOLDER/packages`` and change nothing else on the machine. Times are in microseconds or milliseconds and
medians unless their column says otherwise; floors are arithmetic on what the driver says of the GPU
(docs/gpu.md).

Dims: a batch of B images makes 4 B maps of the scan, the network's four channel groups; L positions, D
channels, N = 16 states, K = 4 directions.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "triton", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "cuda-bindings"),
    *("tensorrt", "tensorrt-rtx", "mamba-ssm", "pytest"),
)
BATCHES = (1, 8, 64)
SIDE, CLASSES = 224, 4
SCAN_ALONE = "native, the scan alone"
# CUdevice_attribute, cuda.h
_CLOCK_KHZ, _MEMORY_CLOCK_KHZ, _BUS_BITS, _MULTIPROCESSORS, _MAJOR, _MINOR = 13, 36, 37, 16, 75, 76

_MOST_PRINTED = 10_000  # characters kept of what a failed step printed: its traceback

Row = dict[str, Any]
Tell = Callable[..., None]
"""Keeps a row of the step's table at once, so that a step that is stopped later loses nothing."""


class Lacks(Exception):
    """A step cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Step:
    """One step: what it does, what it needs, and how long it may take."""

    run: Callable[[Path, Tell], None]
    title: str
    seconds: int
    needs: tuple[str, ...] = ()
    """Modules, of which it says which are missing."""
    on_gpu: bool = True


# What steps share


def need(*modules: str) -> None:
    """Says which modules are missing.

    Raises:
        Lacks: some are.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise Lacks(f"the packages {', '.join(missing)}")


def gpu() -> Row:
    """The first GPU as the driver describes it, asked without any package.

    Raises:
        Lacks: there is no driver or no GPU.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError as error:
        raise Lacks("an NVIDIA driver (libcuda.so.1)") from error
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise Lacks("an NVIDIA GPU: the driver shows none")
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    label = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(label, len(label), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    return {
        "GPU": label.value.decode(errors="replace"),
        "compute capability": f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        "multiprocessors": attribute(_MULTIPROCESSORS),
        "clock, GHz": attribute(_CLOCK_KHZ) / 1e6,
        "bandwidth, GB/s": round(2 * attribute(_MEMORY_CLOCK_KHZ) * attribute(_BUS_BITS) / 8 / 1e6),
        "driver's CUDA": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def installed(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def median_us(call: Callable[[], Any], rounds: int = 20) -> float:
    """Median time of a call on the GPU, microseconds, between two events on the current stream."""
    import torch

    for _ in range(3):
        call()
    taken = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1e3)
    return round(statistics.median(taken), 1)


def median_ms(call: Callable[[], Any], rounds: int = 20) -> float:
    """Median wall time of a call that waits for its own answer, milliseconds."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken) * 1e3, 3)


def pictures(count: int, folder: str | None) -> Any:
    """(count, 3, S, S) float32 for the network: the folder's pictures, over and over, or smooth noise."""
    import numpy as np

    if folder:
        from msmamba.images import Transform, load_image

        transform = Transform(size=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
        paths = sorted(
            p for p in Path(folder).rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif")
        )
        if not paths:
            raise Lacks(f"pictures in {folder}")
        read = [transform(load_image(str(path)).pixels) for path in paths[:count]]
        return np.stack([read[i % len(read)] for i in range(count)]).astype(np.float32)
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((count, 3, SIDE // 8, SIDE // 8)).astype(np.float32)
    return np.ascontiguousarray(coarse.repeat(8, axis=2).repeat(8, axis=3))


def network() -> Any:
    """Tiny with random weights."""
    import torch

    from msmamba.model import MicroscopicMamba

    torch.manual_seed(0)
    return MicroscopicMamba.of_size("t", num_classes=CLASSES)


# The steps


def machine_step(folder: Path, tell: Tell) -> None:
    found: Row = {"Python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    found |= {package: installed(package) or "not installed" for package in PACKAGES}
    for name, value in found.items():
        tell(what=name, found=value)
    pinned = re.search(r"^triton==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pinned and installed("triton") not in (None, pinned[1]):
        tell(what="Triton", found=f"{installed('triton')}, not the pinned {pinned[1]}: tried all the same")
    for name, value in gpu().items():
        tell(what=name, found=value)


def build_step(folder: Path, tell: Tell) -> None:
    """Builds the native library, or takes one that was built elsewhere."""
    if brought := os.environ.get("DEVICE_CHECK_LIBRARY"):
        place = ROOT / "plugins" / "selective_scan" / "_native.so"
        shutil.copyfile(brought, place)
        from msmamba.plugins.selective_scan import cpu

        if (obstacle := cpu.why_unavailable()) is not None:
            raise RuntimeError(obstacle)
        tell(library=place.name, kernels=cpu.kernels(), seconds="built elsewhere")
        return
    need("setuptools")
    command = [sys.executable, "setup.py", "build_ext", "--inplace", f"--build-temp={folder / 'build'}"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    from msmamba.plugins.selective_scan import cpu

    if (obstacle := cpu.why_unavailable()) is not None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{obstacle} (build_ext: {last})")
    built = cpu.library_path()
    assert built is not None  # it is available
    tell(library=built.name, kernels=cpu.kernels(), seconds=round(time.perf_counter() - start, 1))


def files_with_gpu_tests() -> list[Path]:
    """Those of the kernels come first; no others are read, since they import what is not needed here."""
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8")]
    return sorted(found, key=lambda path: (path.parent.name != "plugins", path))


def tests_step(folder: Path, tell: Tell) -> None:
    """File by file, since an illegal access would fail all that follow in its process."""
    # Told by -v alone, why a test failed is cut off where a line of 80 columns ends.
    options = ["-m", "gpu", "-vv", "-rfE", "--tb=short", "-W", "default", "-p", "no:cacheprovider"]
    unwell = []
    for path in files_with_gpu_tests():
        name = str(path.relative_to(ROOT))
        command = [sys.executable, "-m", "pytest", *options, name]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as run:
            assert run.stdout is not None
            last = ""
            for line in run.stdout:
                print(line, end="")  # what is kept of a step that fails
                if outcome := re.match(r"(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b(?: (\(.*\)))?", line):
                    tell(outcome=outcome[2].lower(), test=f"{outcome[1]} {outcome[3] or ''}".strip())
                elif reason := re.match(r"(?:FAILED|ERROR) (.*)", line):
                    tell(outcome="because", test=reason[1].strip())
                last = line.strip().strip("=").strip() or last
        tell(outcome="all", test=f"{name}: {last}")
        if run.returncode:
            unwell.append(name)
    if unwell:
        raise RuntimeError(f"tests failed in {', '.join(unwell)}")


def scan_step(folder: Path, tell: Tell) -> None:
    """The registered operator, forward and backward, at the four stages; floors and the recurrence beside."""
    import torch
    from gpu_kernel_table import Gpu, stages  # beside this file

    from msmamba.plugins.selective_scan import operator, reference

    said = gpu()
    capability = int(said["compute capability"].replace(".", ""))
    copied = _copied_gb_s()
    tell(scan="a copy on the GPU, bytes read and written", gb_s=copied)
    # A driver may keep its figures to itself: then the copy's bandwidth, and no bound by the clock.
    clock, bandwidth = said["clock, GHz"] or float("inf"), said["bandwidth, GB/s"] or copied
    this = Gpu(said["GPU"], capability, said["multiprocessors"], clock, bandwidth)
    small = torch.zeros(1, device="cuda")
    launches = partial(lambda: [small.add_(0) for _ in range(3)])
    tell(scan="three small launches", forward_us=median_us(launches), replayed_us=_replayed_us(launches))
    generator = torch.Generator(device="cuda").manual_seed(0)
    for batch in (1, 64):
        for stage in stages("t", batch):
            shape = stage.shape
            positions = (shape.batch, shape.height, shape.width)
            wide = [
                torch.randn(dims, device="cuda", generator=generator)
                for dims in (
                    (*positions, shape.channels),
                    (*positions, 4, shape.channels),
                    (4, shape.channels, shape.states),
                    (*positions, 4, shape.states),
                    (*positions, 4, shape.states),
                    (4, shape.channels),
                    (4, shape.channels),
                )
            ]
            wide[2] = -wide[2].exp()
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                inputs = [t if i in (2, 5, 6) else t.to(dtype) for i, t in enumerate(wide)]
                chosen = operator._implementation(inputs[0], *(inputs[i] for i in (2, 5, 6)))
                bytes_each = inputs[0].element_size()
                floor = max(stage.floor_us(this, bytes_each).values())
                back_floor = max(stage.backward_floor_us(this, bytes_each).values())
                grad = torch.ones_like(inputs[0])
                forward = median_us(partial(operator.selective_scan_2d, *inputs))
                back = median_us(partial(operator.selective_scan_2d_backward, grad, *inputs))
                first = operator.selective_scan_2d_backward(grad, *inputs)
                again = operator.selective_scan_2d_backward(grad, *inputs)
                tell(
                    scan=f"stage {stage.number}, batch {batch}",
                    type=str(dtype).removeprefix("torch."),
                    by=chosen,
                    forward_us=forward,
                    floor_us=round(floor, 1),
                    of_floor=round(forward / floor, 2),
                    backward_us=back,
                    backward_floor_us=round(back_floor, 1),
                    backward_of_floor=round(back / back_floor, 2),
                    same_bits_twice=all(map(torch.equal, first, again)),
                    **(_errors(inputs) if batch == 1 else {}),
                    replayed_us=_replayed_us(partial(operator.selective_scan_2d, *inputs)),
                )
            if batch == 1:
                grad = torch.ones_like(wide[0])
                recurrence = median_us(partial(reference.selective_scan_2d, *wide), 1)
                recurrence_back = median_us(partial(reference.selective_scan_2d_backward, grad, *wide), 1)
                tell(
                    scan=f"stage {stage.number}, batch {batch}",
                    type="float32",
                    by="plain recurrence",
                    forward_us=recurrence,
                    backward_us=recurrence_back,
                )


def block_step(folder: Path, tell: Tell) -> None:
    """The hybrid block's steps at the four stages, as ONNX Runtime's CUDA calls them, beside their floors.

    The floor is the time to read each map once, and to write each. Where ONNX Runtime is not there, the part
    of it that calls operators is played by the tests'.
    """
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    from block_steps import StepCase
    from gpu_kernel_table import stages  # beside this file
    from played_onnxruntime import FLOAT, HALF, CustomOp, Node, PlayedRuntime

    from msmamba.plugins.hybrid_block.gpu_kernels import STEP_KERNELS
    from msmamba.plugins.hybrid_block.triton_block import compile_package
    from msmamba.plugins.selective_scan import gpu_operator

    class OnTorch(PlayedRuntime):
        """Tensors are PyTorch's; outputs are made once."""

        def __init__(self) -> None:
            super().__init__(None)
            self.outputs: dict[int, torch.Tensor] = {}

        def address(self, index: int) -> int:
            return int(self.tensors[index].data_ptr())

        def made(self, shape: tuple[int, ...]) -> None:
            self.outputs.setdefault(len(self.tensors), torch.empty(shape, device="cuda", dtype=dtype))
            self.tensors.append(self.outputs[len(self.tensors)])

        def taken(self, inputs: list[Any]) -> None:
            self.tensors = list(inputs)

    said = gpu()
    capability = int(said["compute capability"].replace(".", ""))
    bandwidth = said["bandwidth, GB/s"] or _copied_gb_s()
    images, stream = BATCHES[-1], torch.cuda.Stream()
    for element_type, dtype, element in (("float16", torch.float16, HALF), ("float32", torch.float32, FLOAT)):
        package = compile_package(element_type, STEP_KERNELS, [capability])
        ops: list[CustomOp] = []
        for stage in stages("t", images):
            for name in STEP_KERNELS:
                case = StepCase(name, 1, stage.shape.height, stage.shape.channels * 2)
                inputs = [
                    torch.randn((images * array.shape[0], *array.shape[1:]), device="cuda", dtype=dtype)
                    if array.ndim == 4 and array.shape[1] > 1
                    else torch.from_numpy(array).to("cuda", dtype)
                    for array in case.of_type()
                ]
                runtime = OnTorch()
                runtime.attributes, runtime.stream = case.attributes, stream.cuda_stream
                with gpu_operator.offered((package,)):
                    runtime.register()
                ops = runtime.ops = ops or runtime.ops  # the library hands them over once
                with contextlib.closing(Node(runtime, element, name)) as node, torch.cuda.stream(stream):
                    node(inputs)
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, stream=stream):
                        node(inputs)
                    taken = median_us(graph.replay)
                    maps = [t for t in (*inputs, *runtime.outputs.values()) if t.ndim == 4 and t.shape[1] > 1]
                    floor = sum(t.nbytes for t in maps) / bandwidth / 1e3
                    tell(
                        step=name,
                        stage=stage.number,
                        batch=images,
                        type=element_type,
                        replayed_us=taken,
                        floor_us=round(floor, 1),
                        of_floor=round(taken / floor, 2),
                    )


def _copied_gb_s() -> int:
    """What a copy within the GPU's memory moves."""
    import torch

    source = torch.randn(1 << 28, device="cuda")  # 1 GB, many times what a cache holds
    target = torch.empty_like(source)
    taken = median_us(partial(target.copy_, source), 10)
    return round(2 * source.nbytes / taken / 1e3)


def _replayed_us(call: Callable[[], Any]) -> float | str:
    """As `median_us`, of the call's launches alone: without Python, as they run in a CUDA graph."""
    import torch

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        return f"not captured: {str(error).splitlines()[0]}"
    return median_us(graph.replay)


def _errors(inputs: list[Any]) -> Row:
    """How far the scan is from float64, as a multiple of the plain recurrence's own error."""

    from msmamba.plugins.selective_scan import operator, reference

    exact = reference.selective_scan_2d(*(tensor.double() for tensor in inputs))
    ours, own = (
        float((scan(*inputs).double() - exact).abs().max())
        for scan in (operator.selective_scan_2d, reference.selective_scan_2d)
    )
    return {"error": ours, "of_the_recurrences": round(ours / own, 2) if own else None}


def network_step(folder: Path, tell: Tell) -> None:
    _network(tell, compiled=False)


def compile_step(folder: Path, tell: Tell) -> None:
    _network(tell, compiled=True)


def _network(tell: Tell, compiled: bool) -> None:
    """Images a second in PyTorch, eager or by torch.compile."""
    import torch

    net = network().eval().cuda()
    run = torch.compile(net) if compiled else net
    for batch in BATCHES if not compiled else BATCHES[-1:]:
        images = torch.randn(batch, 3, SIDE, SIDE, device="cuda")
        for half in (False, True):
            with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
                taken = median_us(partial(run, images)) / 1e3
            tell(
                network="torch.compile" if compiled else "eager",
                batch=batch,
                type="float16 (autocast)" if half else "float32",
                ms=round(taken, 2),
                images_a_second=round(batch / taken * 1e3),
            )


def training_step(folder: Path, tell: Tell) -> None:
    """A training step as `mmdeploy train --amp` makes it; its gradients against the plain recurrence's."""
    import torch
    from torch.nn import functional

    from msmamba.plugins.selective_scan import operator

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as `mmdeploy train --deterministic` sets it
    chosen = operator._implementation
    plain = {"plain recurrence": lambda *tensors: "reference"}
    ways: dict[str, Any] = {"as installed": chosen, **plain}
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    gradients = {}
    for name, way in ways.items():
        operator._implementation = way
        net = network().train().cuda()
        torch.manual_seed(1)
        images = torch.randn(2, 3, SIDE, SIDE, device="cuda")
        functional.cross_entropy(net(images), torch.arange(2, device="cuda")).backward()
        gradients[name] = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
    off, worst, parameter = gradient_differences(*gradients.values())
    tell(
        step="gradients in float32",
        by="as installed against plain recurrence",
        relative_difference=off,
        largest_of_a_parameter=worst,
        parameter=parameter,
    )

    for batch, name in ((16, "as installed"), (64, "as installed"), (16, "plain recurrence")):
        if name in plain:  # takes longest and decides least
            tell(step="two steps by deterministic algorithms", **deterministic_twice())
        operator._implementation = ways[name]
        torch.cuda.reset_peak_memory_stats()
        _, step = _training(batch)
        taken = median_us(step, 2 if name in plain else 10) / 1e3
        tell(
            step=f"batch {batch}, float16 autocast",
            by=name,
            ms=round(taken, 1),
            images_a_second=round(batch / taken * 1e3, 1),
            peak_memory_GB=round(torch.cuda.max_memory_allocated() / 1e9, 2),
        )
    operator._implementation = chosen


def deterministic_twice() -> Row:
    """Whether training of the same seed gives the same weights twice, or what refuses to."""
    import torch

    weights = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            net, step = _training(4)
            step()
            step()
            weights.append([p.detach().clone() for p in net.parameters()])
    except RuntimeError as error:
        return {"refused": str(error).splitlines()[0]}
    finally:
        torch.use_deterministic_algorithms(False)
    return {"same_bits_twice": all(map(torch.equal, *weights))}


def gradient_differences(ours: dict[str, Any], others: dict[str, Any]) -> tuple[float, float, str]:
    """How far gradients are from others: all of them together, the worst parameter's, and its name.

    By norms; a parameter's by no less than a thousandth of the largest, since some are nothing but rounding,
    as those of biases that a batch norm takes away again.
    """
    apart = {key: float((ours[key] - other).norm()) for key, other in others.items()}
    norms = {key: float(other.norm()) for key, other in others.items()}
    least = 1e-3 * max(norms.values()) or 1.0
    worst = max(apart, key=lambda key: apart[key] / max(norms[key], least))
    total = sum(n**2 for n in apart.values()) ** 0.5 / (sum(n**2 for n in norms.values()) ** 0.5 or 1.0)
    return total, apart[worst] / max(norms[worst], least), worst


def _training(batch: int) -> tuple[Any, Callable[[], None]]:
    """Tiny, and a step of its training; of the same seed each time."""
    import torch
    from torch.nn import functional

    net = network().train().cuda()
    adam = torch.optim.Adam(net.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    images = torch.randn(batch, 3, SIDE, SIDE, device="cuda")
    labels = torch.randint(0, CLASSES, (batch,), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.float16):
            loss = functional.cross_entropy(net(images), labels)
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        adam.zero_grad()

    return net, step


def export_step(folder: Path, tell: Tell) -> None:
    """Bundles of both precisions for later steps: of tiny, and of a trained checkpoint if there is one."""
    tiny, trained = folder / "tiny.safetensors", os.environ.get("DEVICE_CHECK_CHECKPOINT")
    brought = Path(os.environ.get("DEVICE_CHECK_BUNDLES", folder))
    if (brought / tiny.name).is_file() and brought != folder:
        shutil.copyfile(brought / tiny.name, tiny)
    else:
        need(*_EXPORT)
        from msmamba.model.networks.checkpoint import save_checkpoint

        labels = [f"class {i}" for i in range(CLASSES)]
        save_checkpoint(tiny, network(), labels=labels, image_size=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    for prefix, checkpoint in {"": tiny, "parity-": trained}.items():
        if not checkpoint:
            continue
        for precision in ("fp32", "fp16"):
            name, start = f"{prefix}{precision}", time.perf_counter()
            if (brought / name).is_dir() and brought != folder:
                shutil.copytree(brought / name, folder / name, dirs_exist_ok=True)
                tell(bundle=name, seconds="made elsewhere")
                continue
            need(*_EXPORT)
            from msmamba.export.bundle import ExportOptions, export_bundle

            export = export_bundle(checkpoint, folder / name, ExportOptions(precision), force=True)
            tell(
                bundle=name,
                seconds=round(time.perf_counter() - start, 1),
                model_bytes=export.bytes,
                kernels_bytes=export.kernels_bytes,
                notes="; ".join(export.notes),
            )


def bundle_of(folder: Path, name: str) -> Path:
    """A bundle that the step ``export`` has made.

    Raises:
        Lacks: it has not.
    """
    if not (folder / name).is_dir():
        raise Lacks(f"the bundle '{name}' that the step 'export' makes")
    return folder / name


def onnxruntime_step(folder: Path, tell: Tell) -> None:
    """ONNX Runtime's CUDA with and without our operator, against the CPU's logits."""
    import numpy as np

    import msmamba
    from msmamba.errors import MsmambaError
    from msmamba.plugins.selective_scan import gpu_operator
    from msmamba.plugins.selective_scan.gpu_package import BLOCK_STATES, KernelPackage
    from msmamba.runtime import onnxruntime_cuda

    images = pictures(BATCHES[-1], os.environ.get("DEVICE_CHECK_IMAGES"))
    expected = {}
    for precision in ("fp32", "fp16"):
        with msmamba.open(bundle_of(folder, precision), device="cpu") as session:
            expected[precision] = np.concatenate([session.run(images[i : i + 1]) for i in range(len(images))])
    kept, packages_of = dict(onnxruntime_cuda.OPTIONS), gpu_operator.packages_of

    def scan_alone(files: Mapping[str, bytes], compute_capability: int) -> tuple[KernelPackage, ...]:
        return tuple(each for each in packages_of(files, compute_capability) if each.states != BLOCK_STATES)

    ways: dict[str, tuple[str, dict[str, str]]] = {
        "native": ("native", {}),
        SCAN_ALONE: ("native", {}),
        "native, without CUDA graphs": ("native", {"enable_cuda_graph": "0"}),
        "native, biases inside convolutions": ("native", {"fuse_conv_bias": "1"}),
        "functions": ("functions", {}),
    }
    for way, (kernels, options) in ways.items():
        for precision, logits in expected.items():
            onnxruntime_cuda.OPTIONS.clear()
            onnxruntime_cuda.OPTIONS.update({**kept, **options})
            gpu_operator.packages_of = scan_alone if way == SCAN_ALONE else packages_of
            start = time.perf_counter()
            try:
                with msmamba.open(
                    folder / precision, device="cuda", provider="cuda", kernels=kernels
                ) as session:
                    opened = round(time.perf_counter() - start, 1)
                    # The session does not know that its graphs were taken from it.
                    path = "as above" if "enable_cuda_graph" in options else session.path
                    tell(bundle=precision, kernels=way, path=path, opened_s=opened)
                    for batch in BATCHES if kernels == "native" else BATCHES[:1]:
                        found = session.run(images[:batch])
                        tell(
                            bundle=precision,
                            kernels=way,
                            batch=batch,
                            ms=median_ms(
                                partial(session.run, images[:batch]), 20 if kernels == "native" else 3
                            ),
                            off_the_CPU=float(np.abs(found - logits[:batch]).max()),
                            flips=int((found.argmax(1) != logits[:batch].argmax(1)).sum()),
                        )
                    if way == "native" and importlib.util.find_spec("cupy") is not None:
                        same = _same_from_cupy(session, images[:batch], found)
                        tell(bundle=precision, kernels=way, batch=batch, from_the_GPUs_memory_the_same=same)
            except MsmambaError as error:
                tell(bundle=precision, kernels=way, path=str(error))


def _same_from_cupy(session: Any, images: Any, logits: Any) -> bool | str:
    """Whether images in CuPy's memory give the same bits, or what went wrong, be it in CuPy."""
    import numpy as np

    try:
        import cupy

        return np.array_equal(session.run(cupy.asarray(images)), logits)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def parity_step(folder: Path, tell: Tell) -> None:
    """`mmdeploy verify` of a trained checkpoint's bundles on CUDA, on labelled images."""
    from msmamba.errors import MsmambaError

    checkpoint, data = os.environ.get("DEVICE_CHECK_CHECKPOINT"), os.environ.get("DEVICE_CHECK_DATA")
    if not checkpoint or not data:
        raise Lacks("a trained checkpoint and its images: --checkpoint FILE --data FOLDER")
    for precision in ("fp32", "fp16"):
        bundle = bundle_of(folder, f"parity-{precision}")
        try:
            tell(bundle=precision, **verified(bundle, checkpoint, data, "cuda"))
        except MsmambaError as error:
            tell(bundle=precision, path=str(error))


def verified(bundle: Path, checkpoint: str, data: str, device: str) -> Row:
    """What `mmdeploy verify` says of a bundle on ONNX Runtime's provider of a device.

    Raises:
        MsmambaError: it does not run there, or cannot be compared.
    """
    from msmamba.export.proof.verify import verify

    parity = verify(bundle, checkpoint, [data], device=device, provider=device)
    return {
        "path": parity.executed_by,
        "images": parity.images,
        "off_the_checkpoint": parity.max_abs_error,
        "bar": "none" if parity.bar.max_abs_error is None else parity.bar.max_abs_error,
        "flips": parity.flips,
        "undecided": parity.undecided,
        "passed": parity.passed,
    }


def launch_step(folder: Path, tell: Tell) -> None:
    """The plugin's own launches through the driver: plain, captured and replayed, and 10,000 times."""
    import numpy as np

    from msmamba.plugins import cuda_driver
    from msmamba.plugins.selective_scan import ScanShape
    from msmamba.plugins.selective_scan.gpu_driver import LoadedKernels
    from msmamba.plugins.selective_scan.gpu_launch import block_shape, chosen_chunks, launch_plan
    from msmamba.plugins.selective_scan.triton_scan import compile_package

    context = cuda_driver.Context()
    with context.entered(), contextlib.ExitStack() as held:
        device, shape = context.device, ScanShape(4, 56, 56, 24, 16)
        for element_type in ("float16", "float32"):
            kernels = LoadedKernels.of(
                compile_package(element_type, shape.states, (device.compute_capability,))
            )
            block = block_shape(device.compute_capability)
            plan = launch_plan(shape, block, chosen_chunks(shape, block, device.multiprocessors))
            positions, size = shape.batch * shape.length, np.dtype(element_type).itemsize
            sizes = {"x": positions * shape.channels * size, "y": positions * shape.channels * size}
            sizes["delta"] = 4 * sizes["x"]
            sizes["B"] = sizes["C"] = positions * 4 * shape.states * size
            sizes["A"] = 4 * shape.channels * shape.states * 4
            sizes["D"] = sizes["delta_bias"] = 4 * shape.channels * 4
            sizes["workspace"] = plan.workspace_bytes
            buffers = {
                name: held.enter_context(contextlib.closing(cuda_driver.DeviceBuffer(size)))
                for name, size in sizes.items()
            }
            addresses = {name: buffer.address for name, buffer in buffers.items()}
            workspace = addresses.pop("workspace")
            stream = held.enter_context(contextlib.closing(cuda_driver.Stream()))

            plain = partial(kernels.launch, plan, addresses, workspace, stream.handle)
            plain()
            stream.synchronize()
            with stream.capture() as capture:
                plain()
            assert capture.graph is not None  # nothing was raised while it was captured
            graph = held.enter_context(contextlib.closing(capture.graph))
            replay = partial(graph.launch, stream)
            row = {"plain_us": _enqueued_us(plain, stream), "replayed_us": _enqueued_us(replay, stream)}
            before = cuda_driver.free_memory_bytes()
            for _ in range(10_000):
                replay()
            stream.synchronize()
            left = before - cuda_driver.free_memory_bytes()
            tell(scan="stage 1, batch 1", type=element_type, **row, bytes_lost_in_10_000_runs=left)
    context.close()


def _enqueued_us(call: Callable[[], None], stream: Any, rounds: int = 200) -> float:
    """Mean time of a call that only enqueues, the work itself included, microseconds."""
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    stream.synchronize()
    return round((time.perf_counter() - start) / rounds * 1e6, 1)


def tensorrt_rtx_step(folder: Path, tell: Tell) -> None:
    """An engine for this GPU by TensorRT-RTX, or its refusal in its own words."""
    import msmamba
    from msmamba.export.bundle import ExportOptions, export_bundle

    capability = str(gpu()["compute capability"])
    options = ExportOptions("fp16", target="tensorrt-rtx", compute_capabilities=(capability,))
    checkpoint = folder / "tiny.safetensors"
    if not checkpoint.is_file():
        raise Lacks("the checkpoint that the step 'export' makes")
    export_bundle(checkpoint, folder / "rtx", options, force=True)
    images = pictures(BATCHES[-1], os.environ.get("DEVICE_CHECK_IMAGES"))
    with msmamba.open(folder / "rtx", device="cuda", provider="engine") as session:
        for batch in (1, 8, 16):
            part = images[:batch]
            session.run(part)
            tell(path=session.path, batch=batch, ms=median_ms(partial(session.run, part)))


def sanitizer_step(folder: Path, tell: Tell) -> None:
    """NVIDIA's checkers of memory accesses and races, on a split and an unsplit scan through the driver."""
    found = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if found is None:
        raise Lacks("compute-sanitizer, which comes with CUDA's toolkit")
    test = "tests/plugins/test_gpu_device.py::test_the_driver_launch_agrees_with_the_reference"
    tests = [f"{test}[{chunks}-odd-{kind}]" for chunks in (1, 7) for kind in ("float16", "float32")]
    run = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider"]
    for tool in ("memcheck", "racecheck"):
        command = [found, "--tool", tool, *run, *tests]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
        )
        lines = done.stdout.splitlines()
        said = [line.strip("= ") for line in lines if line.startswith("========= ")]
        ran = [line for line in lines if re.match(r"\d+ (passed|failed|skipped|error)", line)]
        tell(tool=tool, tests=" ".join(ran[-1:]), said=" ".join(said[-1:]), first=" ".join(said[1:3]))


_TESTS = ("pytest", "filelock", "hypothesis", "numpy")
_EXPORT = ("numpy", "torch", "safetensors", "onnx", "onnxscript", "onnxruntime", "simplejpeg")
# In the order of what they decide, with what takes long and decides little at the end.
STEPS: dict[str, Step] = {
    "machine": Step(machine_step, "The machine", 20, on_gpu=False),
    "build": Step(build_step, "The native library", 120, ("numpy",), on_gpu=False),
    "tests": Step(tests_step, "Tests marked gpu", 120, (*_TESTS, "torch", "triton")),
    "scan": Step(scan_step, "The scan, forward and backward", 90, ("torch", "triton")),
    "block": Step(block_step, "The block's steps", 60, ("torch", "triton")),
    "launch": Step(launch_step, "Launches through the driver", 40, ("numpy", "triton", "cuda")),
    "export": Step(export_step, "Bundles", 100, on_gpu=False),
    "onnxruntime": Step(onnxruntime_step, "ONNX Runtime on CUDA", 90, ("numpy", "onnxruntime")),
    "training": Step(training_step, "A training step of tiny", 90, ("torch", "triton", "safetensors")),
    "sanitizer": Step(
        sanitizer_step, "NVIDIA's checkers", 90, ("pytest", "numpy", "torch", "triton", "cuda")
    ),
    "parity": Step(parity_step, "Parity of a trained checkpoint", 120, (*_EXPORT, "sklearn")),
    "network": Step(network_step, "The network in PyTorch", 45, ("torch", "triton", "safetensors")),
    "tensorrt_rtx": Step(tensorrt_rtx_step, "TensorRT-RTX", 60, (*_EXPORT, "tensorrt_rtx", "cuda")),
    "compile": Step(compile_step, "The network by torch.compile", 180, ("torch", "triton", "safetensors")),
}


# The parent


def check(name: str, folder: Path, rows: Path) -> None:
    """One step, in this process: its rows go to a file as they are found."""
    step = STEPS[name]
    need(*step.needs)
    if step.on_gpu:
        gpu()
    with rows.open("a", encoding="utf-8") as file:

        def tell(**row: Any) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        step.run(folder, tell)


def run(name: str, folder: Path, limit: float, environment: dict[str, str]) -> Row:
    """One step in a process of its own, which ends with all that it has started."""
    step, rows = STEPS[name], folder / f"{name}.jsonl"
    rows.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--only", name, "-o", str(folder)]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _kill_with_all(process)
        log.seek(0)
        printed = log.read().strip()
    last = (printed.splitlines() or [""])[-1]
    if status is None:
        outcome, said = "stopped", f"it took longer than {limit:.0f} s"
    elif status < 0:
        outcome, said = "failed", f"the process died of signal {-status}; {last}"
    else:
        outcome = {0: "done", 3: "lacks"}.get(status, "failed")
        said = last if outcome != "done" else ""
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    return {
        "step": name,
        "title": step.title,
        "outcome": outcome,
        "said": said,
        "seconds": round(time.perf_counter() - start, 1),
        "rows": [json.loads(line) for line in lines],
        "printed": printed[-_MOST_PRINTED:] if outcome in ("failed", "stopped") else "",
    }


def _kill_with_all(process: subprocess.Popen[Any]) -> None:
    """Ends a step and the compilers and tests that it waited for, which would take the GPU from the next."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def as_markdown(results: list[Row]) -> str:
    """The results as a page: what each step came to, and its table."""
    lines = [
        "# What this machine's GPU makes of msmamba",
        "",
        "| step | outcome | seconds |",
        "|---|---|---|",
    ]
    lines += [
        f"| {r['title']} | {r['outcome']}{': ' + _cell(r['said']) if r['said'] else ''} | {r['seconds']} |"
        for r in results
    ]
    for result in results:
        columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
        if not columns:
            continue
        lines += ["", f"## {result['title']}", "", f"| {' | '.join(c.replace('_', ' ') for c in columns)} |"]
        lines.append("|---" * len(columns) + "|")
        lines += [
            f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in result["rows"]
        ]
    return "\n".join([*lines, ""])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which this tree is the package ``msmamba``, and the installed wheels are found."""
    with tempfile.TemporaryDirectory() as linked:
        (Path(linked) / "msmamba").symlink_to(ROOT, target_is_directory=True)
        paths = [linked, str(folder / "packages"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        yield {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-o", "--output", required=True, type=Path, help="folder for device.json and device.md"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--library", help="a native library built elsewhere, in place of building it")
    parser.add_argument("--bundles", help="folder of an earlier run elsewhere, whose bundles are taken")
    parser.add_argument("--images", help="folder of pictures for ONNX Runtime's parity, in place of noise")
    parser.add_argument(
        "--checkpoint", help="a trained checkpoint to verify on CUDA, on the images of --data"
    )
    parser.add_argument("--data", help="labelled images, as 'mmdeploy verify' takes them")
    parser.add_argument(
        "--minutes", type=float, default=6, help="for all of it; what is left over is not begun"
    )
    parser.add_argument("--steps", default=",".join(STEPS), help="some of: " + ", ".join(STEPS))
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)  # a step in this process
    arguments = parser.parse_args()
    folder: Path = arguments.output.resolve()
    if arguments.only:
        try:
            check(arguments.only, folder, folder / f"{arguments.only}.jsonl")
        except Lacks as lack:
            print(lack, file=sys.stderr)
            return 3
        return 0
    chosen = arguments.steps.split(",")
    if unknown := [name for name in chosen if name not in STEPS]:
        parser.error(f"unknown steps {', '.join(unknown)}: choose from {', '.join(STEPS)}")
    folder.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + 60 * arguments.minutes
    if arguments.wheels:
        wheels = sorted(map(str, arguments.wheels.glob("*.whl")))
        if not wheels:
            parser.error(f"{arguments.wheels} holds no wheels")
        options = ["-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "packages")]
        if subprocess.run([*command, *wheels], check=False).returncode:
            print("The wheels: failed; the steps go on without them", flush=True)
    for name in ("library", "bundles", "images", "checkpoint", "data"):
        if given := getattr(arguments, name):
            if not Path(given).exists():
                parser.error(f"there is no {given}")
            os.environ[f"DEVICE_CHECK_{name.upper()}"] = str(Path(given).resolve())
    results: list[Row] = []
    with importable(folder) as environment:
        for name in chosen:
            left = end - time.perf_counter()
            if left < 1:
                result = {
                    "step": name,
                    "title": STEPS[name].title,
                    "outcome": "not begun",
                    "seconds": 0,
                    "rows": [],
                }
                result["said"] = f"the {arguments.minutes:g} minutes were over"
            else:
                result = run(name, folder, min(left, STEPS[name].seconds), environment)
            results.append(result)
            print(
                f"{result['title']}: {result['outcome']} {result['said']} ({result['seconds']} s)", flush=True
            )
            (folder / "device.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            (folder / "device.md").write_text(as_markdown(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
