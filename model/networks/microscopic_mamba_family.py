"""What is special to Microscopic-Mamba: how it is recognised, exported, probed, explained and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from .family import CHANNELS_LAST, Family, Network, ScanWork, View, as_it_is
from .family import Architecture as AnyArchitecture
from .layers import PatchMerging, channel_shuffle, channels_last, merging_results
from .microscopic_mamba import (
    ARVSS,
    PEVM,
    SIZES,
    Architecture,
    HybridBlock,
    MicroscopicMamba,
    Stage,
    architecture_of,
)
from .microscopic_mamba_inference import InferenceForm
from .ss2d import scan_work

FINEST_USEFUL = 7
"""Least side of a map that Grad-CAM takes by default, positions."""


class MicroscopicMambaFamily(Family):
    """Tiny, small, base, their ablations, and whatever else has its blocks."""

    name = "microscopic_mamba"
    title = "Microscopic-Mamba"
    architecture_type = Architecture
    network_type = MicroscopicMamba
    map_layout = CHANNELS_LAST
    unit_types = (HybridBlock, PatchMerging)

    def architecture(self, name: str, **changes: Any) -> Architecture:
        return Architecture.of_size(name, **changes)

    def architecture_from(self, values: Mapping[str, Any]) -> Architecture:
        fields: dict[str, Any] = dict(values)
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return Architecture(**{**fields, **lists})

    def architecture_of(self, state: Mapping[str, Tensor]) -> Architecture:
        return architecture_of(state)

    def name_of(self, arch: AnyArchitecture) -> str:
        arch = cast(Architecture, arch)
        sizes = (
            name for name, size in SIZES.items() if (size["depths"], size["dims"]) == (arch.depths, arch.dims)
        )
        return next(sizes, self.name)

    def build(self, arch: AnyArchitecture) -> MicroscopicMamba:
        return MicroscopicMamba(cast(Architecture, arch))

    def describe(self, arch: AnyArchitecture) -> str:
        arch = cast(Architecture, arch)
        return f"depths {arch.depths}, dims {arch.dims}"

    def scan_work(self, network: Network, image_size: int) -> ScanWork:
        stages = cast(MicroscopicMamba, network).layers
        return scan_work(
            (branch.mamba, branch.groups * (image_size // (4 * 2**stage)) ** 2)
            for stage, layer in enumerate(stages)
            for branch in layer.modules()
            if isinstance(branch, PEVM)
        )

    def unused_parameters(self, network: Network) -> int:
        return sum(map(_unused, network.modules()))

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        return InferenceForm(cast(MicroscopicMamba, network))

    def probes(self, network: Network) -> Mapping[str, View]:
        views: dict[str, View] = dict.fromkeys(merging_results(network), as_it_is)
        for name, module in network.named_modules():
            if isinstance(module, HybridBlock):
                views[f"{name}.Conv_branch"] = channels_last
                views[f"{name}.pvm_layer"] = _shuffled(module.shuffle_groups)
                views[f"{name}.MIFA"] = as_it_is
            elif name in ("patch_embed.0", "patch_embed.2"):
                views[name] = as_it_is
        return {name: view for name, view in views.items() if _has(network, name)}

    def units(self, network: Network) -> Sequence[str]:
        return ["patch_embed", *super().units(network)]

    def map_layers(self, network: Network) -> Mapping[str, str]:
        stages = {}
        for number, stage in enumerate(cast(MicroscopicMamba, network).layers):
            last = len(cast(Stage, stage).blocks) - 1
            stages[f"stage{number + 1}"] = f"layers.{number}.blocks.{last}"
        blocks = [name for name, each in network.named_modules() if isinstance(each, HybridBlock)]
        return {**stages, **{name: name for name in blocks}}

    def default_map_layer(self, network: Network, image_size: int) -> str:
        """The last stage whose map has at least 7 x 7 positions: of 224 pixels the last, of 64 the second.

        Later stages know more of what a thing is, and less of where.
        """
        stages = range(len(cast(MicroscopicMamba, network).layers))
        fine = [stage for stage in stages if image_size // (4 * 2**stage) >= FINEST_USEFUL]
        return f"stage{max(fine, default=0) + 1}"


def _unused(module: nn.Module) -> int:
    if isinstance(module, PEVM):
        return sum(parameter.numel() for parameter in module.proj.parameters())
    if isinstance(module, ARVSS) and module.PSFFN is not None:
        return module.out_proj.weight.numel()
    return 0


def _has(network: nn.Module, path: str) -> bool:
    """Whether a module is there and computes something: ablations leave some out."""
    owner, _, leaf = path.rpartition(".")
    return getattr(network.get_submodule(owner), leaf, None) is not None


def _shuffled(groups: int) -> View:
    return lambda result: channel_shuffle(result, groups)
