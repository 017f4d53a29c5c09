"""msmamba's own operators in the networks that are exported, where they do what a network's modules do.

Each is a node of `plugins.hybrid_block` in the traced graph. PyTorch itself does not compute them: what has
them is for the ONNX exporter alone.

Dims: B batch, H W map, C channels, D inner channels, N states, R rank, K = 4 directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...plugins.hybrid_block import DOMAIN
from .layers import PatchMerging
from .ss2d import SS2D


def block_operator(
    op_type: str, inputs: Sequence[Tensor], shapes: Sequence[Sequence[int]], **attributes: int
) -> tuple[Tensor, ...]:
    """One node of such an operator in the exported graph, with outputs of these shapes."""
    return tuple(
        torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{op_type}",
            inputs,
            dict(attributes),
            dtypes=[torch.float32] * len(shapes),
            shapes=shapes,
            version=1,
        )
    )


class Weights(nn.Module):
    """Holds tensors under the names that they get in the file."""

    def __init__(self, **tensors: Tensor | None) -> None:
        super().__init__()
        self.names = list(tensors)
        for name, tensor in tensors.items():
            if tensor is None:
                raise ValueError(f"there is no tensor {name}")
            self.register_buffer(name, tensor.detach().clone().contiguous())

    def all(self) -> list[Tensor]:
        """The tensors in the order given."""
        return [getattr(self, name) for name in self.names]


def feature_weights(norm: nn.LayerNorm, block: SS2D) -> Weights:
    """What `scan_features` takes."""
    return Weights(
        norm_weight=norm.weight,
        norm_bias=norm.bias,
        in_weight=block.in_proj.weight.t(),
        conv_weight=block.conv2d.weight,
        conv_bias=block.conv2d.bias,
    )


def scan_features(x: Tensor, weights: Weights, groups: int = 1) -> tuple[Tensor, ...]:
    """A norm of the last channels and, of each group of them, `SS2D.features` as one operator.

    Returns:
        The tokens (B*groups, H, W, d_model), the gate and the features (B*groups, H, W, D).
    """
    _, _, in_weight, _, conv_bias = tensors = weights.all()
    model, inner = in_weight.shape[0], conv_bias.shape[0]
    grouped = [x.shape[0] * groups, *x.shape[1:3]]
    shapes = [[*grouped, model], [*grouped, inner], [*grouped, inner]]
    return block_operator("ScanFeatures", [x, *tensors], shapes, groups=groups, channels=inner)


def scan_weights(block: SS2D) -> Weights:
    """What `projected_scan` takes, computed once: the exporter folds small tensors only, and engines' kernels
    need A as a constant."""
    weights = block.scan_weights()
    return Weights(
        step_weight=weights.steps.t(),
        step_expand=weights.steps_expanded.t(),
        input_weight=weights.inputs.t(),
        output_weight=weights.outputs.t(),
        A=weights.A,
        D=weights.D,
        delta_bias=weights.delta_bias,
    )


def projected_scan(features: Tensor, weights: Weights) -> Tensor:
    """`SS2D.scan` as one operator: (B, H, W, D) to the same shape."""
    (y,) = block_operator("ProjectedScan2D", [features, *weights.all()], [features.shape])
    return y


class Merging(nn.Module):
    """`PatchMerging` as one operator: (B, H, W, C) to (B, H/2, W/2, 2C)."""

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.weights = Weights(
            norm_weight=merging.norm.weight,
            norm_bias=merging.norm.bias,
            reduction_weight=merging.reduction.weight.t(),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        shape = [batch, height // 2, width // 2, 2 * channels]
        (merged,) = block_operator("PatchMerging", [x, *self.weights.all()], [shape])
        return merged


def with_norm(block: SS2D, norm: nn.LayerNorm) -> None:
    """Has one operator do what stands before the scan, and the norm before the block with it."""
    block.before = feature_weights(norm, block)
    block.features = partial(_features, weights=block.before)  # type: ignore[method-assign]  # of this copy alone


def _features(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    _, gate, features = scan_features(x, weights)
    return features, gate


def with_operators(network: nn.Module) -> nn.Module:
    """Has operators do each scan with its projections and each merging of patches; the network, changed."""
    for module in list(network.modules()):
        if isinstance(module, SS2D):
            module.operands = scan_weights(module)
            module.scan = partial(projected_scan, weights=module.operands)  # type: ignore[method-assign]  # of this copy alone
        for name, child in module.named_children():
            if isinstance(child, PatchMerging):
                setattr(module, name, Merging(child))
    return network
