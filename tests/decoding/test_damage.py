"""Damage that a format lets one see is refused: files cut, changed and shortened in a thousand ways."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from picture_variants import drawing, written
from PIL import Image

from msmamba.errors import ImageError
from msmamba.images import read_image

RGB, GREY = drawing(3, 8), drawing(1, 8)[..., 0]


def saved(pixels: np.ndarray, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def png(content: bytes) -> np.ndarray:
    return imagecodecs.png_decode(content)


def jpeg(content: bytes) -> np.ndarray:
    return imagecodecs.jpeg8_decode(content)


def bmp(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def tiff(content: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        return file.pages[0].asarray()


# Each with the reader that judges it, and whether a checksum covers every pixel.
FILES: dict[str, tuple[bytes, Callable[[bytes], np.ndarray], bool]] = {
    "png": (saved(RGB, "PNG"), png, True),
    "png-grey": (saved(GREY, "PNG"), png, True),
    "png-16": (imagecodecs.png_encode(drawing(3, 16)), png, True),
    "jpeg": (saved(RGB, "JPEG", quality=90), jpeg, False),
    "jpeg-grey": (saved(GREY, "JPEG"), jpeg, False),
    "jpeg-progressive": (saved(RGB, "JPEG", progressive=True), jpeg, False),
    "jpeg-restarts": (saved(RGB, "JPEG", restart_marker_rows=1), jpeg, False),
    "bmp": (saved(RGB, "BMP"), bmp, False),
    "tiff": (written(RGB, photometric="rgb"), tiff, False),
    "tiff-strips": (written(RGB, photometric="rgb", rowsperstrip=4), tiff, False),
    "tiff-lzw": (written(RGB, photometric="rgb", compression="lzw", rowsperstrip=8), tiff, False),
    "tiff-deflate": (written(RGB, photometric="rgb", compression="zlib", rowsperstrip=8), tiff, False),
    "tiff-tiles": (
        written(RGB, photometric="rgb", compression="zlib", predictor=True, tile=(16, 16)),
        tiff,
        False,
    ),
    "tiff-jpeg": (written(RGB, photometric="ycbcr", compression="jpeg", tile=(16, 16)), tiff, False),
    "tiff-packbits": (written(GREY, photometric="minisblack", compression="packbits"), tiff, False),
    "tiff-16-planes": (
        written(np.moveaxis(drawing(3, 16), -1, 0).copy(), photometric="rgb", planarconfig="separate"),
        tiff,
        False,
    ),
}


def harmed(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Cut, changed in a bit or some bytes, with zeros, with bytes taken out, cut before its end."""
    random = np.random.default_rng(seed)
    for number in range(count):
        out = bytearray(content)
        at = int(random.integers(8, len(content)))
        kind = ("cut", "bit", "bytes", "zeros", "shorter", "cut-and-ended")[number % 6]
        if kind == "cut":
            del out[at:]
        elif kind == "bit":
            out[at] ^= 1 << int(random.integers(8))
        elif kind == "bytes":
            for place in random.integers(8, len(content), 4):
                out[place] = int(random.integers(256))
        elif kind == "zeros":
            end = min(len(out), at + 40)
            out[at:end] = bytes(end - at)
        elif kind == "shorter":
            del out[at : at + int(random.integers(1, 20))]
        else:
            out[at:-12] = b""
        if bytes(out) != content:
            yield kind, bytes(out)


def judged(content: bytes, judge: Callable[[bytes], np.ndarray]) -> np.ndarray | None:
    """What the other reader sees, as RGB of 8 bits; None: it refuses."""
    try:
        pixels = judge(content)
    except Exception:  # of whatever kind: it is another's
        return None
    pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return pixels[..., :3]


def test_damage_that_can_be_seen_is_refused() -> None:
    counts: Counter[str] = Counter()
    wrong = []
    for place, (name, (content, judge, sealed)) in enumerate(FILES.items()):
        whole = read_image(content)
        for kind, broken in harmed(content, 70, place):
            try:
                pixels = read_image(broken)
            except ImageError:
                counts["refused"] += 1
                continue
            if pixels.shape == whole.shape and (pixels == whole).all():
                counts["exact"] += 1  # what was harmed says nothing of the picture
                continue
            # Pixels without a checksum may change unseen, but then every reader must see the same others.
            other = judged(broken, judge)
            agreed = other is not None and other.shape == pixels.shape and (other == pixels).all()
            counts["unseen" if agreed else "wrong"] += 1
            if sealed or kind == "cut" or not agreed:
                wrong.append(f"{name}: {kind}")
    print(dict(counts))
    assert wrong == []
    assert sum(counts.values()) >= 1000
    assert counts["refused"] > 2 * counts["unseen"]
