"""The 2D selective scan by ``mamba_ssm``'s CUDA kernel, forward and backward.

That kernel scans one sequence, channels first, with one group of B and C for a block of channels. Here the
four directions are laid side by side as four groups of channels, which copies the map four times: the
kernel is made for training, where that is small beside what it saves.

Dims as in the package: batch, H W map, L = H*W, D channels, N states, K = 4 directions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from . import DIRECTIONS
from .reference import direction_order

SequenceScan = Callable[..., Tensor]
"""``selective_scan_fn(u, delta, A, B, C, D=…, delta_bias=…, delta_softplus=True)`` of mamba_ssm: u and delta
(batch, dim, L); A (dim, N); B and C (batch, groups, N, L); D and delta_bias (dim)."""


@cache
def why_unavailable() -> str | None:
    """Why ``mamba_ssm``'s kernel cannot run, None where it loads; importing it is the only way to know."""
    try:
        from mamba_ssm.ops import selective_scan_interface  # noqa: F401  # only whether it loads
    except ModuleNotFoundError as error:
        if error.name == "mamba_ssm":
            return "mamba_ssm is not installed"
        return f"mamba_ssm does not load ({error})"
    # What its extension raises where it was built for another PyTorch, Python or CUDA.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"mamba_ssm does not load ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return None


def selective_scan_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    sequence_scan: SequenceScan | None = None,
) -> Tensor:
    """The scan of the package's contract, differentiable by autograd.

    Args:
        x: (batch, H, W, D).
        delta: (batch, H, W, K, D), raw.
        A: (K, D, N) float32, negative.
        B: (batch, H, W, K, N).
        C: (batch, H, W, K, N).
        D: (K, D) float32.
        delta_bias: (K, D) float32.
        sequence_scan: the scan to run in place of ``mamba_ssm``'s.

    Returns:
        (batch, H, W, D) in ``x``'s type.
    """
    if sequence_scan is None:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        sequence_scan = selective_scan_fn
    batch, height, width, channels = x.shape
    length, states = height * width, A.shape[-1]
    order = direction_order(height, width, x.device)  # (K, L)
    each = torch.arange(DIRECTIONS, device=x.device)[:, None]

    def sequences(tensor: Tensor) -> Tensor:  # (batch, H, W, K, F) to (batch, K, F, L), in scan order
        features = tensor.shape[-1]
        return tensor.reshape(batch, length, DIRECTIONS, features)[:, order, each].transpose(2, 3)

    u = x.reshape(batch, length, channels)[:, order].transpose(2, 3)  # (batch, K, D, L)
    scanned = sequence_scan(
        u.reshape(batch, DIRECTIONS * channels, length),
        sequences(delta).reshape(batch, DIRECTIONS * channels, length),
        A.reshape(DIRECTIONS * channels, states),
        sequences(B).contiguous(),
        sequences(C).contiguous(),
        D=D.reshape(-1),
        delta_bias=delta_bias.reshape(-1),
        delta_softplus=True,
    ).view(batch, DIRECTIONS, channels, length)
    inverse = torch.argsort(order, dim=1)  # (K, L): where each position stands in each order
    back = torch.stack([scanned[:, k, :, inverse[k]] for k in range(DIRECTIONS)], dim=1)
    wide = torch.promote_types(x.dtype, torch.float32)  # one rounding at the end
    summed = back.to(wide).sum(1)  # (batch, D, L)
    return summed.transpose(1, 2).reshape(batch, height, width, channels).to(x.dtype)
