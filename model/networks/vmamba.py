"""VMamba in its first version (Liu et al., 2024; arXiv 2401.10166v1): a pyramid of SS2D blocks.

Names of the state dict are those of the published checkpoints; the names of later code are understood.

Dims: B batch, H W map, C channels of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .family import Network, View, as_it_is
from .layers import DropPath, merging_results
from .scan_pyramid import ScanArchitecture, ScanBlock, ScanPyramid, ScanPyramidFamily
from .ss2d import SS2D
from .staged import StagedArchitecture

# What later code calls the parts of a network, and of a block, and what published checkpoints do.
_LATER_NAMES = {
    "patch_embed.0.": "patch_embed.proj.",
    "patch_embed.2.": "patch_embed.norm.",
    "classifier.norm.": "norm.",
    "classifier.head.": "head.",
}
_LATER_NAMES_IN_BLOCKS = {".norm.": ".ln_1.", ".op.": ".self_attention."}


@dataclass(frozen=True)
class Architecture(ScanArchitecture):
    """VMamba's stages."""

    depths: tuple[int, ...] = (2, 2, 9, 2)
    drop_path_rate: float = 0.2


class Block(ScanBlock):
    """LayerNorm and SS2D, with a residual: (B, H, W, C) to the same shape."""

    def __init__(self, channels: int, d_state: int, drop_path: float) -> None:
        super().__init__(channels, d_state, drop_path)
        self.ln_1 = nn.LayerNorm(channels)
        self.self_attention = SS2D(channels, d_state)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.drop_path(self.self_attention(self.ln_1(x)))
        return result


class VMamba(ScanPyramid):
    """The classifier: images (B, 3, S, S) float32, normalised, to logits (B, num_classes)."""

    block_type = Block

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.norm = nn.LayerNorm(arch.dims[-1])
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.features(images)[-1]).mean((1, 2)))
        return logits


class VMambaFamily(ScanPyramidFamily):
    """VMamba-tiny and VMamba-small."""

    name = "vmamba"
    title = "VMamba"
    architecture_type = Architecture
    network_type = VMamba
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "vmamba_t": Architecture(),
        "vmamba_s": Architecture(depths=(2, 2, 27, 2), drop_path_rate=0.3),
    }

    def canonical(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if "classifier.head.weight" not in state:
            return state
        return {_published_name(name): tensor for name, tensor in state.items()}

    def architecture_of(self, state: Mapping[str, Tensor]) -> ScanArchitecture:
        first = state["layers.0.blocks.0.ln_1.weight"].shape[0]
        if state["norm.weight"].shape != state["head.weight"].shape[1:]:
            raise ValueError("its last norm is not of the width of its head")
        if other := next((name for name in state if ".mlp." in name), None):
            raise ValueError(f"it has a tensor {other}: later versions of VMamba are other networks")
        return self.read(state, first)

    def probes(self, network: Network) -> Mapping[str, View]:
        names = [
            name
            for name, module in network.named_modules()
            if isinstance(module, Block) or name.endswith(".out_proj")
        ]
        return dict.fromkeys(["patch_embed.norm", *names, *merging_results(network), "norm"], as_it_is)


def _published_name(name: str) -> str:
    inside = _LATER_NAMES_IN_BLOCKS if ".blocks." in name else _LATER_NAMES
    for later, published in inside.items():
        if later in name:
            return name.replace(later, published, 1)
    return name
