"""A data set and a network small enough to train in a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msmamba.model.network import Architecture
from msmamba.plugins.selective_scan import cpu


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
    """For runs that limit the threads of the whole process: what follows gets them back."""
    before = torch.get_num_threads(), cpu.threads()
    yield
    torch.set_num_threads(before[0])
    cpu.set_threads(before[1])


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of :func:`write_cells`; read it, do not write to it."""
    return write_cells(tmp_path_factory.mktemp("data") / "cells")


@pytest.fixture(scope="session")
def small() -> Architecture:
    """Two stages of one block."""
    return Architecture(depths=(1, 1), dims=(32, 64), num_classes=2)
