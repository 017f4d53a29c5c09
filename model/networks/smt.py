"""SMT, the Scale-Aware Modulation Transformer (Lin et al., ICCV 2023; arXiv 2307.08579).

Early stages modulate values by convolutions of several sizes, the last attends, the third does both by
turns. Names of the state dict are the published ones.

Dims: B batch, H W map, C channels, N positions, g channels of a modulation head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .family import Network, View, as_it_is
from .layers import (
    TransformerBlock,
    attention,
    channels_first,
    channels_last,
    depthwise_conv,
    heads_of,
    initialise_convolution,
    initialise_transformer,
)
from .staged import StagedArchitecture, StagedFamily, StagedNetwork, depths_in, ratios, widths_in

MODULATION_HEADS = 4
HEAD_WIDTH = 32
STAGES = range(1, 5)


@dataclass(frozen=True)
class Architecture(StagedArchitecture):
    """SMT's four stages."""

    depths: tuple[int, ...] = (3, 4, 18, 2)
    dims: tuple[int, ...] = (64, 128, 256, 512)
    drop_path_rate: float = 0.2
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 2)
    """Hidden channels of a block's MLP over the stage's."""
    stem_kernel: int = 3
    """Side of the first convolution."""

    def misfits(self) -> list[str]:
        wrong = super().misfits()
        wrong += self.without_stages(4, "dims", "mlp_ratios")
        wrong += self.without_whole_heads(HEAD_WIDTH)
        if self.stem_kernel < 1 or not self.stem_kernel % 2:
            wrong.append(f"stem_kernel is {self.stem_kernel}, expected an odd number")
        return wrong


class Stem(nn.Module):
    """Two convolutions of stride 2: images (B, 3, S, S) to (B, S/4, S/4, C)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, channels, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 2, stride=2),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.norm(channels_last(self.conv(x)))
        return embedded


class OverlappingPatchEmbed(nn.Module):
    """A 3x3 convolution of stride 2, LayerNorm: (B, H, W, C') to (B, H/2, W/2, C)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.norm(channels_last(self.proj(channels_first(x))))
        return embedded


class Modulation(nn.Module):
    """Scale-aware modulation: (B, H, W, C) to the same shape.

    Each head's channels see windows of another size; then groups of one channel of each head are mixed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = channels // MODULATION_HEADS
        self.v = nn.Linear(channels, channels)
        self.s = nn.Linear(channels, channels)
        for head in range(MODULATION_HEADS):
            self.add_module(f"local_conv_{head + 1}", depthwise_conv(groups, 3 + 2 * head))
        self.proj0 = nn.Conv2d(channels, 2 * channels, 1, groups=groups)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.act = nn.GELU()
        self.proj1 = nn.Conv2d(2 * channels, channels, 1)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = channels_first(self.s(x)).chunk(MODULATION_HEADS, dim=1)  # (B, g, H, W) each
        seen = [getattr(self, f"local_conv_{head + 1}")(part) for head, part in enumerate(parts)]
        mixed = torch.stack(seen, dim=2).flatten(1, 2)  # channel 4g + i is head i's channel g
        modulator = self.proj1(self.act(self.bn(self.proj0(mixed))))
        modulated: Tensor = self.proj(channels_last(modulator) * self.v(x))
        return modulated


class Attention(nn.Module):
    """Attention between all positions, and a convolution of the values: (B, H, W, C) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.local_conv = depthwise_conv(channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        (q,) = heads_of(self.q(x).flatten(1, 2), self.heads)
        k, v = heads_of(self.kv(x).flatten(1, 2), self.heads, parts=2)  # (B, heads, N, 32)
        values = v.transpose(1, 2).reshape(x.shape)  # (B, H, W, C)
        local = channels_last(self.local_conv(channels_first(values)))
        attended: Tensor = self.proj(attention(q, k, v).view(x.shape) + local)
        return attended


class DepthwiseConv(nn.Module):
    """A depthwise 3x3 convolution of a channels-last map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = depthwise_conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(self.dwconv(channels_first(x)))


class MLP(nn.Module):
    """Two linear layers with a convolution between, which is added: (B, H, W, C) to the same shape."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.dwconv = DepthwiseConv(ratio * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        result: Tensor = self.fc2(self.act(hidden + self.dwconv(hidden)))
        return result


class Block(TransformerBlock):
    """Modulation or attention, and an MLP: (B, H, W, C) to the same shape."""

    def __init__(self, channels: int, mlp_ratio: int, attends: bool, drop_path: float) -> None:
        attn = Attention(channels) if attends else Modulation(channels)
        super().__init__(channels, attn, MLP(channels, mlp_ratio), drop_path)


class SMT(StagedNetwork):
    """The classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes)."""

    arch: Architecture

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        dims = arch.dims
        for stage, (dim, rates) in enumerate(zip(dims, arch.drop_paths(), strict=True)):
            embed = Stem(dim, arch.stem_kernel) if stage == 0 else OverlappingPatchEmbed(dims[stage - 1], dim)
            self.add_module(f"patch_embed{stage + 1}", embed)
            blocks = (
                Block(dim, arch.mlp_ratios[stage], stage == 3 or (stage == 2 and number % 2 == 1), rate)
                for number, rate in enumerate(rates)
            )
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(dim, eps=1e-6))
        self.head = nn.Linear(dims[-1], arch.num_classes)
        self.apply(initialise_transformer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise_convolution(module)

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every stage after its norm: (B, H, W, C)."""
        self.check_image_shape(tuple(images.shape))
        x, outputs = images, []
        for stage in STAGES:
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                x = block(x)
            x = getattr(self, f"norm{stage}")(x)
            outputs.append(x)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images)[-1].mean((1, 2)))
        return logits


class SMTFamily(StagedFamily):
    """SMT-small and SMT-base."""

    name = "smt"
    title = "SMT"
    architecture_type = Architecture
    network_type = SMT
    unit_types = (Stem, OverlappingPatchEmbed, Block)
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "smt_s": Architecture(),
        "smt_b": Architecture(
            depths=(4, 6, 28, 2), mlp_ratios=(8, 6, 4, 2), stem_kernel=7, drop_path_rate=0.3
        ),
    }

    def architecture_of(self, state: Mapping[str, Tensor]) -> Architecture:
        stem = state["patch_embed1.conv.0.weight"]
        dims = widths_in(state, "norm{}.weight", STAGES)
        return self.as_named(
            Architecture(
                num_classes=state["head.weight"].shape[0],
                depths=depths_in(state, "block{}.", STAGES),
                dims=dims,
                mlp_ratios=ratios(widths_in(state, "block{}.0.mlp.fc1.weight", STAGES), dims),
                stem_kernel=stem.shape[-1],
            )
        )

    def probes(self, network: Network) -> Mapping[str, View]:
        names = [name for name, module in network.named_modules() if isinstance(module, Block)]
        norms = [f"{part}{stage}" for stage in STAGES for part in ("patch_embed", "norm")]
        norms = [f"{name}.norm" if name.startswith("patch") else name for name in norms]
        return dict.fromkeys([*norms, *names], as_it_is)

    def map_layers(self, network: Network) -> Mapping[str, str]:
        depths = cast(Architecture, network.arch).depths
        return {f"stage{s + 1}": f"block{s + 1}.{depth - 1}" for s, depth in enumerate(depths)}
