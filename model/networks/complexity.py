"""Parameters and multiply-adds, counted the paper's way and in full.

The paper's figures follow ptflops, which sees layers: convolutions and linear layers with their biases, two
operations an element for norms, one for activations, and all weights of a checkpoint. The forward pass
also computes the step-size, B and C projections and the scan itself, and never uses some of the weights.
Both counts are given. At 224x224 the paper's 0.64 and 0.76 GMACs (tiny, small) come out as 0.64 and 0.75;
its 1.59 for base does not follow from the released architecture, which gives 1.50.

Dims: L positions of a map, D inner channels, N states, R rank of the step size, K = 4 directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .family import Architecture
from .registry import family_of, outline

MACS_PER_STATE_UPDATE = 3
"""Multiply-adds of one state at one position: the decay's exponent, the new value, the output's share."""

_LAYERS = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)  # what layers come down to

_COUNTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.ReLU, nn.GELU)  # element by element, too


@dataclass(frozen=True)
class Complexity:
    """What one image costs."""

    parameters: int
    """All weights of a checkpoint: the paper's count."""
    used_parameters: int
    """Those that the forward pass uses."""
    layer_macs: int
    """Multiply-adds of convolutions and linear layers."""
    elementwise: int
    """What ptflops adds for biases, norms and activations."""
    product_macs: int
    """Those of activations with one another, as in attention, which ptflops does not see."""
    projection_macs: int
    """Those of the step-size, B and C projections."""
    state_updates: int
    """Updates of one state at one position, over all directions."""

    @property
    def paper_macs(self) -> int:
        """The paper's count."""
        return self.layer_macs + self.elementwise

    @property
    def macs(self) -> int:
        """All multiply-adds: layers, attention, projections and the scan."""
        scan = MACS_PER_STATE_UPDATE * self.state_updates
        return self.layer_macs + self.product_macs + self.projection_macs + scan


@cache
def complexity(arch: Architecture, image_size: int = 224) -> Complexity:
    """Counts for one image of ``image_size`` pixels square; nothing is computed, and a network counted once.

    Raises:
        InputError: the network takes no such images.
        BackendError: it cannot be built here.
    """
    family, network = family_of(arch), outline(arch, image_size).eval()
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    elementwise = 0

    def count(module: nn.Module, inputs: Any, result: torch.Tensor) -> None:
        nonlocal elementwise
        has_bias = isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None
        is_norm = isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
        is_activation = isinstance(module, nn.ReLU | nn.GELU)
        elementwise += result.numel() * (has_bias + 2 * is_norm + is_activation)

    for module in network.modules():
        if isinstance(module, _COUNTED):
            module.register_forward_hook(count)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(images)
    counted = {operator: flops // 2 for operator, flops in counter.get_flop_counts()["Global"].items()}
    of_layers = sum(macs for operator, macs in counted.items() if operator in _LAYERS)

    scans = family.scan_work(network, image_size)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(
        parameters=parameters,
        used_parameters=parameters - family.unused_parameters(network),
        layer_macs=of_layers - scans.projection_macs_counted,
        elementwise=elementwise,
        product_macs=sum(counted.values()) - of_layers,
        projection_macs=scans.projection_macs,
        state_updates=scans.state_updates,
    )
