"""How long it takes to prepare a picture for the network: decode, resize and normalise.

    python benchmarks/prepare.py [--sizes 640x480 4000x3000] [--side 224] [--rounds 21] [--threads 1 2]

Each round prepares every picture in every way, in shuffled order, so that what else the machine does meets
all alike; medians are shown, and the median of the ratios within rounds to ``pillow``. The ways:

- ``pillow``: Pillow's resize and a table looked up by NumPy, as msmamba did before it had its own resize;
- ``numpy``: the reference of `msmamba.resize`, which runs where nothing is compiled;
- ``native``, with each number of threads: what runs where the native library is built.

Pictures are made by a formula and encoded as JPEG. ``decode`` is the same for all, and shown for comparison.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import PIL
from PIL import Image

from msmamba.images import Transform, read_image
from msmamba.plugins.image_resize import cpu
from msmamba.plugins.selective_scan import cpu as scan
from msmamba.resize import resize

MEAN, STD = (0.7, 0.5, 0.3), (0.1, 0.2, 0.4)


def encoded(width: int, height: int) -> bytes:
    """A JPEG of smooth shapes with some grain."""
    y, x = np.mgrid[:height, :width]
    grain = (x * 2654435761 + y * 40503) >> 7 & 15
    shades = [100 + 80 * np.sin(x / (31 + 9 * c)) * np.cos(y / (23 + 7 * c)) + grain for c in range(3)]
    file = io.BytesIO()
    Image.fromarray(np.stack(shades, axis=-1).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def by_pillow(pixels: np.ndarray, side: int, tables: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, side, side) float32."""
    resized = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
    return looked_up(resized, tables)


def by_numpy(pixels: np.ndarray, side: int, tables: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, side, side) float32."""
    return looked_up(resize(pixels, side), tables)


def by_native(threads: int, pixels: np.ndarray, side: int, tables: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, side, side) float32."""
    scan.set_threads(threads)
    return cpu.prepare(pixels, side, tables)


def looked_up(resized: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8 to (3, S, S) float32."""
    out = np.empty((3, *resized.shape[:2]), np.float32)
    for channel, table in enumerate(tables):
        np.take(table, resized[..., channel], out=out[channel], mode="clip")
    return out


def milliseconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes once."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["640x480", "4000x3000"], help="width x height")
    parser.add_argument("--side", type=int, default=224, help="side of the square, pixels")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    transform = Transform(options.side, MEAN, STD)
    black = transform.normalise(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2))
    tables = np.ascontiguousarray(black[..., 0])
    ways: dict[str, Callable[..., np.ndarray]] = {"pillow": by_pillow, "numpy": by_numpy}
    for threads in [] if cpu.why_unavailable() else options.threads:
        ways[f"native, {threads} threads"] = partial(by_native, threads)
    kernels = cpu.why_unavailable() or scan.kernels()
    print(f"Pillow {PIL.__version__}, native: {kernels}; to {options.side}x{options.side}, milliseconds\n")
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        content = encoded(width, height)
        pixels = read_image(content)
        cases = {name: partial(way, pixels, options.side, tables) for name, way in ways.items()}
        work: dict[str, Callable[[], object]] = {"decode": partial(read_image, content), **cases}
        expected = cases["numpy"]()
        taken: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(options.rounds):
            for name in random.sample(list(work), len(work)):
                taken[name].append(milliseconds(work[name]))
        print(f"{size}{'median':>24}{'least':>10}{'to pillow':>12}   bits")
        for name, times in taken.items():
            ratio = statistics.median(t / p for t, p in zip(times, taken["pillow"], strict=True))
            same = "" if name == "decode" else "equal" if np.array_equal(cases[name](), expected) else "OTHER"
            print(f"  {name:<20}{statistics.median(times):>9.2f}{min(times):>10.2f}{ratio:>12.3f}   {same}")
        print()


if __name__ == "__main__":
    main()
