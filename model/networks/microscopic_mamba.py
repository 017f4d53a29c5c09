"""Microscopic-Mamba (arXiv 2409.07896): a four-stage network of convolutions and selective scans.

Glossary, with the paper's names and the names in published checkpoints:

    PCM block    `HybridBlock`      half the channels through convolutions, half through scans
    local branch `Conv_branch`      three convolutions
    PEVM         `pvm_layer`        four channel groups through one shared state-space block
    ARVSS        `pvm_layer.mamba`  the state-space block: projections, 2D selective scan, gate, PSFFN
    PSFFN        `…mamba.PSFFN`     feed-forward that convolves a quarter of its channels
    MIFA         `MIFA`             each branch weights the other, then channel attention

Dims: B batch, H W feature-map height and width, C channels of a stage, h = C/2 channels of a branch,
d_model channels of an ARVSS block (h/4), D = 2*d_model inner channels, N states, R rank of the step
size, K = 4 scan directions. Maps are channels last, (B, H, W, C), except inside convolutions.

Where the paper and the released checkpoints differ, the checkpoints win; each place says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint_file import checkpoint_network, read_checkpoint_file
from .family import Network
from .layers import (
    DropPath,
    PatchMerging,
    channel_shuffle,
    channels_first,
    channels_last,
    depthwise_conv,
)
from .ss2d import SS2D
from .staged import StagedArchitecture, count

GROUPS = 4
"""Channel groups that share one ARVSS block (the paper's parallel branches)."""

SIZES = {
    "t": {"depths": (2, 2, 4, 2), "dims": (96, 192, 384, 768)},
    "s": {"depths": (2, 2, 8, 2), "dims": (96, 192, 384, 768)},
    "b": {"depths": (2, 2, 12, 2), "dims": (128, 256, 512, 1024)},
}
"""Tiny, small and base (Table I)."""


@dataclass(frozen=True)
class Architecture(StagedArchitecture):
    """Depths, widths, states, and three switches.

    The three switches are the ablations of the paper's Tables II and III.
    """

    depths: tuple[int, ...] = (2, 2, 4, 2)
    """Hybrid blocks in each stage."""
    dims: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of each stage."""
    d_state: int = 16
    """States per channel, N."""
    mifa: bool = True
    """Fuse the branches by MIFA; otherwise concatenate and shuffle them."""
    parallel: bool = True
    """Run four channel groups through one ARVSS block; otherwise one block on all channels."""
    psffn: bool = True
    """End the ARVSS block in PSFFN; otherwise in a linear projection."""

    def misfits(self) -> list[str]:
        wrong = super().misfits()
        if any(dim % 32 for dim in self.dims):
            wrong.append(f"dims {self.dims} must be multiples of 32 (halves, then groups, then quarters)")
        if any(after != 2 * before for before, after in zip(self.dims, self.dims[1:], strict=False)):
            wrong.append(f"dims {self.dims} must double from stage to stage (patch merging)")
        return wrong

    @classmethod
    def of_size(cls, size: str, **changes: Any) -> Architecture:
        """The paper's tiny ``t``, small ``s`` or base ``b`` (Table I), with any field changed.

        Raises:
            ValueError: no such size.
        """
        if size not in SIZES:
            raise ValueError(f"there is no size {size!r}: choose one of {', '.join(SIZES)}")
        fields: dict[str, Any] = {**SIZES[size], **changes}
        return cls(**fields)


class ConvNorm(nn.Sequential):
    """A 3x3 convolution of stride 2 without bias, and its batch norm (`c` and `bn` in checkpoints)."""

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs))


class PSFFN(nn.Module):
    """The partial-selection feed-forward network: (B, H, W, D) to (B, W, H, d_model), **H and W swapped**.

    The released code swaps the axes here and trained weights depend on it; this is why feature maps
    must be square.
    """

    def __init__(self, d_inner: int, d_model: int) -> None:
        super().__init__()
        self.convolved = int(d_model * 0.25)
        self.groups = d_model // 2
        self.conv_0 = nn.Conv2d(d_inner, d_model, kernel_size=1)
        self.conv_1 = depthwise_conv(self.convolved)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv_0.weight.flatten(1)  # a 1x1 convolution of a channels-last map is a linear layer
        x = functional.silu(functional.linear(x, weight, self.conv_0.bias))  # (B, H, W, d_model)
        part, rest = x[..., : self.convolved], x[..., self.convolved :]
        part = channels_last(functional.silu(self.conv_1(channels_first(part))))
        return channel_shuffle(torch.cat([part, rest], dim=-1), self.groups).transpose(1, 2)


class ARVSS(SS2D):
    """The state-space block: (B, H, W, d_model) to the same shape (paper, section II-B).

    SS2D with PSFFN at its end, and a residual.
    """

    def __init__(self, d_model: int, d_state: int, psffn: bool) -> None:
        # `out_proj` is in every checkpoint, and part of the forward pass only where PSFFN is switched off.
        super().__init__(d_model, d_state)
        self.PSFFN = PSFFN(2 * d_model, d_model) if psffn else None

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.gated(tokens)
        y = self.out_proj(y) if self.PSFFN is None else self.PSFFN(y)
        return y + tokens


class PEVM(nn.Module):
    """The scan branch: (B, H, W, h) to the same shape.

    The same norm stands before and after, and the same ARVSS block runs on all groups, folded into
    the batch.
    """

    def __init__(self, channels: int, arch: Architecture) -> None:
        super().__init__()
        self.groups = GROUPS if arch.parallel else 1
        self.norm = nn.LayerNorm(channels)
        self.mamba = ARVSS(channels // self.groups, arch.d_state, arch.psffn)
        self.proj = nn.Linear(channels, channels)  # in every checkpoint, never used
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        x = self.norm(x).view(batch, height, width, self.groups, channels // self.groups)
        tokens = x.permute(0, 3, 1, 2, 4).flatten(0, 1)  # (B*groups, H, W, d_model)
        tokens = self.mamba(tokens) + self.skip_scale * tokens
        x = tokens.unflatten(0, (batch, self.groups)).permute(0, 2, 3, 1, 4).flatten(3)
        return self.norm(x)


class ChannelAttention(nn.Module):
    """Efficient channel attention: the mean over H and W, one weight per channel, sigmoid, scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight.flatten()  # a grouped convolution over one element is a product
        return x * torch.sigmoid(x.mean((1, 2), keepdim=True) * weight)


class MIFA(nn.Module):
    """Fuses the branches: two maps (B, H, W, h) to one (B, H, W, 2h) (paper, section II-C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = channels // 2
        self.DWConv = depthwise_conv(channels)
        self.attention = ChannelAttention(2 * channels)

    def forward(self, local: Tensor, scanned: Tensor) -> Tensor:
        local_weight = functional.relu(self.DWConv(channels_first(local))).sigmoid()
        scanned_weight = functional.gelu(self.DWConv(channels_first(scanned))).sigmoid()
        fused = torch.cat(
            [channels_last(local_weight) * scanned, channels_last(scanned_weight) * local], dim=-1
        )
        return self.attention(channel_shuffle(fused, self.groups))


class HybridBlock(nn.Module):
    """Convolutions on the first half of the channels, scans on the second: (B, H, W, C) to the same shape."""

    def __init__(self, channels: int, drop_path: float, arch: Architecture) -> None:
        super().__init__()
        half = channels // 2
        self.shuffle_groups = half // 2
        self.MIFA = MIFA(half) if arch.mifa else None
        self.Conv_branch = nn.Sequential(
            nn.BatchNorm2d(half),
            depthwise_conv(half),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, channels, kernel_size=3, padding=1, groups=half),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, half, kernel_size=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )
        self.pvm_layer = PEVM(half, arch)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        local = channels_last(self.Conv_branch(channels_first(left)))
        scanned = channel_shuffle(self.drop_path(self.pvm_layer(right)), self.shuffle_groups)
        if self.MIFA is None:
            return channel_shuffle(torch.cat([local, scanned], dim=-1), self.shuffle_groups)
        return self.MIFA(local, scanned)


class Stage(nn.Module):
    """Hybrid blocks of one width and, but in the last stage, patch merging."""

    def __init__(self, channels: int, drop_paths: list[float], merge: bool, arch: Architecture) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(HybridBlock(channels, rate, arch) for rate in drop_paths)
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Reads the architecture off the names and shapes of a state dict.

    Raises:
        KeyError: a tensor that every Microscopic-Mamba has is missing.
        ValueError: the shapes do not describe a network.
    """
    stages = count(state, "layers.")
    depths = tuple(count(state, f"layers.{i}.blocks.") for i in range(stages))
    widest = state["head.weight"].shape[1]
    first = "layers.0.blocks.0"
    half = state[f"{first}.Conv_branch.0.weight"].shape[0]
    d_model = state[f"{first}.pvm_layer.mamba.in_proj.weight"].shape[1]
    if d_model not in (half, half // GROUPS):
        raise ValueError(f"{first}.pvm_layer.mamba works on {d_model} of {half} channels")
    return Architecture(
        depths=depths,
        dims=tuple(widest // 2 ** (stages - 1 - i) for i in range(stages)),
        num_classes=state["head.weight"].shape[0],
        d_state=state[f"{first}.pvm_layer.mamba.A_logs"].shape[1],
        mifa=f"{first}.MIFA.DWConv.weight" in state,
        parallel=d_model != half,
        psffn=f"{first}.pvm_layer.mamba.PSFFN.conv_0.weight" in state,
    )


class MicroscopicMamba(Network):
    """The classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes).

    ``S`` must be a multiple of 32, and images square (see `PSFFN`). Names of the state dict are the
    published ones.
    """

    arch: Architecture

    def __init__(self, arch: Architecture | None = None) -> None:
        super().__init__()
        self.arch = arch = arch or Architecture()
        first, last = arch.dims[0], arch.dims[-1]
        self.patch_embed = nn.Sequential(ConvNorm(3, first // 2), nn.GELU(), ConvNorm(first // 2, first))
        self.layers = nn.ModuleList(
            Stage(channels, rates, merge=channels != last, arch=arch)
            for channels, rates in zip(arch.dims, arch.drop_paths(), strict=True)
        )
        self.head = nn.Linear(last, arch.num_classes)
        self.initialise()

    @classmethod
    def of_size(cls, size: str, **changes: Any) -> MicroscopicMamba:
        """The paper's tiny ``t``, small ``s`` or base ``b``; ``changes`` are fields of `Architecture`.

        Raises:
            ValueError: no such size, or fields that do not fit together.
        """
        return cls(Architecture.of_size(size, **changes))

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> MicroscopicMamba:
        """The network of a checkpoint, in evaluation mode: safetensors, or the authors' ``.pth``.

        Raises:
            CheckpointError: unreadable, of another architecture, or not finite.
        """
        return checkpoint_network(read_checkpoint_file(path), cls._from_state)

    @classmethod
    def _from_state(cls, state: Mapping[str, Tensor]) -> MicroscopicMamba:
        return cls(architecture_of(state))

    def initialise(self) -> None:
        """Fills all weights for training from scratch (the released code's initialisation).

        Convolutions' biases are uniform in ±1/sqrt(fan-in), PyTorch's default, which the released code keeps.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    bound = module.weight[0].numel() ** -0.5
                    nn.init.uniform_(module.bias, -bound, bound)
            elif isinstance(module, SS2D):
                module.initialise_scan()

    def without_weight_decay(self) -> list[str]:
        """Names of the parameters that take no weight decay: every `A_logs` and `Ds`."""
        return [name for name, _ in self.named_parameters() if name.endswith((".A_logs", ".Ds"))]

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses batches that the network cannot take.

        Raises:
            ValueError: not (B, 3, S, S) with S a positive multiple of 32.
        """
        step = 4 * 2 ** (len(self.arch.dims) - 1)
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"images are {tuple(shape)}; expected (batch, 3, S, S)")
        height, width = shape[2:]
        if height != width:
            raise ValueError(
                f"images are {height}x{width}; this network takes square images only, because its PSFFN "
                f"swaps height and width: resize or crop them"
            )
        if height == 0 or height % step:
            raise ValueError(
                f"images are {height}x{width}; the side must be a multiple of {step}: resize them"
            )

    def features(self, images: Tensor) -> list[Tensor]:
        """Every stage's output, channels last: (B, S/8, S/8, 2*dims[0]) … (B, S/32, S/32, dims[-1])."""
        self.check_image_shape(tuple(images.shape))
        x = channels_last(self.patch_embed(images))
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)[-1]
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits
