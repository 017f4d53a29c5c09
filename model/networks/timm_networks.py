"""The 17 networks of Table I that timm has, behind the interface of all others.

timm builds them and computes them; here stands what msmamba has to know of each family. State dicts have
timm's names, so that its pretrained weights load and weights trained here load into timm.

timm and the torchvision that it needs come with the extra ``peers`` and are imported when a network is built.

Dims: B batch, H W map, C channels, N tokens.
"""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ...errors import BackendError
from .family import CHANNELS_FIRST, MapLayout, Network, View, as_it_is
from .family import Architecture as AnyArchitecture
from .layers import DropPath
from .staged import StagedArchitecture, StagedFamily, depths_in, widths_in

OLDEST_TIMM = (1, 0, 29)
"""The first version that is tested."""
_INSTALL = "pip install 'msmamba[peers]' brings it, with a torchvision that fits PyTorch"


class TimmNetwork(Network):
    """A network of timm's: images (B, 3, S, S) float32, normalised, to logits (B, num_classes).

    Its state dict has timm's names; the paths of its modules begin with ``timm``.
    """

    arch: StagedArchitecture
    step = 32

    def __init__(self, arch: StagedArchitecture, network: nn.Module) -> None:
        super().__init__()
        self.arch = arch
        self.timm = network

    def forward(self, images: Tensor) -> Tensor:
        self.check_image_shape(tuple(images.shape))
        logits: Tensor = self.timm(images)
        return logits

    def without_weight_decay(self) -> list[str]:
        """Those that timm names: class tokens and position embeddings."""
        spared: set[str] = getattr(self.timm, "no_weight_decay", set)()  # and some that are not there
        return [f"timm.{name}" for name, _ in self.timm.named_parameters() if name in spared]

    def state_dict(self, *args: Any, **named: Any) -> Any:
        """timm's network's, under its names."""
        return self.timm.state_dict(*args, **named)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes a state dict under timm's names."""
        return self.timm.load_state_dict(state_dict, strict, assign)


class TimmFamily(StagedFamily):
    """A family of timm's; its sizes are those that timm and the paper have, and no others."""

    blocks: ClassVar[str] = "stages.{}.blocks."
    """What stands before the numbers of a stage's blocks, in timm's names, with ``{}`` for the stage."""
    width: ClassVar[str]
    """A tensor of each stage whose first axis is the stage's channels."""
    result: ClassVar[str] = ""
    """The module in a block whose result is the block's, with a dot before it; empty for the block itself."""
    head = "timm.head.fc"
    map_layout = CHANNELS_FIRST

    def unavailable(self) -> str:
        return _what_timm_lacks()

    def architecture(self, name: str, **changes: Any) -> StagedArchitecture:
        return self._known(super().architecture(name, **changes))

    def architecture_from(self, values: Mapping[str, Any]) -> StagedArchitecture:
        return self._known(super().architecture_from(values))

    def architecture_of(self, state: Mapping[str, Tensor]) -> StagedArchitecture:
        build = cast(type[StagedArchitecture], self.architecture_type)
        stages = range(len(next(iter(self.sizes.values())).dims))
        arch = build(
            num_classes=state[f"{self.head.removeprefix('timm.')}.weight"].shape[0],
            depths=depths_in(state, self.blocks, stages),
            dims=widths_in(state, self.width, stages),
        )
        return self._known(self.as_named(arch))

    def build(self, arch: AnyArchitecture) -> Network:
        arch = cast(StagedArchitecture, arch)
        build = cast(type[TimmNetwork], self.network_type)
        return build(arch, _created(self.name_of(arch), arch, **self.options(arch)))

    def options(self, arch: StagedArchitecture) -> dict[str, Any]:
        """What timm's `create_model` is told beside the classes and the rate of stochastic depth."""
        return {}

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        """With the branches of each block merged into one convolution, where timm knows how."""
        from timm.utils.model import reparameterize_model

        form = copy.deepcopy(cast(TimmNetwork, network))
        # In float64: sums of folded branches would err more in float32 than the network itself does.
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            reparameterize_model(form.double().timm, inplace=True)
        finally:
            torch.set_default_dtype(usual)
        return form.float()

    def units(self, network: Network) -> Sequence[str]:
        depths = cast(StagedArchitecture, network.arch).depths
        return [
            f"timm.{self.blocks.format(stage)}{block}"
            for stage, depth in enumerate(depths)
            for block in range(depth)
        ]

    def probes(self, network: Network) -> Mapping[str, View]:
        return {f"{block}{self.result}": as_it_is for block in self.units(network)}

    def map_layers(self, network: Network) -> Mapping[str, str]:
        stages = len(cast(StagedArchitecture, network.arch).dims)
        return {f"stage{stage + 1}": f"timm.stages.{stage}" for stage in range(stages)}

    def _known(self, arch: StagedArchitecture) -> StagedArchitecture:
        """The architecture, if it is one of the sizes.

        Raises:
            ValueError: it is not.
        """
        if self.name_of(arch) not in self.sizes:
            known = (f"{name} ({self.describe(size)})" for name, size in self.sizes.items())
            raise ValueError(f"{self.describe(arch)} are of none of {', '.join(known)}")
        return arch


def _what_timm_lacks() -> str:
    """Why timm cannot be used here, and what to do; empty where it can."""
    try:
        import timm
    except ImportError as error:
        return f"timm is not installed here ({error}): {_INSTALL}"
    except RuntimeError as error:  # what torchvision raises beside a PyTorch that it was not built for
        return (
            f"timm does not import beside PyTorch {torch.__version__} ({error}): install the torchvision "
            "that is built for it, from where PyTorch came"
        )
    version = tuple(map(int, re.findall(r"\d+", timm.__version__)[:3]))
    if version < OLDEST_TIMM:
        oldest = ".".join(map(str, OLDEST_TIMM))
        return f"timm {timm.__version__} is installed here, and {oldest} or later is needed: {_INSTALL}"
    return ""


def _created(name: str, arch: StagedArchitecture, **options: Any) -> nn.Module:
    """timm's network of a name, initialised for training from scratch.

    Raises:
        BackendError: timm is missing or too old.
    """
    if lacking := _what_timm_lacks():
        raise BackendError(f"network '{name}' is timm's, and {lacking}")
    import timm

    # Not all of timm's networks take a rate of stochastic depth; it leaves None out.
    network: nn.Module = timm.create_model(
        name, num_classes=arch.num_classes, drop_path_rate=arch.drop_path_rate or None, **options
    )
    for module in list(network.modules()):
        if getattr(module, "fused_attn", False):
            # Written out: counters of operators, float16 and ONNX see what is computed inside of it.
            module.fused_attn = False  # type: ignore[assignment]  # no module
        for child_name, child in module.named_children():
            if isinstance(child, timm.layers.DropPath):  # ours draws for the images of all processes
                setattr(module, child_name, DropPath(child.drop_prob))
    return network


@dataclass(frozen=True)
class ConvNeXtArchitecture(StagedArchitecture):
    """ConvNeXt's four stages."""


class ConvNeXt(TimmNetwork):
    """ConvNeXt (Liu et al., CVPR 2022; arXiv 2201.03545)."""


class ConvNeXtFamily(TimmFamily):
    """ConvNeXt-tiny and ConvNeXt-small."""

    name, title = "convnext", "ConvNeXt"
    architecture_type, network_type = ConvNeXtArchitecture, ConvNeXt
    width = "stages.{}.blocks.0.gamma"
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "convnext_tiny": ConvNeXtArchitecture(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
        "convnext_small": ConvNeXtArchitecture(
            depths=(3, 3, 27, 3), dims=(96, 192, 384, 768), drop_path_rate=0.4
        ),
    }


@dataclass(frozen=True)
class RepViTArchitecture(StagedArchitecture):
    """RepViT's four stages."""

    drop_path_rate: float = 0.0
    distilled: bool = False
    """Whether there is a second head, which learnt from another network; the logits are the mean of both."""

    def misfits(self) -> list[str]:
        wrong = super().misfits()
        if self.drop_path_rate:
            wrong.append(f"drop_path_rate is {self.drop_path_rate}, and RepViT has no stochastic depth")
        return wrong


class RepViT(TimmNetwork):
    """RepViT (Wang et al., CVPR 2024; arXiv 2307.09283); its branches are merged at export."""


class RepViTFamily(TimmFamily):
    """RepViT-M1.0 and RepViT-M1.1: with one head, or with two where a state dict has two."""

    name, title, head = "repvit", "RepViT", "timm.head.head.l"
    architecture_type, network_type = RepViTArchitecture, RepViT
    width = "stages.{}.blocks.0.token_mixer.conv.c.weight"
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "repvit_m1_0": RepViTArchitecture(depths=(2, 2, 14, 2), dims=(56, 112, 224, 448)),
        "repvit_m1_1": RepViTArchitecture(depths=(2, 2, 12, 2), dims=(64, 128, 256, 512)),
    }

    def architecture_of(self, state: Mapping[str, Tensor]) -> StagedArchitecture:
        arch = cast(RepViTArchitecture, super().architecture_of(state))
        return replace(arch, distilled="head.head_dist.l.weight" in state)

    def name_of(self, arch: AnyArchitecture) -> str:
        return super().name_of(replace(cast(RepViTArchitecture, arch), distilled=False))

    def options(self, arch: StagedArchitecture) -> dict[str, Any]:
        return {"distillation": cast(RepViTArchitecture, arch).distilled}

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        form = cast(Any, super().inference_form(network, image_size))
        # The head is merged with its norm; the exported graph shall know it by the path that it had.
        form.timm.head = nn.Sequential(OrderedDict(head=nn.Sequential(OrderedDict(l=form.timm.head))))
        return cast(nn.Module, form)


@dataclass(frozen=True)
class MobileOneArchitecture(StagedArchitecture):
    """MobileOne's four stages; every second block is pointwise, and gives the stage its channels."""

    drop_path_rate: float = 0.0


class MobileOne(TimmNetwork):
    """MobileOne (Vasu et al., CVPR 2023; arXiv 2206.04040); its branches are merged at export."""


class MobileOneFamily(TimmFamily):
    """MobileOne-S0, MobileOne-S2 and MobileOne-S3."""

    name, title = "mobileone", "MobileOne"
    architecture_type, network_type = MobileOneArchitecture, MobileOne
    blocks, width, result = "stages.{}.", "stages.{}.1.conv_kxk.0.conv.weight", ".act"
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "mobileone_s0": MobileOneArchitecture(depths=(4, 16, 20, 2), dims=(48, 128, 256, 1024)),
        "mobileone_s2": MobileOneArchitecture(depths=(4, 16, 20, 2), dims=(96, 256, 640, 2048)),
        "mobileone_s3": MobileOneArchitecture(depths=(4, 16, 20, 2), dims=(128, 320, 768, 2048)),
    }


@dataclass(frozen=True)
class TwinsArchitecture(StagedArchitecture):
    """Twins-PCPVT's four stages."""


class Twins(TimmNetwork):
    """Twins-PCPVT (Chu et al., NeurIPS 2021; arXiv 2104.13840)."""


class TwinsFamily(TimmFamily):
    """Twins-PCPVT-small and Twins-PCPVT-base, which Table I calls Twins-small and Twins-base."""

    name, title, head = "twins_pcpvt", "Twins-PCPVT", "timm.head"
    architecture_type, network_type = TwinsArchitecture, Twins
    blocks, width = "blocks.{}.", "blocks.{}.0.norm1.weight"
    map_layout = MapLayout(
        lambda tokens: tokens.transpose(1, 2).unflatten(2, (math.isqrt(tokens.shape[1]), -1)),  # (B, N, C)
        lambda shown, tokens: shown.flatten(2).transpose(1, 2),
    )
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "twins_pcpvt_small": TwinsArchitecture(
            depths=(3, 4, 6, 3), dims=(64, 128, 320, 512), drop_path_rate=0.2
        ),
        "twins_pcpvt_base": TwinsArchitecture(
            depths=(3, 4, 18, 3), dims=(64, 128, 320, 512), drop_path_rate=0.3
        ),
    }

    def map_layers(self, network: Network) -> Mapping[str, str]:
        depths = cast(StagedArchitecture, network.arch).depths
        return {f"stage{s + 1}": f"timm.blocks.{s}.{depth - 1}" for s, depth in enumerate(depths)}


@dataclass(frozen=True)
class ViTArchitecture(StagedArchitecture):
    """ViT's blocks, all in one stage."""

    depths: tuple[int, ...] = (12,)
    dims: tuple[int, ...] = (192,)
    drop_path_rate: float = 0.0


class ViT(TimmNetwork):
    """ViT (Dosovitskiy et al., ICLR 2021; arXiv 2010.11929) with patches of 16 pixels.

    Position embeddings are those of 224 pixels, and are resized for other images as timm does.
    """

    step = 16


class ViTFamily(TimmFamily):
    """ViT-tiny, ViT-small and ViT-base."""

    name, title, head = "vit", "ViT", "timm.head"
    architecture_type, network_type = ViTArchitecture, ViT
    blocks, width = "blocks.", "blocks.0.norm1.weight"
    map_layout = MapLayout(  # the class token stands first
        lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (math.isqrt(tokens.shape[1] - 1), -1)),
        lambda shown, tokens: torch.cat([tokens[:, :1], shown.flatten(2).transpose(1, 2)], dim=1),
    )
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "vit_tiny_patch16_224": ViTArchitecture(),
        "vit_small_patch16_224": ViTArchitecture(dims=(384,)),
        "vit_base_patch16_224": ViTArchitecture(dims=(768,)),
    }

    def options(self, arch: StagedArchitecture) -> dict[str, Any]:
        return {"dynamic_img_size": True}

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        form = cast(Any, super().inference_form(network, image_size))
        form.timm.set_input_size(img_size=(image_size, image_size))  # embeddings of this size, once for all
        # Or timm would resize them in the file, for every image, from their own size to the same.
        form.timm.dynamic_img_size = False
        form.timm.patch_embed.flatten = True
        return cast(nn.Module, form)

    def map_layers(self, network: Network) -> Mapping[str, str]:
        """All blocks but the last, of which the class token alone has a say in the logits."""
        (depth,) = cast(StagedArchitecture, network.arch).depths
        return {f"block{block + 1}": f"timm.blocks.{block}" for block in range(depth - 1)}


@dataclass(frozen=True)
class FastViTArchitecture(StagedArchitecture):
    """FastViT's four stages."""


class FastViT(TimmNetwork):
    """FastViT (Vasu et al., ICCV 2023; arXiv 2303.14189); its branches are merged at export."""


class FastViTFamily(TimmFamily):
    """FastViT-SA24 and FastViT-MA36."""

    name, title = "fastvit", "FastViT"
    architecture_type, network_type = FastViTArchitecture, FastViT
    width = "stages.{}.blocks.0.mlp.fc2.weight"
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "fastvit_sa24": FastViTArchitecture(depths=(4, 4, 12, 4), dims=(64, 128, 256, 512)),
        "fastvit_ma36": FastViTArchitecture(
            depths=(6, 6, 18, 6), dims=(76, 152, 304, 608), drop_path_rate=0.35
        ),
    }

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        form = super().inference_form(network, image_size)
        for module in form.modules():
            if hasattr(module, "fused_attn"):
                # ONNX Runtime 1.32 takes timm's own nodes for MobileCLIP's, fuses them, and fails in float16.
                module.fused_attn = True  # type: ignore[assignment]  # no module
        return form


@dataclass(frozen=True)
class SwiftFormerArchitecture(StagedArchitecture):
    """SwiftFormer's four stages."""

    drop_path_rate: float = 0.0


class SwiftFormer(TimmNetwork):
    """SwiftFormer (Shaker et al., ICCV 2023; arXiv 2303.15446), with the two heads that timm gives it.

    The logits are the mean of both.
    """


class SwiftFormerFamily(TimmFamily):
    """SwiftFormer-S, SwiftFormer-L1 and SwiftFormer-L3."""

    name, title, head = "swiftformer", "SwiftFormer", "timm.head"
    architecture_type, network_type = SwiftFormerArchitecture, SwiftFormer
    width = "stages.{}.blocks.0.dwconv.weight"
    sizes: ClassVar[Mapping[str, StagedArchitecture]] = {
        "swiftformer_s": SwiftFormerArchitecture(depths=(3, 3, 9, 6), dims=(48, 64, 168, 224)),
        "swiftformer_l1": SwiftFormerArchitecture(depths=(4, 3, 10, 5), dims=(48, 96, 192, 384)),
        "swiftformer_l3": SwiftFormerArchitecture(depths=(4, 4, 12, 6), dims=(64, 128, 320, 512)),
    }

    def inference_form(self, network: Network, image_size: int) -> nn.Module:
        return OneHead(cast(TimmNetwork, super().inference_form(network, image_size)).timm)


class OneHead(nn.Module):
    """A SwiftFormer whose two heads are made one, their mean.

    Args:
        network: timm's, which is changed.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.timm = network
        with torch.no_grad():
            for weight, other in zip(network.head.parameters(), network.head_dist.parameters(), strict=True):
                weight.add_(other).div_(2)
        del network.head_dist

    def forward(self, images: Tensor) -> Tensor:
        features = self.timm.forward_head(self.timm.forward_features(images), pre_logits=True)  # (B, C)
        logits: Tensor = self.timm.head(features)
        return logits
