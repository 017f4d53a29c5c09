"""A picture in memory as a slide of one level: a file by the rules of `msmamba.images`, or a frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...data.scale import Scale, scale_of
from ...images import load_image
from .slide import Bounds, Level, check_region

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_TURNED = "turned upright, as the file says: positions are of it upright, and programs may show it as stored"


class Field:
    """A slide of one level whose pixels are in memory, shared by all its handles."""

    reader = "field"

    def __init__(
        self, path: Path, pixels: NDArray[np.uint8], scale: Scale, notes: tuple[str, ...] = ()
    ) -> None:
        """A field.

        Args:
            path: what it is called.
            pixels: (H, W, 3) uint8, RGB; not changed.
            scale: its microns a pixel.
            notes: what reading it had to decide.
        """
        self.path = path
        self.notes = notes
        self.scale = scale
        self._pixels = pixels
        height, width, _ = pixels.shape
        self.levels: tuple[Level, ...] = (Level(width, height, 1.0),)
        self.bounds = Bounds(0, 0, width, height)

    @classmethod
    def of_file(cls, path: Path, white_level: int) -> Field:
        """A picture's file: PNG, JPEG, BMP or TIFF.

        Raises:
            ImageError: it cannot be read, or has more pixels than `msmamba.images.MAX_PIXELS`.
        """
        image = load_image(path, white_level=white_level)
        notes = [_TURNED] if image.turned else []
        return cls(path, image.pixels, scale_of(path), (*image.notes, *notes))

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A view of the region; see `Slide.read`."""
        check_region(self, level, x, y, width, height)
        return self._pixels[y : y + height, x : x + width]

    def reopened(self) -> Field:
        """The same field: reading it changes nothing."""
        return self

    def close(self) -> None:
        """Does nothing: the pixels go with the object."""
