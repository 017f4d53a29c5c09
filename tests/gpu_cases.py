"""Inputs for the GPU scan's tests, drawn as a trained network would have them, and the bar for its error.

Dims as in the package: batch, H W map, D channels, N states, K = 4 directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from msmamba.plugins.selective_scan import DIRECTIONS, reference

STATES = 16
ARGUMENTS = ("x", "delta", "A", "B", "C", "D", "delta_bias")


@dataclass(frozen=True)
class ScanCase:
    """One scan: its dims and type, and into how many chunks its lines are split."""

    batch: int
    height: int
    width: int
    channels: int
    element_type: str = "float32"
    chunks: int = 1

    def __str__(self) -> str:
        dims = f"{self.batch}x{self.height}x{self.width}x{self.channels}"
        return f"{dims}-{self.element_type}-{self.chunks}chunks"

    def inputs(self, seed: int = 0) -> dict[str, NDArray[np.generic]]:
        """The operator's arguments; step sizes log-uniform in [0.001, 0.1] about their bias, A = -(1..N)."""
        rng = np.random.default_rng(seed)
        positions = (self.batch, self.height, self.width)
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (DIRECTIONS, self.channels)))
        drawn = {
            "x": rng.standard_normal((*positions, self.channels)),
            "delta": rng.standard_normal((*positions, DIRECTIONS, self.channels)),
            "B": rng.standard_normal((*positions, DIRECTIONS, STATES)),
            "C": rng.standard_normal((*positions, DIRECTIONS, STATES)),
        }
        jitter = np.exp(0.1 * rng.standard_normal((DIRECTIONS, self.channels, STATES)))
        weights = {
            "A": -np.arange(1, STATES + 1) * jitter,
            "D": 1 + 0.1 * rng.standard_normal((DIRECTIONS, self.channels)),
            "delta_bias": np.log(np.expm1(step)),
        }
        arrays = {name: array.astype(self.element_type) for name, array in drawn.items()}
        arrays |= {name: array.astype(np.float32) for name, array in weights.items()}
        return {name: arrays[name] for name in ARGUMENTS}

    def output_gradient(self, seed: int = 1) -> NDArray[np.generic]:
        """A gradient of the output, as large as a loss over many positions makes it."""
        rng = np.random.default_rng(seed)
        drawn = rng.standard_normal((self.batch, self.height, self.width, self.channels))
        return drawn.astype(self.element_type)


def in_type(arrays: dict[str, NDArray[np.generic]], dtype: torch.dtype) -> dict[str, NDArray[np.generic]]:
    """The arguments with values that a type holds, in float32, for types that NumPy lacks."""
    rounded = {name: torch.from_numpy(array).to(dtype).float().numpy() for name, array in arrays.items()}
    return {name: arrays[name] if name in ("A", "D", "delta_bias") else rounded[name] for name in arrays}


@dataclass(frozen=True)
class Truth:
    """What a scan should answer, and how far the reference itself is from it in the inputs' precision."""

    exact: NDArray[np.float64]  # (batch, H, W, D)
    reference_error: float  # largest absolute error

    def check(self, y: NDArray[np.generic], times: float = 2) -> None:
        """Fails if ``y`` holds a NaN or errs more than so many times as much as the reference."""
        assert y.shape == self.exact.shape
        assert np.isfinite(y).all(), f"{np.count_nonzero(~np.isfinite(y))} elements are not finite"
        error = np.abs(y.astype(np.float64) - self.exact).max()
        assert error <= times * self.reference_error, (
            f"error {error:.2e}, the reference's {self.reference_error:.2e}"
        )


def truth(inputs: dict[str, NDArray[np.generic]]) -> Truth:
    """The scan in float64, and the error of the reference in the inputs' own types."""
    tensors = [torch.from_numpy(inputs[name]) for name in ARGUMENTS]
    exact = reference.selective_scan_2d(*(tensor.double() for tensor in tensors))
    own = reference.selective_scan_2d(*tensors).double()
    return Truth(exact.numpy(), float((own - exact).abs().max()))


@dataclass(frozen=True)
class GradientTruth:
    """What the gradients of a scan should be, and how far the reference's are from them in their types."""

    exact: dict[str, NDArray[np.float64]]
    reference_errors: dict[str, float]

    def check(self, gradients: dict[str, NDArray[np.generic]]) -> None:
        """Fails if a gradient holds a NaN or errs more than twice as much as the reference's.

        Where the reference happens to be exact, two of float32's last places are still allowed.
        """
        for name, exact in self.exact.items():
            found = gradients[name]
            assert found.shape == exact.shape, name
            assert np.isfinite(found).all(), f"{name}: {np.count_nonzero(~np.isfinite(found))} not finite"
            error = np.abs(found.astype(np.float64) - exact).max()
            last_places = 2 * np.finfo(np.float32).eps * np.abs(exact).max()
            assert error <= 2 * self.reference_errors[name] + last_places, (
                f"{name}: error {error:.2e}, the reference's {self.reference_errors[name]:.2e}"
            )


def gradient_truth(
    inputs: dict[str, NDArray[np.generic]], grad: NDArray[np.generic], dtype: torch.dtype | None = None
) -> GradientTruth:
    """The gradients in float64, and the errors of the reference's in the inputs' own types.

    Args:
        inputs: The operator's arguments.
        grad: The gradient of its output.
        dtype: The type of ``x``, ``delta``, ``B``, ``C`` and ``grad`` where NumPy has none for it; they have
            its values already.
    """
    tensors = [torch.from_numpy(array) for array in (grad, *(inputs[name] for name in ARGUMENTS))]
    if dtype is not None:
        own_type = {0, 1, 2, 4, 5}  # A, D and delta_bias stay float32
        tensors = [tensor.to(dtype) if i in own_type else tensor for i, tensor in enumerate(tensors)]
    exact = reference.selective_scan_2d_backward(*(tensor.double() for tensor in tensors))
    own = reference.selective_scan_2d_backward(*tensors)
    errors = [float((o.double() - e).abs().max()) for o, e in zip(own, exact, strict=True)]
    return GradientTruth(
        {name: e.numpy() for name, e in zip(ARGUMENTS, exact, strict=True)},
        dict(zip(ARGUMENTS, errors, strict=True)),
    )
