"""What the runtime opens: bundles' manifests, ONNX files, engines, kernels, plans."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from mutation import VALUES, mutated, mutated_json
from seeds import SIDE, Seeds, json_of

from .target import written


class _Opened:
    """Opens a path as a session and classifies an image."""

    inputs = 1

    def __init__(self, seeds: Seeds) -> None:
        self._seeds = seeds
        self._image = np.zeros((SIDE, SIDE, 3), np.uint8)

    def open(self, path: Path) -> object:
        from msmamba.runtime import open_session

        with open_session(path, threads=1) as session:
            return session.classify([self._image])


class Manifests(_Opened):
    """A bundle whose manifest says something else."""

    inputs = 1500

    def make(self, generator: random.Random, folder: Path) -> Path:
        return self._bundle(folder, mutated_json(json_of(self._seeds.bundle / "manifest.json"), generator))

    def _bundle(self, folder: Path, manifest: bytes) -> Path:
        bundle = folder / "bundle"
        bundle.mkdir()
        for path in self._seeds.bundle.iterdir():
            (bundle / path.name).hardlink_to(path)
        (bundle / "manifest.json").unlink()
        written(bundle / "manifest.json", manifest)
        return bundle


class Guards(Manifests):
    """A bundle whose guard is something else; what it withholds is asked for as well."""

    inputs = 600

    def __init__(self, seeds: Seeds) -> None:
        from msmamba.runtime.guard import network_sha256

        super().__init__(seeds)
        self._good = {
            "network_sha256": network_sha256((seeds.bundle / "model.onnx").read_bytes()),
            "max_error": 0.05,
            "confidence": 0.95,
            "temperature": 1.5,
            "threshold": 0.7,
            "candidate_bound": 0.9,
            "images": 100,
            "answered": 80,
            "errors": 1,
        }

    def make(self, generator: random.Random, folder: Path) -> Path:
        manifest = (self._seeds.bundle / "manifest.json").read_text()
        guard = mutated_json(self._good, generator).decode("utf-8", "replace")
        return self._bundle(folder, manifest.replace('"guard": {}', f'"guard": {guard}', 1).encode())


class Onnx(_Opened):
    """A bare ONNX file with damage; half of it in the first bytes, where the graph begins."""

    inputs = 300

    def make(self, generator: random.Random, folder: Path) -> Path:
        return written(
            folder / "model.onnx", mutated((self._seeds.bundle / "model.onnx").read_bytes(), generator)
        )


class OnnxMetadata(_Opened):
    """A bare ONNX file whose metadata, the manifest, says something else."""

    inputs = 300

    def make(self, generator: random.Random, folder: Path) -> Path:
        import onnx

        model = onnx.load(self._seeds.bundle / "model.onnx")
        for entry in model.metadata_props:
            if generator.random() < 0.7:
                try:
                    entry.value = mutated_json(json.loads(entry.value), generator).decode("utf-8", "replace")
                except ValueError:
                    entry.value = str(generator.choice(VALUES)).encode("utf-8", "replace").decode()
        return written(folder / "model.onnx", model.SerializeToString())


class EngineFile(_Opened):
    """An engine's head: a magic, and anything after it."""

    inputs = 1500

    def __init__(self, seeds: Seeds) -> None:
        super().__init__(seeds)
        self._package = _kernel_package()

    def make(self, generator: random.Random, folder: Path) -> Path:
        head = bytearray(
            generator.choice((b"ftrt", b"vtrt")) + generator.randbytes(generator.choice((4, 60, 400)))
        )
        if generator.random() < 0.5:
            head[8:16] = (len(head)).to_bytes(8, "little")
        content = bytes(head) + generator.choice((b"", self._package, mutated(self._package, generator)))
        return written(folder / "model.engine", content)

    def open(self, path: Path) -> object:
        from msmamba.runtime.engine_plan import Plan

        Plan.of(path.read_bytes(), str(path))
        return super().open(path)


class KernelPackages:
    """The compiled scan, and the block's steps, that bundles and engines carry: as Python reads them, as the
    native library does that launches them, and as operators of a session. No kernel is launched."""

    inputs = 3000

    def __init__(self, seeds: Seeds) -> None:
        self._package, self._steps = _kernel_package(), _kernel_package(_STEPS, states=0)

    def make(self, generator: random.Random, folder: Path) -> Path:
        from zlib import compress, decompress

        from msmamba.plugins.selective_scan.gpu_package import MAGIC

        package = generator.choice((self._package, self._steps))
        if generator.random() < 0.3:
            return written(folder / "kernels", mutated(package, generator))
        document = json.loads(decompress(package[len(MAGIC) :]))
        if generator.random() < 0.4:
            return written(folder / "kernels", MAGIC + compress(mutated_json(document, generator)))
        for _ in range(generator.choice((1, 1, 2, 4))):
            _change_a_value(document, generator)
        return written(folder / "kernels", MAGIC + compress(json.dumps(document).encode()))

    def open(self, path: Path) -> object:
        import onnxruntime

        from msmamba.plugins.selective_scan import cpu
        from msmamba.plugins.selective_scan.gpu_operator import DRIVER_FUNCTIONS, native_package, offering
        from msmamba.plugins.selective_scan.gpu_package import KernelPackage

        package = KernelPackage.from_bytes(path.read_bytes())
        found = package.digest, package.compute_capabilities
        with offering(native_package((package,), (1,) * len(DRIVER_FUNCTIONS))):
            onnxruntime.SessionOptions().register_custom_ops_library(str(cpu.library_path()))
        return found


def _change_a_value(document: dict[str, Any], generator: random.Random) -> None:
    """Puts another value of its kind in a place of a package, which the native library has to judge."""
    number = generator.choice((0, 1, 2, 4, 5, 16, 1024, 2**20, 2**31 - 1, -1, -(2**31), 2**32 + 128, 2**63))
    text = generator.choice(("", "scan", "row_sums", "scan\0", "x" * 5000, "é", "float32"))
    (of_one,) = generator.sample([*document["kernels"].values()], 1)
    kernel = generator.choice([*of_one.values()])
    generator.choice(
        (
            lambda: document.update(states=number),
            lambda: document.update(element_type=text),
            lambda: document["kernels"].update({str(number): of_one}),
            lambda: of_one.update({text: kernel}),
            lambda: kernel.update(name=text),
            lambda: kernel.update(cubin=generator.choice(("", "f0VMRg==", "A" * 40_000))),
            lambda: kernel.update({generator.choice(("threads", "shared_bytes", "hidden_pointers")): number}),
        )
    )()


_SCANS = ("chunk_state", "scan", "sum_directions")
_STEPS = ("local_depthwise", "grouped_norm", "channel_attention")


def _kernel_package(names: tuple[str, ...] = _SCANS, states: int = 16) -> bytes:
    from msmamba.plugins.selective_scan.gpu_package import CompiledKernel, KernelPackage

    kernels = {name: CompiledKernel(name, b"\x7fELF" * 20, 128, 1024, 2) for name in names}
    return KernelPackage("float16", states, {86: kernels, 89: kernels}).to_bytes()


class Plans:
    """What to quantise, in JSON."""

    inputs = 4000

    def __init__(self, seeds: Seeds) -> None:
        from msmamba.export.graph.plan import Plan
        from msmamba.export.graph.products import KINDS, Product

        units = [f"layers.{number}" for number in range(4)]
        self._found = [Product(unit, unit, kind, "in", "out", 1) for unit in units for kind in KINDS]
        self._good = json.loads(Plan(kept=("layers.1", "layers.2")).to_json())

    def make(self, generator: random.Random, folder: Path) -> Path:
        return written(folder / "plan.json", mutated_json(self._good, generator))

    def open(self, path: Path) -> object:
        from msmamba.export.graph.plan import Plan

        return Plan.from_json(path.read_bytes(), str(path)).chosen(self._found)


def copied(folder: Path, target: Path) -> Path:
    """A copy of a seed's folder, to be changed."""
    return Path(shutil.copytree(folder, target))
