"""TIFF 6.0 and BigTIFF by their tags: pictures are put together here, strip by strip or tile by tile.

Pillow reads TIFF too, but takes some scientific kinds for others (16-bit colour in separate planes for
interleaved, palettes of 8-bit entries for black) and a preview for the picture, without a word. So every tag
that changes what samples mean is looked at, and what has no defined meaning is refused. libtiff, by way of
Pillow, does no more than unpack LZW and Zstandard.
"""

from __future__ import annotations

import io
import lzma
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import ImageFile, TiffImagePlugin

from .directory import Directory, directories, read_exactly
from .jpeg import decoded_segment
from .pillow import blocks, from_cmyk, pixels_of
from .raster import Raster, check_sides, damaged, known_orientation, unsupported

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KIND, _OLD_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _STRIPS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_SIZES = (
    266,
    270,
    273,
    274,
    277,
    278,
    279,
)
_PLANES, _PREDICTOR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = (
    284,
    317,
    320,
    322,
    323,
    324,
    325,
)
_INKS, _EXTRAS, _FORMAT, _TABLES, _DEPTH = 332, 338, 339, 347, 32997

_REDUCED, _MASK = 1, 4

_NONE, _LZW, _JPEG, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD = 1, 5, 7, 8, 32773, 32946, 34925, 50000
_BY_LIBTIFF = frozenset({_LZW, _ZSTD})
_WITH_PREDICTOR = frozenset({_LZW, _DEFLATE, _OLD_DEFLATE, _LZMA, _ZSTD})
_OTHER_COMPRESSIONS = {
    **dict.fromkeys((2, 3, 4, 32771), "fax"),
    6: "old-style JPEG",
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((34676, 34677), "LogLuv"),
    32809: "ThunderScan",
    32909: "PixarLog",
    34661: "JBIG",
    34887: "LERC",
    34892: "lossy JPEG",
    50001: "WebP",
    34927: "WebP",
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
}
_SAVE = "save it without compression, or with LZW or deflate"

_WHITE_ZERO, _BLACK_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS_OF = {_WHITE_ZERO: 1, _BLACK_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_OTHER_PHOTOMETRICS = {
    4: "a mask of transparency",
    **dict.fromkeys((8, 9, 10), "L*a*b* colours"),
    **dict.fromkeys((32844, 32845), "LogLuv colours"),
    32803: "a camera's raw mosaic",
    34892: "a camera's raw colours",
    51177: "a depth map",
    52527: "a semantic mask",
}
_FORMATS = {2: "signed integers", 3: "floating-point values", 5: "complex values", 6: "complex values"}

_UNSPECIFIED, _PREMULTIPLIED, _ALPHA = 0, 1, 2
_BATCH = 1 << 24
_SIGNIFICANT_BITS = re.compile(rb"SignificantBits=[\"'](\d{1,3})[\"']")
_IMAGEJ_PLANES = re.compile(rb"\AImageJ=[^\n]*\n(?:[^\n]*\n)*?images=(\d{1,9})\n")
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def read_tiff(file: BinaryIO, name: str, max_pixels: int) -> Raster:
    """The samples of the largest picture of a TIFF file: of several as large, the first.

    Colours are left as they are, but for JPEG's, which become RGB, and CMYK.
    """
    picture, notes = largest_picture(file, name)
    return _Picture(file, picture, name, max_pixels).read(notes)


def largest_picture(file: BinaryIO, name: str) -> tuple[Directory, list[str]]:
    """The directory of the picture that `read_tiff` reads, and what is to be said of the others."""
    best: tuple[tuple[int, bool], Directory] | None = None
    pages = 0
    first = None
    for directory in directories(file):
        pages += not directory.is_sub
        kind = directory.integer(_KIND, 0)
        if _WIDTH not in directory or _HEIGHT not in directory or kind & _MASK:
            continue
        first = first or directory
        reduced = bool(kind & _REDUCED) or directory.integer(_OLD_KIND, 1) == 2
        rank = directory.integer(_WIDTH) * directory.integer(_HEIGHT), not reduced
        if best is None or rank > best[0]:
            best = rank, directory
    if best is None:
        raise damaged(name, "it holds no picture")
    chosen = best[1]
    notes = []
    if chosen.is_sub:
        notes.append(f"the picture below page {chosen.page + 1} of {pages}, the largest")
    elif pages > 1:
        notes.append(f"page {chosen.page + 1} of {pages}" + ("" if chosen is first else ", the largest"))
    elif planes := _IMAGEJ_PLANES.match(chosen.content(_DESCRIPTION)):
        notes += [f"page 1 of {int(planes[1])}"] if int(planes[1]) > 1 else []
    return chosen, notes


@dataclass(frozen=True)
class _Segment:
    """A strip or a tile: its place in the picture and in the file."""

    row: int
    column: int
    plane: int
    offset: int
    size: int


class _Picture:
    """One picture of a TIFF file. Making it looks at its tags; reading decodes it."""

    def __init__(self, file: BinaryIO, tags: Directory, name: str, max_pixels: int) -> None:
        self._file = file
        self._tags = tags
        self._name = name
        self.width, self.height = tags.integer(_WIDTH), tags.integer(_HEIGHT)
        check_sides(self.height, self.width, name, max_pixels)
        if tags.integer(_DEPTH, 1) != 1:
            raise unsupported(name, "a volume", "save its planes as pictures")
        self.samples = tags.integer(_SAMPLES, 1)
        self.bits = self._same(_BITS, 1, "bits")
        self._check_format()
        self.compression = tags.integer(_COMPRESSION, _NONE)
        self.photometric = tags.integer(_PHOTOMETRIC)
        self.predictor = tags.integer(_PREDICTOR, 1)
        self.planes = tags.integer(_PLANES, 1)
        if self.planes not in (1, 2):
            raise damaged(name, f"its planar configuration is {self.planes}")
        self.colours, self.extras = self._meaning()
        self._check_compression()
        # Samples that lie side by side, and how often.
        self.together, self.apart = (1, self.samples) if self.planes == 2 else (self.samples, 1)
        self._tile_height, self._tile_width, self._segments = self._layout(max_pixels)

    # ---- what the tags say

    def _same(self, tag: int, default: int, what: str) -> int:
        """The value that a tag gives to every sample alike."""
        values = self._tags.integers(tag, (default,))
        if len(set(values)) != 1:
            raise unsupported(self._name, f"samples of different {what}", "save them alike")
        if len(values) not in (1, self.samples):
            raise damaged(self._name, f"it gives {len(values)} times {what} for {self.samples} samples")
        return values[0]

    def _check_format(self) -> None:
        kind = self._same(_FORMAT, 1, "kinds")
        instead = "expected 8 or 16 bits a channel: save it as 8 or 16-bit first"
        if kind in _FORMATS:
            raise unsupported(self._name, _FORMATS[kind], instead)
        if kind not in (1, 4):
            raise damaged(self._name, f"its sample format is {kind}")
        if self.bits > 16:
            raise unsupported(self._name, f"{self.bits}-bit integers", instead)
        if self.bits not in (1, 2, 4, *range(8, 17)):
            raise unsupported(self._name, f"{self.bits} bits a channel", instead)

    def _meaning(self) -> tuple[int, tuple[int, ...]]:
        """How many samples are colours, and what the others are."""
        name = self._name
        if self.photometric in _OTHER_PHOTOMETRICS:
            raise unsupported(name, _OTHER_PHOTOMETRICS[self.photometric], "save it as RGB or grey")
        colours = _COLOURS_OF.get(self.photometric)
        if colours is None:
            raise unsupported(name, f"the colours {self.photometric}", "save it as RGB or grey")
        if self.samples < colours:
            raise damaged(name, f"it has {self.samples} samples for {colours} colours")
        extras = self._tags.integers(_EXTRAS, ()) or (_UNSPECIFIED,) * (self.samples - colours)
        if len(extras) != self.samples - colours or not set(extras) <= {_UNSPECIFIED, _PREMULTIPLIED, _ALPHA}:
            raise damaged(
                name, f"its {self.samples} samples are not {colours} colours and {len(extras)} others"
            )
        alphas = len(extras) - extras.count(_UNSPECIFIED)
        # One unknown sample beside red, green and blue leaves them as they are; beside grey it may be colour.
        if len(extras) > 1 or (extras and not alphas and self.photometric != _RGB):
            raise unsupported(name, f"{self.samples} channels", "save the ones to classify as grey or RGB")
        if extras and self.photometric not in (_WHITE_ZERO, _BLACK_ZERO, _RGB):
            raise unsupported(name, "a palette, CMYK or YCbCr with more channels", "save it as RGB")
        if self.photometric == _WHITE_ZERO and _PREMULTIPLIED in extras:
            raise unsupported(name, "grey from white that was multiplied by alpha", "save it as RGBA")
        if self.photometric == _PALETTE and self.bits > 8:
            raise unsupported(name, f"a palette of {self.bits} bits", "save it as RGB")
        if self.photometric == _CMYK and (self._tags.integer(_INKS, 1) != 1 or self.bits not in (8, 16)):
            raise unsupported(name, "inks other than CMYK of 8 or 16 bits", "save it as RGB")
        if self.photometric == _YCBCR and self._tags.integer(_COMPRESSION, _NONE) != _JPEG:
            raise unsupported(name, "YCbCr colours without JPEG", "save it as RGB")
        return colours, extras

    def _check_compression(self) -> None:
        name, compression = self._name, self.compression
        if compression not in (_NONE, _JPEG, _DEFLATE, _OLD_DEFLATE, _LZMA, _PACKBITS, *_BY_LIBTIFF):
            kind = _OTHER_COMPRESSIONS.get(compression, f"number {compression}")
            raise unsupported(name, f"a picture whose compression is {kind}", _SAVE)
        if compression == _ZSTD and not _libtiff_has_zstandard():
            raise unsupported(
                name, "a picture whose compression is Zstandard, which this Pillow lacks", _SAVE
            )
        if compression == _JPEG and (
            self.bits != 8
            or self.extras
            or self.photometric not in (_BLACK_ZERO, _RGB, _YCBCR)
            or (self.photometric == _YCBCR and self.planes == 2)
        ):
            raise unsupported(name, "JPEG of other than 8-bit grey, RGB or YCbCr", _SAVE)
        if self.predictor == 3:
            raise unsupported(name, "differences of floating-point values", _SAVE)
        if self.predictor not in (1, 2):
            raise damaged(name, f"its predictor is {self.predictor}")
        if self.predictor == 2 and (compression not in _WITH_PREDICTOR or self.bits not in (8, 16)):
            raise unsupported(name, f"differences of {self.bits}-bit samples, or uncompressed ones", _SAVE)
        order = self._tags.integer(_FILL_ORDER, 1)
        if order not in (1, 2) or (order == 2 and compression == _JPEG):
            raise damaged(name, f"its order of bits is {order}")
        self._bits_reversed = order == 2

    def _layout(self, max_pixels: int) -> tuple[int, int, list[_Segment]]:
        """Height and width of the tiles (a strip is one as wide as the picture), and all of them."""
        tags, name = self._tags, self._name
        tiled = _TILES in tags or _TILE_WIDTH in tags
        if tiled:
            height, width = tags.integer(_TILE_HEIGHT), tags.integer(_TILE_WIDTH)
            offsets, sizes = tags.integers(_TILES), tags.integers(_TILE_SIZES)
            if not (0 < height * width <= max(max_pixels, 1 << 16)):
                raise damaged(name, f"its tiles have {width}x{height} pixels")
        else:
            rows = tags.integer(_STRIP_ROWS, self.height)
            height, width = min(rows, self.height), self.width
            offsets, sizes = tags.integers(_STRIPS), tags.integers(_STRIP_SIZES)
            if height < 1:
                raise damaged(name, "its strips have no rows")
        places = [
            (row, column, plane)
            for plane in range(self.apart)
            for row in range(0, self.height, height)
            for column in range(0, self.width, width)
        ]
        if not len(places) == len(offsets) == len(sizes):
            raise damaged(
                name,
                f"it has {len(offsets)} {'tiles' if tiled else 'strips'} and {len(sizes)} sizes of them, "
                f"but its pixels need {len(places)}",
            )
        if not all(offsets) or not all(sizes):
            raise damaged(name, f"{'tiles' if tiled else 'strips'} are missing")
        segments = [_Segment(*place, *at) for place, *at in zip(places, offsets, sizes, strict=True)]
        return height, width, segments

    # ---- reading

    def read(self, notes: list[str]) -> Raster:
        samples = self._samples()
        if self.photometric == _CMYK:
            return Raster(
                from_cmyk(samples),
                orientation=self._orientation(),
                notes=(*notes, "CMYK, converted without its colour profile"),
            )
        if self.extras == (_UNSPECIFIED,):
            notes.append("a fourth channel of unknown meaning left out")
            samples = samples[..., : self.colours]
        palette = self._palette(notes) if self.photometric == _PALETTE else None
        zero_is_white = self.photometric == _WHITE_ZERO
        if self.bits < 8 and palette is None:
            samples *= 255 // ((1 << self.bits) - 1)
        return Raster(
            samples,
            palette,
            premultiplied=self.extras == (_PREMULTIPLIED,),
            zero_is_white=zero_is_white,
            white=(1 << self.bits) - 1 if 8 < self.bits < 16 else None,
            significant_bits=self._significant_bits(),
            orientation=self._orientation(),
            notes=tuple(notes),
        )

    def _orientation(self) -> int:
        return known_orientation(self._tags.integer(_ORIENTATION, 1))

    def _significant_bits(self) -> int | None:
        """How many of 16 bits are used, where OME's description says it."""
        found = _SIGNIFICANT_BITS.search(self._tags.content(_DESCRIPTION)) if self.bits == 16 else None
        return int(found[1]) if found and 8 <= int(found[1]) <= 16 else None

    def _palette(self, notes: list[str]) -> NDArray[np.uint8]:
        """(N, 3); entries have 16 bits, but some programs wrote 8, told (as by libtiff) by none above 255."""
        entries = np.array(self._tags.integers(_COLOURS), np.int64)
        if len(entries) != 3 << self.bits or entries.min() < 0 or entries.max() > 65535:
            raise damaged(self._name, f"its palette has {len(entries)} entries: expected {3 << self.bits}")
        colours = entries.reshape(3, -1).T
        if entries.max() < 256:
            notes.append("a palette of 8-bit entries")
            return colours.astype(np.uint8)
        return (colours >> 8).astype(np.uint8)

    def _samples(self) -> NDArray[Any]:
        """(H, W, C) uint8 or uint16."""
        out = np.empty((self.height, self.width, self.samples), np.uint8 if self.bits <= 8 else np.uint16)
        for segment, part in self._parts():
            rows = min(self._tile_height, self.height - segment.row)
            columns = min(self._tile_width, self.width - segment.column)
            place = slice(segment.row, segment.row + rows), slice(segment.column, segment.column + columns)
            channels = slice(segment.plane, segment.plane + self.together)
            out[(*place, channels)] = part[:rows, :columns]
        return out

    def _parts(self) -> Iterator[tuple[_Segment, NDArray[Any]]]:
        """Every strip or tile with its samples, (h, w, samples that lie together)."""
        if self.compression == _JPEG:
            tables = self._tags.content(_TABLES)
            for segment in self._segments:
                yield segment, self._from_jpeg(tables, segment)
            return
        for batch in self._batches():
            rows = self._rows(batch[0])
            contents = [self._content(segment) for segment in batch]
            if self.compression in _BY_LIBTIFF:
                unpacked: Iterable[Any] = _unpacked_by_libtiff(
                    contents, rows, self._row_bytes, self.compression
                )
            else:
                unpacked = [self._unpacked(content, rows * self._row_bytes) for content in contents]
            del contents
            for segment, content in zip(batch, unpacked, strict=True):
                yield segment, self._from_rows(content, rows)

    @property
    def _row_bytes(self) -> int:
        return (self._tile_width * self.together * self.bits + 7) // 8

    def _rows(self, segment: _Segment) -> int:
        """Rows in the file: a tile is always whole, the last strip is as long as it must be."""
        strips = self._tile_width == self.width and _TILES not in self._tags
        return min(self._tile_height, self.height - segment.row) if strips else self._tile_height

    def _batches(self) -> Iterator[list[_Segment]]:
        """Runs of segments of as many rows each, of some megabytes together."""
        most = max(1, _BATCH // max(1, self._tile_height * self._row_bytes))
        batch: list[_Segment] = []
        for segment in self._segments:
            if batch and (len(batch) == most or self._rows(segment) != self._rows(batch[0])):
                yield batch
                batch = []
            batch.append(segment)
        yield batch

    def _content(self, segment: _Segment) -> bytes:
        if self.compression == _NONE and segment.size < self._rows(segment) * self._row_bytes:
            raise damaged(self._name, "a strip or tile has fewer bytes than its rows need")
        size = segment.size
        if self.compression == _NONE:
            size = self._rows(segment) * self._row_bytes
        content = read_exactly(self._file, segment.offset, size, "a strip or tile")
        return content.translate(_REVERSED) if self._bits_reversed else content

    def _unpacked(self, content: bytes, size: int) -> bytes:
        """What a strip or tile holds: at least ``size`` bytes, and at most a whole one's."""
        if self.compression == _NONE:
            return content
        most = self._tile_height * self._row_bytes  # some programs fill the last strip up
        if self.compression == _PACKBITS:
            unpacked, whole = _from_runs(content, most), True
        else:
            unpacked, whole = _inflated(content, most, self.compression)
        if not (whole and size <= len(unpacked) <= most):
            raise damaged(self._name, "a strip or tile does not hold as many bytes as its rows need")
        return unpacked

    def _from_rows(self, content: Any, rows: int) -> NDArray[Any]:
        """(rows, w, samples that lie together), in this machine's byte order."""
        shape = rows, self._tile_width, self.together
        packed = np.frombuffer(content, np.uint8, rows * self._row_bytes).reshape(rows, -1)
        if self.bits == 8:
            samples: NDArray[Any] = packed.reshape(shape)
        elif self.bits == 16:
            samples = packed.view(f"{self._tags.order}u2").reshape(shape)
        else:
            samples = _from_bits(packed, self._tile_width * self.together, self.bits).reshape(shape)
        if self.predictor == 2:
            native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
            samples = np.cumsum(native, axis=1, dtype=native.dtype)  # differences, modulo the type's range
        return samples

    def _from_jpeg(self, tables: bytes, segment: _Segment) -> NDArray[np.uint8]:
        content = read_exactly(self._file, segment.offset, segment.size, "a strip or tile")
        samples = decoded_segment(tables, content, self.photometric == _YCBCR, self._name)
        rows, columns, channels = samples.shape
        if (
            channels != self.together
            or columns != self._tile_width
            or not self._rows(segment) <= rows <= self._tile_height
        ):
            raise damaged(self._name, f"a strip or tile holds {columns}x{rows} pixels of {channels} samples")
        return samples


def _inflated(content: bytes, most: int, compression: int) -> tuple[bytes, bool]:
    """What was packed, at most a byte more than ``most``, and whether it was whole, its checksum included."""
    if compression == _LZMA:
        unpacker = lzma.LZMADecompressor()
        return unpacker.decompress(content, most + 1), unpacker.eof
    inflater = zlib.decompressobj()
    unpacked = inflater.decompress(content, most + 1)
    if len(unpacked) <= most and not inflater.eof:  # only its checksum is left to read
        unpacked += inflater.decompress(inflater.unconsumed_tail, 1)
    return unpacked, inflater.eof


def _from_runs(content: bytes, most: int) -> bytes:
    """PackBits (TIFF 6.0, section 9), up to the run that exceeds ``most`` bytes."""
    out = bytearray()
    at = 0
    while at + 1 < len(content) and len(out) <= most:
        head = content[at]
        if head < 128:
            out += content[at + 1 : at + 2 + head]
            at += 2 + head
        else:
            if head > 128:
                out += content[at + 1 : at + 2] * (257 - head)
            at += 1 + (head > 128)
    return bytes(out)


def _from_bits(packed: NDArray[np.uint8], values: int, bits: int) -> NDArray[Any]:
    """(rows, values): samples of 1 to 15 bits, of which rows begin at whole bytes, the highest bit first."""
    out = np.empty((len(packed), values), np.uint8 if bits <= 8 else np.uint16)
    for rows in blocks(len(packed), values * bits):
        single = np.unpackbits(packed[rows], axis=1, count=values * bits)
        single = single.reshape(len(single), values, bits)
        part = out[rows]
        part[:] = 0
        for place in range(bits):
            part <<= 1
            part |= single[..., place]
    return out


class _Bytes(TiffImagePlugin.TiffImageFile):
    """A TIFF of bytes, not of pixels: their number was looked at already; Pillow's bound is for pixels."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(self)


def _unpacked_by_libtiff(
    contents: Sequence[bytes], rows: int, row_bytes: int, compression: int
) -> NDArray[np.uint8]:
    """(segments, rows * row_bytes): packed segments, as strips of bytes of a TIFF that cannot be mistaken."""
    count = len(contents)
    offsets_at = 8 + 2 + 12 * 9 + 4
    sizes_at = offsets_at + 4 * count
    data_at = sizes_at + 4 * count
    sizes = [len(content) for content in contents]
    offsets = [data_at + sum(sizes[:place]) for place in range(count)]
    tags = [(_WIDTH, row_bytes), (_HEIGHT, rows * count), (_BITS, 8), (_COMPRESSION, compression)]
    tags += [(_PHOTOMETRIC, _BLACK_ZERO), (_STRIPS, offsets[0] if count == 1 else offsets_at), (_SAMPLES, 1)]
    tags += [(_STRIP_ROWS, rows), (_STRIP_SIZES, sizes[0] if count == 1 else sizes_at)]
    out = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, value in tags:
        out += struct.pack("<HHII", tag, 4, count if tag in (_STRIPS, _STRIP_SIZES) else 1, value)
    out += struct.pack(f"<I{count}I{count}I", 0, *offsets, *sizes)
    image = _Bytes(io.BytesIO(b"".join([out, *contents])))
    image.load()
    return pixels_of(image).reshape(count, -1)


@lru_cache(maxsize=1)
def _libtiff_has_zstandard() -> bool:
    """Whether Pillow's libtiff was built with it: asked with four zeros in a frame."""
    frame = bytes.fromhex("28b52ffd 2004 210000 00000000")
    try:
        return not _unpacked_by_libtiff([frame], 2, 2, _ZSTD).any()
    except OSError:
        return False
