"""ConvNeXt-tiny, the paper's first competitor, as a yardstick: random weights, 28.59 M parameters.

Written out here (arXiv 2201.03545) because the libraries that ship it need torchvision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelsFirstNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, an inverted bottleneck of factor 4, layer scale, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.project(nn.functional.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext_tiny(classes: int = 1000) -> nn.Module:
    """The classifier: (B, 3, 224, 224) to (B, classes)."""
    depths, dims = (3, 3, 9, 3), (96, 192, 384, 768)
    layers: list[nn.Module] = [nn.Conv2d(3, dims[0], 4, stride=4), ChannelsFirstNorm(dims[0], eps=1e-6)]
    for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        if stage:
            layers += [
                ChannelsFirstNorm(dims[stage - 1], eps=1e-6),
                nn.Conv2d(dims[stage - 1], dim, 2, stride=2),
            ]
        layers += [Block(dim) for _ in range(depth)]
    head = [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(dims[-1], eps=1e-6),
        nn.Linear(dims[-1], classes),
    ]
    return nn.Sequential(*layers, *head)
