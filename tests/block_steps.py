"""Calls of the hybrid block's steps for the tests of GPU kernels, and what they should answer. No ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from msmamba.plugins.hybrid_block import LAYER_NORM_EPSILON

Answers = tuple[Tensor, ...]
_LAST_PLACE = {"float16": 2.0**-10, "float32": 2.0**-23}
"""The last place of 1 in each type."""


class StepCase:
    """A call of a step: its attributes and inputs, drawn as a trained network would have them."""

    def __init__(
        self, name: str, batch: int, side: int, half: int, groups: int = 4, width: int | None = None
    ) -> None:
        self.name, self.half, self.groups = name, half, groups
        model, height = half // groups, side
        columns = side if width is None else width
        inner, convolved = 2 * model, model // 4 or 1
        shapes: dict[str, tuple[int, ...]]
        whole = (batch, height, columns)
        grouped = (batch * groups, height, columns)
        shapes, self.attributes = {
            "LocalDepthwise": (
                {"x": (*whole, 2 * half), "scale": (half,), "shift": (half,), **_conv(half)},
                {"channels": half},
            ),
            "LocalExpansion": ({"x": (*whole, half), **_conv(2 * half)}, {"channels": half}),
            "GroupedNorm": ({"x": (*whole, 2 * half), **_norm(half)}, {"groups": groups}),
            "GatedConvolution": ({"x": (*grouped, 2 * inner), **_conv(inner)}, {"channels": inner}),
            "GatedNorm": ({"x": (*grouped, inner), "gate": (*grouped, inner), **_norm(inner)}, {}),
            "MergedGroups": (
                {"x": (*grouped, model), "tokens": (*grouped, model), "x_bias": (model,)}
                | {f"conv_{name}": shape for name, shape in _conv(convolved).items()}
                | {"scale": (1,)},
                {"groups": groups, "channels": convolved},
            ),
            "ShuffledNorm": ({"x": (*whole, half), **_norm(half)}, {}),
            "MIFA": (
                {"local": (*whole, half), "scanned": (*whole, half)}
                | {f"conv_{name}": shape for name, shape in _conv(half).items()}
                | {"attention_weight": (2 * half,)},
                {"channels": half},
            ),
        }[name]
        rng = np.random.default_rng(half + side)
        self.inputs = {
            key: rng.standard_normal(shape).astype(np.float32)
            * (0.3 if len(shape) == 4 and shape[1] == 1 else 1)
            for key, shape in shapes.items()
        }

    def of_type(self, dtype: Any = np.float32) -> list[NDArray[np.generic]]:
        """The inputs in their order."""
        return [array.astype(dtype) for array in self.inputs.values()]

    def exact(self, dtype: Any = np.float32) -> list[NDArray[np.float64]]:
        """What the step answers in float64, of inputs rounded to a type."""
        tensors = [torch.from_numpy(array).double() for array in self.of_type(dtype)]
        return [answer.contiguous().numpy() for answer in _DEFINITIONS[self.name](self.groups, *tensors)]

    def check(self, found: list[NDArray[np.generic]], ulps: int = 16) -> None:
        """Fails if answers err by more than so many last places of their largest value, or of 1."""
        expected = self.exact(found[0].dtype)
        assert len(found) == len(expected)
        for answer, exact in zip(found, expected, strict=True):
            assert answer.shape == exact.shape
            assert np.isfinite(answer).all(), (
                f"{self.name}: {np.count_nonzero(~np.isfinite(answer))} not finite"
            )
            error = np.abs(answer.astype(np.float64) - exact).max()
            bar = _LAST_PLACE[answer.dtype.name] * ulps * max(1.0, float(np.abs(exact).max()))
            assert error <= bar, f"{self.name}: error {error:.2e}, at most {bar:.2e}"


def _conv(channels: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (channels, 1, 3, 3), "bias": (channels,)}


def _norm(channels: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (channels,), "bias": (channels,)}


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depthwise 3x3 convolution of a map with its channels last."""
    planes = functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])
    return planes.permute(0, 2, 3, 1)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPSILON)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2)


def _local_depthwise(_: int, x: Tensor, scale: Tensor, shift: Tensor, *conv: Tensor) -> Answers:
    return (_convolved(x[..., : len(scale)] * scale + shift, *conv).relu(),)


def _local_expansion(_: int, x: Tensor, *conv: Tensor) -> Answers:
    return (_convolved(x, *conv).relu(),)


def _grouped_norm(groups: int, x: Tensor, *norm: Tensor) -> Answers:
    normed = _layer_norm(x[..., -len(norm[0]) :], *norm)
    return (normed.unflatten(-1, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1),)


def _gated_convolution(_: int, x: Tensor, *conv: Tensor) -> Answers:
    flow, gate = x.chunk(2, dim=-1)
    return gate, functional.silu(_convolved(flow, *conv))


def _gated_norm(_: int, x: Tensor, gate: Tensor, *norm: Tensor) -> Answers:
    return (_layer_norm(x, *norm) * functional.silu(gate),)


def _merged_groups(
    groups: int, x: Tensor, tokens: Tensor, x_bias: Tensor, weight: Tensor, bias: Tensor, scale: Tensor
) -> Answers:
    activated = functional.silu(x + x_bias)
    part, passed = activated[..., : len(bias)], activated[..., len(bias) :]
    both = torch.cat([functional.silu(_convolved(part, weight, bias)), passed], dim=-1)
    merged = _shuffled(both, both.shape[-1] // 2).transpose(1, 2) + scale * tokens
    return (merged.unflatten(0, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(-2),)


def _shuffled_norm(_: int, x: Tensor, *norm: Tensor) -> Answers:
    return (_shuffled(_layer_norm(x, *norm), x.shape[-1] // 2),)


def _mifa(_: int, local: Tensor, scanned: Tensor, weight: Tensor, bias: Tensor, attention: Tensor) -> Answers:
    of_local = _convolved(local, weight, bias).relu().sigmoid() * scanned
    of_scanned = functional.gelu(_convolved(scanned, weight, bias)).sigmoid() * local
    both = _shuffled(torch.cat([of_local, of_scanned], dim=-1), local.shape[-1] // 2)
    return (both * (both.mean((1, 2), keepdim=True) * attention).sigmoid(),)


_DEFINITIONS: dict[str, Callable[..., Answers]] = {
    "LocalDepthwise": _local_depthwise,
    "LocalExpansion": _local_expansion,
    "GroupedNorm": _grouped_norm,
    "GatedConvolution": _gated_convolution,
    "GatedNorm": _gated_norm,
    "MergedGroups": _merged_groups,
    "ShuffledNorm": _shuffled_norm,
    "MIFA": _mifa,
}
"""What each step computes, of the number of groups and its inputs."""
