"""PNG (ISO/IEC 15948): every chunk's checksum is compared, and the data must be as long as the header says.

Pillow undoes the row filters, since it is quick at that, but gets the rows uncompressed ("stored"): what was
compressed is unpacked here, once, where its length and checksum are seen. It would keep but the high byte of
16-bit colours; two passes, or the header of a kind with as many bytes a pixel, give both.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import PngImagePlugin

from .pillow import pixels_of
from .raster import Raster, check_sides, damaged, orientation_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BLOCK = 1 << 20
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGBA: (8, 16),
}
# 8 bits that have as many bytes a pixel as 16 bits of these kinds: grey and alpha, RGBA.
_TWINS = {(16, _GREY): (8, _GREY_ALPHA), (16, _GREY_ALPHA): (8, _RGBA)}
# Adam7: where each pass begins and the steps it takes, in rows and columns.
_PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_KEPT = (b"PLTE", b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"acTL")
_LARGEST_KEPT = 1 << 24
_RAW_PROFILE = re.compile(rb"\n\s*(?:exif|APP1)\n\s*\d+\n([0-9a-fA-F\s]+)")


def read_png(file: BinaryIO, name: str, max_pixels: int) -> Raster:
    """The samples of a PNG file; of an animated one, the picture that viewers without animation show."""
    chunks = _chunks(file, name)
    kind, content = next(chunks, (b"", b""))
    if kind != b"IHDR" or len(content) != 13:
        raise damaged(name, "it does not begin with a header")
    width, height, depth, colour, compression, filtering, interlaced = struct.unpack(">IIBBBBB", content)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlaced > 1:
        raise damaged(name, "its header is of no kind of PNG")
    check_sides(height, width, name, max_pixels)
    if colour == _PALETTE or depth < 8:
        stored_as = depth, _GREY  # numbers of colours and small greys come out alike
    else:
        stored_as = _TWINS.get((depth, colour), (depth, colour))
    rows = _Rows(
        struct.pack(">IIBBBBB", width, height, *stored_as, 0, 0, interlaced),
        _raw_size(height, width, depth * _CHANNELS[colour], bool(interlaced)),
        name,
    )
    others: dict[bytes, bytes] = {}
    exif, xmp = b"", b""
    for kind, content in chunks:
        if kind == b"IDAT":
            rows.add(content)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            exif, xmp = exif or _raw_profile(kind, content), xmp or _xmp(kind, content)
        else:
            others[kind] = content
    stored = rows.stored()
    samples = _unfiltered(stored, depth, colour)
    pages = struct.unpack(">I", others[b"acTL"][:4])[0] if len(others.get(b"acTL", b"")) == 8 else 1
    notes = (f"page 1 of {pages}",) if pages > 1 else ()
    orientation = orientation_of(others.get(b"eXIf", exif), xmp, name)
    if colour == _PALETTE:
        palette = _palette(others, int(samples.max()), name)
        return Raster(samples, palette, orientation=orientation, notes=notes)
    if b"tRNS" in others and colour in (_GREY, _RGB):
        samples = _with_alpha(samples, others[b"tRNS"], depth, name)
    if depth < 8:
        samples[..., 0] *= 255 // ((1 << depth) - 1)
    return Raster(samples, orientation=orientation, notes=notes)


def _chunks(file: BinaryIO, name: str) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the content of every chunk up to the end mark, their checksums compared.

    The content of image data comes in blocks; that of chunks which nobody asks for is left out.
    """
    file.seek(len(_SIGNATURE))
    ended = False
    while not ended:
        head = file.read(8)
        if len(head) < 8:
            raise damaged(name, "it ends before its end mark")
        length, kind = struct.unpack(">I4s", head)
        if length > 0x7FFFFFFF or not kind.isalpha():
            raise damaged(name, "a chunk's length or name cannot be")
        if kind[0] < 96 and kind not in _NEEDED:  # an upper-case letter: needed to understand the picture
            raise damaged(name, f"the chunk {kind.decode('ascii')} is unknown, but needed")
        kept, checksum = [], zlib.crc32(kind)
        left = length
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise damaged(name, f"it ends inside the chunk {kind.decode('ascii')}")
            checksum, left = zlib.crc32(block, checksum), left - len(block)
            if kind == b"IDAT":
                yield kind, block
            elif (kind == b"IHDR" or kind in _KEPT) and length <= _LARGEST_KEPT:
                kept.append(block)
        if file.read(4) != struct.pack(">I", checksum):
            raise damaged(name, f"the checksum of the chunk {kind.decode('ascii')} is wrong")
        if kind != b"IDAT":
            yield kind, b"".join(kept)
        ended = kind == b"IEND"


class _Rows:
    """The filtered rows: unpacked as they come, measured, and put into a PNG without compression.

    Args:
        header: the PNG's header.
        size: bytes of all rows.
    """

    def __init__(self, header: bytes, size: int, name: str) -> None:
        self._left = size
        self._name = name
        self._unpacker = zlib.decompressobj()
        self._packer = zlib.compressobj(0)
        self._out = io.BytesIO()
        self._out.write(_SIGNATURE)
        self._write(b"IHDR", header)

    def add(self, block: bytes) -> None:
        while block and not self._unpacker.eof:
            # Asked for one byte more than is expected, so that what is too long is seen.
            rows = self._unpacker.decompress(block, min(self._left + 1, _BLOCK))
            block = self._unpacker.unconsumed_tail
            if len(rows) > self._left:
                raise damaged(self._name, "its data go on beyond the last row")
            self._left -= len(rows)
            self._write(b"IDAT", self._packer.compress(rows))
        if block or self._unpacker.unused_data:
            raise damaged(self._name, "its data go on beyond their end mark")

    def stored(self) -> io.BytesIO:
        """The PNG without compression."""
        if self._left or not self._unpacker.eof:
            raise damaged(self._name, "its data end before the last row")
        self._write(b"IDAT", self._packer.flush())
        self._write(b"IEND", b"")
        return self._out

    def _write(self, kind: bytes, content: bytes) -> None:
        if content or kind == b"IEND":
            checksum = zlib.crc32(content, zlib.crc32(kind))
            for part in (struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)):
                self._out.write(part)


def _raw_size(height: int, width: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows of ``bits`` a pixel, each with the byte that names its filter."""
    passes = [(height, width)]
    if interlaced:
        passes = [
            ((height - top + down - 1) // down, (width - left + right - 1) // right)
            for top, down, left, right in _PASSES
        ]
    return sum(high * (1 + (wide * bits + 7) // 8) for high, wide in passes if wide > 0 and high > 0)


def _unfiltered(stored: io.BytesIO, depth: int, colour: int) -> NDArray[Any]:
    """(H, W, C): the rows with their filters undone, and the bits of small samples as they stand."""
    if depth == 16 and colour in (_RGB, _RGBA):
        letters = "RGB" if colour == _RGB else "RGBA"
        high = _pillow(stored, f"{letters};16B")
        samples = np.empty((high.height, high.width, len(letters), 2), np.uint8)
        pixels_of(high, out=samples[..., 1])
        del high
        low = _pillow(stored, f"{letters};16L")  # takes the low byte for the high one
        stored.close()
        pixels_of(low, out=samples[..., 0])
        return samples.view("<u2")[..., 0].astype(np.uint16, copy=False)
    image = _pillow(stored)
    stored.close()  # gives its memory back before more is taken
    samples = pixels_of(image)
    if depth == 16:
        return samples.view(">u2").astype(np.uint16)
    return samples // (255 // ((1 << depth) - 1)) if depth < 8 else samples


def _pillow(stored: io.BytesIO, raw_mode: str | None = None) -> PngImagePlugin.PngImageFile:
    """The PNG as Pillow decodes it, in a form of its decoder's other than the header asks for."""
    stored.seek(0)
    image = PngImagePlugin.PngImageFile(stored)
    if raw_mode:
        codec, extents, offset, _ = image.tile[0]
        tile: Any = (codec, extents, offset, raw_mode)  # a plain tuple, which every version of Pillow takes
        image.tile = [tile]
    image.load()
    return image


def _palette(others: dict[bytes, bytes], largest: int, name: str) -> NDArray[np.uint8]:
    """(N, 3) or (N, 4): the colours, with their alpha where there is any."""
    content = others.get(b"PLTE", b"")
    colours = np.frombuffer(content[: len(content) // 3 * 3], np.uint8).reshape(-1, 3)
    if len(content) % 3 or not 0 < len(colours) <= 256 or largest >= len(colours):
        raise damaged(name, f"its palette has {len(content) / 3:g} colours, but a pixel has number {largest}")
    alpha = np.frombuffer(others.get(b"tRNS", b""), np.uint8)
    if not len(alpha):
        return colours
    if len(alpha) > len(colours):
        raise damaged(name, "its palette has fewer colours than transparencies")
    return np.column_stack([colours, np.pad(alpha, (0, len(colours) - len(alpha)), constant_values=255)])


def _with_alpha(samples: NDArray[Any], key: bytes, depth: int, name: str) -> NDArray[Any]:
    """(H, W, C + 1): with an alpha that is 0 where a pixel has the colour the file calls transparent.

    Of that colour's 16 bits those of the picture's depth count; what stands above them is to be masked.
    """
    if len(key) != 2 * samples.shape[2]:
        raise damaged(name, "its transparent colour is of another kind than its pixels")
    opaque = (samples != np.frombuffer(key, ">u2") & ((1 << depth) - 1)).any(axis=2)
    full = np.iinfo(samples.dtype).max
    return np.dstack([samples, opaque.astype(samples.dtype) * full])


def _raw_profile(kind: bytes, content: bytes) -> bytes:
    """The EXIF block that older ImageMagick wrote as text, in hexadecimal."""
    keyword, _, rest = content.partition(b"\0")
    if keyword not in (b"Raw profile type exif", b"Raw profile type APP1") or kind == b"iTXt":
        return b""
    if kind == b"zTXt":
        rest = zlib.decompressobj().decompress(rest[1:], _LARGEST_KEPT)
    found = _RAW_PROFILE.match(rest)
    digits = b"".join(found[1].split()) if found else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii")).removeprefix(b"Exif\0\0")


def _xmp(kind: bytes, content: bytes) -> bytes:
    keyword, _, rest = content.partition(b"\0")
    return rest if kind == b"iTXt" and keyword == b"XML:com.adobe.xmp" else b""
