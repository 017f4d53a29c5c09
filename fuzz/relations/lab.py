"""What relations are tried on: a network whose answers differ, its bundles, pictures, and the command.

Dims: ``height`` and ``width`` of a picture, pixels.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from seeds import LABELS, SIDE

Pixels = npt.NDArray[np.uint8]
Relation = Callable[["Lab", random.Random, Path], Iterator[str]]
"""Makes a situation by a generator, in an empty folder, and says how it is broken."""

MPP, TRAINED = 0.5, 40
"""Microns a pixel of the training images, and pixels of their side."""
NEAR = 2e-6
"""How far probabilities may be apart where batches or threads are others: float32's last bits."""


@dataclass(frozen=True)
class Said:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        """One value of JSON."""
        return json.loads(self.out)


class CommandFailed(Exception):
    """A command that should have done its work did not."""


class Lab:
    """Artefacts in a folder, made once, and what is opened of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        real = os.environ.get("FUZZ_PICTURES")
        self._real = sorted(Path(real).rglob("*.jpg")) if real else []

    @cached_property
    def checkpoint(self) -> Path:
        """A small network, whose every weight is away from its initial value, at 0.5 microns a pixel."""
        return self._made("lively.safetensors", lambda path: save_lively(path, LABELS))

    @cached_property
    def bundle(self) -> Path:
        """Exported."""

        def make(path: Path) -> None:
            self.mmdeploy("export", self.checkpoint, "-o", path)

        return self._made("lively.fp32", make)

    @cached_property
    def guarded(self) -> Path:
        """The same with a guard, fitted on `judged`."""

        def make(path: Path) -> None:
            self.mmdeploy("export", self.checkpoint, "-o", path)
            self.mmdeploy("calibrate", path, self.judged, "--max-error", "5%")

        return self._made("lively.guarded", make)

    @cached_property
    def judged(self) -> Path:
        """``<class>/*.png``: thirty pictures of each class, most of them where the network puts them."""

        def make(path: Path) -> None:
            chance = random.Random("judged")
            for label in LABELS:
                (path / label).mkdir(parents=True)
            pictures = [self.drawn(chance, 40, 40) for _ in range(400)]
            answers = self.session.classify(pictures)
            for label in LABELS:
                own = [pair for pair in zip(answers, pictures, strict=True) if pair[0].label == label]
                own = sorted(own, key=lambda pair: pair[0].probability)[:: max(1, len(own) // 40)]
                for number, (_, pixels) in enumerate(own):
                    wrong = LABELS[(LABELS.index(label) + 1) % len(LABELS)]
                    is_wrong = number < 8 and number % 2  # where it is least certain
                    save(pixels, path / (wrong if is_wrong else label) / f"{label}-{number}.png")

        return self._made("judged", make)

    @cached_property
    def session(self) -> Any:
        """The bundle, open."""
        import msmamba

        return msmamba.open(self.bundle, threads=1)

    def _made(self, name: str, make: Any) -> Path:
        path, partial = self.folder / name, self.folder / f"partial-{name}"
        if not path.exists():
            make(partial)
            partial.rename(path)
        return path

    def drawn(self, chance: random.Random, height: int, width: int) -> Pixels:
        """(height, width, 3): spots in a colour of their own on a ground of noise."""
        noise = np.random.default_rng(chance.getrandbits(32))
        rows, columns = np.mgrid[:height, :width]
        pixels = np.empty((height, width, 3))
        pixels[:] = noise.integers(30, 226, 3)
        for _ in range(chance.randrange(1, 6)):
            centre, radius = (
                noise.random(2) * (height, width),
                noise.uniform(2, max(3, min(height, width) / 3)),
            )
            inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
            pixels[inside] = noise.integers(0, 256, 3)
        pixels += noise.normal(0, chance.choice((0, 2, 10, 25)), pixels.shape)
        return np.clip(pixels, 0, 255).astype(np.uint8)

    def picture(self, chance: random.Random, least: int = 20, most: int = 90) -> Pixels:
        """A drawn picture of any size, or a part of a real one where there are some."""
        height, width = chance.randint(least, most), chance.randint(least, most)
        if self._real and chance.random() < 0.5:
            with Image.open(chance.choice(self._real)) as image:
                pixels = np.asarray(image.convert("RGB"))
            if min(pixels.shape[0] - height, pixels.shape[1] - width) >= 0:
                top = chance.randint(0, pixels.shape[0] - height)
                left = chance.randint(0, pixels.shape[1] - width)
                return np.ascontiguousarray(pixels[top : top + height, left : left + width])
        return self.drawn(chance, height, width)

    def pictures(self, chance: random.Random, folder: Path, count: int, **sizes: int) -> list[Path]:
        """So many as PNG files of a new folder."""
        folder.mkdir(parents=True)
        return [save(self.picture(chance, **sizes), folder / f"{number}.png") for number in range(count)]

    def mmdeploy(self, *words: object, status: int = 0) -> Said:
        """Runs the command in this process.

        Raises:
            CommandFailed: it ends with another status than expected.
        """
        from click.testing import CliRunner

        from msmamba.cli import mmdeploy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner().invoke(mmdeploy, [str(word) for word in words])
        if done.exit_code != status:
            asked = " ".join(map(str, words))
            raise CommandFailed(
                f"'{asked}' ended with {done.exit_code}: {done.stderr[-500:]}"
            ) from done.exception
        return Said(done.exit_code, done.stdout, done.stderr)

    def inferred(self, *words: object, artefact: Path | None = None) -> list[dict[str, Any]]:
        """The rows of ``infer``."""
        every = ("--top", len(LABELS), "--format", "json")
        return self.mmdeploy("infer", artefact or self.bundle, *words, *every).rows


def save_lively(path: Path, labels: tuple[str, ...], order: tuple[int, ...] | None = None) -> None:
    """A checkpoint whose answers differ from picture to picture.

    Args:
        path: the file.
        labels: the classes.
        order: which rows the head has, in this order; as they are where None.
    """
    import torch

    from msmamba.data.coverage import Coverage
    from msmamba.model.networks.checkpoint import save_checkpoint
    from msmamba.model.networks.microscopic_mamba import Architecture, MicroscopicMamba

    torch.manual_seed(6)
    arch = Architecture(depths=(1, 1, 1, 1), dims=(32, 64, 128, 256), num_classes=len(LABELS))
    network = MicroscopicMamba(arch).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("in_proj.weight", "head.weight")):
                tensor.normal_(std=tensor.shape[1] ** -0.5)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
        if order:
            for name, tensor in network.state_dict().items():
                if "head" in name and tensor.shape[:1] == (len(LABELS),):
                    tensor.copy_(tensor[list(order)].clone())
    save_checkpoint(
        path,
        network,
        labels=labels,
        image_size=SIDE,
        mean=(0.6, 0.5, 0.7),
        std=(0.2, 0.25, 0.15),
        covers=Coverage.of([(TRAINED, TRAINED)], MPP),
    )


def save(pixels: npt.NDArray[Any], path: Path, **options: Any) -> Path:
    """A picture as a file."""
    Image.fromarray(pixels).save(path, **options)
    return path


@contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """Another working directory for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def differ(name: str, found: object, expected: object) -> Iterator[str]:
    """Says so where two values are not the same."""
    if found != expected:
        yield f"{name}: {shortened(found)}, expected {shortened(expected)}"


def apart(name: str, found: Any, expected: Any, most: float = NEAR) -> Iterator[str]:
    """Says so where two arrays are farther apart than they may be."""
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if one.shape != other.shape:
        yield f"{name}: of shape {one.shape}, expected {other.shape}"
    elif one.size and not (farthest := np.abs(one - other).max()) <= most:
        yield f"{name}: {farthest:.3g} apart, at most {most:g} expected"


def shortened(value: object) -> str:
    """A value in at most some hundred characters."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
