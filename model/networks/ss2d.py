"""SS2D: the state-space block around the 2D selective scan that MedMamba, VMamba and our network share.

Dims: B batch, H W map, d_model channels of a block, D = 2*d_model inner channels, N states, R rank of the
step size, K = 4 scan directions. Maps are channels last, (B, H, W, C).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...plugins.selective_scan import DIRECTIONS
from ...plugins.selective_scan.operator import selective_scan_2d
from .family import ScanWork
from .layers import channels_first, channels_last, depthwise_conv


class ScanWeights(NamedTuple):
    """What the scan and its projections take: all directions in one product each."""

    steps: Tensor
    """(K*R, D), to the step sizes' low-rank features."""
    steps_expanded: Tensor
    """(K*D, K*R), from those to step sizes: one block per direction."""
    inputs: Tensor
    """(K*N, D), to the scan's B."""
    outputs: Tensor
    """(K*N, D), to its C."""
    A: Tensor
    """(K, D, N), negative."""
    D: Tensor
    """(K, D)."""
    delta_bias: Tensor
    """(K, D)."""


class SS2D(nn.Module):
    """The state-space block: (B, H, W, d_model) to the same shape (VMamba, first version).

    One set of scan weights per direction. The projections of the step sizes, B and C act on one position
    at a time, so they run once in raster order and only the scan knows directions.
    """

    def __init__(self, d_model: int, d_state: int = 16) -> None:
        super().__init__()
        d_inner = 2 * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv2d = depthwise_conv(d_inner)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, self.dt_rank + 2 * d_state, d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, d_inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, d_inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * d_inner, d_state))
        self.Ds = nn.Parameter(torch.empty(DIRECTIONS * d_inner))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    @torch.no_grad()
    def initialise_scan(self, shortest: float = 1e-3, longest: float = 0.1) -> None:
        """Mamba's initialisation of the scan: A = -(1 … N), steps log-uniform in [shortest, longest]."""
        for weight in self.x_proj_weight:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # a linear layer's default
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_projs_weight, -bound, bound)
        step = torch.empty_like(self.dt_projs_bias).uniform_(math.log(shortest), math.log(longest)).exp()
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_logs.copy_(torch.arange(1, self.d_state + 1).log().expand_as(self.A_logs))
        nn.init.ones_(self.Ds)

    def scan_weights(self) -> ScanWeights:
        """The scan's weights and those of its projections, as they are used."""
        steps, inputs, outputs = self.x_proj_weight.split([self.dt_rank, self.d_state, self.d_state], dim=1)
        return ScanWeights(
            steps=steps.flatten(0, 1),
            steps_expanded=torch.block_diag(*self.dt_projs_weight),
            inputs=inputs.flatten(0, 1),
            outputs=outputs.flatten(0, 1),
            A=-torch.exp(self.A_logs.float()).view(DIRECTIONS, -1, self.d_state),
            D=self.Ds.float().view(DIRECTIONS, -1),
            delta_bias=self.dt_projs_bias.float(),
        )

    def scan(self, x: Tensor) -> Tensor:
        """The scan with its projections: (B, H, W, D) to (B, H, W, D)."""
        batch, height, width, d_inner = x.shape
        weights = self.scan_weights()
        delta = functional.linear(x, weights.steps)  # (B, H, W, K*R)
        delta = functional.linear(delta, weights.steps_expanded)  # (B, H, W, K*D)
        B = functional.linear(x, weights.inputs)  # (B, H, W, K*N)
        C = functional.linear(x, weights.outputs)
        return selective_scan_2d(
            x,
            delta.view(batch, height, width, DIRECTIONS, d_inner),
            weights.A,
            B.view(batch, height, width, DIRECTIONS, self.d_state),
            C.view(batch, height, width, DIRECTIONS, self.d_state),
            weights.D,
            weights.delta_bias,
        )

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is scanned, and the gate: (B, H, W, d_model) to (B, H, W, D) each."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        return functional.silu(channels_last(self.conv2d(channels_first(x)))).contiguous(), z

    def gated(self, tokens: Tensor) -> Tensor:
        """All but the last projection: (B, H, W, d_model) to (B, H, W, D)."""
        x, z = self.features(tokens)
        gated: Tensor = self.out_norm(self.scan(x)) * functional.silu(z)
        return gated

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.out_proj(self.gated(tokens))
        return projected


def scan_work(blocks: Iterable[tuple[SS2D, int]]) -> ScanWork:
    """What blocks do that layer counters do not see.

    Args:
        blocks: each with the positions that it runs on, over all sequences that it is given for one image.
    """
    projections = counted = updates = 0
    for block, positions in blocks:
        d_inner, rank, states = block.conv2d.in_channels, block.dt_rank, block.d_state
        features = positions * d_inner * DIRECTIONS * (rank + 2 * states)
        projections += features + positions * DIRECTIONS * rank * d_inner
        # The step sizes of all directions come from one product with a block-diagonal matrix.
        counted += features + positions * (DIRECTIONS * rank) * (DIRECTIONS * d_inner)
        updates += positions * DIRECTIONS * d_inner * states
    return ScanWork(projections, counted, updates)
