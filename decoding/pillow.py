"""What Pillow decodes and converts, in blocks of rows: whole, its copies take several times the picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 1 << 18
"""Pixels that are worked on at once."""


def blocks(height: int, width: int, pixels: int = BLOCK) -> Iterator[slice]:
    """Runs of rows of about ``pixels`` in all."""
    rows = max(1, pixels // max(1, width))
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def pixels_of(image: Image.Image, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """(H, W, C) of an image that is decoded, in the type that NumPy has of it; bilevel as 0 and 255.

    Args:
        out: filled where given.
    """
    for rows in blocks(image.height, image.width):
        part = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
        if part.dtype == np.bool_:
            part = part.astype(np.uint8) * 255
        part = part.reshape(*part.shape[:2], -1)
        if out is None:
            out = np.empty((image.height, *part.shape[1:]), part.dtype)
        out[rows] = part
    assert out is not None  # an image has rows
    return out


def from_cmyk(inks: NDArray[Any], inverted: bool = False) -> NDArray[np.uint8]:
    """(H, W, 4) inks of 8 or 16 bits to (H, W, 3), by Pillow's rule."""
    out = np.empty((*inks.shape[:2], 3), np.uint8)
    for rows in blocks(*inks.shape[:2]):
        part = inks[rows]
        part = (part >> 8).astype(np.uint8) if part.dtype == np.uint16 else part
        part = 255 - part if inverted else np.ascontiguousarray(part)
        out[rows] = Image.fromarray(part, "CMYK").convert("RGB")
    return out
