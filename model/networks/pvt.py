"""PVT, the Pyramid Vision Transformer in its first version (Wang et al., ICCV 2021; arXiv 2102.12122).

Four stages of attention whose keys and values come from a coarser map. Names of the state dict are the
published ones.

Dims: B batch, H W map, C channels, N tokens, M tokens of the coarser map.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .family import Network, View, as_it_is
from .layers import (
    MLP,
    PatchEmbed,
    TransformerBlock,
    attention,
    channels_first,
    channels_last,
    heads_of,
    initialise_transformer,
    resized_grid,
    token_first,
)
from .staged import StagedArchitecture, StagedFamily, StagedNetwork, depths_in, ratios, widths_in

HEAD_WIDTH = 64
STAGES = range(1, 5)
EMBEDDED_SIZE = 224
"""Side of the images that the position embeddings are for, pixels; they are resized for others."""


@dataclass(frozen=True)
class Architecture(StagedArchitecture):
    """PVT's four stages."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    dims: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    """Hidden channels of a block's MLP over the stage's."""
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    """How much coarser the keys' map is, each way."""

    def misfits(self) -> list[str]:
        wrong = super().misfits()
        wrong += self.without_stages(4, "dims", "mlp_ratios", "reductions")
        return wrong + self.without_whole_heads(HEAD_WIDTH)


class Attention(nn.Module):
    """Attention to a coarser map of the same tokens: (B, H, W, C) to the same shape.

    Where nothing is made coarser it takes plain tokens too, (B, N, C).
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr: nn.Conv2d | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        coarse = x if self.sr is None else self.norm(channels_last(self.sr(channels_first(x))))
        (q,) = heads_of(self.q(x).flatten(1, -2), self.heads)  # (B, heads, N, 64)
        k, v = heads_of(self.kv(coarse).flatten(1, -2), self.heads, parts=2)  # (B, heads, M, 64)
        attended: Tensor = self.proj(attention(q, k, v)).view(x.shape)
        return attended


class Block(TransformerBlock):
    """A block of PVT: (B, H, W, C), or (B, N, C), to the same shape."""

    def __init__(self, channels: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__(channels, Attention(channels, reduction), MLP(channels, mlp_ratio), drop_path)


class PVT(StagedNetwork):
    """The classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes).

    Position embeddings are those of 224 pixels, resized bilinearly for other images. The published code
    compares every stage's grid with the first stage's, and so fails at 448 pixels; here each is compared
    with its own.
    """

    arch: Architecture

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        inputs = (3, *arch.dims)
        for stage, (dim, rates) in enumerate(zip(arch.dims, arch.drop_paths(), strict=True)):
            patch = 4 if stage == 0 else 2
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(inputs[stage], dim, patch))
            positions = (EMBEDDED_SIZE // (4 * 2**stage)) ** 2 + (stage == 3)  # the class token's, too
            self.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(torch.zeros(1, positions, dim)))
            blocks = (Block(dim, arch.mlp_ratios[stage], arch.reductions[stage], rate) for rate in rates)
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(arch.dims[-1], eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.dims[-1]))
        self.head = nn.Linear(arch.dims[-1], arch.num_classes)
        self.apply(initialise_transformer)
        for name, parameter in self.named_parameters():
            if name.startswith(("pos_embed", "cls_token")):
                nn.init.trunc_normal_(parameter, std=0.02)

    def without_weight_decay(self) -> list[str]:
        """The class token; the published recipe decays the position embeddings."""
        return ["cls_token"]

    def positions(self, stage: int, height: int, width: int) -> Tensor:
        """A stage's position embedding for a map: (1, H, W, C), the last stage's (1, 1 + H*W, C)."""
        embedding: Tensor = getattr(self, f"pos_embed{stage + 1}")
        if stage < 3:
            return resized_grid(embedding, height, width)
        token, grid = embedding[:, :1], embedding[:, 1:]
        return torch.cat([token, resized_grid(grid, height, width).flatten(1, 2)], dim=1)

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every stage: three maps (B, H, W, C), then (B, 1 + N, C), the class token first."""
        self.check_image_shape(tuple(images.shape))
        outputs: list[Tensor] = []
        x = images
        for stage in range(4):
            tokens: Tensor = getattr(self, f"patch_embed{stage + 1}")(x)  # (B, H, W, C)
            positions = self.positions(stage, *tokens.shape[1:3])
            if stage == 3:
                tokens = token_first(self.cls_token, tokens.flatten(1, 2))
            tokens = tokens + positions
            for block in getattr(self, f"block{stage + 1}"):
                tokens = block(tokens)
            outputs.append(tokens)
            x = channels_first(tokens) if stage < 3 else tokens
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.features(images)[-1]
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


class PVTFamily(StagedFamily):
    """PVT-small and PVT-medium."""

    name = "pvt"
    title = "PVT"
    architecture_type = Architecture
    network_type = PVT
    unit_types = (PatchEmbed, Block)
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "pvt_small": Architecture(),
        "pvt_medium": Architecture(depths=(3, 4, 18, 3), drop_path_rate=0.3),
    }

    def architecture_of(self, state: Mapping[str, Tensor]) -> Architecture:
        dims = widths_in(state, "patch_embed{}.proj.weight", STAGES)
        hidden = widths_in(state, "block{}.0.mlp.fc1.weight", STAGES)
        if state["cls_token"].shape[-1] != dims[-1]:
            raise ValueError("its class token is not of the width of its last stage")
        reductions = (state.get(f"block{stage}.0.attn.sr.weight") for stage in STAGES)
        return self.as_named(
            Architecture(
                num_classes=state["head.weight"].shape[0],
                depths=depths_in(state, "block{}.", STAGES),
                dims=dims,
                mlp_ratios=ratios(hidden, dims),
                reductions=tuple(1 if weight is None else weight.shape[-1] for weight in reductions),
            )
        )

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        """With position embeddings of the images' size, once for all."""
        form = copy.deepcopy(cast(PVT, network))
        for stage in range(4):
            side = image_size // (4 * 2**stage)
            positions = form.positions(stage, side, side).detach().reshape(1, -1, form.arch.dims[stage])
            form.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(positions))
        return form

    def probes(self, network: Network) -> Mapping[str, View]:
        arch = cast(Architecture, network.arch)
        names = [f"patch_embed{stage}.norm" for stage in STAGES]
        names += [f"block{s + 1}.{block}" for s, depth in enumerate(arch.depths) for block in range(depth)]
        return dict.fromkeys(names, as_it_is)

    def map_layers(self, network: Network) -> Mapping[str, str]:
        """The first three stages: the last one's tokens are no map, as the class token is among them."""
        depths = cast(Architecture, network.arch).depths
        return {f"stage{s + 1}": f"block{s + 1}.{depths[s] - 1}" for s in range(3)}
