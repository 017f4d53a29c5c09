"""Scanners' formats through OpenSlide: SVS, NDPI, SCN, MRXS, BIF, DICOM, plain tiled TIFF pyramids."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...data.scale import Scale
from ...errors import ImageError, reason_of
from .slide import Bounds, Level, check_region, is_copy

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEPT = 96 << 20  # bytes of decoded tiles: of 256 pixels, a row across 90,000


class OpenSlideReader:
    """A slide that OpenSlide reads.

    Raises:
        ImageError: OpenSlide knows the format but cannot open this file.
    """

    def __init__(
        self, path: Path, notes: tuple[str, ...] = (), scale: Scale | None = None, cache: Any = None
    ) -> None:
        """Opens it; handles of one slide share a cache of decoded tiles.

        Args:
            path: the file.
            notes: what there is to say of it.
            scale: what the file says of its scale, where OpenSlide does not know all of that; None takes its.
            cache: another handle's.
        """
        from openslide import OpenSlideCache

        self.path = path
        self.notes = notes
        self._cache = OpenSlideCache(_KEPT) if cache is None else cache
        self._handle: Any = None
        handle = self._opened()
        found = handle.properties
        self.reader = f"OpenSlide ({found['openslide.vendor']})"
        across, down = (_number(found.get(f"openslide.mpp-{axis}")) for axis in "xy")
        self.scale = scale or Scale.of(across, down)
        self.levels = tuple(
            Level(width, height, scale)
            for (width, height), scale in zip(handle.level_dimensions, handle.level_downsamples, strict=True)
        )
        self.bounds = _bounds(found, self.levels[0])
        if found["openslide.vendor"] == "dicom":
            try:
                self._refuse_several(found)
            except ImageError:
                self.close()
                raise

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A region on white; see `Slide.read`."""
        from openslide import OpenSlideError

        check_region(self, level, x, y, width, height)
        scale = self.levels[level].scale
        handle = self._opened()
        try:
            region = handle.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except OpenSlideError as error:
            # A handle that has met an error answers with it for ever; another one may find the file gone.
            self.close()
            raise ImageError(f"'{self.path}' cannot be read at {x}, {y} of level {level}: {error}") from error
        if region.getchannel("A").getextrema()[0] == 255:
            return np.asarray(region.convert("RGB"))
        white = Image.new("RGBA", region.size, "white")
        return np.asarray(Image.alpha_composite(white, region).convert("RGB"))

    def reopened(self) -> OpenSlideReader:
        """A handle of its own; see `Slide.reopened`."""
        return OpenSlideReader(self.path, self.notes, self.scale, self._cache)

    def close(self) -> None:
        """Frees the file, and with the last handle the cache."""
        if self._handle is not None:
            self._handle.close()
        self._handle = None

    def _refuse_several(self, found: Mapping[str, str]) -> None:
        """DICOM with several frames for a place, or levels of several pictures, which OpenSlide mixes.

        Raises:
            ImageError: it is such a file.
        """
        first, *others = self.levels
        frames, rows, columns, paths = (
            max(1, int(found.get(f"dicom.{name}", "1")))
            for name in ("NumberOfFrames", "Rows", "Columns", "NumberOfOpticalPaths")
        )
        paths = max(paths, 1 + ("dicom.OpticalPathSequence[1].OpticalPathIdentifier" in found))
        tiles = -(-first.width // columns) * -(-first.height // rows)
        if paths > 1 or frames > tiles:
            raise ImageError(
                f"'{self.path}' holds several planes ({paths} optical paths, {frames} frames for {tiles} "
                "places): expected one: save the one that is meant as a series of its own"
            )
        strange = [each for each in others if not is_copy(each.width, each.height, first.width, first.height)]
        if strange:
            raise ImageError(
                f"'{self.path}' is of a series with several pictures, of {first.width} x {first.height} and "
                f"{strange[0].width} x {strange[0].height} pixels: move each, with its levels, into a folder "
                "of its own"
            )

    def _opened(self) -> Any:
        """The handle; a new one where the last has met an error."""
        from openslide import OpenSlide, OpenSlideError

        if self._handle is None:
            try:
                self._handle = OpenSlide(self.path)
            except (OpenSlideError, OSError) as error:
                raise ImageError(
                    f"'{self.path}' cannot be opened by OpenSlide: {reason_of(error)}"
                ) from error
            self._handle.set_cache(self._cache)
        return self._handle


def format_of(path: Path) -> str | None:
    """OpenSlide's name for a file's format, None for one that it does not know."""
    from openslide import OpenSlide, OpenSlideError

    with suppress(OpenSlideError, OSError):
        return OpenSlide.detect_format(path)
    return None


def _bounds(found: Mapping[str, str], level: Level) -> Bounds:
    """What QuPath shows by OpenSlide's properties: they count where all of them are whole numbers."""
    try:
        sides = (int(found[f"openslide.bounds-{side}"]) for side in ("x", "y", "width", "height"))
        left, top, width, height = sides
    except (KeyError, ValueError):
        return Bounds(0, 0, level.width, level.height)
    return Bounds(left, top, width, height)


def _number(text: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        return float(text)  # type: ignore[arg-type]  # None is suppressed with what is no number
    return None
