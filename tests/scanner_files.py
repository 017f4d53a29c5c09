"""DICOM and CZI as scanners write them, byte by byte: no library here writes all that they may hold."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_LONG = frozenset({"OB", "SQ"})  # values whose length takes four bytes
_ROOT = "1.2.826.0.1.3680043.8.498."
_WHOLE_SLIDE, _EXPLICIT, _JPEG = (
    "1.2.840.10008.5.1.4.1.1.77.1.6",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.50",
)
Elements = Mapping[tuple[int, int], tuple[str, Any]]


def _value(kind: str, value: Any) -> bytes:
    if kind == "SQ":
        items = (_elements(item) for item in value)
        return b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    if kind == "OB":
        return bytes(value) + b"\0" * (len(value) % 2)
    if kind in ("US", "UL", "SL", "FL"):
        return struct.pack({"US": "<H", "UL": "<I", "SL": "<i", "FL": "<f"}[kind], value)
    text = "\\".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return (text + (("\0" if kind == "UI" else " ") * (len(text) % 2))).encode()


def _elements(found: Elements) -> bytes:
    out = b""
    for (group, element), (kind, value) in sorted(found.items()):
        content = _value(kind, value)
        length = struct.pack("<2xI" if kind in _LONG else "<H", len(content))
        out += struct.pack("<HH", group, element) + kind.encode() + length + content
    return out


class Frame(NamedTuple):
    """A tile of DICOM: its row and column among the tiles, the optical path from 0, and its pixels."""

    row: int
    column: int
    path: int
    pixels: np.ndarray


def tiles_of(pixels: np.ndarray, side: int) -> list[Frame]:
    """A picture in whole tiles, row by row, completed with black."""
    height, width, _ = pixels.shape
    whole = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)))
    return [
        Frame(row, column, 0, whole[row * side : (row + 1) * side, column * side : (column + 1) * side])
        for row in range(-(-height // side))
        for column in range(-(-width // side))
    ]


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    frames: Iterable[Frame] | None = None,
    *,
    side: int = 64,
    mpp: float = 0.5,
    series: int = 1,
    number: int = 1,
    sparse: bool = False,
    more: Elements | None = None,
) -> Path:
    """A level of a whole slide in DICOM (PS3.3, A.32.8), uncompressed.

    Args:
        path: the file; a series is all files of its folder that say the same ``series``.
        pixels: (height, width, 3) uint8.
        frames: in the order in which they are stored; those of `tiles_of` where None.
        side: of a frame, pixels.
        mpp: microns a pixel.
        series: its number.
        number: of the instance, from 1, other ones for each file.
        sparse: whether each frame says its place.
        more: elements that are added, or stand in the place of others.
    """
    height, width, _ = pixels.shape
    held = tiles_of(pixels, side) if frames is None else list(frames)
    paths = 1 + max(frame.path for frame in held)
    kind = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    spacing = {(0x0028, 0x0030): ("DS", [f"{mpp / 1000:.9g}"] * 2)}
    body: dict[tuple[int, int], tuple[str, Any]] = {
        (0x0008, 0x0008): ("CS", kind),
        (0x0008, 0x0016): ("UI", _WHOLE_SLIDE),
        (0x0008, 0x0018): ("UI", f"{_ROOT}{series}.{number}"),
        (0x0008, 0x0060): ("CS", "SM"),
        (0x0020, 0x000D): ("UI", f"{_ROOT}9"),
        (0x0020, 0x000E): ("UI", f"{_ROOT}{series}"),
        (0x0020, 0x0013): ("IS", number),
        (0x0020, 0x9311): ("CS", "TILED_SPARSE" if sparse else "TILED_FULL"),
        (0x0028, 0x0002): ("US", 3),
        (0x0028, 0x0004): ("CS", "RGB"),
        (0x0028, 0x0006): ("US", 0),
        (0x0028, 0x0008): ("IS", len(held)),
        (0x0028, 0x0010): ("US", side),
        (0x0028, 0x0011): ("US", side),
        (0x0028, 0x0100): ("US", 8),
        (0x0028, 0x0101): ("US", 8),
        (0x0028, 0x0102): ("US", 7),
        (0x0028, 0x0103): ("US", 0),
        (0x0048, 0x0006): ("UL", width),
        (0x0048, 0x0007): ("UL", height),
        (0x0048, 0x0105): ("SQ", [{(0x0048, 0x0106): ("SH", str(place))} for place in range(paths)]),
        (0x0048, 0x0302): ("UL", paths),
        (0x0048, 0x0303): ("UL", 1),
        (0x5200, 0x9229): ("SQ", [{(0x0028, 0x9110): ("SQ", [spacing])}]),
        (0x7FE0, 0x0010): ("OB", b"".join(frame.pixels.tobytes() for frame in held)),
    }
    if sparse:
        places = [
            {(0x0048, 0x021E): ("SL", side * each.column + 1), (0x0048, 0x021F): ("SL", side * each.row + 1)}
            for each in held
        ]
        body[0x5200, 0x9230] = "SQ", [{(0x0048, 0x021A): ("SQ", [place])} for place in places]
    head = {
        (0x0002, 0x0001): ("OB", b"\0\1"),
        (0x0002, 0x0002): body[0x0008, 0x0016],
        (0x0002, 0x0003): body[0x0008, 0x0018],
        (0x0002, 0x0010): ("UI", _EXPLICIT),
    }
    meta = _elements(head)
    meta = _elements({(0x0002, 0x0000): ("UL", len(meta))}) + meta
    path.write_bytes(bytes(128) + b"DICM" + meta + _elements({**body, **(more or {})}))
    return path


class Part(NamedTuple):
    """A sub-block of CZI.

    Attributes:
        pixels: (h, w) or (h, w, 3), uint8 or uint16, RGB.
        x: its left edge, pixels of level 0.
        y: its upper edge.
        scale: how many pixels of level 0 one of its own is wide.
        place: its place along other dimensions: ``S`` the scene, ``M`` the tile, ``Z``, ``H``, …
    """

    pixels: np.ndarray
    x: int
    y: int
    scale: int = 1
    place: Mapping[str, int] = {}


_KINDS = {("uint8", 2): 0, ("uint16", 2): 1, ("uint8", 3): 3, ("uint16", 3): 4}


def _segment(name: bytes, content: bytes) -> bytes:
    room = -(-len(content) // 32) * 32
    return name.ljust(16, b"\0") + struct.pack("<qq", room, len(content)) + content.ljust(room, b"\0")


def _entry(part: Part, at: int) -> bytes:
    height, width = part.pixels.shape[:2]
    sides = [("X", part.x, width * part.scale, width), ("Y", part.y, height * part.scale, height)]
    others = [(name, start, 1, 1) for name, start in {"C": 0, **part.place}.items()]
    kind = _KINDS[part.pixels.dtype.name, part.pixels.ndim]
    head = struct.pack("<2siqiiB5xi", b"DV", kind, at, 0, 0, 2 * (part.scale > 1), 2 + len(others))
    return head + b"".join(
        name.encode().ljust(4, b"\0") + struct.pack("<iifi", start, size, 0.0, stored)
        for name, start, size, stored in (*sides, *others)
    )


def write_czi_of(path: Path, parts: Sequence[Part], mpp: float = 0.5) -> Path:
    """CZI (Zeiss, DS_ZISRAW-FileFormat 1.2.2), uncompressed, of these very parts."""
    at, content, entries = 32 + 512, b"", b""
    for part in parts:
        pixels = part.pixels[..., ::-1] if part.pixels.ndim == 3 else part.pixels
        entry = _entry(part, at)
        entries += entry
        head = (struct.pack("<iiq", 0, 0, pixels.nbytes) + entry).ljust(256, b"\0")
        block = _segment(b"ZISRAWSUBBLOCK", head + np.ascontiguousarray(pixels).tobytes())
        content, at = content + block, at + len(block)
    directory = _segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(parts)) + entries)
    scaling = "".join(f'<Distance Id="{axis}"><Value>{mpp * 1e-6:g}</Value></Distance>' for axis in "XY")
    xml = f"<ImageDocument><Metadata><Scaling><Items>{scaling}</Items></Scaling></Metadata></ImageDocument>"
    metadata = _segment(b"ZISRAWMETADATA", struct.pack("<ii248x", len(xml), 0) + xml.encode())
    start = struct.pack("<i48xqqiq", 1, at, at + len(directory), 0, 0)
    path.write_bytes(_segment(b"ZISRAWFILE", start.ljust(512, b"\0")) + content + directory + metadata)
    return path
