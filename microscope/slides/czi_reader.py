"""Zeiss's CZI through pylibCZIrw: all scenes on one canvas, as ZEN shows them, on white.

Levels are those that the file holds: what libCZI makes itself of a finer one it takes pixel by pixel, without
averaging.

What libCZI reads otherwise than it is stored, without a word, is refused: it takes the first of several
planes, samples of other bits as they are, and of 16-bit colour whose bytes are sorted a part.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from xml.etree import ElementTree

import numpy as np

from ...data.scale import Scale
from ...errors import ImageError
from ...files import open_file
from ...images import FULL_WHITE, PartsSeen
from .slide import Bounds, Level, check_is_there, check_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = b"ZISRAWFILE"
_KEPT = 48 << 20  # bytes of compressed parts that a handle keeps
_WHITE = (1.0, 1.0, 1.0)
_GREY, _COLOUR = ("Gray8", "Gray16"), ("Bgr24", "Bgr48")
_OTHERS = ("T", "Z", "C", "R", "I", "H", "V", "B")  # and rotations, illuminations, phases, views and blocks
_ZSTD1, _BGR48 = 6, 4  # as files number them
_SEGMENT, _DIRECTORY_AT = 32, 84  # a segment's head; where a file says where its directory is
_ENTRY, _DIMENSION = struct.Struct("<2siqii6xi"), 20


class _Part(NamedTuple):
    """A piece of the picture as it is stored, in pixels of level 0; ``scale`` of them to one of its own."""

    scale: int
    scene: int | None
    left: int
    top: int
    right: int
    bottom: int
    kind: str
    compression: int


class CziReader:
    """A slide that libCZI reads.

    Raises:
        ImageError: it is damaged, its pixels are of a kind for which no colours are defined, or pylibCZIrw is
            not installed.
    """

    reader = "pylibCZIrw"

    def __init__(self, path: Path, white_level: int, scales: tuple[int, ...] | None = None) -> None:
        self.path = path
        self._white_level = white_level
        self._seen = PartsSeen(white_level, absent=FULL_WHITE)
        self._open: Any = None
        check_is_there(path)
        try:
            from pylibCZIrw import czi
        except (ImportError, OSError) as error:
            raise ImageError(
                f"'{path}' is CZI, which needs pylibCZIrw ({error}): pip install 'msmamba[czi]'"
            ) from error
        cache = czi.CacheOptions(max_memory_usage=_KEPT, max_sub_block_count=1 << 20)
        try:
            self._open = czi.open_czi(str(path), cache_options=cache)
            self._handle = self._open.__enter__()
            self._pixel_type = self._known_pixels()
            box = self._handle.total_bounding_rectangle_no_pyramid
            self._scales = scales or self._stored_scales(self._parts())
            self.scale = _scale(self._handle.raw_metadata)
        except ImageError:
            self.close()
            raise
        except Exception as error:  # libCZI meets damage with whatever it stumbles over
            self.close()
            raise ImageError(f"'{path}' is damaged: {error}") from error
        self._left, self._top = box.x, box.y
        self.levels = tuple(Level(box.w // scale, box.h // scale, float(scale)) for scale in self._scales)
        self.bounds = Bounds(0, 0, box.w, box.h)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A region on white; see `Slide.read`."""
        check_region(self, level, x, y, width, height)
        scale = self._scales[level]
        place = (self._left + x * scale, self._top + y * scale, width * scale, height * scale)
        try:
            pixels = self._handle.read(
                roi=place,
                zoom=1 / scale,
                pixel_type=self._pixel_type,
                background_pixel=_WHITE,
            )
        except Exception as error:  # as above
            raise ImageError(f"'{self.path}' cannot be read at {x}, {y} of level {level}: {error}") from error
        # A third of a side may be rounded down; and no picture is a single pixel wide, but a region may be.
        below, beside = max(0, max(2, height) - pixels.shape[0]), max(0, max(2, width) - pixels.shape[1])
        pixels = np.pad(pixels[..., ::-1], ((0, below), (0, beside), (0, 0)), "edge")  # from BGR
        return self._seen.read(pixels)[:height, :width]

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Slide.notes`."""
        return self._seen.notes

    def reopened(self) -> CziReader:
        """A handle of its own; see `Slide.reopened`."""
        return CziReader(self.path, self._white_level, self._scales)

    def close(self) -> None:
        """Frees the file and what is kept of it."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = self._handle = None

    def _known_pixels(self) -> str:
        """The pixels' kind.

        Raises:
            ImageError: there are several planes, or they are of a kind that is not read.
        """
        sizes = {name: stop - start for name, (start, stop) in self._handle.total_bounding_box.items()}
        planes = {name: sizes[name] for name in _OTHERS if sizes.get(name, 1) > 1}
        if planes:
            found = ", ".join(f"{size} of {name}" for name, size in planes.items())
            raise ImageError(f"'{self.path}' holds several planes ({found}): expected one, grey or RGB")
        found = str(self._handle.get_channel_pixel_type(0))
        if found not in (*_GREY, *_COLOUR):
            raise ImageError(
                f"'{self.path}' holds pixels of the kind {found}: expected 8 or 16 bits, grey or RGB"
            )
        return found

    def _parts(self) -> list[_Part]:
        """All that is stored.

        Raises:
            ImageError: something of it is read otherwise than it is stored.
        """
        found: list[_Part] = []

        def see(_: int, part: Any) -> bool:
            box, scale = part.logicalRect, max(1, round(1 / part.get_zoom()))
            sides = (box.x, box.y, box.x + box.w, box.y + box.h)
            scene = part.coordinate.to_dict().get("S")
            found.append(_Part(scale, scene, *sides, part.pixelType.name, part.compressionModeRaw))
            return True

        self._handle.enumerate_subblocks(see)
        if others := {part.kind for part in found} - {self._pixel_type}:
            raise ImageError(
                f"'{self.path}' holds pixels of several kinds ({self._pixel_type} and "
                f"{', '.join(sorted(others))}): expected one"
            )
        packed = self._pixel_type == "Bgr48" and any(part.compression == _ZSTD1 for part in found)
        if packed and _is_packed(self.path):
            raise ImageError(
                f"'{self.path}' is colour of 16 bits, compressed by Zstandard with high and low bytes apart, "
                "which libCZI 6.1 reads wrongly: save it uncompressed, by JPEG XR, or in 8 bits"
            )
        return found

    def _stored_scales(self, parts: Sequence[_Part]) -> tuple[int, ...]:
        """How many pixels of level 0 one of each stored level is wide, of those that are there as a whole."""
        scales = {part.scale for part in parts}
        return tuple(sorted(scale for scale in scales if scale == 1 or _is_whole(parts, scale)))


def _is_whole(parts: Sequence[_Part], scale: int) -> bool:
    """Whether a level has the middle of every part of the scenes that have it.

    Of a scene without it libCZI takes a finer one; of one that has a part of it the rest is left white.
    What is left over at the border, less than two pixels of the level, may have been rounded away.
    """
    for scene in {part.scene for part in parts if part.scale == scale}:
        of_scene = [part for part in parts if part.scene == scene]
        level = np.array([part[2:6] for part in of_scene if part.scale == scale])
        left, top, right, bottom = level.T + 2 * scale * np.array([[-1], [-1], [1], [1]])
        for part in of_scene:
            if part.scale == 1:
                x, y = (part.left + part.right) / 2, (part.top + part.bottom) / 2
                if not ((left <= x) & (x < right) & (top <= y) & (y < bottom)).any():
                    return False
    return True


def _is_packed(path: Path) -> bool:
    """Whether 16-bit colour is compressed with its bytes sorted, the low ones before the high ones.

    By the file's directory, and the first bytes of such parts (Zeiss, DS_ZISRAW-FileFormat, version 1.2.2).
    """
    with open_file(path) as file:
        for kind, compression, position, length in _entries(file):
            if (kind, compression) != (_BGR48, _ZSTD1):
                continue
            file.seek(position + _SEGMENT)
            (metadata,) = struct.unpack("<i", file.read(4))
            file.seek(position + _SEGMENT + max(256, 16 + length) + metadata)
            size, chunk, sorted_bytes = file.read(3)
            if size == 3 and chunk == 1 and sorted_bytes & 1:
                return True
    return False


def _entries(file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
    """Kind of pixels, compression, position and length of the entry of each part in the directory."""
    file.seek(_DIRECTORY_AT)
    (at,) = struct.unpack("<q", file.read(8))
    file.seek(at + 24)
    (used,) = struct.unpack("<q", file.read(8))
    content = file.read(used)
    (count,) = struct.unpack_from("<i", content)
    at = 128
    for _ in range(count):
        _, kind, position, _, compression, dimensions = _ENTRY.unpack_from(content, at)
        length = _ENTRY.size + _DIMENSION * dimensions
        yield kind, compression, position, length
        at += length


def is_czi(path: Path) -> bool:
    """Whether a file is CZI, by its first bytes."""
    with open_file(path) as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _scale(xml: str) -> Scale:
    """The scale in the metadata, which is in metres."""
    said: dict[str, float] = {}
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return Scale.of(None, None)
    for distance in root.iterfind("./Metadata/Scaling/Items/Distance"):
        try:
            said[distance.get("Id", "")] = float(distance.findtext("Value", "0")) * 1e6
        except ValueError:
            continue
    return Scale.of(said.get("X") or None, said.get("Y") or None)
