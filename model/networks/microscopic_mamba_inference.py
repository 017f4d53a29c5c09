"""The network as it is exported: norms folded, weights merged, one operator per part of a hybrid block.

The trained network is written to be trained; a runtime wants fewer and larger steps. This module rewrites
one into the other, exactly: batch norms go into the convolutions before them, ``A = -exp(A_logs)`` and the
projections are computed once, each hybrid block becomes five operators and each merging of patches one, by
`plugins.hybrid_block`. What the exporter writes is this form and nothing else.

Dims: B batch, H W map, C channels of a stage, h = C/2, d_model, D = 2*d_model, N states, R rank, K = 4.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from .layers import channel_shuffle, channels_last
from .microscopic_mamba import MIFA, PEVM, PSFFN, ConvNorm, HybridBlock, MicroscopicMamba, Stage
from .operators import (
    Merging,
    Weights,
    block_operator,
    feature_weights,
    projected_scan,
    scan_features,
    scan_weights,
    with_operators,
)


class LocalBranch(nn.Module):
    """`Conv_branch` as one operator: the block's input (B, H, W, C) to (B, H, W, h)."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        modules: list[Any] = list(layers)
        norm, depthwise, depthwise_norm, _, expand, expand_norm, _, project, project_norm, _ = modules
        self.channels = norm.num_features
        # The first norm stands before a padded convolution: its shift cannot be folded into the weights.
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        depthwise = fuse_conv_bn_eval(depthwise, depthwise_norm)
        expand = fuse_conv_bn_eval(expand, expand_norm)
        project = fuse_conv_bn_eval(project, project_norm)
        self.weights = Weights(
            scale=scale,
            shift=norm.bias - norm.running_mean * scale,
            depthwise_weight=depthwise.weight,
            depthwise_bias=depthwise.bias,
            expand_weight=expand.weight,
            expand_bias=expand.bias,
            project_weight=project.weight,
            project_bias=project.bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = [*x.shape[:3], self.channels]
        (local,) = block_operator("LocalBranch", [x, *self.weights.all()], [shape], channels=self.channels)
        return local


class ScanBranch(nn.Module):
    """`pvm_layer` as three operators: the block's input (B, H, W, C) to (B, H, W, h), shuffled."""

    def __init__(self, branch: PEVM) -> None:
        super().__init__()
        block, norm = branch.mamba, branch.norm
        if block.PSFFN is None:
            raise ValueError("ScanBranch takes blocks that end in PSFFN")
        self.groups = branch.groups
        self.convolved = block.PSFFN.convolved
        self.before = feature_weights(norm, block)
        self.scan = scan_weights(block)
        self.after = Weights(
            out_norm_weight=block.out_norm.weight,
            out_norm_bias=block.out_norm.bias,
            project_weight=block.PSFFN.conv_0.weight.flatten(1).t(),
            project_bias=block.PSFFN.conv_0.bias,
            conv_weight=block.PSFFN.conv_1.weight,
            conv_bias=block.PSFFN.conv_1.bias,
            residual_scale=1 + branch.skip_scale,  # the block's own residual, and PEVM's
            norm_weight=norm.weight,
            norm_bias=norm.bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        tokens, gate, features = scan_features(x, self.before, self.groups)
        y = projected_scan(features, self.scan)
        (scanned,) = block_operator(
            "ScanOutputs",
            [y, gate, tokens, *self.after.all()],
            [[batch, height, width, channels // 2]],
            groups=self.groups,
            channels=self.convolved,
        )
        return scanned


class Fusion(nn.Module):
    """`MIFA` as one operator: two maps (B, H, W, h) to one (B, H, W, C)."""

    def __init__(self, fusion: MIFA) -> None:
        super().__init__()
        self.channels = fusion.DWConv.in_channels
        self.weights = Weights(
            conv_weight=fusion.DWConv.weight,
            conv_bias=fusion.DWConv.bias,
            attention_weight=fusion.attention.conv.weight.flatten(),
        )

    def forward(self, local: Tensor, scanned: Tensor) -> Tensor:
        shape = [*local.shape[:3], 2 * self.channels]
        (fused,) = block_operator(
            "MIFA", [local, scanned, *self.weights.all()], [shape], channels=self.channels
        )
        return fused


class InferenceBlock(nn.Module):
    """A hybrid block of the exported form: (B, H, W, C) to the same shape."""

    def __init__(self, block: HybridBlock) -> None:
        super().__init__()
        self.shuffle_groups = block.shuffle_groups
        self.Conv_branch = LocalBranch(block.Conv_branch)
        ends_in_psffn = isinstance(block.pvm_layer.mamba.PSFFN, PSFFN)
        # Without PSFFN (Table III's ablation) there is no operator for the branch: it is traced as it is.
        self.pvm_layer = ScanBranch(block.pvm_layer) if ends_in_psffn else ShuffledBranch(block)
        self.MIFA = None if block.MIFA is None else Fusion(block.MIFA)

    def forward(self, x: Tensor) -> Tensor:
        local, scanned = self.Conv_branch(x), self.pvm_layer(x)
        if self.MIFA is None:
            return channel_shuffle(torch.cat([local, scanned], dim=-1), self.shuffle_groups)
        fused: Tensor = self.MIFA(local, scanned)
        return fused


class ShuffledBranch(nn.Module):
    """`pvm_layer` as it was trained, with the split before and the shuffle after it."""

    def __init__(self, block: HybridBlock) -> None:
        super().__init__()
        self.branch = with_operators(copy.deepcopy(block.pvm_layer))
        self.shuffle_groups = block.shuffle_groups

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(self.branch(x.chunk(2, dim=-1)[1]), self.shuffle_groups)


class InferenceStage(nn.Module):
    """A stage of the exported form."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InferenceBlock(cast(HybridBlock, block)) for block in stage.blocks)
        self.downsample = None if stage.downsample is None else Merging(stage.downsample)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class InferenceForm(nn.Module):
    """The exported network: images (B, 3, S, S) to logits (B, classes).

    Only for tracing by the ONNX exporter: PyTorch itself does not compute the operators' nodes. That the
    file agrees with the trained network is for `export.proof.verify` to show.

    Args:
        network: in evaluation mode; it is left as it is.
    """

    def __init__(self, network: MicroscopicMamba) -> None:
        super().__init__()
        first, gelu, second = network.patch_embed
        self.patch_embed = nn.Sequential(folded(cast(ConvNorm, first)), gelu, folded(cast(ConvNorm, second)))
        self.layers = nn.ModuleList(InferenceStage(cast(Stage, stage)) for stage in network.layers)
        self.head = network.head

    def forward(self, image: Tensor) -> Tensor:
        x = channels_last(self.patch_embed(image))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits


def folded(layers: ConvNorm) -> nn.Conv2d:
    """The convolution with its batch norm folded in."""
    return fuse_conv_bn_eval(layers.c, layers.bn)
