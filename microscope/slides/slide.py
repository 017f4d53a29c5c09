"""What every slide is to the rest of the room: its levels, its scale, and regions of pixels.

Level 0 is the finest. Positions and sizes in a level are in that level's own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...data.scale import Scale
from ...errors import ImageError, InputError, reason_of
from ...files import check_is_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDED = 2  # pixels of a level by which its sides may be off


@dataclass(frozen=True)
class Level:
    """One level of a slide's pyramid.

    Attributes:
        width: its width in pixels.
        height: its height in pixels.
        scale: how many pixels of level 0 one of its pixels is wide.
    """

    width: int
    height: int
    scale: float


@dataclass(frozen=True)
class Bounds:
    """What QuPath shows of a slide, pixels of level 0; its positions begin at the upper left corner of that.

    Scanners that leave out what they see nothing in (MRXS, SCN, BIF) give a canvas with empty margins, which
    QuPath cuts off.

    Attributes:
        left: the left edge.
        top: the upper edge.
        width: the width.
        height: the height.
    """

    left: int
    top: int
    width: int
    height: int


class Slide(Protocol):
    """A slide that is open; a reader of a format gives one. A handle is for one thread: see `reopened`."""

    path: Path
    """The file."""
    reader: str
    """What reads it: ``OpenSlide (aperio)``, ``tifffile``, ``field``."""
    levels: tuple[Level, ...]
    """The pyramid, the finest level first; at least one."""
    scale: Scale
    """Microns a pixel of level 0."""
    bounds: Bounds
    """What QuPath shows of it; all of level 0 for most."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading had to decide of what was read so far, one phrase each; empty for most."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A region that lies inside a level.

        Args:
            level: place in `levels`.
            x: its left edge, pixels of that level.
            y: its upper edge, pixels of that level.
            width: at least 1, pixels of that level.
            height: at least 1, pixels of that level.

        Returns:
            (height, width, 3) uint8, RGB; what a scanner left out is white.

        Raises:
            ImageError: this part of the file is damaged; other parts can still be read.
            InputError: the region does not lie inside a level.
        """

    def reopened(self) -> Slide:
        """Another handle on the same slide, for another thread, to be closed by itself."""

    def close(self) -> None:
        """Frees the file; may be called more than once."""


def check_region(slide: Slide, level: int, x: int, y: int, width: int, height: int) -> None:
    """Checks that a region lies inside a level: beyond it each library would give something else, or nothing.

    Raises:
        InputError: it does not.
    """
    if not 0 <= level < len(slide.levels):
        raise InputError(f"'{slide.path}' has no level {level}: expected 0 to {len(slide.levels) - 1}")
    within = slide.levels[level]
    if not (0 <= x < x + width <= within.width and 0 <= y < y + height <= within.height):
        raise InputError(
            f"'{slide.path}': {width} x {height} pixels at {x}, {y} do not lie in level {level}, which has "
            f"{within.width} x {within.height}"
        )


def is_copy(width: int, height: int, of_width: int, of_height: int) -> bool:
    """Whether a picture's sides are those of another, divided by a number and rounded in any way.

    A level that has another shape is of something else, or of a part, and its pixels lie elsewhere.
    """
    return abs(width * of_height - height * of_width) <= _ROUNDED * (of_width + of_height)


def check_is_there(path: Path) -> None:
    """Checks a slide for libraries that open it themselves; it may be gone since it was opened first.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        check_is_file(path)
    except OSError as error:
        raise ImageError(f"'{path}' cannot be read: {reason_of(error)}") from error
