"""Where a slide has tissue: a mask from a thumbnail, by the steps, names and defaults of WSInfer.

Saturation, a median filter, a threshold, closing, then specks and holes by their area, as WSInfer has them
(github.com/SBU-BMI/wsinfer, ``wsinfer/patchlib/segment.py`` and ``wsinfer/cli/patch.py``). Otherwise than
there, glass that reaches the slide's border is no hole, and a tile is kept for its share of tissue, not for
its middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ImageError, InputError
from .slide import Slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_ROWS, _BLOCK_COLUMNS = 256, 4096  # of a level, read at once for a thumbnail


@dataclass(frozen=True)
class TissueOptions:
    """How tissue is told from glass.

    Attributes:
        thumbsize: longest side of the thumbnail, pixels.
        median_filter_size: side of the median filter's window, pixels of the thumbnail, odd.
        binary_threshold: tissue is more saturated than this, 0 to 255.
        closing_kernel_size: side of the square that closes gaps, pixels of the thumbnail.
        min_object_size_um2: specks below this area, square microns, are no tissue.
        min_hole_size_um2: holes below this area, square microns, are tissue.
        min_tissue: least share of a tile that is tissue.

    Raises:
        InputError: a number is not what it can be.
    """

    thumbsize: int = 2048
    median_filter_size: int = 7
    binary_threshold: int = 7
    closing_kernel_size: int = 6
    min_object_size_um2: float = 40_000.0
    min_hole_size_um2: float = 36_100.0
    min_tissue: float = 0.1

    def __post_init__(self) -> None:
        if not 16 <= self.thumbsize <= 8192:
            raise InputError(f"the thumbnail's side is {self.thumbsize!r}: expected 16 to 8192 pixels")
        if not (1 <= self.median_filter_size <= 99 and self.median_filter_size % 2):
            raise InputError(
                f"the median filter's side is {self.median_filter_size!r}: expected an odd number to 99"
            )
        if not 0 <= self.binary_threshold <= 255:
            raise InputError(f"the threshold is {self.binary_threshold!r}: expected a saturation, 0 to 255")
        if not 1 <= self.closing_kernel_size <= 99:
            raise InputError(
                f"the closing kernel's side is {self.closing_kernel_size!r}: expected 1 to 99 pixels"
            )
        if not all(0 <= area < math.inf for area in (self.min_object_size_um2, self.min_hole_size_um2)):
            raise InputError("areas of specks and holes are expected to be zero or more square microns")
        if not 0 <= self.min_tissue <= 1:
            raise InputError(f"the least share of tissue is {self.min_tissue!r}: expected 0 to 1")


@dataclass(frozen=True)
class Mask:
    """Where tissue is.

    Attributes:
        tissue: (h, w) bool; the thumbnail's pixels.
        scale: how many pixels of level 0 one of the mask's is wide.
        min_tissue: least share of tissue in a tile.
    """

    tissue: NDArray[np.bool_]
    scale: float
    min_tissue: float

    @property
    def share(self) -> float:
        """The share of the slide that is tissue."""
        return float(self.tissue.mean())

    def has_tissue(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether a part of the slide, in pixels of level 0, holds enough tissue."""
        rows, columns = self.tissue.shape
        left, top = min(int(x / self.scale), columns - 1), min(int(y / self.scale), rows - 1)
        right = min(-int(-(x + width) // self.scale), columns)
        bottom = min(-int(-(y + height) // self.scale), rows)
        sums = self._sums
        found = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        # Divided, as 0.1 is what 3 of 30 come to, and less than 0.1 times 30 are.
        return bool(found and found / ((bottom - top) * (right - left)) >= self.min_tissue)

    @cached_property
    def _sums(self) -> NDArray[np.int64]:
        """(h + 1, w + 1): how many pixels of tissue lie above and to the left."""
        sums = np.zeros((self.tissue.shape[0] + 1, self.tissue.shape[1] + 1), np.int64)
        sums[1:, 1:] = self.tissue.cumsum(0, dtype=np.int64).cumsum(1)
        return sums


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of all of a slide.

    Attributes:
        pixels: (h, w, 3) uint8, each the mean of a square; white where the slide is damaged.
        scale: the side of that square in pixels of level 0.
        damaged: (h, w) bool, where the slide cannot be read.
    """

    pixels: NDArray[np.uint8]
    scale: float
    damaged: NDArray[np.bool_]


def thumbnail(slide: Slide, longest: int) -> Thumbnail:
    """A small picture of all of a slide, made in blocks, so that no level is ever in memory.

    Args:
        slide: an open slide.
        longest: its longest side is at most this, pixels.
    """
    large_enough = [
        place for place, each in enumerate(slide.levels) if max(each.width, each.height) >= longest
    ]
    place = max(large_enough, key=lambda each: slide.levels[each].scale, default=0)
    level = slide.levels[place]
    factor = -(-max(level.width, level.height) // longest)
    rows, columns = (max(1, block // factor) * factor for block in (_BLOCK_ROWS, _BLOCK_COLUMNS))
    small = np.full((-(-level.height // factor), -(-level.width // factor), 3), 255, np.uint8)
    damaged = np.zeros(small.shape[:2], bool)
    for y in range(0, level.height, rows):
        for x in range(0, level.width, columns):
            height, width = min(rows, level.height - y), min(columns, level.width - x)
            top, left = y // factor, x // factor
            down, across = -(-height // factor), -(-width // factor)
            try:
                pixels = slide.read(place, x, y, width, height)
            except ImageError:
                damaged[top : top + down, left : left + across] = True
                continue
            pixels = np.pad(pixels, ((0, -height % factor), (0, -width % factor), (0, 0)), "edge")
            # Down first, where neighbours lie side by side: by both at once takes sixteen times as long.
            columns_of = pixels.reshape(down, factor, -1).sum(1, dtype=np.uint32)
            sums = columns_of.reshape(down, across, factor, 3).sum(2)
            small[top : top + down, left : left + across] = (sums + factor**2 // 2) // factor**2
    return Thumbnail(small, factor * level.scale, damaged)


def tissue_mask(slide: Slide, options: TissueOptions | None = None, microns: float | None = None) -> Mask:
    """Where a slide has tissue, or is damaged, so that what cannot be read is told and not left out.

    Args:
        slide: an open slide.
        options: how tissue is told from glass.
        microns: the slide's microns a pixel, in place of what the file says. Where neither is known, specks
            and holes stay, since their areas are not known.

    Raises:
        InputError: there is no tissue.
    """
    options = options or TissueOptions()
    return mask_of(slide, thumbnail(slide, options.thumbsize), options, microns)


def mask_of(slide: Slide, small: Thumbnail, options: TissueOptions, microns: float | None) -> Mask:
    """The mask from a slide's thumbnail; see `tissue_mask`."""
    from scipy import ndimage  # type: ignore[import-untyped]  # ships no types

    most, least = (each(small.pixels, 2).astype(np.int32) for each in (np.max, np.min))
    most_or_one = np.maximum(most, 1)
    saturation = (((most - least) * 255 + most_or_one // 2) // most_or_one).astype(np.uint8)  # HSV's, rounded
    filtered = ndimage.median_filter(saturation, options.median_filter_size, mode="nearest")
    kernel = np.ones((options.closing_kernel_size,) * 2, bool)
    margin = options.closing_kernel_size
    padded = np.pad(filtered > options.binary_threshold, margin, "edge")
    tissue = ndimage.binary_closing(padded, kernel)[margin:-margin, margin:-margin]
    microns = microns or slide.scale.microns
    if microns is not None:
        area = (small.scale * microns) ** 2  # square microns of a pixel of the thumbnail
        tissue = _without_small(tissue, round(options.min_object_size_um2 / area))
        glass = np.pad(~tissue, 1, constant_values=True)  # what reaches the border is no hole, however small
        holes = round(options.min_hole_size_um2 / area)
        tissue = ~_without_small(glass, holes, but=(0, 0))[1:-1, 1:-1]
    tissue |= small.damaged
    if not tissue.any():
        raise InputError(
            f"'{slide.path}' shows no tissue: lower --seg-binary-threshold or --seg-min-object-size-um2, "
            "or take all of it with --no-tissue"
        )
    return Mask(tissue, small.scale, options.min_tissue)


def _without_small(
    shapes: NDArray[np.bool_], pixels: int, but: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Without the parts, connected by sides, of less than so many pixels, but for the one at a place."""
    from scipy import ndimage

    labels, _ = ndimage.label(shapes)
    keep = np.bincount(labels.ravel()) >= pixels
    if but is not None:
        keep[labels[but]] = True
    keep[0] = False
    return np.asarray(keep[labels])
