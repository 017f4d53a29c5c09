"""Which decoder a file belongs to, by its first bytes."""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import BinaryIO

from ..errors import ImageError, reason_of
from .bmp import read_bmp
from .directory import DirectoryError
from .jpeg import read_jpeg
from .png import read_png
from .raster import Raster, damaged
from .tiff import read_tiff

_DECODERS = (
    (b"\x89PNG\r\n\x1a\n", read_png),
    (b"\xff\xd8\xff", read_jpeg),
    (b"II*\0", read_tiff),
    (b"MM\0*", read_tiff),
    (b"II+\0", read_tiff),
    (b"MM\0+", read_tiff),
    (b"BM", read_bmp),
)

# What the decoders raise on broken files, found by feeding them mutated ones (tests/test_images.py).
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


def raster_of_file(file: BinaryIO, name: str, max_pixels: int) -> Raster:
    """The samples of an image file, recognised by its content.

    Args:
        file: open at any place, and seekable.
        name: what errors call the image.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ImageError: it is of no kind that is read, damaged, or too small or large.
    """
    file.seek(0)
    start = file.read(8)
    for magic, read in _DECODERS:
        if start.startswith(magic):
            try:
                return read(file, name, max_pixels)
            except DirectoryError as error:
                raise damaged(name, str(error)) from error
            except _DECODER_ERRORS as error:
                raise damaged(name, reason_of(error)) from error
    raise ImageError(f"{name} is not a PNG, JPEG, TIFF or BMP image that can be read")
