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
from PIL import Image
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


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(drawing(3, 8)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans are missing"):
        read_image(content[: content.rindex(b"\xff\xc4", 0, last)] + b"\xff\xd9")


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
