"""UniFormer (Li et al., ICLR 2022; arXiv 2201.04676): convolutions in two stages, attention in two more.

Names of the state dict are the published ones.

Dims: B batch, H W map, C channels, N positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional

from .family import CHANNELS_FIRST, Network, View, as_it_is
from .layers import (
    MLP,
    DropPath,
    TransformerBlock,
    attention,
    channels_first,
    channels_last,
    depthwise_conv,
    heads_of,
    initialise_transformer,
)
from .layers import PatchEmbed as AnyPatchEmbed
from .staged import StagedArchitecture, StagedFamily, StagedNetwork, depths_in, widths_in

HEAD_WIDTH = 64
STAGES = range(1, 5)
_LOCAL_STAGES = 2
_OTHER_NETWORKS = {
    "aux_head": "the token-labelling models have heads of another width",
    "gamma_1": "models with layer scale are others",
    "patch_embed1.conv": "models with a convolutional stem are others",
}


@dataclass(frozen=True)
class Architecture(StagedArchitecture):
    """UniFormer's four stages."""

    depths: tuple[int, ...] = (3, 4, 8, 3)
    dims: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratio: int = 4
    """Hidden channels of a block's MLP over the stage's."""

    def misfits(self) -> list[str]:
        wrong = super().misfits()
        wrong += self.without_stages(4, "dims")
        wrong += self.without_whole_heads(HEAD_WIDTH, first=_LOCAL_STAGES)
        if self.mlp_ratio < 1:
            wrong.append(f"mlp_ratio is {self.mlp_ratio}, expected at least 1")
        return wrong


class PatchEmbed(AnyPatchEmbed):
    """Cuts a map into squares, projects each, LayerNorm: (B, C', H, W) to (B, C, H/p, W/p)."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(x))


class ConvMLP(nn.Module):
    """An MLP of 1x1 convolutions: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, ratio * channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.act(self.fc1(x)))
        return result


class LocalBlock(nn.Module):
    """Positions, then what the paper calls local relation aggregation, then an MLP: (B, C, H, W)."""

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = depthwise_conv(channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.attn = depthwise_conv(channels, kernel_size=5)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = ConvMLP(channels, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Attention between all positions: (B, N, C) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        attended: Tensor = self.proj(attention(*heads_of(self.qkv(tokens), self.heads, parts=3)))
        return attended


class GlobalBlock(TransformerBlock):
    """Positions, attention, an MLP: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__(channels, Attention(channels), MLP(channels, mlp_ratio), drop_path)
        self.pos_embed = depthwise_conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        tokens: Tensor = super().forward(x.flatten(2).transpose(1, 2))  # (B, N, C)
        return tokens.transpose(1, 2).unflatten(-1, tuple(x.shape[2:]))


class UniFormer(StagedNetwork):
    """The classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes).

    The published code refuses images other than 224x224; nothing else in it depends on the size.
    """

    arch: Architecture

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        inputs = (3, *arch.dims)
        for stage, (dim, rates) in enumerate(zip(arch.dims, arch.drop_paths(), strict=True)):
            self.add_module(
                f"patch_embed{stage + 1}", PatchEmbed(inputs[stage], dim, patch=4 if stage == 0 else 2)
            )
            block = LocalBlock if stage < _LOCAL_STAGES else GlobalBlock
            self.add_module(
                f"blocks{stage + 1}", nn.Sequential(*(block(dim, arch.mlp_ratio, rate) for rate in rates))
            )
        self.norm = nn.BatchNorm2d(arch.dims[-1])
        self.head = nn.Linear(arch.dims[-1], arch.num_classes)
        self.apply(initialise_transformer)  # convolutions keep PyTorch's default

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every stage: (B, H, W, C), channels last."""
        self.check_image_shape(tuple(images.shape))
        x, outputs = images, []
        for stage in STAGES:
            x = getattr(self, f"blocks{stage}")(getattr(self, f"patch_embed{stage}")(x))
            outputs.append(channels_last(x))
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(channels_first(self.features(images)[-1]))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class UniFormerFamily(StagedFamily):
    """UniFormer-small and UniFormer-base, the plain ImageNet models."""

    name = "uniformer"
    title = "UniFormer"
    architecture_type = Architecture
    network_type = UniFormer
    map_layout = CHANNELS_FIRST
    unit_types = (PatchEmbed, LocalBlock, GlobalBlock)
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "uniformer_small": Architecture(),
        "uniformer_base": Architecture(depths=(5, 8, 20, 7), drop_path_rate=0.3),
    }

    def architecture_of(self, state: Mapping[str, Tensor]) -> Architecture:
        dims = widths_in(state, "patch_embed{}.norm.weight", STAGES)
        hidden = state["blocks1.0.mlp.fc1.weight"].shape[0]
        for part, why in _OTHER_NETWORKS.items():
            if other := next((name for name in state if part in name), None):
                raise ValueError(f"it has a tensor {other}: {why}")
        return self.as_named(
            Architecture(
                num_classes=state["head.weight"].shape[0],
                depths=depths_in(state, "blocks{}.", STAGES),
                dims=dims,
                mlp_ratio=hidden // dims[0],
            )
        )

    def probes(self, network: Network) -> Mapping[str, View]:
        names = [
            name
            for name, module in network.named_modules()
            if isinstance(module, LocalBlock) or name.endswith((".attn.proj", ".mlp.fc2", ".pos_embed"))
        ]
        return dict.fromkeys([*names, "norm"], as_it_is)

    def map_layers(self, network: Network) -> Mapping[str, str]:
        depths = cast(Architecture, network.arch).depths
        return {f"stage{s + 1}": f"blocks{s + 1}.{depth - 1}" for s, depth in enumerate(depths)}
