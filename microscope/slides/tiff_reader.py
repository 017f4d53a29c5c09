"""TIFF of any size through tifffile: OME-TIFF, BigTIFF, pyramids in pages or SubIFDs, tiles or strips.

No more is decoded than the tiles or strips under a region. The handles of a slide keep the last ones
together, at least those that a row of tiles across the slide lies in: else each tile would decode them anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from ...data.scale import Scale, ome_pixels, planes_of
from ...decoding.directory import MOST_DIRECTORIES, Directory, DirectoryError, directories
from ...decoding.tiff import largest_picture
from ...errors import ImageError
from ...files import open_file
from ...images import MAX_PIXELS, PartsSeen
from .slide import Bounds, Level, check_is_there, check_region, is_copy

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEPT, _MOST_KEPT = 192 << 20, 512 << 20  # bytes of decoded tiles or strips that a slide's handles keep
_LARGEST_SEGMENT = 256 << 20
_AXES = ("YX", "YXS", "SYX")
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_UNKNOWN, _MULTIPLIED, _ALPHA = 0, 1, 2  # what a sample beside the colours is
_JPEG = frozenset({6, 7, 33007, 34892})
_CONVERTED = _JPEG | {33003, 33005, 34712}  # JPEG 2000 too: what comes out of the decoder is RGB
_BY_OPENSLIDE = frozenset({1, 5, 7, 8, 32773, 32946, 50000})  # of plain TIFF, by its libtiff
_KILOBYTE = 1024
_TILE_SIDES, _DESCRIPTION, _HAMAMATSU = (322, 323), 270, 65420
_KIND, _WIDTH, _HEIGHT = 254, 256, 257
_REDUCED, _MASK = 1, 4
_SIDES = (_WIDTH, _HEIGHT, 278, *_TILE_SIDES)
_END_OF_OME = 40  # bytes, in which tifffile looks for the end of OME-XML: ten characters
_MODULO, _OF_MODULO = "Along", (("Start", 0), ("End", 0), ("Step", 1))
_COUNTS, _PLANES = ("SizeC", "SizeZ", "SizeT"), ("IFD", "PlaneCount")


class _Segments:
    """Decoded tiles or strips, the last ones that the handles of a slide have asked for, on any thread."""

    def __init__(self) -> None:
        self._room = _KEPT
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._lock = Lock()
        self._turns: dict[tuple[int, int], Lock] = {}

    def make_room(self, size: int) -> None:
        """Keeps at least so many bytes from now on, within bounds."""
        self._room = max(self._room, min(size, _MOST_KEPT))

    def of(self, key: tuple[int, int], decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """One by its level and place; where several threads want one that is not there, the first decodes."""
        with self._lock:
            if (found := self._found(key)) is not None:
                return found
            turn = self._turns.setdefault(key, Lock())
        with turn:
            with self._lock:
                if (found := self._found(key)) is not None:
                    return found
            try:
                segment = decode()
                self._keep(key, segment)
            finally:
                with self._lock:
                    self._turns.pop(key, None)
        return segment

    def _found(self, key: tuple[int, int]) -> NDArray[Any] | None:
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return found

    def _keep(self, key: tuple[int, int], segment: NDArray[Any]) -> None:
        with self._lock:
            if key not in self._kept:
                self._bytes += segment.nbytes
            self._kept[key] = segment
            while self._bytes > self._room and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


class TiffReader:
    """A slide that tifffile reads.

    Raises:
        ImageError: it is damaged, or its pixels are of a kind for which no colours are defined.
    """

    reader = "tifffile"

    def __init__(
        self,
        path: Path,
        white_level: int,
        page: int = 0,
        notes: tuple[str, ...] = (),
        segments: _Segments | None = None,
    ) -> None:
        """Opens it.

        Args:
            path: the file.
            white_level: the value of white in 16-bit pictures.
            page: the place of the picture among the file's pages.
            notes: what there is to say of other pictures in the file.
            segments: the decoded parts that another handle of the slide keeps; None begins anew.
        """
        self.path = path
        self._white_level = white_level
        self._page = page
        self._other_notes = notes
        check_is_there(path)
        self._tiff = _opened(path)
        try:
            self._pages, left_out = self._pyramid()
            for each in self._pages:
                self._refuse_unknown_colours(each)
                self._refuse_missing_decoder(each)
                self._refuse_missing_parts(each)
            first, bits = self._pages[0], self._pages[0].bitspersample
            extras = _extras(first)
            if extras == (_UNKNOWN,):
                left_out.append("a fourth channel of unknown meaning left out")
            self._notes = (*notes, *left_out)
            self._seen = PartsSeen(
                white_level,
                zero_is_white=first.photometric == _MIN_IS_WHITE,
                premultiplied=extras == (_MULTIPLIED,),
                white=(1 << bits) - 1 if 8 < bits < 16 else None,
                absent=_absent(first),
            )
            self.scale = _scale(self._tiff, self._page, first)
            width = self._pages[0].imagewidth
            self.levels = tuple(
                Level(page.imagewidth, page.imagelength, width / page.imagewidth) for page in self._pages
            )
            self.bounds = Bounds(0, 0, width, self._pages[0].imagelength)
        except ImageError:
            self.close()
            raise
        except Exception as error:  # tifffile meets damage with whatever it stumbles over
            self.close()
            raise _damaged(path, error) from error
        self._segments = segments or _Segments()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A region out of the tiles or strips below it; see `Slide.read`."""
        check_region(self, level, x, y, width, height)
        page = self._pages[level]
        samples, planes = page.samplesperpixel, page.samplesperpixel if page.planarconfig == 2 else 1
        out = np.empty((height, width, samples), page.dtype)
        high, wide = _segment_shape(page)
        across, down = -(-page.imagewidth // wide), -(-page.imagelength // high)
        rows = (y + height - 1) // high - y // high + 1
        self._segments.make_room(rows * across * high * wide * samples * page.dtype.itemsize)
        for plane in range(planes):
            into = out[..., plane : plane + 1] if planes > 1 else out
            for row in range(y // high, (y + height - 1) // high + 1):
                for column in range(x // wide, (x + width - 1) // wide + 1):
                    segment = self._segment(level, (plane * down + row) * across + column)
                    top, left = row * high, column * wide
                    y0, y1 = max(y, top), min(y + height, top + high)
                    x0, x1 = max(x, left), min(x + width, left + wide)
                    into[y0 - y : y1 - y, x0 - x : x1 - x] = segment[
                        y0 - top : y1 - top, x0 - left : x1 - left
                    ]
        if page.bitspersample < 8:
            out *= 255 // ((1 << page.bitspersample) - 1)
        if _extras(page) == (_UNKNOWN,):
            out = out[..., :3]
        # No picture is a single pixel wide, but what is left of a tile at the border may be.
        whole = np.pad(out, ((0, height == 1), (0, width == 1), (0, 0)), "edge")
        return self._seen.read(whole)[:height, :width]

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Slide.notes`."""
        return (*self._notes, *self._seen.notes)

    def reopened(self) -> TiffReader:
        """A handle of its own; see `Slide.reopened`."""
        return TiffReader(self.path, self._white_level, self._page, self._other_notes, self._segments)

    def close(self) -> None:
        """Frees the file and what is kept of it."""
        self._tiff.close()

    def _pyramid(self) -> tuple[list[Any], list[str]]:
        """The pages of the levels, the finest first, and what there is to say of others in their place.

        Raises:
            ImageError: it is a stack, or one of several planes.
        """
        base = self._tiff.pages[self._page].aspage()
        holding = (each for each in self._tiff.series if any(_is_at(page, self._page) for page in each))
        series = next(holding, None)  # OME-XML need not speak of every page
        axes, shape = (series or base).axes, (series or base).shape
        # Pages of one size that say nothing of each other ("I") are pictures of their own.
        if axes.removeprefix("I") not in _AXES:
            raise ImageError(
                f"'{self.path}' holds a picture with the axes {axes} of {shape}: expected one "
                f"plane, grey or RGB ({', '.join(_AXES)}): save the plane that is meant, or all channels "
                "as one picture in RGB, as a file of its own"
            )
        if self._tiff.is_ome and (series is None or series.kind != "ome"):
            self._refuse_one_of_several(base)
        levels = series.levels[1:] if series is not None and _is_at(series[0], self._page) else ()
        below = [level.pages[0].aspage() for level in levels]
        pages = sorted((base, *below), key=lambda page: page.imagewidth * page.imagelength, reverse=True)
        others = [page for page in pages if not _is_level(page, pages[0])]
        sides = ", ".join(f"{page.imagewidth} x {page.imagelength}" for page in others)
        note = f"smaller pictures that are no copies of the largest left out ({sides} pixels)"
        return [page for page in pages if page not in others], [note] if others else []

    def _refuse_one_of_several(self, page: Any) -> None:
        """What OME-XML calls a plane of a stack whose other planes are in other files."""
        said = ome_pixels(self._tiff.ome_metadata, self._page, page.imagewidth, page.imagelength)
        planes = min((planes_of(each, page.samplesperpixel) for each in said), default=1)
        if planes > 1:
            raise ImageError(
                f"'{self.path}' holds one of {planes} planes, by its OME-XML: expected one plane, grey or "
                "RGB: save all channels as one picture in RGB, as a file of its own"
            )

    def _segment(self, level: int, index: int) -> NDArray[Any]:
        """(h, w, samples): a decoded tile or strip; not to be changed."""
        return self._segments.of((level, index), lambda: self._decoded(level, index))

    def _decoded(self, level: int, index: int) -> NDArray[Any]:
        page = self._pages[level]
        try:
            self._tiff.filehandle.seek(page.dataoffsets[index])
            size = page.databytecounts[index]
            content = self._tiff.filehandle.read(size)
            if len(content) != size:
                raise ValueError("the file ends before it")
            tables = (
                {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
                if page.compression in _JPEG
                else {}
            )
            decoded = page.decode(content or None, index, _fullsize=page.is_tiled, **tables)[0]
        except Exception as error:  # each codec meets damage in its own way
            what = "tile" if page.is_tiled else "strip"
            raise ImageError(
                f"'{self.path}' cannot be read: {what} {index} of level {level}: {error}"
            ) from error
        if decoded is None:  # nothing was scanned there
            shape = (*_segment_shape(page), 1 if page.planarconfig == 2 else page.samplesperpixel)
            return np.full(shape, _absent(page), page.dtype)
        segment: NDArray[Any] = decoded[0]
        return segment

    def _refuse_unknown_colours(self, page: Any) -> None:
        name = f"'{self.path}'"
        if page.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"{name} holds {page.dtype}: expected 8 or 16 bits a channel")
        colours, extras = _COLOURS.get(page.photometric), _extras(page)
        known = page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB)
        known = known or (page.photometric == _YCBCR and page.compression in _CONVERTED)
        # One unknown sample beside red, green and blue leaves them as they are; beside grey it may be colour.
        meant = {(), (_ALPHA,), (_MULTIPLIED,)} | ({(_UNKNOWN,)} if colours == 3 else set())
        if page.photometric == _MIN_IS_WHITE:
            meant -= {(_MULTIPLIED,)}
        if not (known and colours == page.samplesperpixel - len(extras) and extras in meant):
            raise ImageError(
                f"{name} has {page.samplesperpixel} channels in colours of the kind {int(page.photometric)}: "
                "expected grey, RGB or RGBA"
            )
        if page.bitspersample not in (2, 4, *range(8, 17)):
            raise ImageError(f"{name} has {page.bitspersample} bits a channel: expected 8 or 16")
        turned = page.tags.valueof("Orientation", 1)
        if turned != 1:
            raise ImageError(f"{name} is stored turned (orientation {int(turned)}): save it upright")
        high, wide = _segment_shape(page)
        if high * wide * page.samplesperpixel * page.dtype.itemsize > _LARGEST_SEGMENT:
            raise ImageError(
                f"{name} stores {wide} x {high} pixels in one piece, which cannot be read in parts: "
                "save it tiled"
            )

    def _refuse_missing_decoder(self, page: Any) -> None:
        """Else every tile would be called damaged, and the slide done."""
        from tifffile import TIFF

        try:
            TIFF.DECOMPRESSORS[page.compression]
        except KeyError as error:
            method = getattr(page.compression, "name", page.compression)
            raise ImageError(
                f"'{self.path}' is compressed by {method}, for which a decoder is missing here: pip install "
                "imagecodecs, or save it with deflate"
            ) from error

    def _refuse_missing_parts(self, page: Any) -> None:
        high, wide = _segment_shape(page)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        parts = planes * -(-page.imagewidth // wide) * -(-page.imagelength // high)
        if min(len(page.dataoffsets), len(page.databytecounts)) < parts:
            raise ImageError(
                f"'{self.path}' is damaged: {page.imagewidth:,} x {page.imagelength:,} pixels need {parts:,} "
                f"{'tiles' if page.is_tiled else 'strips'}, and it has {len(page.dataoffsets):,}"
            )


@dataclass(frozen=True)
class Stored:
    """How a TIFF stores its pictures.

    Attributes:
        is_plain: 8 bits a channel, colours alone, upright, of a compression and tiles that OpenSlide reads,
            levels in pages of their own, the largest first: what OpenSlide reads as it is.
        in_levels: it is OME-TIFF or has levels in SubIFDs, of which OpenSlide sees one.
        in_parts: its largest picture is tiled, or has more pixels than are decoded at once.
        page: the largest picture's place among the file's pages.
        notes: what there is to say of other pictures in it.
    """

    is_plain: bool
    in_levels: bool
    in_parts: bool
    page: int = 0
    notes: tuple[str, ...] = ()


def stored(path: Path) -> Stored | None:
    """What decides which reader a TIFF is for; None for a file that is no TIFF.

    Raises:
        ImageError: it is damaged, so that tifffile would never come back from it, or OpenSlide's allocation
            end the process.
    """
    with open_file(path) as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        _refuse_nonsense(file, path)
        number, notes = _page_of_picture(file, path)
    try:
        with _opened(path) as tiff:
            page = tiff.pages[number].aspage()
            pixels = page.imagewidth * page.imagelength
            in_levels = bool(tiff.is_ome or page.subifds)
            upright = page.tags.valueof("Orientation", 1) == 1
            # OpenSlide's libtiff takes the first channel of several for grey, and any fourth one for alpha.
            as_colours = page.bitspersample == 8 and _COLOURS.get(page.photometric) == page.samplesperpixel
            taken = page.dtype == np.uint8 and upright and page.compression in _BY_OPENSLIDE and as_colours
            taken = taken and page.imagedepth == 1
            is_plain = number == 0 and taken and not in_levels and not any(map(_is_odd, tiff.pages))
            is_plain = is_plain and all(_is_level(each, page) for each in tiff.pages if _is_below(each))
            return Stored(is_plain, in_levels, page.is_tiled or pixels > MAX_PIXELS, number, notes)
    except ImageError:
        raise
    except Exception as error:  # tifffile meets damage with whatever it stumbles over
        raise _damaged(path, error) from error


def _is_at(page: Any, place: int) -> bool:
    """Whether a page of a series, which may be in another file, has a place among the file's pages."""
    return page is not None and bool(page.index == place)


def _is_below(page: Any) -> bool:
    """Whether OpenSlide takes a page of plain TIFF for a level."""
    return bool(page.is_tiled and page.is_reduced)


def _is_level(page: Any, of: Any) -> bool:
    """Whether a page may be a coarser level of another: of its shape and its kind of samples."""
    if not is_copy(page.imagewidth, page.imagelength, of.imagewidth, of.imagelength):
        return False
    one, other = (
        (each.dtype, each.bitspersample, _COLOURS.get(each.photometric), _extras(each), each.photometric == 0)
        for each in (page, of)
    )
    return one == other and page.imagedepth == 1


def _absent(page: Any) -> int:
    """White, as a page's samples have it: what is seen where nothing was scanned."""
    return 0 if page.photometric == _MIN_IS_WHITE else (1 << page.bitspersample) - 1


def _extras(page: Any) -> tuple[int, ...]:
    """What the samples beside the colours are; unknown where the file does not say."""
    beside = page.samplesperpixel - _COLOURS.get(page.photometric, page.samplesperpixel)
    return tuple(map(int, page.extrasamples)) or (_UNKNOWN,) * beside


def _is_odd(page: Any) -> bool:
    """Whether its tiles are stored as they are and are no whole kilobytes, which OpenSlide 4.0.1 refuses."""
    if not page.is_tiled or page.compression != 1:
        return False
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    return bool(page.tilewidth * page.tilelength * samples % _KILOBYTE)


def _page_of_picture(file: BinaryIO, path: Path) -> tuple[int, tuple[str, ...]]:
    """The place of the page with the largest picture, as a preview may be before it, and a note on others."""
    try:
        picture = largest_picture(file, f"'{path}'")[0]
        least = _pixels(picture) / 2  # previews and levels are smaller
        pages = [each for each in directories(file) if not each.is_sub]
        whole = [each for each in pages if not each.integer(_KIND, 0) & (_REDUCED | _MASK)]
        others = [each for each in whole if each.page != picture.page and _pixels(each) >= least]
    except DirectoryError:  # in Hamamatsu's files of over 4 GB, in which it is the first
        return 0, ()
    if not others:
        return picture.page, ()
    are = "another is" if len(others) == 1 else f"{len(others)} others are"
    read = f"page {picture.page + 1} of {len(pages)} is read, and {are} at least half as large"
    return picture.page, (f"{read}: to have another read, save it as a file of its own",)


def _pixels(directory: Directory) -> int:
    return directory.integer(_WIDTH, 0) * directory.integer(_HEIGHT, 0)


def _refuse_nonsense(file: BinaryIO, path: Path) -> None:
    """Reads what libraries trust: the way through the directories, sizes of tiles, numbers of planes."""
    is_hamamatsu = False  # whose files of over 4 GB have pointers of a kind of their own
    try:
        for directory in directories(file):
            is_hamamatsu = is_hamamatsu or _HAMAMATSU in directory
            if min(directory.integer(tag, 1) for tag in _SIDES) < 1:  # their types may be signed
                raise ImageError(f"'{path}' is damaged: a picture, strip or tile in it has no size")
            sides = [directory.integer(tag, 1) for tag in _TILE_SIDES]
            if 4 * sides[0] * sides[1] > _LARGEST_SEGMENT:
                raise ImageError(f"'{path}' is damaged: its tiles have {sides[0]:,} x {sides[1]:,} pixels")
            description = directory.content(_DESCRIPTION).rstrip(b"\0")
            if b"OME>" in description[-_END_OF_OME:]:
                _refuse_planes(description, path)
    except DirectoryError as error:
        if not is_hamamatsu:
            raise _damaged(path, error) from error


def _refuse_planes(xml: bytes, path: Path) -> None:
    """tifffile makes room for as many planes as OME-XML speaks of, and for as many steps along an axis."""
    try:
        for element in ElementTree.fromstring(xml).iter():
            size = max(
                prod(int(element.get(name, 1)) for name in _COUNTS),
                *(int(element.get(name, 1)) for name in _PLANES),
                _steps(element) if element.tag[:-1].endswith(_MODULO) else 1,
            )
            if size > MOST_DIRECTORIES:
                raise ImageError(f"'{path}' is damaged: its OME-XML speaks of {size:,.0f} planes")
    except (ElementTree.ParseError, ValueError, LookupError, ArithmeticError) as error:
        raise ImageError(f"'{path}' is damaged: its OME-XML cannot be read: {error}") from error


def _steps(element: ElementTree.Element) -> float:
    """How many there are from one end of an axis within another (Bio-Formats' "modulo") to the other."""
    start, end, step = (float(element.get(name, other)) for name, other in _OF_MODULO)
    return abs(end - start) / abs(step) + 1


def _opened(path: Path) -> Any:
    from tifffile import TiffFile

    try:
        return TiffFile(path, _multifile=False)  # OME-XML may name files anywhere, and pipes
    except Exception as error:  # as above
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ImageError:
    said = f"{error} is missing in it" if isinstance(error, KeyError) else str(error).strip()
    return ImageError(f"'{path}' is damaged: {said or type(error).__name__}")


def _segment_shape(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _scale(tiff: Any, place: int, page: Any) -> Scale:
    if tiff.is_ome:
        return Scale.of_ome(tiff.ome_metadata, place, page.imagewidth, page.imagelength)
    across, down = (_fraction(page.tags.valueof(f"{axis}Resolution", (0, 1))) for axis in "XY")
    unit = int(page.tags.valueof("ResolutionUnit", 2))  # TIFF's own default: an inch
    return Scale.of_resolution(across, down, unit, page.description)


def _fraction(value: tuple[int, int]) -> float:
    return value[0] / value[1] if value[1] else 0.0
