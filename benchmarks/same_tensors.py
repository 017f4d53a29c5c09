"""Are pictures the same input to a network with another Pillow, and without the compiled library?

    python benchmarks/same_tensors.py        # in an environment of each version; the lines are to be the same

Prints two checksums: of the tensors that the probe's files and a hundred made-up pictures become, by the
compiled resize and by the NumPy reference. Needs NumPy, Pillow and simplejpeg.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from msmamba import images, resize
from msmamba.runtime import probe

SIZES = (32, 64, 224)


def pictures() -> list[bytes | Path | NDArray[np.uint8]]:
    """The probe's two files; noise, lines and slopes of many shapes, every other one as a PNG."""
    found: list[bytes | Path | NDArray[np.uint8]] = [
        Path(probe.__file__).with_name(name) for name in probe.PICTURES
    ]
    generator = np.random.default_rng(0)
    for number in range(100):
        height, width = generator.integers(2, 700, 2).tolist()
        if number % 10 == 0:
            height, width = width * 12, max(2, height // 40)  # tall ones are what Pillow's versions differ in
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        if number % 3 == 0:
            pixels = (np.arange(width)[:, None] * 255 // width).astype(np.uint8) + np.zeros_like(pixels)
        elif number % 3 == 1:
            pixels = (pixels > 128).astype(np.uint8) * 255
        if number % 2:
            found.append(pixels)
            continue
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


def checksum(native: bool) -> str:
    """Over the tensors of all pictures at all sizes."""
    digest = hashlib.sha256()
    for place, picture in enumerate(pictures()):
        pixels = images.read_image(picture)
        transform = images.Transform(SIZES[place % len(SIZES)], (0.5, 0.25, 0.125), (0.25, 0.5, 0.75))
        tensor = transform(pixels) if native else _reference(transform, pixels)
        digest.update(tensor.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _reference(transform: images.Transform, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = resize.resize(pixels, transform.size)
    values = np.arange(256, dtype=np.float64) / 255
    mean, std = np.array(transform.mean)[:, None], np.array(transform.std)[:, None]
    tables = ((values - mean) / std).astype(np.float32)
    return np.stack([tables[channel][small[..., channel]] for channel in range(3)])


def main() -> None:
    """Prints a line for each of the two."""
    print(f"Pillow {PIL.__version__}, NumPy {np.__version__}")
    is_built = images.native_resize() is not None
    print(f"compiled   {checksum(native=True) if is_built else 'not built here'}")
    print(f"reference  {checksum(native=False)}")


if __name__ == "__main__":
    main()
