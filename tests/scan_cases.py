"""Sizes that are awkward for the scan's kernels, and inputs of them: batch, H, W, channels, states."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmamba.plugins.selective_scan import DIRECTIONS

Arrays = dict[str, NDArray[Any]]

ARM = platform.machine() in ("aarch64", "arm64")
KERNELS = ("neon",) if ARM else ("avx512", "avx2", "baseline")
"""The sets of kernels that the native library holds on this kind of processor."""

CASES = {
    "one-token": (1, 1, 1, 1, 1),
    "one-row": (1, 1, 9, 3, 2),
    "one-column": (2, 7, 1, 5, 16),
    "odd": (3, 5, 7, 23, 16),
    "five-states": (2, 6, 5, 33, 5),
    "forty-states": (1, 4, 5, 6, 40),
    "wide-and-narrow": (1, 9, 4, 24, 16),
    "whole-vectors": (2, 8, 8, 64, 16),
    "several-blocks": (1, 3, 3, 203, 16),
    "long": (1, 40, 37, 17, 16),
}


def arguments(sizes: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Arrays:
    """Inputs of the sizes and distributions the network has at initialisation."""
    batch, height, width, channels, states = sizes
    rng = np.random.default_rng(seed)
    position = (batch, height, width)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (DIRECTIONS, channels)))
    return {
        "x": rng.standard_normal((*position, channels)).astype(dtype),
        "delta": rng.standard_normal((*position, DIRECTIONS, channels)).astype(dtype),
        "A": -rng.uniform(0.5, states + 0.5, (DIRECTIONS, channels, states)).astype(np.float32),
        "B": rng.standard_normal((*position, DIRECTIONS, states)).astype(dtype),
        "C": rng.standard_normal((*position, DIRECTIONS, states)).astype(dtype),
        "D": rng.standard_normal((DIRECTIONS, channels)).astype(np.float32),
        "delta_bias": np.log(np.expm1(step)).astype(np.float32),
    }
