"""BMP: uncompressed only, and whole; decoded by Pillow."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin

from .directory import file_size
from .pillow import pixels_of
from .raster import Raster, check_sides, damaged, unsupported

_RAW, _BITFIELDS, _ALPHA_BITFIELDS = 0, 3, 6
_COMPRESSIONS = {1: "RLE", 2: "RLE", 4: "JPEG", 5: "PNG"}


def read_bmp(file: BinaryIO, name: str, max_pixels: int) -> Raster:
    """The samples of a BMP file."""
    file.seek(0)
    start = file.read(34)
    if len(start) < 26:
        raise damaged(name, "it ends inside its header")
    data_at, header_size = struct.unpack_from("<II", start, 10)
    compression = _RAW
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", start, 18)
    elif header_size >= 40 and len(start) == 34:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", start, 18)
    else:
        raise damaged(name, "its header is of no kind of BMP")
    check_sides(abs(height), width, name, max_pixels)
    if compression in _COMPRESSIONS:
        raise unsupported(name, f"{_COMPRESSIONS[compression]} inside BMP", "save it as PNG")
    if compression not in (_RAW, _BITFIELDS, _ALPHA_BITFIELDS) or bits not in (1, 4, 8, 16, 24, 32):
        raise damaged(name, "its header is of no kind of BMP")
    size = abs(height) * ((width * bits + 31) // 32 * 4)
    if data_at < 14 + header_size or data_at + size > file_size(file):
        raise damaged(name, "it has fewer data than its rows need")
    file.seek(0)
    image = BmpImagePlugin.BmpImageFile(file)
    image.load()
    samples = pixels_of(image)
    if image.mode != "P":
        return Raster(samples)
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    if int(samples.max()) >= len(palette):
        raise damaged(name, "a pixel's number is not in the palette")
    return Raster(samples, palette)
