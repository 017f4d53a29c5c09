"""Layers that several networks are made of.

Dims: B batch, H W map, C channels, N positions or tokens, d channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Views the last axis as (groups, C/groups), transposes and flattens it; (…, C) to (…, C)."""
    return x.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) to (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def depthwise_conv(channels: int, kernel_size: int = 3) -> nn.Conv2d:
    """A convolution of each channel by itself, with bias, keeping H and W."""
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of heads, scaled by their width: (B, heads, N, d) each to (B, N, heads*d).

    Queries may be of another number of tokens than keys and values.
    """
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, heads, N, M)
    return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)


def heads_of(tokens: Tensor, heads: int, parts: int = 1) -> Tensor:
    """Splits channels laid out (part, head, d): (B, N, parts*heads*d) to (parts, B, heads, N, d)."""
    return tokens.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops whole samples and scales the others up.

    What is drawn may be for more images than pass here, those of other processes, so that each image is
    dropped or kept as if all had been in one place.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.share: tuple[int, int, int] | None = None
        """Images of all processes, and the first and last of those that pass here."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        drawn, first, last = self.share or (x.shape[0], 0, x.shape[0])
        ones = (1,) * (x.ndim - 1)
        return x * x.new_empty(drawn, *ones).bernoulli_(keep).div_(keep)[first:last]


class PatchEmbed(nn.Module):
    """Cuts a map into squares, projects each, LayerNorm: (B, C', H, W) to (B, H/p, W/p, C)."""

    def __init__(self, inputs: int, outputs: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, patch, stride=patch)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.norm(channels_last(self.proj(x)))
        return embedded


class PatchMerging(nn.Module):
    """Gathers 2x2 neighbours into channels, LayerNorm, linear: (B, H, W, C) to (B, H/2, W/2, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        # Neighbours in the order (0,0) (1,0) (0,1) (1,1), (row, column): columns outermost.
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        merged: Tensor = self.reduction(self.norm(x))
        return merged


def merging_results(network: nn.Module) -> list[str]:
    """The modules whose results exported files show of each patch merging.

    The second of each two is shown in files from before the merging was one operator.
    """
    merged = [name for name, module in network.named_modules() if isinstance(module, PatchMerging)]
    return [result for name in merged for result in (name, f"{name}.reduction")]


class MLP(nn.Module):
    """Two linear layers with a GELU between, on the last axis: (…, C) to (…, C)."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.act(self.fc1(x)))
        return result


class TransformerBlock(nn.Module):
    """Attention, or what takes its place, and an MLP, each of a LayerNorm's result and with a residual.

    (…, C) to the same shape.
    """

    def __init__(self, channels: int, attn: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def initialise_transformer(module: nn.Module) -> None:
    """Linear layers truncated normal of 0.02 with biases of zero, LayerNorms one and zero; for `apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def initialise_convolution(conv: nn.Conv2d, groups: int | None = None) -> None:
    """Normal weights of deviation sqrt(2 / (k² out / groups)), and a bias of zero.

    Args:
        conv: the convolution.
        groups: what divides the fan; its own groups where nobody says.
    """
    height, width = conv.kernel_size
    fan = height * width * conv.out_channels / (groups or conv.groups)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / fan))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def resized_grid(embedding: Tensor, height: int, width: int) -> Tensor:
    """A position embedding (1, h*w, C) of a square grid, bilinear for another: (1, height, width, C)."""
    side = math.isqrt(embedding.shape[1])
    grid = embedding.unflatten(1, (side, side))
    if (height, width) == (side, side):
        return grid
    grid = functional.interpolate(channels_first(grid), size=(height, width), mode="bilinear")
    return channels_last(grid)


def token_first(token: Tensor, tokens: Tensor) -> Tensor:
    """Puts a learnt token (1, 1, C) in front of each image's: (B, N, C) to (B, 1 + N, C)."""
    return torch.cat([token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
