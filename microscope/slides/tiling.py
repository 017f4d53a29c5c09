"""A slide cut into tiles: a grid at the model's scale, each tile read from the best level.

Positions and sizes of tiles are whole pixels of level 0. The grid begins at the slide's corner; tiles at the
right and lower border reach over it and are completed by reflection, so none of the slide is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...data.scale import check_microns
from ...errors import InputError
from ...images import MAX_PIXELS, is_image_size
from .slide import Slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NO_COARSER = 1.01  # a level may be so much coarser than the network's pixels and still be taken for equal


@dataclass(frozen=True)
class Tile:
    """A square of a slide, pixels of level 0.

    Attributes:
        x: its left edge.
        y: its upper edge.
        side: its width and height.
    """

    x: int
    y: int
    side: int


class Keeps(Protocol):
    """What tells which parts of a slide are wanted: a mask of tissue, or regions."""

    def has_tissue(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether a part of the slide, in pixels of level 0, is one of them."""


def side_of(slide: Slide, size: int, mpp: float | None, assume_mpp: float | None = None) -> int:
    """The side of a tile in pixels of level 0.

    Args:
        slide: says its microns a pixel, or does not.
        size: pixels of the network's square input.
        mpp: microns that a pixel of the network's input is to cover; None takes the slide's pixels as they
            are.
        assume_mpp: the slide's microns a pixel, in place of what the file says.

    Raises:
        InputError: the slide's scale is not known, or a tile would be less than two pixels, or more than are
            decoded at once.
    """
    if not is_image_size(size):
        raise InputError(f"the tiles' size is {size!r}: expected a number of pixels")
    check_microns(mpp, assume_mpp)
    if mpp is None:
        return size
    microns = assume_mpp or slide.scale.microns
    if microns is None:
        raise InputError(
            f"'{slide.path}': {slide.scale.why}: say them with --assume-mpp, or take the slide's pixels "
            "as they are (slide --pixel-for-pixel, data import without --mpp)"
        )
    side = round(size * mpp / microns)
    if side < 2:
        raise InputError(
            f"'{slide.path}' has {microns:g} microns a pixel: a tile of {size * mpp:g} microns is less than "
            "two of its pixels"
        )
    read = round(side / slide.levels[best_level(slide, side / size)].scale)
    if read**2 > MAX_PIXELS:
        raise InputError(
            f"'{slide.path}' has {microns:g} microns a pixel: a tile of {size * mpp:g} microns is {read:,} x "
            f"{read:,} of its pixels, expected at most {MAX_PIXELS:,} in all: look at the microns, or save "
            "it with coarser levels"
        )
    return side


def tiles(
    slide: Slide,
    mpp: float | None,
    size: int,
    overlap: float = 0.0,
    mask: Keeps | None = None,
    *,
    assume_mpp: float | None = None,
) -> Iterator[Tile]:
    """The tiles of a slide, row by row.

    Args:
        slide: an open slide.
        mpp: microns that a pixel of the network's input covers; None takes the slide's pixels as they are.
        size: pixels of the network's square input.
        overlap: the share of a tile's side that the next one covers again, 0 to 0.9.
        mask: leaves out tiles without tissue, or outside of regions; None keeps all.
        assume_mpp: the slide's microns a pixel, in place of what the file says.

    Raises:
        InputError: the slide's scale is not known, or a number is not what it can be.
    """
    return grid(slide, side_of(slide, size, mpp, assume_mpp), overlap, mask)


def grid(slide: Slide, side: int, overlap: float, mask: Keeps | None = None) -> Iterator[Tile]:
    """The tiles of a side in pixels of level 0; see `tiles`."""
    stride = stride_of(side, overlap)
    width, height = slide.levels[0].width, slide.levels[0].height
    for y in _starts(height, side, stride):
        for x in _starts(width, side, stride):
            if mask is None or mask.has_tissue(x, y, min(side, width - x), min(side, height - y)):
                yield Tile(x, y, side)


def stride_of(side: int, overlap: float) -> int:
    """Pixels of level 0 from one tile to the next.

    Raises:
        InputError: the overlap is not 0 to 0.9.
    """
    if not 0 <= overlap <= 0.9:
        raise InputError(f"the overlap is {overlap!r}: expected a share of a tile's side, 0 to 0.9")
    return max(1, round(side * (1 - overlap)))


def read_tile(slide: Slide, tile: Tile, size: int) -> NDArray[np.uint8]:
    """A tile's pixels, for the network's transform to resize.

    They come from the coarsest level that is not coarser than the network's pixels.

    Args:
        slide: a handle of this thread's own.
        tile: begins inside the slide.
        size: ``S``, pixels of the network's square input.

    Returns:
        (side, side, 3) uint8, RGB, contiguous; pixels of that level.

    Raises:
        ImageError: this part of the slide is damaged.
    """
    place = best_level(slide, tile.side / size)
    level = slide.levels[place]
    side = max(2, round(tile.side / level.scale))
    x, y = (
        min(round(at / level.scale), most - 1) for at, most in ((tile.x, level.width), (tile.y, level.height))
    )
    width, height = min(side, level.width - x), min(side, level.height - y)
    pixels = slide.read(place, x, y, width, height)
    if (width, height) != (side, side):
        pixels = np.pad(pixels, ((0, side - height), (0, side - width), (0, 0)), "symmetric")
    return np.ascontiguousarray(pixels)


def best_level(slide: Slide, wanted: float) -> int:
    """The place of the coarsest level whose pixels are no wider than so many of level 0; else the finest."""
    fine_enough = [place for place, each in enumerate(slide.levels) if each.scale <= wanted * _NO_COARSER]
    return max(fine_enough, key=lambda place: slide.levels[place].scale, default=0)


def _starts(length: int, side: int, stride: int) -> range:
    """Where tiles begin along an edge: the last one is the first that reaches its end."""
    return range(0, max(length - side + stride, 1), stride)
