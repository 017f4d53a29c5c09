"""What reading takes at its peak, in bytes a pixel: the figures of docs/images.md, held."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from picture_variants import written
from PIL import Image

from msmamba.images import MAX_PIXELS

SIDE = 2048
"""Of the pictures, in pixels: enough for what a process takes beside them to be little."""

# One process for all; every picture is read in a child of it, which has nothing to reuse.
MEASURE = """
import json, os, sys
from pathlib import Path
import simplejpeg
from msmamba.images import read_image
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
def of_child(read):
    out, into = os.pipe()
    child = os.fork()
    if not child:
        read()
        os.write(into, str(peak()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(out, 99) or 1 << 60)
least = of_child(lambda: None)
print(json.dumps({p.name: of_child(lambda: read_image(p)) - least for p in Path(sys.argv[1]).iterdir()}))
"""


def saved(mode: str, file_format: str, **options: Any) -> bytes:
    colour = (1, 2, 3, 200)[: len(mode)] if len(mode) > 1 else 0
    image = Image.new(mode, (SIDE, SIDE), colour)
    if mode == "P":
        image.putpalette([1, 2, 3, 4, 5, 6])
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def samples(channels: int, bits: int = 8) -> np.ndarray:
    return np.full((SIDE, SIDE, channels), 7, np.uint8 if bits == 8 else np.uint16)


STRIP = {"photometric": "rgb", "compression": "lzw", "predictor": True, "rowsperstrip": SIDE}
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"

# By kind: a file, and the bytes a pixel that docs/images.md states; blocks add 2 to such small ones.
KINDS: dict[str, tuple[Callable[[], bytes], int]] = {
    "png-grey": (lambda: saved("L", "PNG"), 5),
    "png-palette": (lambda: saved("P", "PNG", transparency=0), 6),
    "png-bilevel": (lambda: saved("1", "PNG"), 5),
    "png-rgb": (lambda: saved("RGB", "PNG"), 8),
    "png-rgba": (lambda: saved("RGBA", "PNG"), 9),
    "png-16-grey": (lambda: imagecodecs.png_encode(samples(1, 16)[..., 0]), 10),
    "png-16-rgb": (lambda: imagecodecs.png_encode(samples(3, 16)), 18),
    "png-16-rgba": (lambda: imagecodecs.png_encode(samples(4, 16)), 22),
    "jpeg": (lambda: saved("RGB", "JPEG"), 7),
    "jpeg-turned": (lambda: saved("RGB", "JPEG", exif=TURNED), 10),
    "jpeg-inks": (lambda: saved("CMYK", "JPEG"), 10),
    "bmp": (lambda: saved("RGB", "BMP"), 8),
    "tiff": (lambda: written(samples(3), photometric="rgb"), 9),
    "tiff-16-planes": (
        lambda: written(
            np.moveaxis(samples(3, 16), -1, 0).copy(), photometric="rgb", planarconfig="separate"
        ),
        11,
    ),
    "tiff-16-one-strip": (
        lambda: written(samples(4, 16), extrasamples=["unassalpha"], **STRIP),
        25,
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak as Linux tells it")
def test_the_peak_of_reading_is_what_the_docs_state(tmp_path: Path) -> None:
    for kind, (content, _) in KINDS.items():
        (tmp_path / kind).write_bytes(content())
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    peaks = {kind: size / SIDE**2 for kind, size in json.loads(run.stdout).items()}
    assert peaks.keys() == KINDS.keys()
    assert {kind: round(peak, 1) for kind, peak in peaks.items() if peak > KINDS[kind][1] + 2} == {}


def test_the_docs_state_these_figures() -> None:
    text = (Path(__file__).parents[2] / "docs" / "images.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:PNG|JPEG|BMP|TIFF).* \| (\d+) \| ([\d,]+) \|$", text, re.M)
    assert {int(each) for each, _ in rows} == {most for _, most in KINDS.values()}
    assert [int(most.replace(",", "")) for _, most in rows] == [
        int(each) * (MAX_PIXELS // 1_000_000) for each, _ in rows
    ]
