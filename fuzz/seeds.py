"""The good files that mutations start from, made once: a small network, its bundle, data sets, a run."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS, SIDE = ("basophil", "eosinophil", "lymphocyte"), 32
_DONE = "done"


@dataclass(frozen=True)
class Seeds:
    """The folder, and what is in it."""

    folder: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Seeds:
        """Takes the seeds in a folder, or makes them."""
        seeds = cls(folder.resolve())
        if not (folder / _DONE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            seeds._make()
            (folder / _DONE).touch()
        return seeds

    @property
    def checkpoint(self) -> Path:
        """A small network as safetensors."""
        return self.folder / "small.safetensors"

    @property
    def pickled(self) -> Path:
        """Its tensors as PyTorch saves them."""
        return self.folder / "small.pth"

    @property
    def bundle(self) -> Path:
        """Exported."""
        return self.folder / "small.fp32"

    @property
    def cells(self) -> Path:
        """``<class>/*.png``, twelve images each."""
        return self.folder / "cells"

    @property
    def imported(self) -> Path:
        """`cells`, imported."""
        return self.folder / "imported"

    @property
    def run(self) -> Path:
        """A run of one epoch on `cells`."""
        return self.folder / "run"

    @property
    def pictures(self) -> list[Path]:
        """Images of all formats."""
        return sorted((self.folder / "pictures").iterdir())

    def _make(self) -> None:
        import torch

        from msmamba.data.published import import_data_set
        from msmamba.export.bundle import export_bundle
        from msmamba.model.networks.checkpoint import save_checkpoint
        from msmamba.model.networks.microscopic_mamba import Architecture, MicroscopicMamba
        from msmamba.model.training.loop import Hardware, train_folder

        torch.manual_seed(0)
        arch = Architecture(depths=(1, 1, 1, 1), dims=(32, 64, 128, 256), num_classes=len(LABELS))
        network = MicroscopicMamba(arch).eval()
        save_checkpoint(
            self.checkpoint,
            network,
            labels=LABELS,
            image_size=SIDE,
            mean=(0.6, 0.5, 0.7),
            std=(0.2, 0.25, 0.15),
        )
        torch.save({"model": network.state_dict()}, self.pickled)
        export_bundle(self.checkpoint, self.bundle)
        generator = np.random.default_rng(0)
        for base, label in zip((70, 130, 190), LABELS, strict=True):
            (self.cells / label).mkdir(parents=True)
            for number in range(12):
                pixels = np.clip(generator.normal(base, 40, size=(40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(self.cells / label / f"{number}.png")
        import_data_set("folder", self.cells, self.imported)
        figures = {"epochs": 1, "warmup_epochs": 0, "image_size": SIDE}
        train_folder(self.cells, self.run, figures=figures, hardware=Hardware(threads=1))
        (self.folder / "pictures").mkdir()
        for name, content in pictures().items():
            (self.folder / "pictures" / name).write_bytes(content)


def pictures() -> dict[str, bytes]:
    """Images by file name: modes, compressions, pages, orientation."""
    generator = np.random.default_rng(1)
    colour = generator.integers(0, 256, (13, 17, 3), np.uint8)
    sixteen = generator.integers(0, 65536, (13, 17), np.uint16)
    images: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "colour.png": (Image.fromarray(colour), "PNG", {}),
        "grey.png": (Image.fromarray(colour[..., 0]), "PNG", {}),
        "grey16.png": (Image.fromarray(sixteen), "PNG", {}),
        "palette.png": (Image.fromarray(colour).convert("P"), "PNG", {"transparency": 3}),
        "alpha.png": (Image.fromarray(colour).convert("RGBA"), "PNG", {}),
        "bits.png": (Image.fromarray(colour).convert("1"), "PNG", {}),
        "colour.jpg": (Image.fromarray(colour), "JPEG", {"quality": 85}),
        "progressive.jpg": (Image.fromarray(colour), "JPEG", {"progressive": True}),
        "cmyk.jpg": (Image.fromarray(colour).convert("CMYK"), "JPEG", {}),
        "colour.bmp": (Image.fromarray(colour), "BMP", {}),
        "palette.bmp": (Image.fromarray(colour).convert("P"), "BMP", {}),
        "plain.tif": (Image.fromarray(colour), "TIFF", {}),
        "lzw.tif": (Image.fromarray(colour), "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (Image.fromarray(colour), "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (Image.fromarray(colour), "TIFF", {"compression": "jpeg"}),
        "grey16.tif": (Image.fromarray(sixteen), "TIFF", {}),
        "bits.tif": (Image.fromarray(colour).convert("1"), "TIFF", {"compression": "group4"}),
        "pages.tif": (
            Image.fromarray(colour),
            "TIFF",
            {"save_all": True, "append_images": [Image.fromarray(colour[:5])]},
        ),
    }
    contents = {}
    for name, (image, kind, options) in images.items():
        file = io.BytesIO()
        image.save(file, kind, **options)
        contents[name] = file.getvalue()
    return contents


def json_of(path: Path) -> object:
    """A file's JSON."""
    return json.loads(path.read_bytes())
