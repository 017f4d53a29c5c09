"""Heat maps of a slide, one for each class: OME-TIFF pyramids, and pictures over the thumbnail.

Where tiles overlap a map is their weighted mean, with weights that fall to zero at a tile's border, so that
no border shows. A map's pixels divide the stride, so they lie alike in every tile: a slide that is cut at a
multiple of the stride has the same map, but for a tile along the cut.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...files import as_utf8, write_atomically
from ...text import shown
from .engine import TileResult
from .results import colour_of
from .tissue import Thumbnail

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIXELS_A_TILE = 8  # of the map, where tiles overlap
_TILE = 256  # of the OME-TIFF; a level that fits into one is the last
_TOGETHER = 64 << 20  # bytes of the maps that are made together
_LONGEST = 1024  # side of a picture, pixels
_HALF = 128  # of a map's levels, 1 to 255
_HATCH, _LINE, _HATCH_COLOUR = 9, 2, (90, 90, 90)  # from one line to the next, and its width, pixels


@dataclass(frozen=True)
class MapGrid:
    """The pixels of a slide's maps.

    Attributes:
        width: width of the slide, pixels of level 0.
        height: height of the slide, pixels of level 0.
        side: side of a tile, pixels of level 0.
        stride: from one tile to the next, pixels of level 0.
    """

    width: int
    height: int
    side: int
    stride: int

    @property
    def pixels_a_stride(self) -> int:
        """Map pixels from one tile to the next: one where tiles do not overlap."""
        if self.stride == self.side:
            return 1
        return max(1, round(_PIXELS_A_TILE * self.stride / self.side))

    @property
    def pixel(self) -> float:
        """The side of a map pixel, pixels of level 0."""
        return self.stride / self.pixels_a_stride

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a map."""
        return -int(-self.height // self.pixel), -int(-self.width // self.pixel)

    @property
    def weights(self) -> NDArray[np.float32]:
        """(n, n): the weights of a tile's map pixels, highest in its middle, zero at its border."""
        centres = (np.arange(np.ceil(self.side / self.pixel)) + 0.5) * self.pixel
        along = np.maximum(np.minimum(centres, self.side - centres), 0) / self.side
        return np.outer(along, along).astype(np.float32)


def class_maps(
    results: Iterable[TileResult], classes: Sequence[int], grid: MapGrid
) -> list[NDArray[np.uint8]]:
    """The maps of some classes, made together: what is read of a slide's tiles is read for all of them.

    Args:
        results: the slide's tiles, row by row.
        classes: places of the classes in the labels.
        grid: the maps' pixels.

    Returns:
        For each class (rows, columns) uint8: 0 where nothing was classified, elsewhere 1 for a probability of
        0 to 255 for one of 1.
    """
    rows, columns = grid.shape
    weights, step = grid.weights, grid.pixels_a_stride
    deep = len(weights)
    out = np.zeros((len(classes), rows + deep, columns), np.uint8)
    # Of the sums, the last of which is that of the weights, no more is kept than the rows that the tiles at
    # work reach.
    sums = np.zeros((len(classes) + 1, deep, columns + deep), np.float32)
    top = 0
    for y, tiles in groupby(results, lambda result: result.tile.y):
        at = y // grid.stride * step
        moved = min(at - top, deep)
        out[:, top : top + moved] = _levels(sums[:, :moved, :columns])
        sums[:, : deep - moved] = sums[:, moved:].copy()
        sums[:, deep - moved :] = 0
        top = at
        for result in tiles:
            if not result.error:
                left = result.tile.x // grid.stride * step
                shares = np.array([*(result.probabilities[each] for each in classes), 1.0], np.float32)
                sums[:, :, left : left + deep] += weights * shares[:, None, None]
    out[:, top : top + deep] = _levels(sums[:, :, :columns])
    return [*out[:, :rows]]


def in_turns(classes: int, grid: MapGrid) -> Iterator[range]:
    """The classes in parts whose maps are made together: as many as are some megabytes in all."""
    rows, columns = grid.shape
    together = max(1, _TOGETHER // (rows * columns))
    for first in range(0, classes, together):
        yield range(first, min(first + together, classes))


def write_map(path: Path, found: NDArray[np.uint8], microns: float | None, name: str) -> None:
    """Writes a map as a tiled OME-TIFF with its pyramid in SubIFDs, whole or not at all.

    Args:
        path: the file.
        found: one of what `class_maps` gives.
        microns: the side of a map pixel; None where it is not known.
        name: the image's name; with the pixels it makes the file's identifier.

    Raises:
        TargetError: it cannot be written.
    """
    from tifffile import TiffWriter

    levels = [found]
    while max(levels[-1].shape) > _TILE:
        levels.append(_halved(levels[-1]))
    size = {} if microns is None else {f"PhysicalSize{axis}": microns for axis in "XY"}
    unit = {} if microns is None else {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    content = hashlib.sha256(found.tobytes()).hexdigest()
    identifier = uuid.uuid5(uuid.NAMESPACE_OID, f"{content}/{name!a}")
    name = shown(as_utf8(name).decode())  # XML knows no control characters
    metadata = {"axes": "YX", "Name": name, "UUID": f"urn:uuid:{identifier}", **size, **unit}
    settings: dict[str, Any] = {"tile": (_TILE, _TILE), "compression": "deflate", "photometric": "minisblack"}
    buffer = io.BytesIO()
    with TiffWriter(buffer, ome=True) as writer:
        writer.write(found, subifds=len(levels) - 1, metadata=metadata, software="msmamba", **settings)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, metadata=None, software="msmamba", **settings)
    write_atomically(path, buffer.getvalue())


def undecided_map(results: Iterable[TileResult], grid: MapGrid) -> NDArray[np.bool_]:
    """(rows, columns): where the guard decides less than half of what tiles say, by their weights."""
    withheld = (
        replace(result, probabilities=(float(not result.decided),)) for result in results if not result.error
    )
    found: NDArray[np.bool_] = class_maps(withheld, [0], grid)[0] > _HALF
    return found


def overlay(
    found: NDArray[np.uint8],
    index: int,
    grid: MapGrid,
    small: Thumbnail,
    hatched: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """A map over the slide's thumbnail in grey: the more likely the class, the more of its colour.

    In grey, since a stain would pass for a class, and change the colour of one.

    Args:
        found: one of what `class_maps` gives.
        index: place of the class in the labels, for its colour.
        grid: the map's pixels.
        small: the thumbnail.
        hatched: (rows, columns), what is to be hatched (`undecided_map`).
    """
    picture = picture_of(small).convert("L").convert("RGB")
    height, width = small.damaged.shape
    covered = [side * small.scale / grid.pixel for side in (width, height)]  # map pixels below the thumbnail
    rows, columns = found.shape
    box = (0.0, 0.0, min(covered[0], columns), min(covered[1], rows))
    fine = Image.fromarray(found).resize(picture.size, Image.Resampling.NEAREST, box)
    alpha = fine.point([0, *(round(value * 0.8) for value in range(255))])
    picture.paste(colour_of(index), mask=alpha)
    if hatched is not None:
        where = Image.fromarray(hatched).resize(picture.size, Image.Resampling.NEAREST, box)
        down, along = np.indices((picture.height, picture.width))
        lines = (down + along) % _HATCH < _LINE
        picture.paste(_HATCH_COLOUR, mask=Image.fromarray(np.asarray(where) & lines))
    return picture


def picture_of(small: Thumbnail) -> Image.Image:
    """The thumbnail, small enough for a page."""
    picture = Image.fromarray(small.pixels)
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
    return picture


def _levels(sums: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Weighted means as levels of 8 bits, 0 where there is no weight; the last sums are those of weights."""
    weighted, weights = sums[:-1], sums[-1:]
    there = weights > 0
    means = np.divide(weighted, weights, out=np.zeros_like(weighted), where=there)  # of each class
    return np.where(there, 1 + np.rint(means * 254), 0).astype(np.uint8)


def _halved(level: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half as large: the mean of what is classified in each square of four."""
    height, width = level.shape
    whole = np.pad(level, ((0, height % 2), (0, width % 2)))
    squares = whole.reshape(whole.shape[0] // 2, 2, -1, 2).astype(np.uint16)
    count = np.count_nonzero(squares, axis=(1, 3))
    return (squares.sum((1, 3)) // np.maximum(count, 1)).astype(np.uint8)
