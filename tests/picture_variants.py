"""Picture files of every variant that can be written, and what each must show or why it is refused."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tifffile

HEIGHT, WIDTH = 37, 21


@dataclass(frozen=True)
class Variant:
    """A file of one kind, and what it must show."""

    name: str
    content: bytes
    shown: np.ndarray | None  # (H, W, 3) uint8; None: refused


@lru_cache
def drawing(channels: int, bits: int) -> np.ndarray:
    """(H, W, channels): a smooth picture with some noise, over the whole range of ``bits``."""
    noise = np.random.default_rng(channels * 100 + bits)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [
        (np.sin(rows / (5 + place)) + np.cos(columns / (3 + place)) + 2) / 4 for place in range(channels)
    ]
    values = np.stack(planes, axis=-1) * (2**bits - 1) + noise.normal(
        0, 2**bits / 40, (HEIGHT, WIDTH, channels)
    )
    return values.clip(0, 2**bits - 1).astype(np.uint8 if bits <= 8 else np.uint16)


def eight_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    """The rule: the high byte, or all of the range below 8 bits."""
    if bits > 8:
        return (samples >> (bits - 8)).astype(np.uint8)
    return np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def grey(plane: np.ndarray) -> np.ndarray:
    return np.repeat(plane.reshape(HEIGHT, WIDTH, 1), 3, axis=2)


KINDS = {
    # photometric, samples, extra samples
    "grey": ("minisblack", 1, None),
    "from-white": ("miniswhite", 1, None),
    "grey-alpha": ("minisblack", 2, "unassalpha"),
    "rgb": ("rgb", 3, None),
    "rgba": ("rgb", 4, "unassalpha"),
    "rgba-premultiplied": ("rgb", 4, "assocalpha"),
    "rgb-and-unknown": ("rgb", 4, "unspecified"),
    "two-channels": ("minisblack", 2, "unspecified"),
    "five-channels": ("minisblack", 5, "unspecified"),
    "cmyk": ("separated", 4, None),
}


def shown(kind: str, samples: np.ndarray, bits: int) -> np.ndarray | None:
    """What a picture of a kind must look like; None: it is refused."""
    levels = eight_bits(samples, bits)
    if kind == "grey":
        return grey(levels)
    if kind == "from-white":
        return grey(255 - levels)
    if kind == "grey-alpha":
        return on_white(grey(levels[..., 0]), levels[..., 1])
    if kind in ("rgb", "rgb-and-unknown"):
        return levels[..., :3]
    if kind == "rgba":
        return on_white(levels[..., :3], levels[..., 3])
    if kind == "rgba-premultiplied":
        return np.minimum(levels[..., :3].astype(int) + 255 - levels[..., 3:], 255).astype(np.uint8)
    if kind == "cmyk":
        inks = levels.astype(int)
        left = 255 - inks[..., 3:]
        scaled = inks[..., :3] * left + 128  # Pillow's division by 255
        return np.clip(left - ((scaled >> 8) + scaled >> 8), 0, 255).astype(np.uint8)
    return None


def written(samples: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    if options.get("compression") in ("zlib", "adobe_deflate", "zstd", "lzma"):
        options["compressionargs"] = {"level": 1}
    tifffile.imwrite(file, samples, metadata=None, **options)
    return file.getvalue()


def layouts() -> Iterator[tuple[str, dict[str, Any]]]:
    for tile, order, big in itertools.product((None, "rows", (16, 32), (48, 16)), "<>", (False, True)):
        options: dict[str, Any] = {"byteorder": order, "bigtiff": big}
        if tile == "rows":
            options["rowsperstrip"] = 5
        elif tile:
            options["tile"] = tile
        size = tile if tile is None or isinstance(tile, str) else "x".join(map(str, tile))
        yield (
            f"{size or 'one-strip'}-{'little' if order == '<' else 'big'}{'-big-tiff' if big else ''}",
            options,
        )


COMPRESSIONS = (None, "lzw", "zlib", "adobe_deflate", "packbits", "zstd", "lzma")


def crossed(count: int) -> Iterator[Variant]:
    """Kinds, bits, planes, compressions, predictors and layouts: ``count`` of all, at random."""
    every = [
        (layout, kind, bits, compression, predictor, planar)
        for layout, kind, bits, compression in itertools.product(layouts(), KINDS, (8, 16), COMPRESSIONS)
        for predictor in ((False, True) if compression not in (None, "packbits") else (False,))
        for planar in (("contig", "separate") if KINDS[kind][1] > 1 else ("contig",))
    ]
    for place in sorted(np.random.default_rng(5).choice(len(every), count, replace=False)):
        (layout, options), kind, bits, compression, predictor, planar = every[place]
        photometric, channels, extra = KINDS[kind]
        samples = drawing(channels, bits)
        more: dict[str, Any] = {}
        if extra:
            more["extrasamples"] = [extra] * (channels - (3 if photometric == "rgb" else 1))
        if channels > 1:
            more["planarconfig"] = planar
        pixels = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
        content = written(
            np.ascontiguousarray(pixels if channels > 1 else samples[..., 0]),
            photometric=photometric,
            compression=compression,
            predictor=predictor,
            **options,
            **more,
        )
        name = f"{kind}-{bits}-{planar}-{compression}{'-differences' if predictor else ''}-{layout}"
        yield Variant(name, content, shown(kind, samples, bits))


def of_few_and_odd_bits() -> Iterator[Variant]:
    """1 to 15 bits, packed; 32 and 64; signed, floating and complex."""
    for bits, (layout, options), reversed_bits in itertools.product(
        (1, 2, 4, 9, 10, 12, 14, 15), layouts(), (0, 1)
    ):
        samples = drawing(1, bits)[..., 0]
        if options["byteorder"] == ">" and bits > 1:
            continue  # tifffile does not pack those
        content = packed(samples, bits, reversed_bits, options)
        if content:
            name = f"{bits}-bits-{layout}{'-reversed' if reversed_bits else ''}"
            yield Variant(name, content, grey(eight_bits(samples, bits)))
    for dtype in ("i1", "i2", "u4", "i4", "f2", "f4", "f8", "c8", "u8"):
        for order, channels in itertools.product("<>", (1, 3)):
            samples = drawing(channels, 7).astype(dtype)
            photometric = "rgb" if channels == 3 else "minisblack"
            content = written(
                samples if channels == 3 else samples[..., 0], photometric=photometric, byteorder=order
            )
            yield Variant(f"{dtype}-{channels}-{order}", content, None)
    for bits in (3, 5, 6, 7, 17, 20, 24, 31):
        samples = drawing(1, min(bits, 16))[..., 0].astype(np.uint8 if bits <= 8 else np.uint32)
        yield Variant(f"{bits}-bits", written(samples, photometric="minisblack", bitspersample=bits), None)


def packed(samples: np.ndarray, bits: int, reversed_bits: bool, options: dict[str, Any]) -> bytes:
    """A TIFF of packed bits; of one strip with the bits of each byte reversed (FillOrder 2), where asked."""
    if bits == 1:
        content = written(samples.astype(bool), photometric="minisblack", **options)
    else:
        content = written(samples, photometric="minisblack", bitspersample=bits, **options)
    if not reversed_bits:
        return content
    if "tile" in options or "rowsperstrip" in options:
        return b""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[0], page.databytecounts[0]
    data = np.frombuffer(content[start : start + size], np.uint8)
    turned = np.packbits(np.unpackbits(data).reshape(-1, 8)[:, ::-1]).tobytes()
    turned_content = content[:start] + turned + content[start + size :]
    return with_tag(turned_content, 296, 266, 2)  # the unit of resolution makes room for the order of bits


def with_tag(content: bytes, old: int, new: int, value: int) -> bytes:
    """A TIFF with another tag, of one short, in the place of the tag ``old``."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages[0].tags[old]
        at, order, big = tag.offset, file.byteorder, file.is_bigtiff
    short = int(value).to_bytes(2, "little" if order == "<" else "big")
    head = int(new).to_bytes(2, "little" if order == "<" else "big") + content[at + 2 : at + 4]
    count = content[at + 4 : at + (12 if big else 8)]
    room = 8 if big else 4
    return (
        content[:at] + head + count + short + bytes(room - 2) + content[at + len(head) + len(count) + room :]
    )


def of_other_compressions() -> Iterator[Variant]:
    """JPEG, whose truth is imagecodecs', and what is refused by name."""
    for (layout, options), kind, sampling in itertools.product(
        layouts(), ("grey", "rgb", "ycbcr"), ((1, 1), (2, 1), (2, 2))
    ):
        if kind != "ycbcr" and sampling != (1, 1):
            continue
        samples = drawing(1 if kind == "grey" else 3, 8)
        photometric = {"grey": "minisblack", "rgb": "rgb", "ycbcr": "ycbcr"}[kind]
        more = {"subsampling": sampling} if kind == "ycbcr" else {}
        if options.get("rowsperstrip"):
            options = {**options, "rowsperstrip": 16}
        content = written(
            samples if kind != "grey" else samples[..., 0],
            photometric=photometric,
            compression="jpeg",
            compressionargs={"level": 90},
            **options,
            **more,
        )
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            truth = file.pages[0].asarray()
        yield Variant(f"jpeg-{kind}-{sampling}-{layout}", content, truth if kind != "grey" else grey(truth))
    for compression in ("webp", "jpeg2000", "lerc", "jpegxl", "png", "jpegxr"):
        samples = np.ascontiguousarray(np.tile(drawing(3, 8), (2, 3, 1)))
        yield Variant(compression, written(samples, photometric="rgb", compression=compression), None)


def of_palettes_and_pages() -> Iterator[Variant]:
    """Palettes of both depths; several pages, previews first, pyramids, planes of ImageJ; orientations."""
    colours = np.random.default_rng(3).integers(0, 256, (3, 256), np.uint16)
    for (layout, options), depth, bits in itertools.product(layouts(), (8, 16), (2, 4, 8)):
        if options["byteorder"] == ">" and bits < 8:
            continue
        index = drawing(1, bits)[..., 0]
        used = colours[:, : 1 << bits]
        entries = (used * 257 if depth == 16 else used).ravel()
        content = written(
            index,
            photometric="minisblack",
            bitspersample=bits,
            extratags=[(320, "H", len(entries), entries.tolist())],
            **options,
        )
        content = with_tag(content, 262, 262, 3)
        truth = used.T[index].astype(np.uint8)
        yield Variant(f"palette-{bits}-of-{depth}-{layout}", content, truth)
    picture, small = drawing(3, 8), drawing(3, 8)[::2, ::2]
    for order, big, preview, below, reduced in itertools.product(
        "<>", (False, True), (False, True), (False, True), (0, 1)
    ):
        file = io.BytesIO()
        with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
            first, second = (small, picture) if preview else (picture, small)
            rgb: dict[str, Any] = {"photometric": "rgb", "metadata": None}
            writer.write(first, subifds=int(below), subfiletype=reduced if preview else 0, **rgb)
            writer.write(second, subfiletype=0 if preview else reduced, **rgb)
            if below:
                writer.write(small, **rgb)
        where = f"{'preview' if preview else 'picture'}-first-{'below' if below else 'beside'}"
        name = f"{where}-{reduced}{order}{big}"
        yield Variant(name, file.getvalue(), picture)
    turned = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }
    for (orientation, stored), order in itertools.product(turned.items(), "<>"):
        content = written(
            np.ascontiguousarray(stored),
            photometric="rgb",
            byteorder=order,
            extratags=[(274, "H", 1, orientation)],
        )
        yield Variant(f"orientation-{orientation}{order}", content, picture)


def every_variant() -> list[Variant]:
    return [
        *crossed(700),
        *of_few_and_odd_bits(),
        *of_other_compressions(),
        *of_palettes_and_pages(),
    ]
