"""MedMamba (Yue and Li, 2024; arXiv 2403.03849): half the channels through convolutions, half through scans.

Written from its description, as its authors grant no licence to their code. Names of the state dict are those
of the published code, as it has been since April 2024.

Dims: B batch, H W map, C channels of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .family import Network, View, as_it_is
from .layers import DropPath, channel_shuffle, channels_first, channels_last, merging_results
from .scan_pyramid import ScanArchitecture, ScanBlock, ScanPyramid, ScanPyramidFamily
from .ss2d import SS2D
from .staged import StagedArchitecture


@dataclass(frozen=True)
class Architecture(ScanArchitecture):
    """MedMamba's stages."""

    depths: tuple[int, ...] = (2, 2, 4, 2)

    def misfits(self) -> list[str]:
        odd = [f"dims {self.dims} must be even: a half for each branch"]
        return super().misfits() + odd * any(dim % 2 for dim in self.dims)


class Block(ScanBlock):
    """Convolutions on the first half of the channels, SS2D on the second: (B, H, W, C) to the same shape."""

    def __init__(self, channels: int, d_state: int, drop_path: float) -> None:
        super().__init__(channels, d_state, drop_path)
        half = channels // 2
        self.ln_1 = nn.LayerNorm(half)
        self.self_attention = SS2D(half, d_state)
        self.drop_path = DropPath(drop_path)
        self.conv33conv33conv11 = nn.Sequential(
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        local = channels_last(self.conv33conv33conv11(channels_first(left)))
        scanned = self.drop_path(self.self_attention(self.ln_1(right)))
        return channel_shuffle(torch.cat([local, scanned], dim=-1), groups=2) + x


class MedMamba(ScanPyramid):
    """The classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes)."""

    block_type = Block

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.initialise()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images)[-1].mean((1, 2)))
        return logits


class MedMambaFamily(ScanPyramidFamily):
    """MedMamba-tiny, which Table I leaves out, small and base."""

    name = "medmamba"
    title = "MedMamba"
    architecture_type = Architecture
    network_type = MedMamba
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "medmamba_t": Architecture(),
        "medmamba_s": Architecture(depths=(2, 2, 8, 2)),
        "medmamba_b": Architecture(depths=(2, 2, 12, 2), dims=(128, 256, 512, 1024)),
    }

    def architecture_of(self, state: Mapping[str, Tensor]) -> ScanArchitecture:
        if earlier := next((name for name in state if ".finalconv11." in name), None):
            raise ValueError(f"it has a tensor {earlier}: the network as it was before April 2024 is another")
        return self.read(state, first=2 * state["layers.0.blocks.0.conv33conv33conv11.1.weight"].shape[0])

    def probes(self, network: Network) -> Mapping[str, View]:
        names = ["patch_embed.norm", *merging_results(network)]
        for name, module in network.named_modules():
            if isinstance(module, Block):
                names += [f"{name}.conv33conv33conv11.8", f"{name}.self_attention.out_proj", name]
        return dict.fromkeys(names, as_it_is)
