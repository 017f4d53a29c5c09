"""A field of view as one picture in memory: PNG, JPEG, BMP and TIFF by the rules of `msmamba.images`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...files import open_file
from ...images import read_image
from .slide import Level, Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Field:
    """A slide of one level whose pixels are in memory, shared by all its handles.

    Raises:
        ImageError: the picture cannot be read, or has more pixels than `msmamba.images.MAX_PIXELS`.
    """

    reader = "field"

    def __init__(self, path: Path, white_level: int) -> None:
        self.path = path
        self._pixels = read_image(path, white_level=white_level)
        self.scale = _scale(path)
        height, width, _ = self._pixels.shape
        self.levels: tuple[Level, ...] = (Level(width, height, 1.0),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A view of the region; see `Slide.read`."""
        return self._pixels[y : y + height, x : x + width]

    def reopened(self) -> Field:
        """The same field: reading it changes nothing."""
        return self

    def close(self) -> None:
        """Does nothing: the pixels go with the object."""


def _scale(path: Path) -> Scale:
    """The scale that the picture's dots an inch say, which are mostly those of a screen or a printer."""
    with open_file(path) as file, Image.open(file) as image:
        across, down = image.info.get("dpi", (0, 0))
    return Scale.of(25_400 / across, 25_400 / down) if across and down else Scale.of(None, None)
