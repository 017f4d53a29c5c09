"""What several test modules share: a small network, its checkpoint, and images as files.

The small network has all of the architecture's parts and takes milliseconds: four stages of one block, 32
to 256 channels, for 32x32 images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from preloaded import Preloaded

if TYPE_CHECKING:
    from onnx import ModelProto

    from msmamba.model import MicroscopicMamba

DEAREST = (
    *("test_readme", "test_packaging", "test_hybrid_block_sanitizers", "test_plugin_kernels", "test_checker"),
    "test_backward_kernels",
    *("test_triton_kernel", "test_cpu_scan_sanitizers", "test_parallel", "test_onnx_model", "test_bundle"),
    *("test_int8", "test_gpu_kernel_table", "test_loop", "test_comparison"),
)
"""The files that take longest: they come first, so that no process is left alone with one in the end."""

# Tables are as wide as whoever runs the tests has his terminal; tests that ask for a width say so.
os.environ.pop("COLUMNS", None)

SMALL_DEPTHS, SMALL_DIMS = (1, 1, 1, 1), (32, 64, 128, 256)
SMALL_SIZE = 32
SMALL_LABELS = ("basophil", "eosinophil", "lymphocyte")


class _Root:
    """Keeps pytest from importing the repository's `__init__.py` as if the folder's name were the package's.

    That name may be none that Python imports, such as `msmamba-main` of an archive. A plugin, as no conftest
    is asked of folders above its own.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """A plain folder in place of a package."""
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config: pytest.Config) -> None:
    """Registers what has to be known before anything is collected."""
    config.pluginmanager.register(_Root())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the dearest files first, each still whole; a file's tests run in one process (Makefile)."""
    places = {name: place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(DEAREST)))


@pytest.fixture(scope="session")
def ptx_cache(pytestconfig: pytest.Config) -> Path:
    """Where kernels compiled for the emulator are kept between runs; named by their content."""
    cache = pytestconfig.cache
    assert cache is not None
    return cache.mkdir("ptx")


def small_network(seed: int = 6, **changes: object) -> MicroscopicMamba:
    """A small network whose every weight and statistic is away from its initial value.

    By default one whose answers to images of noise are of all three classes.
    """
    import torch

    from msmamba.model.networks.microscopic_mamba import Architecture, MicroscopicMamba

    torch.manual_seed(seed)
    fields = {"depths": SMALL_DEPTHS, "dims": SMALL_DIMS, "num_classes": len(SMALL_LABELS), **changes}
    network = MicroscopicMamba(Architecture(**fields))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("in_proj.weight", "head.weight")):
                tensor.normal_(std=tensor.shape[1] ** -0.5)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return network.eval()


@pytest.fixture(scope="session")
def make_network() -> Callable[..., MicroscopicMamba]:
    """`small_network`, for tests that need another one."""
    return small_network


@pytest.fixture(scope="session")
def network() -> MicroscopicMamba:
    """The small network; not to be changed."""
    return small_network()


@pytest.fixture(scope="session")
def checkpoint(network: MicroscopicMamba, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network's checkpoint; not to be changed."""
    from msmamba.model.networks.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(
        path,
        network,
        labels=SMALL_LABELS,
        image_size=SMALL_SIZE,
        mean=(0.6, 0.5, 0.7),
        std=(0.2, 0.25, 0.15),
    )
    return path


@pytest.fixture(scope="session")
def micrographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve small PNG files of coloured noise; not to be changed."""
    folder = tmp_path_factory.mktemp("micrographs")
    generator = np.random.default_rng(0)
    for number in range(12):
        base = generator.integers(40, 216, size=(1, 1, 3))
        pixels = np.clip(base + generator.normal(0, 40, size=(48, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"cell_{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``{train,val}/<class>/*.png``: the small network's classes, six and four noisy images each; not to be
    changed.
    """
    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(1)
    for split, count in {"train": 6, "val": 4}.items():
        for base, label in zip((70, 130, 190), SMALL_LABELS, strict=True):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(base, 40, size=(40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of :func:`write_cells`; read it, do not write to it."""
    return write_cells(tmp_path_factory.mktemp("data") / "cells")


def write_cells(root: Path, images: int = 12) -> Path:
    """A flat folder of two classes, ``round`` and ``square`` spots on noise, split by nobody yet."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40]
    for label in ("round", "square"):
        (root / label).mkdir(parents=True)
        for number in range(images):
            centre = generator.integers(14, 26, 2)
            distance = np.stack([abs(rows - centre[0]), abs(columns - centre[1])])
            spot = (distance**2).sum(0) < 100 if label == "round" else distance.max(0) < 10
            pixels = generator.integers(150, 220, (40, 40, 3))
            pixels[spot] = (90, 40, 120) if label == "round" else (120, 40, 60)
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def threads_as_before() -> Iterator[None]:
    """Gives back the threads after tests that limit those of the whole process."""
    import torch

    from msmamba.plugins.selective_scan import cpu

    before = torch.get_num_threads(), cpu.threads()
    yield
    torch.set_num_threads(before[0])
    cpu.set_threads(before[1])


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Gives the folder of a name, made by whichever of the test processes asks first, the others waiting.

    What is in it is shared by all of them, so it is not to be changed.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, partial = shared / f"shared-{name}", shared / f"partial-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                shutil.rmtree(partial, ignore_errors=True)  # of one that failed
                partial.mkdir()
                make(partial)
                partial.rename(folder)
        return folder

    return make_once


@pytest.fixture(scope="session")
def bundles(checkpoint: Path, make_once: MakeOnce) -> dict[str, Path]:
    """The small network's bundles by precision; not to be changed."""
    from msmamba.export.bundle import ExportOptions, export_bundle

    def make(folder: Path) -> None:
        for precision in ("fp32", "fp16"):
            export_bundle(checkpoint, folder / precision, ExportOptions(precision=precision))

    folder = make_once("bundles", make)
    return {precision: folder / precision for precision in ("fp32", "fp16")}


@pytest.fixture(scope="session")
def small_onnx(network: MicroscopicMamba, make_once: MakeOnce) -> ModelProto:
    """The small network as `onnx_from_network` exports it; not to be changed."""
    import onnx

    from msmamba.export.graph.onnx_model import onnx_from_network

    def make(folder: Path) -> None:
        onnx.save(onnx_from_network(network, SMALL_SIZE), folder / "model.onnx")

    return onnx.load(make_once("small-onnx", make) / "model.onnx")


@pytest.fixture(scope="session")
def tiny_onnx(make_once: MakeOnce) -> ModelProto:
    """The published tiny network as `onnx_from_network` exports it for 224 pixels; not to be changed."""
    import onnx

    from msmamba.export.graph.onnx_model import onnx_from_network
    from msmamba.model import MicroscopicMamba

    def make(folder: Path) -> None:
        tiny = MicroscopicMamba.of_size("t", num_classes=4).eval()
        onnx.save(onnx_from_network(tiny, 224), folder / "model.onnx")

    return onnx.load(make_once("tiny-onnx", make) / "model.onnx")


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """Starts processes that have PyTorch loaded already; nothing that one of them does reaches another."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    with Preloaded() as server:
        yield server


@pytest.fixture
def no_gpu() -> None:
    """Skips a test of what happens without a GPU where there is one."""
    from msmamba.errors import BackendError
    from msmamba.plugins import cuda_driver

    try:
        found = cuda_driver.device()
    except BackendError:
        return
    pytest.skip(f"this machine has {found.name}")
