"""Zeiss's CZI through pylibCZIrw: all scenes on one canvas, as ZEN shows them, on white.

Levels are those that the file holds: what libCZI makes itself of a finer one it takes pixel by pixel, without
averaging.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from ...data.scale import Scale
from ...errors import ImageError
from ...files import open_file
from ...images import PartsSeen
from .slide import Bounds, Level, check_is_there, check_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = b"ZISRAWFILE"
_KEPT = 48 << 20  # bytes of compressed parts that a handle keeps
_WHITE = (1.0, 1.0, 1.0)
_GREY, _COLOUR = ("Gray8", "Gray16"), ("Bgr24", "Bgr48")
_OTHERS = ("T", "Z", "C")


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
        self._seen = PartsSeen(white_level)
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
            self._scales = scales or self._stored_scales()
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

    def _stored_scales(self) -> tuple[int, ...]:
        """How many pixels of level 0 one of each stored level is wide."""
        found = {1}

        def see(_: int, part: Any) -> bool:
            found.add(max(1, round(1 / part.get_zoom())))
            return True

        self._handle.enumerate_subblocks(see)
        return tuple(sorted(found))


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
