"""The plain recurrence: against the formula position by position, and its gradient against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from msmamba.plugins.selective_scan import DIRECTIONS, reference

SHAPES = [
    pytest.param(1, 1, 1, 1, 1, id="one-of-everything"),
    pytest.param(1, 1, 7, 3, 2, id="one-row"),
    pytest.param(2, 5, 1, 3, 4, id="one-column"),
    pytest.param(3, 3, 4, 5, 16, id="not-square"),
]


def arguments(
    batch: int, height: int, width: int, channels: int, states: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random arguments of the contract, in its order."""
    generator = torch.Generator().manual_seed(batch * 1000 + height * 100 + width * 10 + channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    projection = (batch, height, width, DIRECTIONS, states)
    return [
        normal(batch, height, width, channels),
        normal(batch, height, width, DIRECTIONS, channels) - 1,
        -torch.exp(normal(DIRECTIONS, channels, states)),
        normal(*projection),
        normal(*projection),
        normal(DIRECTIONS, channels),
        normal(DIRECTIONS, channels),
    ]


def visited(direction: int, height: int, width: int) -> list[tuple[int, int]]:
    """The positions of a direction in the order of the contract's words."""
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]][direction]


@pytest.mark.parametrize(("batch", "height", "width", "channels", "states"), SHAPES)
def test_every_position_follows_the_formula(
    batch: int, height: int, width: int, channels: int, states: int
) -> None:
    x, delta, A, B, C, D, bias = arguments(batch, height, width, channels, states)
    expected = torch.zeros_like(x)
    for b in range(batch):
        for k in range(DIRECTIONS):
            for d in range(channels):
                h = [0.0] * states
                for i, j in visited(k, height, width):
                    step = math.log1p(math.exp(float(delta[b, i, j, k, d] + bias[k, d])))
                    u = float(x[b, i, j, d])
                    y = float(D[k, d]) * u
                    for n in range(states):
                        h[n] = math.exp(step * float(A[k, d, n])) * h[n] + step * u * float(B[b, i, j, k, n])
                        y += h[n] * float(C[b, i, j, k, n])
                    expected[b, i, j, d] += y
    torch.testing.assert_close(
        reference.selective_scan_2d(x, delta, A, B, C, D, bias), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("batch", "height", "width", "channels", "states"), SHAPES)
def test_the_adjoint_recurrence_is_autograds_gradient(
    batch: int, height: int, width: int, channels: int, states: int
) -> None:
    inputs = [tensor.requires_grad_() for tensor in arguments(batch, height, width, channels, states)]
    y = reference.selective_scan_2d(*inputs)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    expected = torch.autograd.grad(y, inputs, grad)
    found = reference.selective_scan_2d_backward(grad, *[tensor.detach() for tensor in inputs])
    for name, left, right in zip(("x", "delta", "A", "B", "C", "D", "bias"), found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    x, delta, A, B, C, D, bias = arguments(1, 6, 6, 3, 16, torch.float32)
    rounded = [tensor.to(dtype) for tensor in (x, delta, B, C)]
    y = reference.selective_scan_2d(rounded[0], rounded[1], A, rounded[2], rounded[3], D, bias)
    wide = [tensor.double() for tensor in rounded]
    exact = reference.selective_scan_2d(
        wide[0], wide[1], A.double(), wide[2], wide[3], D.double(), bias.double()
    )
    assert y.dtype == dtype
    # Only the result is rounded to the type, so half a unit in its last place is all that is lost.
    assert torch.all((y.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.51 + 1e-5)
