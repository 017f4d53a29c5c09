"""Pictures made by a formula, and sizes that are awkward for a resize."""

from __future__ import annotations

import numpy as np

from msmamba.resize import Box

# Height, width, size of the square, and the part that is resized.
CASES: dict[str, tuple[int, int, int, Box | None]] = {
    "one-pixel": (1, 1, 1, None),
    "one-pixel-enlarged": (1, 1, 17, None),
    "one-row": (1, 9, 5, None),
    "one-column": (9, 1, 5, None),
    "to-one": (13, 11, 1, None),
    "odd": (37, 53, 19, None),
    "narrower-than-a-vector": (50, 3, 8, None),
    "enlarged": (23, 31, 48, None),
    "wide": (6, 900, 32, None),
    "tall": (900, 6, 32, None),
    "wider-and-lower": (80, 20, 32, None),
    "same": (33, 33, 33, None),
    "same-width": (70, 33, 33, None),
    "same-height": (33, 70, 33, None),
    "just-rows-first": (129, 82, 33, None),
    "just-columns-first": (132, 82, 33, None),
    "landscape": (240, 320, 112, None),
    "on-threads": (600, 700, 65, None),
    "on-threads-tall": (1300, 300, 65, None),
    "part": (61, 83, 24, (10, 7, 50, 33)),
    "part-enlarged": (61, 83, 24, (80, 59, 83, 61)),
    "part-of-tall": (300, 40, 24, (3, 100, 39, 299)),
    "part-of-its-size": (40, 50, 16, (7, 5, 23, 21)),
}


def picture(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 of gradients, texture and hard edges, by integers only."""
    y, x, channel = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    mixed = (x * 2654435761 + y * 40503 * (x + 7) + channel * 97) >> 5
    blocks = ((x // 5 + y // 3 + channel) % 2) * 255
    return np.where((x + 2 * y) % 11 < 4, blocks, mixed % 256).astype(np.uint8)
