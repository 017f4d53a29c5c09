"""The 2D selective scan as a plain recurrence: the ground truth of every other implementation.

Dims as in the package: batch, H W map, L = H*W positions, D channels, N states, K = 4 directions.
One step per position, all directions at once; runs in whatever floating type it is given, float64
included, and under autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import DIRECTIONS


def direction_order(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Raster indices in the order in which each direction visits the map: (K, L) int64."""
    rows = torch.arange(height * width, device=device).view(height, width)
    columns = rows.t().reshape(-1)
    rows = rows.reshape(-1)
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])


def selective_scan_2d(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan of the package's contract, one position at a time.

    Half-precision inputs are widened to float32, as the contract asks; float32 and float64 stay.

    Args:
        x: (batch, H, W, D).
        delta: (batch, H, W, K, D), raw.
        A: (K, D, N), negative.
        B: (batch, H, W, K, N).
        C: (batch, H, W, K, N).
        D: (K, D).
        delta_bias: (K, D).

    Returns:
        (batch, H, W, D) in ``x``'s type.
    """
    batch, height, width, channels = x.shape
    states = A.shape[-1]
    length = height * width
    work = torch.promote_types(x.dtype, torch.float32)
    order = direction_order(height, width, x.device)  # (K, L)
    k_index = torch.arange(DIRECTIONS, device=x.device)[:, None]  # (K, 1)

    u = x.reshape(batch, length, channels).to(work)[:, order]  # (batch, K, L, D)
    # Indexing two axes at once puts the picked axes first: (batch, K, L, ·) in scan order.
    step = functional.softplus(delta.reshape(batch, length, DIRECTIONS, channels).to(work) + delta_bias.to(work))
    step = step[:, order, k_index]
    b = B.reshape(batch, length, DIRECTIONS, states).to(work)[:, order, k_index]  # (batch, K, L, N)
    c = C.reshape(batch, length, DIRECTIONS, states).to(work)[:, order, k_index]
    decay_rate = A.to(work)

    h = torch.zeros(batch, DIRECTIONS, channels, states, dtype=work, device=x.device)
    outputs = []
    for t in range(length):
        step_t = step[:, :, t, :, None]  # (batch, K, D, 1)
        h = torch.exp(step_t * decay_rate) * h + step_t * u[:, :, t, :, None] * b[:, :, t, None, :]
        outputs.append((h * c[:, :, t, None, :]).sum(-1))  # (batch, K, D)
    scanned = torch.stack(outputs, dim=2) + D.to(work)[:, None] * u  # (batch, K, L, D)

    inverse = torch.argsort(order, dim=1)  # (K, L): where each position stands in each order
    y = torch.zeros(batch, length, channels, dtype=work, device=x.device)
    for k in range(DIRECTIONS):
        y = y + scanned[:, k, inverse[k]]
    return y.view(batch, height, width, channels).to(x.dtype)
