"""Whether a picture can be judged at all: focus, exposure, emptiness and colour cast, in plain NumPy.

Dims: ``H`` and ``W`` pixels of the picture, ``h`` and ``w`` of the part that is looked at.

Whoever moves a stage gets pictures that are out of focus, too dark, too bright, or of bare glass, and the
network answers on all of them. Each measure here is a number in [0, 1] that depends on the picture alone:

- **Focus** is the part of the differences between neighbouring pixels that a blur would take away (F. Crété
  et al., The blur effect, SPIE 6492, 2007; one minus their measure): a sharp picture loses much by a blur, a
  blurred one little. A ratio of differences, it does not change with contrast or brightness, so neither stain
  nor lamp moves it. Noise counts as detail, and a camera's is enough to hide any blur: so there is a **coarse
  focus** beside it, the same of the means of squares of four pixels, in which noise is a quarter.
- **Exposure** is the brightest hundredth's brightness, the mean, and the parts that are black and white.
- **Emptiness** is the part of the picture in which nothing is to be seen: squares of 16 pixels whose
  brightness hardly varies; uneven lighting varies little within so few pixels.
- **Colour cast** is the colour of the brightest tenth, which is the background in bright field.

The limits behind `Quality.faults` are measured: docs/live.md has how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUT_OF_FOCUS = 0.42
"""Focus below which a picture counts as out of focus."""

COARSELY_OUT_OF_FOCUS = 0.32
"""Coarse focus below which a picture counts as out of focus, whatever its focus is."""

COARSELY_JUDGED = 240
"""Pixels a side from which it does: sharp pictures that are smaller may fall below, with little in them."""

TOO_DARK = 0.25
"""Brightness of the brightest hundredth below which a picture counts as too dark."""

TOO_BRIGHT = 0.5
"""The part of white pixels above which a picture counts as too bright."""

EMPTY = 0.95
"""Emptiness above which a picture counts as empty."""

_BLACK, _WHITE = 5, 250  # of 255: where a camera's values end, give or take its compression
_FLAT = 3.0  # of 255: the deviation of brightness in a square below which nothing is to be seen in it
_BLOCK = 16  # pixels
_BLOCKS = 12  # squares to a row, and rows of them, that are looked at at least
_BLUR = 11  # pixels of the box that blurs, as in the source
_SQUARE, _COARSE_BLUR = 4, 5  # pixels of the squares whose means are coarse, and squares of their box
_LEAST_COARSE = 24  # squares along both sides that a picture has at least to have a coarse focus
_COARSE_LINES = 60  # rows, and columns, of squares that are looked at at least, where there are so many
_LINES = 128  # rows, and columns, that are looked at at least: more tell no more, and take longer


@dataclass(frozen=True)
class Quality:
    """What a picture is worth to a classifier.

    Attributes:
        focus: 0 (blurred) to 1 (sharp); None where a picture has no detail by which to tell.
        coarse_focus: the same at a quarter of the size, which noise hides less; None of small pictures, too.
        side: pixels of the picture's shorter side; 0 where nobody says.
        brightest: the brightness, 0 to 1, that a hundredth of the picture exceeds.
        brightness: the mean brightness, 0 to 1.
        black: the part of pixels, 0 to 1, that are black.
        white: the part of pixels, 0 to 1, that are white.
        emptiness: the part of the picture, 0 to 1, in which nothing is to be seen.
        background: red, green and blue of the brightest tenth, 0 to 1; grey where there is no colour cast.
    """

    focus: float | None
    brightest: float
    brightness: float
    black: float
    white: float
    emptiness: float
    background: tuple[float, float, float]
    coarse_focus: float | None = None
    side: int = 0

    @property
    def measures(self) -> dict[str, float | None]:
        """What ranges are taken of, by name: a guard's, say (`msmamba.runtime.guard`).

        Of the background's colour it is the red and the blue beside the green, as logarithms of the ratios.
        """
        red, green, blue = (max(value, 1 / 255) for value in self.background)
        return {
            "focus": self.focus,
            "coarse_focus": self.coarse_focus,
            "emptiness": self.emptiness,
            "brightest": self.brightest,
            "white": self.white,
            "red": math.log(red / green),
            "blue": math.log(blue / green),
        }

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with the picture, in words: mostly nothing."""
        found = []
        if self.brightest < TOO_DARK:
            found.append("too dark")
        if self.white > TOO_BRIGHT:
            found.append("too bright")
        if self.emptiness > EMPTY:
            found.append("empty")
        elif self._out_of_focus:
            found.append("out of focus")
        return tuple(found)

    @property
    def _out_of_focus(self) -> bool:
        if self.focus is not None and self.focus < OUT_OF_FOCUS:
            return True
        if self.coarse_focus is None or self.side < COARSELY_JUDGED:
            return False
        return self.coarse_focus < COARSELY_OUT_OF_FOCUS

    def as_json(self) -> dict[str, Any]:
        """The figures, to four digits, and the faults."""
        figures = {
            name: None if value is None else np.round(value, 4).tolist() for name, value in vars(self).items()
        }
        return {**figures, "faults": list(self.faults)}


def quality_of(pixels: NDArray[np.uint8]) -> Quality:
    """The quality of a picture.

    Args:
        pixels: (H, W, 3) uint8, RGB; not changed.

    Raises:
        InputError: they are something else.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size or pixels.dtype != np.uint8:
        raise InputError(
            f"the picture is {pixels.dtype} of shape {pixels.shape}: expected uint8 of shape (H, W, 3), RGB"
        )
    height, width, _ = pixels.shape
    rows, columns = max(height // _LINES, 1), max(width // _LINES, 1)  # every how many of them is looked at
    sample = pixels[::rows, ::columns]
    bright = _brightness(sample)
    channels = [sample[..., channel] for channel in range(3)]  # an axis of three is slow to reduce
    largest, smallest = reduce(np.maximum, channels), reduce(np.minimum, channels)
    emptiness = _emptiness(pixels)
    red, green, blue = sample[bright >= np.quantile(bright, 0.9)].mean(axis=0) / 255
    return Quality(
        focus=_focus(pixels, rows, columns) if emptiness < 1 else None,
        brightest=float(np.quantile(bright, 0.99)) / 255,
        brightness=float(bright.mean()) / 255,
        black=float((largest <= _BLACK).mean()),
        white=float((smallest >= _WHITE).mean()),
        emptiness=emptiness,
        background=(float(red), float(green), float(blue)),
        coarse_focus=_coarse_focus(pixels) if emptiness < 1 else None,
        side=min(height, width),
    )


def _brightness(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(h, w, 3) to (h, w): the luma of ITU-R BT.601, 0 to 255, rounded down."""
    red, green, blue = (pixels[..., channel].astype(np.uint16) for channel in range(3))
    return ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.int16)  # 256 * 255 is the most


def _emptiness(pixels: NDArray[np.uint8]) -> float:
    """The part of a picture's squares that hold nothing; a picture smaller than one is a square itself."""
    height, width, _ = pixels.shape
    if min(height, width) < _BLOCK:
        return float(_brightness(pixels).std() < _FLAT)
    blocks = pixels[: height // _BLOCK * _BLOCK, : width // _BLOCK * _BLOCK]
    blocks = blocks.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, 3)
    down, along = (max(count // _BLOCKS, 1) for count in (blocks.shape[0], blocks.shape[2]))
    values = _brightness(blocks[::down, :, ::along]).astype(np.float32)
    return float((values.std(axis=(1, 3)) < _FLAT).mean())


def _focus(pixels: NDArray[np.uint8], rows: int, columns: int) -> float | None:
    """Focus along the worse of the two directions, so that a stage in motion is seen too."""
    along = _kept_by_no_blur(_brightness(pixels[::rows]), _BLUR)
    down = _kept_by_no_blur(_brightness(pixels[:, ::columns]).T, _BLUR)
    return None if along is None or down is None else min(along, down)


def _coarse_focus(pixels: NDArray[np.uint8]) -> float | None:
    """`_focus` of the means of squares, of rows of squares that lie apart."""
    height, width, _ = pixels.shape
    if min(height, width) < _LEAST_COARSE * _SQUARE:
        return None
    along = _kept_by_no_blur(_squares(pixels), _COARSE_BLUR)
    down = _kept_by_no_blur(_squares(pixels.transpose(1, 0, 2)), _COARSE_BLUR)
    return None if along is None or down is None else min(along, down)


def _squares(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(H, W, 3) to (h, w): the sums of squares' brightness, at most 4080, of some rows of them."""
    height, width = pixels.shape[0] // _SQUARE, pixels.shape[1] // _SQUARE
    rows = pixels[: height * _SQUARE, : width * _SQUARE].reshape(height, _SQUARE, width * _SQUARE, 3)
    bright = _brightness(rows[:: max(height // _COARSE_LINES, 1)]).sum(axis=1, dtype=np.int16)
    return bright.reshape(len(bright), width, _SQUARE).sum(axis=2, dtype=np.int16)


def _kept_by_no_blur(lines: NDArray[np.int16], box: int) -> float | None:
    """The part of the differences along (h, w) lines that a box of so many pixels takes away."""
    sums = np.cumsum(lines, axis=1, dtype=np.int32)
    # `box` times the blurred lines, where it lies within them; beside them what they were.
    blurred = sums[:, box:] - sums[:, :-box]
    inner = lines[:, box // 2 + 1 :][:, : blurred.shape[1]]
    before = box * np.abs(np.diff(inner, axis=1))  # at most 2805, of squares 20400
    after = np.abs(np.diff(blurred, axis=1))
    total = before.sum(dtype=np.int64)
    return float(np.maximum(before - after, 0).sum(dtype=np.int64) / total) if total else None
