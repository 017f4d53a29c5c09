"""Sizes that are awkward for the scan's kernels, and inputs of them: batch, H, W, channels, states."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmamba.plugins.selective_scan import DIRECTIONS

Arrays = dict[str, NDArray[Any]]

ARM = platform.machine() in ("aarch64", "arm64")
KERNELS = ("neon+dotprod", "neon") if ARM else ("avx512", "avx2+vnni", "avx2", "baseline")
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


def softplus_inputs() -> tuple[Arrays, NDArray[np.float64]]:
    """Inputs whose result is softplus of the step sizes, and what that is.

    One position: the state is delta' * x * B whatever A is, and only direction 0 is let through.
    """
    raw = np.concatenate(
        [np.linspace(-87, 30, 40_000), -np.geomspace(1e-20, 1, 1_000), np.geomspace(1e-20, 1, 1_000)]
    )
    inputs = arguments((1, 1, 1, raw.size, 1))
    inputs["delta"][:] = raw.astype(np.float32)
    for name, value in {"x": 1, "B": 0, "C": 1, "D": 0, "delta_bias": 0}.items():
        inputs[name][:] = value
    inputs["B"][..., 0, :] = 1
    return inputs, np.logaddexp(0, inputs["delta"][0, 0, 0, 0].astype(np.float64))


def decay_inputs() -> tuple[Arrays, NDArray[np.float64]]:
    """Inputs whose result's second position is the decays alone, and their exponents, of two.

    The first position sets the state to 1. A step of 32 is exact, so the exponent is known: 32 *
    float32(log2(e)) * A, rounded where multiply-adds are not fused or the processor's additions have units
    of their own.
    """
    exponents = np.concatenate([np.linspace(-125, 0, 40_001), -np.geomspace(1e-20, 1, 1_000)])
    A = (exponents / np.log2(np.e) / 32).astype(np.float32)
    inputs = arguments((1, 1, 2, A.size, 1))
    for name, value in {"delta": 32, "x": 0, "B": 0, "C": 1, "D": 0, "delta_bias": 0}.items():
        inputs[name][:] = value
    inputs["A"][0, :, 0] = A
    inputs["B"][..., 0, :] = 1
    inputs["x"][0, 0, 0] = 1 / 32
    return inputs, 32 * float(np.float32(np.log2(np.e))) * A.astype(np.float64)


def extreme_inputs() -> Arrays:
    """Steps and rates beyond all bounds, whose result is finite all the same."""
    inputs = arguments((1, 3, 3, 4, 16))
    inputs["delta"][0, 1, 1] = 1e30  # forgets everything
    inputs["delta"][0, 0, 2] = -1e30  # does not move
    inputs["A"][:, 1] = -3e38
    inputs["A"][:, 2] = 0
    inputs["x"][0, 1, 1] = 1e-30
    return inputs


def inputs_with_nan(name: str) -> Arrays:
    """Inputs of which one has one NaN, with low bits as no arithmetic makes them."""
    inputs = arguments((2, 4, 3, 20, 16))
    inputs[name][(1,) * inputs[name].ndim] = np.uint32(0x7FC00155).view(np.float32)
    return inputs


def ulps(found: NDArray[np.float32], truth: NDArray[np.float64]) -> float:
    """Largest error in units of the last place of the true value."""
    return float((np.abs(found - truth) / np.spacing(truth.astype(np.float32))).max())
