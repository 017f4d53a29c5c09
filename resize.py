"""The resize that is part of every model, in exact integers: pictures of any size to the network's square.

Libraries round and order a resize as they like, and change it: Pillow up to 12 and from 13 on answer with
pictures that differ by a grey level here and there, and a network answers differently to them. So the resize
is defined here, once, and everything that shows a picture to a network uses it: training, evaluation,
calibration, the runtime. `resize` below is the reference, and what runs where there is no compiled library;
`plugins.image_resize` gives the same bits, faster.

Dims: ``H`` and ``W`` pixels of the picture, ``S`` of the square; ``n`` pixels of a line, of which a part of
``length`` pixels from ``start`` on is brought to ``S``.

**One line.** Bilinear, with a support that grows with the reduction. In units of ``1 / (2 S)`` pixel, pixel
``x`` has its centre at ``(2 x + 1) S``, value ``i`` of the result at ``2 start S + (2 i + 1) length``, and a
pixel's weight falls from ``reach = 2 max(length, S)`` at no distance by one a unit, to no less than 0.
Weights become coefficients of 22 bits, ``c = round(2^22 weight / sum of weights)``, and the value is
``min(255, (sum of c * pixel + 2^21) >> 22)``; halves are rounded up. Pixels beyond the part but in reach
count, as long as the picture has them.

**The picture.** Along its rows, then along its columns, eight bits in between. The other way round where the
height shrinks, and by more than twice as many pixels as the width does (which may grow).

These are the bits of Pillow 13, the pinned version, with which msmamba's models were trained before. Pillow
10.3 to 12.1 always begins with the rows, 12.2 and 12.3 unless a picture is over a hundred times as high as
wide; they differ by a grey level in such tall pictures, and in no others. With this order the picture between
the passes is never large: always beginning with the rows, a strip of two pixels' width would need hundreds of
times its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from .errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box: TypeAlias = "tuple[int, int, int, int]"
"""A part of a picture in pixels: left, top, right, bottom."""

RULE = "bilinear-antialias-square-22bit"
"""The name of this definition in checkpoints and manifests."""

PILLOW_RULE = "bilinear-antialias-square"
"""What those from before it say, or mean where they say nothing: Pillow's resize, of whatever version."""

RULES = {
    RULE: "",
    PILLOW_RULE: (
        "its network was trained with Pillow's resize, of a version that it does not say: pictures are "
        "resized as by Pillow 13.0; if it was older, tall ones may differ by a grey level from training's"
    ),
}
"""The rules that are read, and what is to be said of networks that were trained by them."""

_BITS = 22


def resize(pixels: NDArray[np.uint8], size: int, box: Box | None = None) -> NDArray[np.uint8]:
    """A picture, or a part of it, brought to a square.

    Args:
        pixels: (H, W, 3) uint8.
        size: ``S``, pixels.
        box: the part, at least one pixel, within the picture; None for all of it.

    Returns:
        (S, S, 3) uint8, contiguous.

    Raises:
        InputError: pixels, size or box are not that.
    """
    left, top, right, bottom = checked_box(pixels, size, box)
    height, width, _ = pixels.shape
    if columns_first(height, width, size):
        return _rows(_columns(pixels, top, bottom, size), left, right, size)
    return _columns(_rows(pixels, left, right, size), top, bottom, size)


def checked_box(pixels: NDArray[np.uint8], size: int, box: Box | None) -> Box:
    """The part of a picture that is to be resized.

    Raises:
        InputError: the pixels are not (H, W, 3) uint8, the size is below 1, or the box is no part of them.
    """
    picture = pixels.ndim == 3 and pixels.shape[2] == 3 and 0 not in pixels.shape and pixels.dtype == np.uint8
    if not picture or size < 1:
        raise InputError(
            f"the picture is {pixels.dtype} {pixels.shape}, to be resized to {size} pixels: expected uint8 "
            "(H, W, 3) and at least one pixel"
        )
    height, width, _ = pixels.shape
    left, top, right, bottom = box or (0, 0, width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(
            f"the box is {left} to {right} and {top} to {bottom}: expected a part of {width}x{height} pixels"
        )
    return left, top, right, bottom


def columns_first(height: int, width: int, size: int) -> bool:
    """Whether a picture of that size is resized along its columns before its rows; a part of it likewise."""
    return height - size > max(0, 2 * (width - size))


def coefficients(n: int, start: int, length: int, size: int, place: int) -> tuple[int, NDArray[np.int64]]:
    """What value ``place`` of a resized line is made of: the first pixel, and the coefficients from it on.

    Args:
        n: pixels of the line.
        start, length: the part of it.
        size: ``S``.
        place: the pixel of the output line, from 0 to S - 1.
    """
    reach = 2 * max(length, size)
    centre = 2 * start * size + (2 * place + 1) * length
    first = max(0, (centre - reach + size) // (2 * size))
    last = min(n, -((size - centre - reach) // (2 * size)))
    weights = reach - np.abs((2 * np.arange(first, last, dtype=np.int64) + 1) * size - centre)
    total = int(weights.sum())
    return first, ((weights << (_BITS + 1)) + total) // (2 * total)


def _rows(pixels: NDArray[np.uint8], left: int, right: int, size: int) -> NDArray[np.uint8]:
    """(H, W, 3) to (H, S, 3)."""
    return np.ascontiguousarray(_columns(pixels.transpose(1, 0, 2), left, right, size).transpose(1, 0, 2))


def _columns(pixels: NDArray[np.uint8], top: int, bottom: int, size: int) -> NDArray[np.uint8]:
    """(H, W, 3) to (S, W, 3)."""
    height, width, channels = pixels.shape
    lines = pixels.reshape(height, width * channels)
    resized = np.empty((size, width * channels), np.uint8)
    for place in range(size):
        first, factors = coefficients(height, top, bottom - top, size, place)
        sums = factors @ lines[first : first + len(factors)].astype(np.int64)
        resized[place] = np.minimum((sums + (1 << (_BITS - 1))) >> _BITS, 255)
    return resized.reshape(size, width, channels)
