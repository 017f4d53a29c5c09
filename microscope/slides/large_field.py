"""PNG and JPEG that are too large to be decoded in memory: decoded once, row by row, into a file of pixels.

Neither can be read in parts: what stands in the middle depends on all that stands before. libvips decodes
them from top to bottom and keeps a few rows. The file has no name, so it is gone with the process, however
that ends; regions are read from it, not mapped, so that what is in memory does not grow with the picture.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from ...data.scale import Scale
from ...errors import ImageError, reason_of
from ...files import open_file
from ...images import MAX_PIXELS, PartsSeen
from .slide import Bounds, Level, check_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 64  # decoded at once
_SPARE = 1 << 26  # bytes of the disk that are left free
_UNREADABLE = (SyntaxError, ValueError, OSError, KeyError, IndexError, TypeError)
_READERS = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
)


@dataclass(frozen=True)
class Header:
    """What a PNG or JPEG says of itself.

    Attributes:
        width: pixels.
        height: pixels.
        in_passes: it is interlaced or progressive: it comes in passes over the whole picture.
        orientation: as EXIF numbers it; 1 is upright.
        scale: what its dots an inch are worth.
    """

    width: int
    height: int
    in_passes: bool
    orientation: int
    scale: Scale

    @property
    def is_large(self) -> bool:
        """Whether it has more pixels than are decoded in memory."""
        return self.width * self.height > MAX_PIXELS


def header_of(path: Path) -> Header | None:
    """The header of a PNG or JPEG; None of anything else, and of what is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        start = file.read(8)
        file.seek(0)
        reader = next((each for magic, each in _READERS if start.startswith(magic)), None)
        if reader is None:
            return None
        with suppress(*_UNREADABLE), reader(file) as found:
            exif = Image.Exif()
            exif.load(found.info.get("exif", b""))  # `getexif` of a PNG would decode all of it
            return Header(
                *found.size,
                bool(found.info.get("interlace") or found.info.get("progressive")),
                int(exif.get(0x0112, 1)),
                Scale.of_dots(found.info.get("dpi")),
            )
    return None


class LargeField:
    """A slide of one level whose pixels are in a file without a name, shared by all its handles.

    Args:
        path: a PNG or JPEG.
        header: its header.
        white_level: the value of white in 16-bit pictures.
        scratch: the folder for that file, three bytes a pixel; the system's own for such where None.

    Raises:
        ImageError: it cannot be read from top to bottom, is damaged, there is no room for its pixels, or
            pyvips is not installed.
    """

    reader = "libvips"

    def __init__(self, path: Path, header: Header, white_level: int, scratch: Path | None = None) -> None:
        self.path = path
        self.scale = header.scale
        self.levels: tuple[Level, ...] = (Level(header.width, header.height, 1.0),)
        self.bounds = Bounds(0, 0, header.width, header.height)
        pixels = f"'{path}' has {header.width} x {header.height} pixels"
        if header.in_passes:
            raise ImageError(
                f"{pixels} and comes in passes over all of them (interlaced or progressive): save it without"
            )
        if header.orientation not in (0, 1):
            raise ImageError(
                f"{pixels} and is stored turned (orientation {header.orientation}): save it upright"
            )
        needed = header.width * header.height * 3
        folder = Path(tempfile.gettempdir()) if scratch is None else scratch
        free = shutil.disk_usage(folder).free - _SPARE
        if free < needed:
            raise ImageError(
                f"{pixels}: while it is read, '{folder}' has to hold {needed / 1e9:.1f} GB, and has room for "
                f"{max(free, 0) / 1e9:.1f}"
            )
        seen = PartsSeen(white_level)
        self._position = threading.Lock()
        self._pixels: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # `close` closes it
        try:
            for rows in _decoded(path, header, seen):
                self._pixels.write(rows.data)
            self._pixels.flush()
            self.notes = seen.notes
        except OSError as error:
            self.close()
            why = reason_of(error)
            raise ImageError(f"{pixels}, which '{folder}' cannot hold while it is read: {why}") from error
        except BaseException:  # raised again: an interrupt, too, is to leave no file open
            self.close()
            raise

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A region out of the file; see `Slide.read`."""
        check_region(self, level, x, y, width, height)
        stride = self.levels[level].width * 3
        out = np.empty((height, width, 3), np.uint8)
        for row, pixels in enumerate(out, start=y):
            content = self._read_at(row * stride + x * 3, width * 3)
            pixels[:] = np.frombuffer(content, np.uint8).reshape(width, 3)
        return out

    def _read_at(self, offset: int, size: int) -> bytes:
        """Bytes of the file, for any thread at any time."""
        file = self._pixels.fileno()
        if sys.platform == "win32":
            with self._position:  # which every read there moves
                os.lseek(file, offset, os.SEEK_SET)
                return os.read(file, size)
        return os.pread(file, size, offset)

    def reopened(self) -> LargeField:
        """The same field: reading it moves nothing."""
        return self

    def close(self) -> None:
        """Frees the file."""
        self._pixels.close()


def _decoded(path: Path, header: Header, seen: PartsSeen) -> Any:
    """The picture's rows, some at once: (h, width, 3) uint8 by the rules of `msmamba.images`."""
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise ImageError(
            f"'{path}' has {header.width} x {header.height} pixels, which needs libvips ({error}): "
            "pip install 'msmamba[fields]'"
        ) from error
    try:
        image = pyvips.Image.new_from_file(os.fspath(path), access="sequential", fail_on="warning")
        if image.bands > 4 or (image.bands == 4 and image.interpretation == "cmyk"):
            raise ImageError(f"'{path}' holds {image.interpretation}: expected grey or RGB")
        if (image.width, image.height) != (header.width, header.height):
            raise ImageError(f"'{path}' is damaged: it is of another size than its header says")
        dtype = {"uchar": np.uint8, "ushort": np.uint16}[image.format]
        region = pyvips.Region.new(image)
        for top in range(0, image.height, _ROWS):
            high = min(_ROWS, image.height - top)
            content = np.frombuffer(region.fetch(0, top, image.width, high), dtype)
            rows = content.reshape(high, image.width, image.bands)
            # No picture is a single pixel high, but what is left of it at the end may be.
            whole = np.concatenate([rows, rows]) if high == 1 else rows
            yield seen.read(whole)[:high]
    except (pyvips.Error, KeyError) as error:
        message = " ".join(str(error).split())
        raise ImageError(f"'{path}' cannot be read: {message}") from error
