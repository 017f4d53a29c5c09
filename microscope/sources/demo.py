"""A stage that wanders over an image: a microscope for trying things out, without one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ...errors import ImageError, MsmambaError
from ...images import SUFFIXES
from ..slides.field import Field
from ..slides.opening import open_slide
from ..slides.slide import Slide
from ..slides.tissue import thumbnail
from .frame import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAMES_A_SECOND = 60
"""As fast as a microscope's camera."""

MOSAIC = "mosaic.png"
"""An image of this name beside the artefact is what ``mmdeploy live ARTEFACT demo`` wanders over."""

_FIELD = 512  # pixels of a frame's sides, where the image has as many
_PART = 4096  # pixels of a slide's part, which is kept in memory: 50 MB
_THUMBNAIL, _STAINED = 512, 20  # pixels of the thumbnail; of 255: the least saturation of a stain
_ROUND = 40.0  # seconds for a way across the image and back
_TURN = (math.sqrt(5) - 1) / 2  # the two directions never meet in the same way again


class Demo:
    """Frames of a field that moves over an image, at a steady pace."""

    endless = True
    keeps = False

    def __init__(
        self,
        name: str,
        image: NDArray[np.uint8],
        mpp: float | None = None,
        frames_a_second: float = FRAMES_A_SECOND,
    ) -> None:
        """A stage over an image.

        Args:
            name: what it is called in reports.
            image: (H, W, 3) uint8, RGB.
            mpp: its microns a pixel; None where they are not known.
            frames_a_second: the pace of the camera.
        """
        self.name = name
        self.stalls_after: float | None = max(5.0, 10 / frames_a_second)
        self._image = image
        self._mpp = mpp
        self._interval = 1 / frames_a_second

    def frames(self) -> Iterator[Frame | ImageError | None]:
        """A frame at each tick; ticks that went by while the reader was busy are left out."""
        height, width, _ = self._image.shape
        side = min(height, width, _FIELD)
        number, due = 0, time.monotonic()
        start = due
        while True:
            time.sleep(max(0.0, due - time.monotonic()))
            taken = time.monotonic()
            turn = 2 * math.pi * (taken - start) / _ROUND
            top = round((height - side) * (1 + math.sin(turn)) / 2)
            left = round((width - side) * (1 + math.sin(turn * _TURN)) / 2)
            pixels = np.ascontiguousarray(self._image[top : top + side, left : left + side])
            grab_ms = (time.monotonic() - taken) * 1e3
            yield Frame(pixels, number, taken, grab_ms, f"{self.name} #{number}", self._mpp)
            number += 1
            due = max(due + self._interval, time.monotonic() - self._interval)


def stage_over(path: Path, white_level: int) -> tuple[NDArray[np.uint8], float | None]:
    """What a demo wanders over: an image, or of a slide the part of 4096 pixels a side with the most stain.

    Returns:
        (H, W, 3) uint8, RGB, and its microns a pixel; None where the file does not say them.

    Raises:
        ImageError: the file cannot be used.
        BackendError: it is a slide, and the extra ``slides`` is not installed.
    """
    if path.suffix.lower() in SUFFIXES:
        try:
            field = Field.of_file(path, white_level)
            return field.read(0, 0, 0, field.levels[0].width, field.levels[0].height), field.scale.microns
        except ImageError as error:
            first = error
        try:
            slide = open_slide(path, white_level=white_level)
        except MsmambaError:
            raise first from None
    else:
        slide = open_slide(path, white_level=white_level)
    with closing(slide):
        return slide.read(0, *_most_stained(slide)), slide.scale.microns


def _most_stained(slide: Slide) -> tuple[int, int, int, int]:
    """Left, top, width and height of a part of a slide with the most colour in it, pixels of level 0."""
    small = thumbnail(slide, _THUMBNAIL)
    stained = np.ptp(small.pixels, axis=2) > _STAINED
    sums = np.pad(stained.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = (min(length, max(1, int(_PART / small.scale))) for length in stained.shape)
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    level = slide.levels[0]
    width, height = min(_PART, level.width), min(_PART, level.height)
    left, top = (round(at * small.scale) for at in (int(column), int(row)))
    return min(left, level.width - width), min(top, level.height - height), width, height


def drawn_smear() -> NDArray[np.uint8]:
    """A blood smear as one may draw it, (1200, 1600, 3) uint8: red cells, and now and then a white one."""
    generator = np.random.default_rng(0)
    image = Image.new("RGB", (1600, 1200), (232, 228, 232))
    draw = ImageDraw.Draw(image)
    for number in range(700):
        x, y, radius = generator.integers((0, 0, 18), (image.width, image.height, 24)).tolist()
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(214, 160, 168))
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(226, 186, 192))
        if number % 40 == 0:
            draw.ellipse((x - 40, y - 40, x + 40, y + 40), fill=(196, 176, 214))
            for dx, dy in generator.integers(-18, 18, (3, 2)).tolist():
                draw.ellipse((x + dx - 15, y + dy - 15, x + dx + 15, y + dy + 15), fill=(98, 58, 140))
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)
    return np.clip(smooth + generator.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)
