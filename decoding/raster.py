"""What a picture's file holds, before any choice: ``H`` and ``W`` pixels as stored, ``C`` samples each."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from .directory import DirectoryError, directories

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_SIDE = 2
"""Smallest side of an image, in pixels: one pixel is a colour, and one row is a line, not a picture."""

_ORIENTATION = 274
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


@dataclass(frozen=True)
class Raster:
    """The samples of a picture, all at their stored values.

    Attributes:
        samples: (H, W, C) uint8 or uint16; 1 is grey or an index into ``palette``, 2 grey and alpha, 3 RGB,
            4 RGBA.
        palette: (N, 3) or (N, 4) uint8: the colours, of which the samples are indices.
        premultiplied: the colours were multiplied by alpha already.
        zero_is_white: grey that counts from white.
        white: the value of white where the file's own depth of 9 to 15 bits says it.
        significant_bits: how many bits of the samples are used, where the file says so.
        orientation: 1 to 8, as EXIF has it: how to turn the picture.
        notes: what decoding had to decide, one phrase each.
    """

    samples: NDArray[Any]
    palette: NDArray[np.uint8] | None = None
    premultiplied: bool = False
    zero_is_white: bool = False
    white: int | None = None
    significant_bits: int | None = None
    orientation: int = 1
    notes: tuple[str, ...] = ()


def damaged(name: str, what: str) -> ImageError:
    """The error of a file that is not whole."""
    return ImageError(f"{name} is truncated or corrupt: {what}")


def unsupported(name: str, what: str, instead: str) -> ImageError:
    """The error of a file that is whole, but of a kind that is not read."""
    return ImageError(f"{name} holds {what}: {instead}")


def check_sides(height: int, width: int, name: str, max_pixels: int) -> None:
    """Refuses what is too small to classify or has too many pixels.

    Raises:
        ImageError: a side below `MIN_SIDE`, or more than ``max_pixels`` in all.
    """
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{name} has {width}x{height} pixels: too small to classify, at least 2x2 are needed"
        )
    if height * width > max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} pixels: expected at most {max_pixels:,} in all: "
            "classify tiles of it instead"
        )


def orientation_of(exif: bytes, xmp: bytes, name: str) -> int:
    """The orientation that an EXIF block (a small TIFF file) says, else an XMP block, else 1.

    Raises:
        ImageError: the EXIF block is damaged.
    """
    if exif:
        try:
            first = next(directories(io.BytesIO(exif)), None)
            if first is not None and _ORIENTATION in first:
                return known_orientation(first.integer(_ORIENTATION))
        except (DirectoryError, struct.error) as error:
            raise damaged(name, f"its EXIF block: {error}") from error
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def known_orientation(value: int) -> int:
    """The orientation, or 1 where the value means none (some cameras write 0)."""
    return value if 1 <= value <= 8 else 1
