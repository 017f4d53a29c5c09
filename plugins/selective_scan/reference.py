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
    step = functional.softplus(
        delta.reshape(batch, length, DIRECTIONS, channels).to(work) + delta_bias.to(work)
    )
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


def selective_scan_2d_backward(
    grad: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`selective_scan_2d` by the adjoint recurrence, one position at a time.

    With ``g_t`` the gradient of ``y_t``, and ``dh`` running backwards from zero::

        dh_t     = g_t C_t + exp(delta_{t+1} A) dh_{t+1}
        dC_t     = sum_D g_t h_t                 dB_t = sum_D dh_t delta_t x_t
        dx_t     = D g_t + sum_N dh_t delta_t B_t
        ddelta_t = sum_N dh_t (A exp(delta_t A) h_{t-1} + x_t B_t)
        dA       = sum_t dh_t delta_t exp(delta_t A) h_{t-1}

    Every state is kept, so memory grows with L * D * N.

    Args:
        grad: (batch, H, W, D), the gradient of the output.
        x: as in :func:`selective_scan_2d`, like all that follow.

    Returns:
        The gradients of ``x, delta, A, B, C, D, delta_bias``, each in its input's shape and type.
    """
    batch, height, width, channels = x.shape
    states = A.shape[-1]
    length = height * width
    work = torch.promote_types(x.dtype, torch.float32)
    order = direction_order(height, width, x.device)
    k_index = torch.arange(DIRECTIONS, device=x.device)[:, None]

    def in_scan_order(tensor: Tensor, features: int) -> Tensor:
        return tensor.reshape(batch, length, DIRECTIONS, features).to(work)[:, order, k_index]

    u = x.reshape(batch, length, channels).to(work)[:, order]  # (batch, K, L, D)
    g = grad.reshape(batch, length, channels).to(work)[:, order]  # (batch, K, L, D)
    raw = in_scan_order(delta, channels) + delta_bias.to(work)[:, None]
    step = functional.softplus(raw)
    b = in_scan_order(B, states)
    c = in_scan_order(C, states)
    rate, skip = A.to(work), D.to(work)

    history = [torch.zeros(batch, DIRECTIONS, channels, states, dtype=work, device=x.device)]
    for t in range(length):
        step_t = step[:, :, t, :, None]
        history.append(
            torch.exp(step_t * rate) * history[-1] + step_t * u[:, :, t, :, None] * b[:, :, t, None, :]
        )

    d_step, d_u = torch.empty_like(step), torch.empty_like(u)
    d_b, d_c = torch.empty_like(b), torch.empty_like(c)
    d_rate = torch.zeros_like(rate)
    d_h = torch.zeros_like(history[0])
    for t in reversed(range(length)):
        step_t, u_t = step[:, :, t, :, None], u[:, :, t, :, None]  # (batch, K, D, 1)
        b_t, g_t = b[:, :, t, None, :], g[:, :, t, :, None]
        d_h = d_h + g_t * c[:, :, t, None, :]
        d_c[:, :, t] = (g_t * history[t + 1]).sum(2)
        decay = torch.exp(step_t * rate)
        through_decay = d_h * decay * history[t]
        d_rate += (through_decay * step_t).sum(0)
        d_step[:, :, t] = (through_decay * rate + d_h * u_t * b_t).sum(-1)
        d_u[:, :, t] = (d_h * step_t * b_t).sum(-1)
        d_b[:, :, t] = (d_h * step_t * u_t).sum(2)
        d_h = d_h * decay
    d_u += skip[:, None] * g
    d_raw = d_step * torch.sigmoid(raw)

    inverse = torch.argsort(order, dim=1)

    def in_raster_order(tensor: Tensor) -> Tensor:
        return tensor[:, k_index.t(), inverse.t()]  # (batch, L, K, features)

    return (
        in_raster_order(d_u).sum(2).view_as(x).to(x.dtype),
        in_raster_order(d_raw).reshape(delta.shape).to(delta.dtype),
        d_rate.to(A.dtype),
        in_raster_order(d_b).reshape(B.shape).to(B.dtype),
        in_raster_order(d_c).reshape(C.shape).to(C.dtype),
        (g * u).sum((0, 2)).to(D.dtype),
        d_raw.sum((0, 2)).to(delta_bias.dtype),
    )
