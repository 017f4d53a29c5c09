"""Image files of all formats."""

from __future__ import annotations

import random
from pathlib import Path

from mutation import mutated
from seeds import Seeds

from .target import written


class Pictures:
    """Damaged images through the reader that every command shares."""

    inputs = 4000

    def __init__(self, seeds: Seeds) -> None:
        self._good = [(path.name, path.read_bytes()) for path in seeds.pictures]

    def make(self, generator: random.Random, folder: Path) -> Path:
        name, content = generator.choice(self._good)
        return written(folder / name, mutated(content, generator))

    def open(self, path: Path) -> object:
        from msmamba.images import load_image

        return load_image(path)
