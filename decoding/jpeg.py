"""JPEG (ITU-T T.81): decoded by libjpeg-turbo, every warning of which is an error, since it means damage."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from ..errors import reason_of
from .directory import DirectoryError, directories, file_size
from .pillow import from_cmyk
from .raster import Raster, check_sides, damaged, orientation_of, unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xCA})
_DECODED = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_SCAN, _END = 0xDA, 0xD9
_NUMBER_OF_PICTURES = 0xB001
# What follows a scan's data: a marker that is no stuffed byte, no restart and no filling.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True)
class _Header:
    """What a JPEG says before its data, and of its scans."""

    height: int
    width: int
    components: int
    exif: bytes
    xmp: bytes
    pictures: int


def read_jpeg(file: BinaryIO, name: str, max_pixels: int) -> Raster:
    """The samples of a JPEG file; CMYK becomes RGB."""
    # More bytes than the samples of the largest picture allowed are no JPEG of one that is allowed.
    if file_size(file) > 4 * max_pixels + (1 << 26):
        raise damaged(name, "it is larger than any picture that is allowed")
    file.seek(0)
    content = file.read()
    header = _header(content, name, max_pixels)
    notes = [f"page 1 of {header.pictures}"] if header.pictures > 1 else []
    orientation = orientation_of(header.exif, header.xmp, name)
    if header.components == 4:
        notes.append("CMYK, converted without its colour profile")
        inks = _decoded(content, "CMYK", name)
        return Raster(from_cmyk(inks, inverted=True), orientation=orientation, notes=tuple(notes))
    samples = _decoded(content, {1: "GRAY", 3: "RGB"}[header.components], name)
    return Raster(samples, orientation=orientation, notes=tuple(notes))


def decoded_segment(tables: bytes, segment: bytes, coded_as_ycc: bool, name: str) -> NDArray[np.uint8]:
    """(H, W, 1) or (H, W, 3): a strip or tile of a TIFF file, a JPEG whose tables may stand elsewhere.

    Args:
        tables: a JPEG of tables alone, or nothing.
        coded_as_ycc: whether three components are YCbCr, which the TIFF's tags say and not the JPEG's own.
    """
    out = bytearray(b"\xff\xd8")
    for source in (tables, segment):
        if source and not source.startswith(b"\xff\xd8"):
            raise damaged(name, "a strip or tile is no JPEG")
        for marker, start, end in _segments(source, name) if source else ():
            if marker == _SCAN:
                out += struct.pack(">HH5sHHHB", 0xFFEE, 14, b"Adobe", 100, 0, 0, coded_as_ycc)
                out += source[start:]
                break
            if not 0xE0 <= marker <= 0xEF:  # what applications say, colours included
                out += source[start:end]
    content = bytes(out)
    header = _header(content, name, None)
    if header.components not in (1, 3):
        raise unsupported(name, f"JPEG of {header.components} components", "save it as RGB")
    return _decoded(content, {1: "GRAY", 3: "RGB"}[header.components], name)


def _decoded(content: bytes, colours: str, name: str) -> NDArray[np.uint8]:
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(content, colours, strict=True)
    except ValueError as error:
        raise damaged(name, reason_of(error)) from error


def _segments(content: bytes, name: str) -> Iterator[tuple[int, int, int]]:
    """The marker, begin and end of each segment, up to the end mark; scans without their data."""
    at = 2
    while True:
        start = at
        while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] == b"\xff":
            at += 1  # filling
        if at + 2 > len(content) or content[at] != 0xFF:
            raise damaged(
                name,
                "it ends before its end mark" if at + 2 > len(content) else "no marker where one must be",
            )
        marker = content[at + 1]
        if marker == _END:
            return
        if marker in _ALONE:
            at += 2
            continue
        if at + 4 > len(content):
            raise damaged(name, "it ends before its end mark")
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(content):
            raise damaged(name, "it ends inside a marker's segment")
        yield marker, start, end
        at = end
        if marker == _SCAN:
            following = _AFTER_SCAN.search(content, end)
            at = following.start() if following else len(content)


def _header(content: bytes, name: str, max_pixels: int | None) -> _Header:
    """What stands before the data; the scans must carry every coefficient of every component.

    Args:
        max_pixels: refuses more; None leaves that to the caller.
    """
    exif, xmp, pictures = b"", b"", 1
    frame: tuple[int, int, int] | None = None
    missing: dict[int, list[int]] = {}
    for marker, start, end in _segments(content, name):
        body = content[content.index(bytes([0xFF, marker]), start) + 4 : end]
        if marker in _FRAMES and frame is None:
            height, width, identities = _frame(marker, body, name)
            if max_pixels is not None:
                check_sides(height, width, name, max_pixels)
            frame = height, width, len(identities)
            # By component, the bits of each coefficient that are still to come.
            missing = {identity: [16] * 64 for identity in identities}
            progressive = marker in _PROGRESSIVE
        elif marker == _SCAN and frame is not None:
            _take_scan(body, missing, progressive, name)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            pictures = _pictures(body[4:])
    if frame is None:
        raise damaged(name, "it has no frame header")
    if any(any(bits) for bits in missing.values()):
        raise damaged(name, "scans are missing")
    return _Header(*frame, exif, xmp, pictures)


def _frame(marker: int, body: bytes, name: str) -> tuple[int, int, list[int]]:
    """Height, width and the components' identities."""
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise damaged(name, "its frame header is too short")
    precision, height, width, components = struct.unpack(">BHHB", body[:6])
    if marker not in _DECODED:
        raise unsupported(name, "lossless or hierarchical JPEG", "save it as PNG or TIFF")
    if precision != 8:
        raise unsupported(name, f"JPEG of {precision} bits", "save it as PNG or TIFF")
    if components not in (1, 3, 4):
        raise unsupported(name, f"JPEG of {components} components", "save it as RGB")
    return height, width, [body[6 + 3 * place] for place in range(components)]


def _take_scan(body: bytes, missing: dict[int, list[int]], progressive: bool, name: str) -> None:
    count = body[0] if body else 0
    if len(body) != 4 + 2 * count:
        raise damaged(name, "a scan's header is of another length than it says")
    first, last, shift = body[1 + 2 * count : 4 + 2 * count]
    for place in range(count):
        bits = missing.get(body[1 + 2 * place])
        if bits is None:
            raise damaged(name, "a scan of a component that there is not")
        if not progressive:
            bits[:] = [0] * 64
        else:
            bits[first : last + 1] = [shift & 15] * (min(last, 63) + 1 - first)


def _pictures(block: bytes) -> int:
    """How many pictures a file of several says it has; 1 where that cannot be read: the first one can."""
    try:
        first = next(directories(io.BytesIO(block)), None)
        return 1 if first is None else first.integer(_NUMBER_OF_PICTURES, 1)
    except (DirectoryError, struct.error):
        return 1
