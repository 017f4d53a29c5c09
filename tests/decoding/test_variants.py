"""A thousand kinds of TIFF, and all of PNG, JPEG and BMP: exact or refused, none wrong."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from picture_variants import (
    HEIGHT,
    WIDTH,
    drawing,
    eight_bits,
    every_variant,
    grey,
    on_white,
    with_tag,
    written,
)
from PIL import Image, ImageOps
from slide_files import tissue, write_tiff

from msmamba.errors import ImageError
from msmamba.images import load_image, read_image


def test_every_variant_of_tiff_is_exact_or_refused() -> None:
    counts: Counter[str] = Counter()
    wrong = []
    for variant in every_variant():
        try:
            pixels = read_image(variant.content)
        except ImageError:
            counts["refused"] += 1
            if variant.shown is not None:
                wrong.append(f"{variant.name} is refused")
            continue
        exact = variant.shown is not None and np.array_equal(pixels, variant.shown)
        counts["exact" if exact else "wrong"] += 1
        if not exact:
            wrong.append(variant.name)
    print(dict(counts))
    assert wrong == []
    assert counts["exact"] >= 800
    assert counts["refused"] >= 200


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(samples: np.ndarray, depth: int, colour: int, interlaced: bool = False, *more: bytes) -> bytes:
    """A PNG of (H, W, C) samples without filters, which nobody writes in all these forms."""
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour, 0, 0, interlaced)
    passes = [(0, 1, 0, 1)]
    if interlaced:
        passes = [
            (0, 8, 0, 8),
            (0, 8, 4, 8),
            (4, 8, 0, 4),
            (0, 4, 2, 4),
            (2, 4, 0, 2),
            (0, 2, 1, 2),
            (1, 2, 0, 1),
        ]
    rows = b""
    for top, down, left, right in passes:
        for row in samples[top::down, left::right]:
            if row.size:
                bits = np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - depth :]
                rows += b"\0" + np.packbits(bits.ravel()).tobytes()
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PNG_KINDS = [
    *((depth, 0, 1) for depth in (1, 2, 4, 8, 16)),
    *((depth, 3, 1) for depth in (1, 2, 4, 8)),
    *((depth, colour, channels) for colour, channels in ((2, 3), (4, 2), (6, 4)) for depth in (8, 16)),
]


@pytest.mark.parametrize("interlaced", [False, True], ids=["rows", "interlaced"])
@pytest.mark.parametrize("transparent", [False, True], ids=["opaque", "one-colour-transparent"])
def test_every_kind_of_png_is_exact(transparent: bool, interlaced: bool) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    for depth, colour, channels in PNG_KINDS:
        samples = drawing(channels, depth)
        levels = eight_bits(samples, depth)
        more, alpha = [], np.full((HEIGHT, WIDTH), 255, np.uint8)
        key = samples[5, 7]
        if colour == 3:
            shown = colours[samples[..., 0]]
            more.append(chunk(b"PLTE", colours[: 1 << depth].tobytes()))
        else:
            shown = levels[..., :3] if channels >= 3 else grey(levels[..., 0])
        if colour in (4, 6):
            alpha = levels[..., -1]
        elif transparent and colour == 3:
            more.append(chunk(b"tRNS", bytes([*[255] * int(key[0]), 80])))
            alpha = np.where(samples[..., 0] == key[0], 80, 255)
        elif transparent:
            above = 0xFFFF << depth & 0xFFFF  # bits that the picture has not, which count for nothing
            more.append(chunk(b"tRNS", (key.astype(np.uint16) | above).astype(">u2").tobytes()))
            alpha = np.where((samples == key).all(axis=2), 0, 255)
        content = png(samples, depth, colour, interlaced, *more)
        np.testing.assert_array_equal(read_image(content), on_white(shown, alpha), f"{depth} {colour}")


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def raw_profile(orientation: int, name: bytes = b"exif") -> bytes:
    """An EXIF block as older ImageMagick writes it into a text, in lines of 72 digits."""
    digits = exif_of(orientation).hex().encode()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return b"\n%s\n%8d\n" % (name, len(digits) // 2) + b"\n".join(lines) + b"\n"


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
TURNED = {
    "profile": (chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(8)), 8),
    "profile-packed": (chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(5))), 5),
    "profile-of-a-jpeg": (chunk(b"tEXt", b"Raw profile type APP1\0" + raw_profile(3, b"APP1")), 3),
    "xmp": (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), 6),
    "another-text": (chunk(b"iTXt", b"Comment\0\0\0\0\0" + XMP), 1),
}


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize(("text", "orientation"), TURNED.values(), ids=TURNED)
def test_a_png_that_says_in_text_how_to_turn_it_is_turned(text: bytes, orientation: int) -> None:
    found = read_image(png(drawing(3, 8), 8, 2, False, text))
    np.testing.assert_array_equal(found, turned(drawing(3, 8), orientation))


def test_a_jpeg_is_turned_as_its_xmp_says_unless_its_exif_does() -> None:
    for exif in (b"", exif_of(8)):
        file = io.BytesIO()
        Image.fromarray(drawing(3, 8)).save(file, "JPEG", exif=exif, xmp=XMP)
        with Image.open(file) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(read_image(file.getvalue()), expected)


def test_filtered_png_of_16_bits_is_exact() -> None:
    for channels in (1, 2, 3, 4):
        samples = drawing(channels, 16)
        content = imagecodecs.png_encode(samples if channels > 1 else samples[..., 0], level=6)
        levels = eight_bits(samples, 16)
        shown = levels[..., :3] if channels >= 3 else grey(levels[..., 0])
        alpha = levels[..., -1] if channels in (2, 4) else np.full((HEIGHT, WIDTH), 255)
        np.testing.assert_array_equal(read_image(content), on_white(shown, alpha))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_jpeg_is_what_another_libjpeg_decodes(sampling: int, options: dict[str, Any]) -> None:
    file = io.BytesIO()
    Image.fromarray(drawing(3, 8)).save(file, "JPEG", quality=90, subsampling=sampling, **options)
    np.testing.assert_array_equal(read_image(file.getvalue()), imagecodecs.jpeg8_decode(file.getvalue()))


def test_jpeg_of_inks_is_as_pillow_converts_it() -> None:
    file = io.BytesIO()
    Image.fromarray(drawing(3, 8)).convert("CMYK").save(file, "JPEG")
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    loaded = load_image(file.getvalue())
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert loaded.notes == ("CMYK, converted without its colour profile",)


def test_the_first_of_several_pictures_in_a_jpeg_is_read_with_a_note() -> None:
    first, second = (Image.fromarray(drawing(3, 8)[::step]) for step in (1, -1))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second], quality=90)
    loaded = load_image(file.getvalue())
    assert loaded.notes == ("page 1 of 2",)
    with Image.open(file) as image:
        np.testing.assert_array_equal(loaded.pixels, np.asarray(image))


def test_filling_before_the_markers_of_a_jpeg_changes_nothing() -> None:
    file = io.BytesIO()
    Image.fromarray(drawing(3, 8)).save(file, "JPEG")
    content = file.getvalue()
    filled = content.replace(b"\xff\xdb", b"\xff\xff\xff\xdb")
    assert filled != content
    np.testing.assert_array_equal(read_image(filled), read_image(content))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\xff\xc0", b"\xff\xc3", "lossless or hierarchical"),
        (b"\x03\x01\x22", b"\x02\x01\x22", "2 components"),
        (b"\xff\xc0\0\x11", b"\xff\xc0\0\x07", "frame header is too short"),
        (b"\xff\xc0", b"\0\xc0", "no marker where one must be"),
    ],
    ids=["lossless", "components", "short-frame", "no-marker"],
)
def test_what_a_jpeg_cannot_be_is_refused_by_name(old: bytes, new: bytes, message: str) -> None:
    file = io.BytesIO()
    Image.fromarray(drawing(3, 8)).save(file, "JPEG")
    assert old in file.getvalue()
    with pytest.raises(ImageError, match=message):
        read_image(file.getvalue().replace(old, new, 1))


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(drawing(3, 8)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans are missing"):
        read_image(content[: content.rindex(b"\xff\xc4", 0, last)] + b"\xff\xd9")


HEAD, END = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0)), chunk(b"IEND", b"")
PALETTE, ROWS = chunk(b"PLTE", bytes(9)), b"\0\0\1\0\1\2"
DAMAGED_PNGS = {
    "no-header": ([PALETTE, HEAD], ROWS, END, "does not begin with a header"),
    "three-bits": (
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 3, 3, 0, 0, 0)), PALETTE],
        *(ROWS, END, "no kind of PNG"),
    ),
    "no-end": ([HEAD, PALETTE], ROWS, b"", "ends before its end mark"),
    "a-row-less": ([HEAD, PALETTE], ROWS[:3], END, "end before the last row"),
    "a-byte-more": ([HEAD, PALETTE], ROWS + b"\0", END, "beyond the last row"),
    "no-palette": ([HEAD], ROWS, END, "palette has 0 colours"),
    "colour-beyond": ([HEAD, chunk(b"PLTE", bytes(6))], ROWS, END, "palette has 2 colours"),
    "part-of-a-colour": ([HEAD, chunk(b"PLTE", bytes(10))], ROWS, END, "palette has 3.33333 colours"),
    "more-alpha-than-colours": ([HEAD, PALETTE, chunk(b"tRNS", bytes(4))], ROWS, END, "fewer colours than"),
    "unknown-but-needed": ([HEAD, PALETTE, chunk(b"NEED", b"x")], ROWS, END, "NEED is unknown"),
    "needed-and-empty": ([HEAD, PALETTE, chunk(b"NEED", b"")], ROWS, END, "NEED is unknown"),
}


@pytest.mark.parametrize(("before", "rows", "end", "message"), DAMAGED_PNGS.values(), ids=DAMAGED_PNGS)
def test_a_png_whose_checksums_are_right_may_be_damaged(
    before: list[bytes], rows: bytes, end: bytes, message: str
) -> None:
    assert (
        read_image(b"\x89PNG\r\n\x1a\n" + HEAD + PALETTE + chunk(b"IDAT", zlib.compress(ROWS)) + END).any()
        == 0
    )
    with pytest.raises(ImageError, match=message):
        read_image(b"\x89PNG\r\n\x1a\n" + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + end)


def test_a_png_with_data_behind_their_end_mark_is_refused() -> None:
    rows = chunk(b"IDAT", zlib.compress(ROWS) + b"more")
    with pytest.raises(ImageError, match="beyond their end mark"):
        read_image(b"\x89PNG\r\n\x1a\n" + HEAD + PALETTE + rows + END)


def test_a_png_whose_transparent_colour_is_of_another_kind_is_refused() -> None:
    with pytest.raises(ImageError, match="of another kind than its pixels"):
        read_image(png(drawing(1, 8), 8, 0, False, chunk(b"tRNS", bytes(6))))


def old_bmp(samples: np.ndarray, bits: int, palette: bytes = b"") -> bytes:
    """A BMP with the header of OS/2, of 12 bytes, which nobody writes any more; rows from the bottom up."""
    rows = b"".join(row.tobytes() + bytes(-row.nbytes % 4) for row in samples[::-1])
    data_at = 26 + len(palette)
    head = struct.pack("<2sIII", b"BM", data_at + len(rows), 0, data_at)
    return head + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits) + palette + rows


def test_bmp_of_os2_is_exact_or_refused() -> None:
    samples, numbers = drawing(3, 8), drawing(1, 4)[..., 0]
    np.testing.assert_array_equal(read_image(old_bmp(samples[..., ::-1], 24)), samples)
    colours = np.random.default_rng(2).integers(0, 256, (256, 3), np.uint8)
    content = old_bmp(numbers, 8, colours[:, ::-1].tobytes())
    np.testing.assert_array_equal(read_image(content), colours[numbers])
    for broken, message in (
        (content[:25], "inside its header"),
        (content[:14] + b"\x10" + content[15:], "no kind of BMP"),
        (content[:-1], "fewer data"),
        (content[:10] + bytes(4) + content[14:], "fewer data"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(broken)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp_is_exact(mode: str) -> None:
    image = Image.fromarray(drawing(3, 8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "BMP")
    np.testing.assert_array_equal(read_image(file.getvalue()), np.asarray(image.convert("RGB")))


def test_packed_rows_of_bmp_are_refused_by_name() -> None:
    header = struct.pack("<2sIIIIiiHHIIIIII", b"BM", 0, 0, 54 + 1024, 40, 4, 4, 1, 8, 1, 0, 0, 0, 0, 0)
    with pytest.raises(ImageError, match="RLE inside BMP"):
        read_image(header + bytes(1024) + b"\x04\x01\0\0" * 4 + b"\0\1")


DEFINED_BY_NOBODY = {
    "strips-too-few": (278, 278, 4, "its pixels need"),
    "a-volume": (296, 32997, 3, "a volume"),
    "floating-differences": (296, 317, 3, "differences"),
    "differences-uncompressed": (296, 317, 2, "differences"),
    "raw-mosaic": (262, 262, 32803, "raw mosaic"),
    "lab": (262, 262, 8, r"L\*a\*b\*"),
    "fax": (259, 259, 4, "fax"),
    "old-jpeg": (259, 259, 6, "old-style JPEG"),
    "unknown-compression": (259, 259, 777, "number 777"),
    "compressed-colours": (262, 262, 6, "YCbCr"),
    "colours-of-no-name": (262, 262, 77, "the colours 77"),
    "more-colours-than-samples": (262, 262, 5, "3 samples for 4 colours"),
    "planes-of-no-kind": (284, 284, 3, "planar configuration is 3"),
    "differences-of-no-kind": (296, 317, 4, "predictor is 4"),
    "bits-in-no-order": (296, 266, 3, "order of bits is 3"),
    "strips-of-no-rows": (278, 278, 0, "no rows"),
}


@pytest.mark.parametrize(
    ("old", "new", "value", "message"), DEFINED_BY_NOBODY.values(), ids=DEFINED_BY_NOBODY
)
def test_what_has_no_defined_meaning_is_refused_by_name(old: int, new: int, value: int, message: str) -> None:
    content = written(drawing(3, 8), photometric="rgb", rowsperstrip=40)
    with pytest.raises(ImageError, match=message):
        read_image(with_tag(content, old, new, value))


def test_an_open_pillow_image_is_read_as_its_file_is() -> None:
    samples = drawing(3, 16)
    content = written(np.moveaxis(samples, -1, 0).copy(), photometric="rgb", planarconfig="separate")
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(read_image(image), samples >> 8)


def test_what_was_passed_over_is_told() -> None:
    assert load_image(written(drawing(4, 8), photometric="rgb", extrasamples=["unspecified"])).notes == (
        "a fourth channel of unknown meaning left out",
    )
    pages = written(np.stack([drawing(3, 8)] * 4), photometric="rgb")
    assert load_image(pages).notes == ("page 1 of 4",)


@pytest.mark.parametrize("levels", [2, 3, 5])
@pytest.mark.parametrize("ome", [False, True], ids=["plain", "ome"])
def test_the_levels_of_a_pyramid_may_be_listed_and_linked_with_one_another(
    levels: int, ome: bool, tmp_path: Path
) -> None:
    pixels = tissue()
    path = write_tiff(tmp_path / "a.tif", pixels, levels=levels, sub=True, ome=ome, metadata={"axes": "YXS"})
    image = load_image(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.notes == ()
