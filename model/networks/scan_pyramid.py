"""What MedMamba and VMamba share: stages of SS2D blocks with patch merging between.

Dims: B batch, H W map, C channels of a stage.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from .family import Network, ScanWork
from .layers import PatchEmbed, PatchMerging, initialise_transformer
from .operators import with_norm, with_operators
from .ss2d import SS2D, scan_work
from .staged import StagedArchitecture, StagedFamily, StagedNetwork, count, depths_in


@dataclass(frozen=True)
class ScanArchitecture(StagedArchitecture):
    """Stages whose channels double, and the states of the scan."""

    dims: tuple[int, ...] = (96, 192, 384, 768)
    d_state: int = 16
    """States per channel, N."""

    def misfits(self) -> list[str]:
        wrong = super().misfits()
        if any(after != 2 * before for before, after in zip(self.dims, self.dims[1:], strict=False)):
            wrong.append(f"dims {self.dims} must double from stage to stage (patch merging)")
        if self.d_state < 1:
            wrong.append(f"d_state is {self.d_state}, expected at least 1")
        return wrong


class ScanBlock(nn.Module):
    """What a stage is made of: (B, H, W, C) to the same shape, with one norm and one SS2D in it."""

    ln_1: nn.Module
    """The norm before SS2D."""
    self_attention: SS2D

    def __init__(self, channels: int, d_state: int, drop_path: float) -> None:
        super().__init__()


class Stage(nn.Module):
    """Blocks of one width and, but in the last stage, patch merging."""

    def __init__(self, channels: int, blocks: list[ScanBlock], merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class ScanPyramid(StagedNetwork):
    """Patches, stages, head; which block, and what stands before the head, is the network's own."""

    arch: ScanArchitecture
    block_type: ClassVar[type[ScanBlock]]

    def __init__(self, arch: ScanArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.patch_embed = PatchEmbed(3, arch.dims[0], patch=4)
        self.layers = nn.ModuleList(
            Stage(
                dim, [self.block_type(dim, arch.d_state, rate) for rate in rates], merge=dim != arch.dims[-1]
            )
            for dim, rates in zip(arch.dims, arch.drop_paths(), strict=True)
        )
        self.head = nn.Linear(arch.dims[-1], arch.num_classes)

    def initialise(self) -> None:
        """Fills linear layers, norms and scans for training from scratch; convolutions stay PyTorch's."""
        self.apply(initialise_transformer)
        for module in self.modules():
            if isinstance(module, SS2D):
                module.initialise_scan()

    def without_weight_decay(self) -> list[str]:
        """Every `A_logs` and `Ds`."""
        return [name for name, _ in self.named_parameters() if name.endswith((".A_logs", ".Ds"))]

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every stage, patch merging included: (B, H, W, C)."""
        self.check_image_shape(tuple(images.shape))
        x = self.patch_embed(images)
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs


class ScanPyramidFamily(StagedFamily):
    """How such networks are exported, counted and explained."""

    unit_types = (PatchEmbed, ScanBlock, PatchMerging)

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        form = with_operators(copy.deepcopy(network))
        for block in form.modules():
            if isinstance(block, ScanBlock):
                with_norm(block.self_attention, cast(nn.LayerNorm, block.ln_1))
                block.ln_1 = nn.Identity()
        return form

    def scan_work(self, network: Network, image_size: int) -> ScanWork:
        return scan_work(
            (module, (image_size // (4 * 2**stage)) ** 2)
            for stage, layer in enumerate(cast(ScanPyramid, network).layers)
            for module in layer.modules()
            if isinstance(module, SS2D)
        )

    def map_layers(self, network: Network) -> Mapping[str, str]:
        depths = cast(ScanArchitecture, network.arch).depths
        return {f"stage{s + 1}": f"layers.{s}.blocks.{depth - 1}" for s, depth in enumerate(depths)}

    def read(self, state: Mapping[str, Tensor], first: int) -> ScanArchitecture:
        """The architecture of a state dict whose first stage has so many channels."""
        stages = range(count(state, "layers."))
        build = cast(type[ScanArchitecture], self.architecture_type)
        arch = build(
            num_classes=state["head.weight"].shape[0],
            depths=depths_in(state, "layers.{}.blocks.", stages),
            dims=tuple(first * 2**stage for stage in stages),
            d_state=state["layers.0.blocks.0.self_attention.A_logs"].shape[1],
        )
        return self.as_named(arch)
