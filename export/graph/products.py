"""What int8 can hold: the products of activations and weights, found in a flat model and made few.

A kind and a unit are what a plan speaks of: dense or depthwise convolution or matrix product, and the part of
the network that it stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...plugins.selective_scan.onnx_function import OP_TYPE
from .inlining import INPUT

CONVOLUTION, DEPTHWISE, LINEAR = "convolution", "depthwise", "linear"
KINDS = (CONVOLUTION, DEPTHWISE, LINEAR)
"""Kinds of products: dense convolutions, those of one channel at a time, and matrix products with weights."""

CHANNEL_AXIS = {"Conv": 0, "MatMul": 1}
"""The operators that multiply by a weight, and the axis of the weight's output channels."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies an activation by a weight."""

    node: str
    unit: str
    """The part of the network that it belongs to, such as ``layers.0.blocks.1``: what a plan keeps."""
    kind: str
    activation: str
    """Name of the value that it takes."""
    output: str
    macs: int
    """Multiply-adds for one image."""


def products(flat: ModelProto, units: Sequence[str] = ()) -> list[Product]:
    """The products of a flat model that int8 can hold, in order.

    The head is none: its logits are what is compared and thresholded, and it is a thousandth of the work.

    Args:
        flat: what `onnx_model.flat_model` made.
        units: the network's (`Family.units`); without them each product is one by itself.
    """
    weights = {tensor.name: tensor for tensor in flat.graph.initializer}
    shapes = _shapes(flat)
    found = []
    for node in flat.graph.node:
        if node.op_type not in CHANNEL_AXIS or node.input[1] not in weights:
            continue
        # By the result's name: the optimiser makes some nodes anew, with names of its own.
        output = node.output[0]
        unit = next((each for each in units if f"{output}/".startswith((f"{each}/", f"{each}."))), output)
        weight = weights[node.input[1]].dims
        each = weight[0] if node.op_type == "MatMul" else int(np.prod(weight[1:]))  # per output value
        dense = DEPTHWISE if weight[1] == 1 else CONVOLUTION
        found.append(
            Product(
                node=node.name,
                unit=unit,
                kind=LINEAR if node.op_type == "MatMul" else dense,
                activation=node.input[0],
                output=output,
                macs=each * int(np.prod(shapes[output])),
            )
        )
    return found


def merged(flat: ModelProto) -> ModelProto:
    """The model with linear products of the same activation made one, and its result split.

    Step sizes, B and C are three products of one map: as one they are quantised once, and ONNX Runtime, which
    finds an int8 kernel only where one product reads a quantised value, finds it. Exactly the same answers.
    """
    weights = {tensor.name: tensor for tensor in flat.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in flat.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            readers.setdefault(node.input[0], []).append(node)
    model = ModelProto()
    model.CopyFrom(flat)
    del model.graph.node[:]
    for node in flat.graph.node:
        group = readers.get(node.input[0], []) if node.op_type == "MatMul" else []
        if len(group) < 2 or node.input[1] not in weights:
            model.graph.node.append(node)
        elif node.name == group[0].name:
            model.graph.node.extend(_as_one(group, weights, model))
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _as_one(group: list[NodeProto], weights: Mapping[str, TensorProto], model: ModelProto) -> list[NodeProto]:
    """The merged product and the split behind it; its weight and widths go into the model."""
    parts = [numpy_helper.to_array(weights[node.input[1]]) for node in group]
    # After the operator or the module that they stand in, or the first of the modules that they are.
    stem = group[0].output[0].rpartition("/")[0] or group[0].output[0]
    taken = {name for node in model.graph.node for name in node.output}
    product = next(name for name in _numbered(f"{stem}/merged") if name not in taken)
    weight, widths = f"{product}_weight", f"{product}_widths"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.concatenate(parts, axis=1), weight),
            numpy_helper.from_array(np.array([part.shape[1] for part in parts], np.int64), widths),
        ]
    )
    outputs = [output for node in group for output in node.output]
    return [
        helper.make_node("MatMul", [group[0].input[0], weight], [product], f"{product}/MatMul"),
        helper.make_node("Split", [product, widths], outputs, f"{product}/Split", axis=-1),
    ]


def _numbered(name: str) -> Iterator[str]:
    """The name, and the name with every number from 2 on."""
    return chain([name], (f"{name}_{number}" for number in count(2)))


def measured_values(found: Iterable[Product]) -> set[str]:
    """The activations that ranges are needed of."""
    listed = list(found)
    outputs = {product.output for product in listed if product.kind != LINEAR}
    return outputs | {product.activation for product in listed}


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every value for a batch of one image."""
    single = ModelProto()
    single.CopyFrom(model)
    del single.graph.value_info[:]
    image = next(value for value in single.graph.input if value.name == INPUT)
    image.type.tensor_type.shape.dim[0].dim_value = 1
    for node in single.graph.node:
        if node.op_type == OP_TYPE:  # which inference does not know; its result has its first input's shape
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output))
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True)
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
