"""Cases for the hybrid block's operators: random weights and maps, and models of one node.

Dims as in `msmamba.plugins.hybrid_block`; N states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from msmamba.export.graph.precision import float16_function
from msmamba.export.graph.quantise import activation_scale, quantised_weight
from msmamba.plugins.hybrid_block import DOMAIN, INT8, INT8_VALUES, INT8_WEIGHTS
from msmamba.plugins.hybrid_block.cpu import WEIGHTS
from msmamba.plugins.hybrid_block.onnx_functions import block_functions, int8_block_functions
from msmamba.plugins.selective_scan import DIRECTIONS
from msmamba.plugins.selective_scan.onnx_function import scan_function

Arrays = dict[str, NDArray[Any]]
OPSET = 20

OUTPUTS = {
    "LocalBranch": ["local"],
    "ScanInputs": ["tokens", "gate", "features", "delta", "B", "C"],
    "ScanOutputs": ["scanned"],
    "MIFA": ["y"],
    "PatchMerging": ["y"],
    "ScanFeatures": ["tokens", "gate", "features"],
    "ProjectedScan2D": ["y"],
}
IN_FLOAT32 = ("A", "D", "delta_bias")
"""Weights that are float32 in any file."""


LARGEST = {
    "expanded_kept": 3,
    "projected": 3,
    "tokens": 4,
    "features": 2,
    "step_features": 3,
    "gated": 3,
    "normed": 3,
}
"""What the rounded values of operators with int8 products are held to."""


class Gelu(OpRun):
    """The exact GELU, which onnx's reference evaluator lacks."""

    op_domain = ""

    def _run(self, x: NDArray[Any], approximate: str | None = None) -> tuple[NDArray[Any]]:
        erf = np.vectorize(math.erf)(x / math.sqrt(2))
        return ((x * (1 + erf) / 2).astype(x.dtype),)


class SelectiveScan2D(OpRun):
    """The scan's plain recurrence, in the type that it is given; its function's is float32."""

    op_domain = DOMAIN

    def _run(self, *inputs: NDArray[Any], **_: Any) -> tuple[NDArray[Any]]:
        import torch

        from msmamba.plugins.selective_scan.reference import selective_scan_2d

        return (selective_scan_2d(*map(torch.tensor, inputs)).numpy(),)


@dataclass(frozen=True)
class BlockCase:
    """Sizes of one call."""

    half: int
    batch: int = 1
    side: int = 5
    groups: int = 4
    states: int = 16
    float16: bool = False
    """Maps and weights are numbers that float16 holds."""
    passed: int | None = None
    """Channels of the map of ScanFeatures that stand before those it takes; half where None."""

    def __str__(self) -> str:
        return f"{self.batch}x{self.side}x{self.side}x{self.half}-{self.groups}-groups-{self.states}-states"

    def _held(self, array: NDArray[Any]) -> NDArray[np.float32]:
        return (array.astype(np.float16) if self.float16 else array).astype(np.float32)

    @property
    def model(self) -> int:
        return self.half // self.groups

    def weights(self, op_type: str) -> Arrays:
        """Random weights of a trained network's size, in the contract's order."""
        if op_type.endswith(INT8):
            return self._int8_weights(op_type.removesuffix(INT8))
        h, d, D = self.half, self.model, 2 * self.model
        rank, q = -(-d // 16), d // 4
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "LocalBranch": {
                "scale": (h,),
                "shift": (h,),
                "depthwise_weight": (h, 1, 3, 3),
                "depthwise_bias": (h,),
                "expand_weight": (2 * h, 1, 3, 3),
                "expand_bias": (2 * h,),
                "project_weight": (h, 2 * h, 1, 1),
                "project_bias": (h,),
            },
            "ScanInputs": {
                "norm_weight": (h,),
                "norm_bias": (h,),
                "in_weight": (d, 2 * D),
                "conv_weight": (D, 1, 3, 3),
                "conv_bias": (D,),
                "step_weight": (D, DIRECTIONS * rank),
                "step_expand": (DIRECTIONS * rank, DIRECTIONS * D),
                "input_weight": (D, DIRECTIONS * self.states),
                "output_weight": (D, DIRECTIONS * self.states),
            },
            "ScanOutputs": {
                "out_norm_weight": (D,),
                "out_norm_bias": (D,),
                "project_weight": (D, d),
                "project_bias": (d,),
                "conv_weight": (q, 1, 3, 3),
                "conv_bias": (q,),
                "residual_scale": (1,),
                "norm_weight": (h,),
                "norm_bias": (h,),
            },
            "MIFA": {"conv_weight": (h, 1, 3, 3), "conv_bias": (h,), "attention_weight": (2 * h,)},
            "PatchMerging": {
                "norm_weight": (4 * h,),
                "norm_bias": (4 * h,),
                "reduction_weight": (4 * h, 2 * h),
            },
        }
        before = shapes["ScanInputs"]
        projections = ("step_weight", "step_expand", "input_weight", "output_weight")
        shapes["ScanFeatures"] = {name: shape for name, shape in before.items() if name not in projections}
        shapes["ProjectedScan2D"] = {
            **{name: before[name] for name in projections},
            "A": (DIRECTIONS, D, self.states),
            "D": (DIRECTIONS, D),
            "delta_bias": (DIRECTIONS, D),
        }
        rng = np.random.default_rng(self.half)
        weights = {}
        for name, shape in shapes[op_type].items():
            inputs = math.prod(shape[1:]) if len(shape) == 4 else shape[0] if len(shape) == 2 else 1
            weights[name] = self._held(rng.standard_normal(shape) / math.sqrt(inputs))
        if "A" in weights:
            weights["A"] = -np.exp(weights["A"])
        if "step_expand" in weights:
            blocks = np.kron(np.eye(DIRECTIONS), np.ones((rank, D)))
            weights["step_expand"] = (weights["step_expand"] * blocks).astype(np.float32)
        return weights

    def _int8_weights(self, op_type: str) -> Arrays:
        weights = self.weights(op_type)
        if "step_weight" in weights:
            parts = [weights[name] for name in ("step_weight", "input_weight", "output_weight")]
            weights["features_weight"] = np.concatenate(parts, axis=1)
        for name in INT8_WEIGHTS[op_type]:
            axis = 0 if weights[name].ndim == 4 else 1
            weights[name], weights[f"{name}_scale"] = quantised_weight(weights[name], axis)
        for name in INT8_VALUES[op_type]:
            weights[f"{name}_scale"] = activation_scale(LARGEST[name])
        return {name: weights[name] for name in WEIGHTS[op_type + INT8]}

    def map_shape(self, op_type: str) -> tuple[int, int, int]:
        """Images (of a scan groups), height and width of the operator's maps; patches need even sides."""
        op_type = op_type.removesuffix(INT8)
        side = 2 * self.side if op_type == "PatchMerging" else self.side
        return self.batch * self.groups if op_type == "ProjectedScan2D" else self.batch, side, side

    def maps(self, op_type: str) -> Arrays:
        """Random maps, in the contract's order."""
        op_type = op_type.removesuffix(INT8)
        image = (self.batch, self.side, self.side)
        grouped = (self.batch * self.groups, self.side, self.side)
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "LocalBranch": {"x": (*image, 2 * self.half)},
            "ScanInputs": {"x": (*image, 2 * self.half)},
            "ScanOutputs": {
                "y": (*grouped, 2 * self.model),
                "gate": (*grouped, 2 * self.model),
                "tokens": (*grouped, self.model),
            },
            "MIFA": {"local": (*image, self.half), "scanned": (*image, self.half)},
            "PatchMerging": {"x": (*self.map_shape("PatchMerging"), self.half)},
            "ScanFeatures": {"x": (*image, self.half + (self.half if self.passed is None else self.passed))},
            "ProjectedScan2D": {"features": (*grouped, 2 * self.model)},
        }
        rng = np.random.default_rng(self.side)
        return {name: self._held(rng.standard_normal(shape)) for name, shape in shapes[op_type].items()}


def block_model(
    op_type: str,
    case: BlockCase,
    *,
    dtype: Any = np.float32,
    function: bool = True,
    constant_weights: bool = True,
) -> onnx.ModelProto:
    """One node of the operator, its weights constants or, after the maps, inputs of the graph."""
    weights = case.weights(op_type)
    if not op_type.endswith(INT8):
        narrow = dtype == np.float16
        weights = {
            name: weight if narrow and name in IN_FLOAT32 else weight.astype(dtype)
            for name, weight in weights.items()
        }
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def info(name: str, rank: int | None, kind: int = element) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, kind, None if rank is None else [None] * rank)

    inputs = [info(name, array.ndim) for name, array in case.maps(op_type).items()]
    if not constant_weights:
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(each.dtype) for name, each in weights.items()}
        inputs += [info(name, weight.ndim, kinds[name]) for name, weight in weights.items()]
    outputs = OUTPUTS[op_type.removesuffix(INT8)]
    attributes = {"groups": case.groups} if op_type.startswith("Scan") else {}
    if op_type.removesuffix(INT8) not in ("PatchMerging", "ProjectedScan2D"):
        attributes["channels"] = weights["scale" if op_type.startswith("LocalBranch") else "conv_bias"].size
    node = onnx.helper.make_node(
        op_type, [*case.maps(op_type), *weights], outputs, domain=DOMAIN, **attributes
    )
    graph = onnx.helper.make_graph(
        [node],
        op_type,
        inputs,
        [info(name, None) for name in outputs],
        [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()]
        if constant_weights
        else [],
    )
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
        functions=_functions(op_type, dtype) if function else [],
        ir_version=10,
    )


def _functions(op_type: str, dtype: Any) -> list[onnx.FunctionProto]:
    """The operator's function behind those that it calls."""
    every = (scan_function(OPSET), *block_functions(OPSET), *int8_block_functions(OPSET))
    functions = {function.name: function for function in every}
    called = [functions[node.op_type] for node in functions[op_type].node if node.domain == DOMAIN]
    used = [*called, functions[op_type]]
    return [float16_function(function) for function in used] if dtype == np.float16 else used


def exact_outputs(op_type: str, case: BlockCase) -> list[NDArray[np.float64]]:
    """The function of standard operators, evaluated in float64 by onnx's reference."""
    model = block_model(op_type, case, dtype=np.float64)
    kept = [function for function in model.functions if function.name != "SelectiveScan2D"]
    del model.functions[:]
    model.functions.extend(kept)
    model = onnx.inliner.inline_local_functions(model)
    evaluator = ReferenceEvaluator(model, new_ops=[Gelu, SelectiveScan2D])
    maps = {name: array.astype(np.float64) for name, array in case.maps(op_type).items()}
    return [np.asarray(output) for output in evaluator.run(None, maps)]


def weights_of_the_largest_integers(half: int) -> Arrays:
    """Weights of ScanInputsInt8 that are all -128, as are most of the values they are multiplied with."""
    weights = BlockCase(half).weights("ScanInputsInt8")
    for name in INT8_WEIGHTS["ScanInputs"]:
        weights[name] = np.full_like(weights[name], -128)
    weights["norm_bias"] = np.full_like(weights["norm_bias"], -2)
    weights["tokens_scale"] = np.float32(0.001)
    weights["features_scale"] = np.float32(1e-6)
    return weights


def int8_products(weights: Arrays, outputs: list[NDArray[Any]]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """The outputs of ScanInputsInt8 or ScanFeaturesInt8 that are products, and what they are exactly.

    Both sides of each product are known: tokens and features come out unrounded.
    """
    tokens, gate, features = outputs[:3]
    inner = features.shape[-1]
    projected = _product(tokens, weights, "tokens", "in_weight")
    if len(outputs) == 3:
        return [(gate, projected[..., inner:])]
    delta, B, C = outputs[3:]
    states = B[0, 0, 0].size
    merged = _product(features, weights, "features", "features_weight")
    steps, inputs, products = np.split(
        merged, [merged.shape[-1] - 2 * states, merged.shape[-1] - states], axis=-1
    )
    expanded = _product(steps, weights, "step_features", "step_expand")
    return [
        (gate, projected[..., inner:]),
        (B, inputs.reshape(B.shape)),
        (C, products.reshape(C.shape)),
        (delta, expanded.reshape(delta.shape)),
    ]


def _product(values: NDArray[Any], weights: Arrays, value: str, weight: str) -> NDArray[np.float32]:
    """A product of integers, exact until it is scaled; values are rounded as QuantizeLinear does."""
    scale = weights[f"{value}_scale"]
    integers = np.clip(np.rint(values / scale), -128, 127).astype(np.int64)
    sums = integers @ weights[weight].astype(np.int64)
    return sums.astype(np.float32) * (scale * weights[f"{weight}_scale"])
