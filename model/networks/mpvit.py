"""MPViT, the Multi-Path Vision Transformer (Lee et al., CVPR 2022; arXiv 2112.11010).

Each stage embeds its map several times, by chains of 3x3 convolutions, and gives each its own encoder.
Names of the state dict are the published ones: modules that an encoder's layers share stand in it under
every user's name.

Dims: B batch, H W map, C channels, N positions, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .family import CHANNELS_FIRST, Network, View, as_it_is
from .family import Architecture as AnyArchitecture
from .layers import (
    MLP,
    DropPath,
    channels_last,
    depthwise_conv,
    heads_of,
    initialise_convolution,
    initialise_transformer,
)
from .staged import StagedArchitecture, StagedFamily, StagedNetwork, count, depths_in, widths_in

HEADS = 8
_WINDOWS = {3: 2, 5: 3, 7: 3}  # side of a convolution: how many heads' values it sees


@dataclass(frozen=True)
class Architecture(StagedArchitecture):
    """MPViT's four stages; `depths` are the layers of each path."""

    depths: tuple[int, ...] = (1, 2, 4, 1)
    dims: tuple[int, ...] = (64, 96, 176, 216)
    drop_path_rate: float = 0.0
    paths: tuple[int, ...] = (2, 3, 3, 3)
    """Paths of each stage."""
    mlp_ratio: int = 2
    """Hidden channels of a layer's MLP over the stage's."""

    def misfits(self) -> list[str]:
        wrong = super().misfits()
        if len(self.paths) != len(self.dims):
            wrong.append(f"paths {self.paths} and dims {self.dims} must name the same stages")
        if any(dim % HEADS for dim in self.dims):
            wrong.append(f"dims {self.dims} must be multiples of {HEADS}, the heads")
        if self.mlp_ratio < 1:
            wrong.append(f"mlp_ratio is {self.mlp_ratio}, expected at least 1")
        return wrong


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and, where asked for, Hardswish."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.Hardswish() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.bn(self.conv(x)))
        return result


class PatchConv(nn.Module):
    """A depthwise and a pointwise convolution with nothing between, batch norm, Hardswish."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.pwconv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.bn(self.pwconv(self.dwconv(x))))
        return result


class PatchEmbed(nn.Module):
    """One path's embedding, of what the path before it gave."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.patch_conv = PatchConv(channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.patch_conv(x)
        return embedded


class PatchEmbedStage(nn.Module):
    """A stage's embeddings, a chain: path p's sees what 3, 5, 7 positions of the map hold."""

    def __init__(self, channels: int, paths: int, stride: int) -> None:
        super().__init__()
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(channels, stride if path == 0 else 1) for path in range(paths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for embed in self.patch_embeds:
            x = embed(x)
            maps.append(x)
        return maps


class ConvPositionEncoding(nn.Module):
    """The map and a depthwise convolution of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = depthwise_conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = x + self.proj(x)
        return encoded


class ConvRelativePositionEncoding(nn.Module):
    """Depthwise convolutions of the values, of another size for each group of heads: (B, C, H, W)."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(
            depthwise_conv(heads * head_width, side) for side, heads in _WINDOWS.items()
        )
        self.channels = [heads * head_width for heads in _WINDOWS.values()]

    def forward(self, values: Tensor) -> Tensor:
        parts = values.split(self.channels, dim=1)
        convolved = (conv(part) for conv, part in zip(self.conv_list, parts, strict=True))
        return torch.cat(list(convolved), dim=1)


class FactorisedAttention(nn.Module):
    """Attention linear in N, with a relative position encoding: (B, N, C) of a map (H, W) to (B, N, C)."""

    def __init__(self, channels: int, crpe: ConvRelativePositionEncoding) -> None:
        super().__init__()
        self.scale = (channels // HEADS) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.crpe = crpe

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        q, k, v = heads_of(self.qkv(tokens), HEADS, parts=3)  # (B, heads, N, d) each
        context = k.softmax(dim=2).transpose(-1, -2) @ v  # (B, heads, d, d): softmax over the positions
        values = v.transpose(-1, -2).flatten(1, 2).unflatten(-1, (height, width))  # (B, C, H, W)
        relative = self.crpe(values).flatten(2).unflatten(1, (HEADS, -1)).transpose(-1, -2)
        attended = self.scale * (q @ context) + q * relative
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class EncoderLayer(nn.Module):
    """Position encoding, attention, MLP: (B, C, H, W) to the same shape."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: int,
        drop_path: float,
        cpe: ConvPositionEncoding,
        crpe: ConvRelativePositionEncoding,
    ) -> None:
        super().__init__()
        self.cpe = cpe
        self.crpe = crpe
        self.factoratt_crpe = FactorisedAttention(channels, crpe)
        self.mlp = MLP(channels, mlp_ratio)
        self.drop_path = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.cpe(x).flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = tokens + self.drop_path(self.factoratt_crpe(self.norm1(tokens), height, width))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).unflatten(-1, (height, width))


class Encoder(nn.Module):
    """One path's layers, which share their position encodings: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int, mlp_ratio: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.cpe = ConvPositionEncoding(channels)
        self.crpe = ConvRelativePositionEncoding(channels // HEADS)
        self.MHCA_layers = nn.ModuleList(
            EncoderLayer(channels, mlp_ratio, rate, self.cpe, self.crpe) for rate in drop_paths
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.MHCA_layers:
            x = layer(x)
        return x


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3, 1x1, plus the input: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 1)
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.Hardswish()
        self.conv2 = ConvNorm(channels, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv2(self.act(self.norm(self.dwconv(self.conv1(x)))))
        return result


class Stage(nn.Module):
    """A stage's encoders and its convolutions, put together: the paths' maps to (B, C', H, W)."""

    def __init__(
        self, channels: int, outputs: int, paths: int, mlp_ratio: int, drop_paths: list[float]
    ) -> None:
        super().__init__()
        self.mhca_blks = nn.ModuleList(Encoder(channels, mlp_ratio, drop_paths) for _ in range(paths))
        self.InvRes = InvertedResidual(channels)
        self.aggregate = ConvNorm(channels * (paths + 1), outputs, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        encoded = [encoder(x) for encoder, x in zip(self.mhca_blks, maps, strict=True)]
        aggregated: Tensor = self.aggregate(torch.cat([self.InvRes(maps[0]), *encoded], dim=1))
        return aggregated


class Classifier(nn.Module):
    """The mean over the map, and a linear layer: (B, C, H, W) to (B, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.cls(x.mean((2, 3)))
        return logits


class MPViT(StagedNetwork):
    """The classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes)."""

    arch: Architecture

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        dims = arch.dims
        self.stem = nn.Sequential(
            ConvNorm(3, dims[0] // 2, 3, stride=2), ConvNorm(dims[0] // 2, dims[0], 3, stride=2)
        )
        self.patch_embed_stages = nn.ModuleList(
            PatchEmbedStage(dim, paths, stride=1 if stage == 0 else 2)
            for stage, (dim, paths) in enumerate(zip(dims, arch.paths, strict=True))
        )
        outputs = (*dims[1:], dims[-1])
        self.mhca_stages = nn.ModuleList(
            Stage(dim, out, paths, arch.mlp_ratio, rates)
            for dim, out, paths, rates in zip(dims, outputs, arch.paths, arch.drop_paths(), strict=True)
        )
        self.cls_head = Classifier(dims[-1], arch.num_classes)
        self.initialise()

    def initialise(self) -> None:
        """Fills all weights for training from scratch (the published code's initialisation).

        Position encodings keep PyTorch's default.
        """
        self.apply(initialise_transformer)
        for module in self.modules():
            if isinstance(module, ConvNorm):
                initialise_convolution(module.conv, groups=1)
            elif isinstance(module, PatchConv):
                initialise_convolution(module.dwconv, groups=1)
                initialise_convolution(module.pwconv, groups=1)
        for module in self.modules():
            if isinstance(module, InvertedResidual):
                for conv in (module.conv1.conv, module.dwconv, module.conv2.conv):
                    initialise_convolution(conv)

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every stage after `aggregate`: (B, H, W, C), channels last."""
        self.check_image_shape(tuple(images.shape))
        x = self.stem(images)
        outputs = []
        for embed, stage in zip(self.patch_embed_stages, self.mhca_stages, strict=True):
            x = stage(embed(x))
            outputs.append(channels_last(x))
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.cls_head(self.features(images)[-1].permute(0, 3, 1, 2))
        return logits


class MPViTFamily(StagedFamily):
    """MPViT-tiny and MPViT-small."""

    name = "mpvit"
    title = "MPViT"
    architecture_type = Architecture
    network_type = MPViT
    head = "cls_head.cls"
    map_layout = CHANNELS_FIRST
    unit_types = (ConvNorm, PatchEmbed, EncoderLayer, InvertedResidual)
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "mpvit_tiny": Architecture(),
        "mpvit_small": Architecture(
            depths=(1, 3, 6, 3), dims=(64, 128, 216, 288), mlp_ratio=4, drop_path_rate=0.05
        ),
    }

    def architecture_of(self, state: Mapping[str, Tensor]) -> Architecture:
        stages = range(count(state, "mhca_stages."))
        dims = widths_in(state, "patch_embed_stages.{}.patch_embeds.0.patch_conv.bn.weight", stages)
        hidden = state["mhca_stages.0.mhca_blks.0.MHCA_layers.0.mlp.fc1.weight"].shape[0]
        return self.as_named(
            Architecture(
                num_classes=state["cls_head.cls.weight"].shape[0],
                depths=depths_in(state, "mhca_stages.{}.mhca_blks.0.MHCA_layers.", stages),
                dims=dims,
                paths=depths_in(state, "mhca_stages.{}.mhca_blks.", stages),
                mlp_ratio=hidden // dims[0],
            )
        )

    def describe(self, arch: AnyArchitecture) -> str:
        return f"{super().describe(arch)}, paths {cast(Architecture, arch).paths}"

    def probes(self, network: Network) -> Mapping[str, View]:
        return {
            name: as_it_is
            for name, module in network.named_modules()
            if (isinstance(module, nn.Hardswish) and name.startswith("stem."))
            or isinstance(module, InvertedResidual)
            or name.endswith((".aggregate.act", ".patch_conv.act"))
        }

    def map_layers(self, network: Network) -> Mapping[str, str]:
        stages = len(cast(MPViT, network).mhca_stages)
        return {f"stage{stage + 1}": f"mhca_stages.{stage}" for stage in range(stages)}
