"""INT8 written into the graph: products take it as Q/DQ pairs, and the proof reads it off again.

TensorRT's strongly typed networks and ONNX Runtime both read quantisation off the file: a value that goes
through ``QuantizeLinear`` and ``DequantizeLinear`` before a product is int8 there, and the runtime merges the
three into an int8 kernel. All is symmetric (zero point 0): one scale for an activation, one for each output
channel of a weight. Weights are stored as int8.

Only the *inputs* of products are quantised, as TensorRT fuses best; ONNX Runtime's CPU kernels for
convolutions give int8 only, so a file meant for it has the convolutions' outputs quantised too. A product's
input gets a pair of its own: what else reads the value, the scan and the residual above all, reads it
unrounded. (That is why `onnxruntime.quantization.QDQQuantizer` does not do here: it puts the pair in front
of every reader.)

The residual rule (quantise the residual input of an Add behind a convolution, or the two are not fused) is
not applied: no Add of Microscopic-Mamba joins a product to an earlier activation, and what it is worth to
networks of which one does, nobody has measured on a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import ExportError
from ...plugins.hybrid_block import INT8, INT8_OPERATORS, INT8_VALUES, INT8_WEIGHTS
from ...plugins.hybrid_block.cpu import WEIGHTS
from ...plugins.hybrid_block.onnx_functions import int8_block_functions
from .inlining import functions_called, inlined_model
from .products import CHANNEL_AXIS, KINDS, LINEAR, products

LARGEST = 127
"""The largest integer used; -128 is left out, so that the scale is the same on both sides."""

WIDE = ":wide"
"""Ends the name of what a convolution gives before it is quantised."""
_WIDE_INSIDE = "_wide"  # the same inside of an operator


@dataclass(frozen=True)
class Int8Proof:
    """What a file says of its products: read off the finished graph."""

    products: tuple[str, ...]
    """Nodes both of whose inputs come out of int8."""
    share: float
    """The share in int8 of all multiply-adds of products, the head included and the scan not."""
    by_kind: Mapping[str, float]
    """The same, of each kind's own."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "products": list(self.products),
            "share_of_multiply_adds": round(self.share, 4),
            "share_by_kind": {kind: round(share, 4) for kind, share in self.by_kind.items()},
        }


def int8_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes whose activation and weight both come out of int8 values, as runtimes look for them.

    Those inside of operators are found as well, with the names that they have when they are written out.
    """
    if any(node.op_type in INT8_OPERATORS for node in model.graph.node):
        model = inlined_model(model)
    made_by = {output: node for node in model.graph.node for output in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}

    def is_int8(name: str) -> bool:
        node = made_by.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return False
        source = node.input[0]
        quantised = source in made_by and made_by[source].op_type == "QuantizeLinear"
        return quantised or types.get(source) == TensorProto.INT8

    return [
        node
        for node in model.graph.node
        if node.op_type in CHANNEL_AXIS and all(map(is_int8, node.input[:2]))
    ]


def int8_proof(model: ModelProto, flat: ModelProto) -> Int8Proof:
    """Reads the int8 products off a finished model.

    Args:
        model: what `int8_from_fp32` made, in float32 or float16.
        flat: what it was made from, with all operators written out.
    """
    found = products(flat)
    in_int8 = {node.output[0].removesuffix(WIDE).removesuffix(_WIDE_INSIDE) for node in int8_nodes(model)}
    work: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for product in found:
        work[product.kind] += product.macs
        done[product.kind] += product.macs * (product.output in in_int8)
    weights = {tensor.name: tensor for tensor in flat.graph.initializer}
    head = sum(
        int(np.prod(weights[node.input[1]].dims)) for node in flat.graph.node if node.op_type == "Gemm"
    )
    return Int8Proof(
        products=tuple(product.node for product in found if product.output in in_int8),
        share=sum(done.values()) / (sum(work.values()) + head),
        by_kind={kind: done[kind] / work[kind] for kind in KINDS if work[kind]},
    )


def int8_from_fp32(
    flat: ModelProto,
    ranges: Mapping[str, float],
    quantised: Iterable[str],
    *,
    outputs: bool = False,
) -> ModelProto:
    """Puts Q/DQ pairs around products.

    Args:
        flat: float32, from `onnx_model.flat_model`; it is left as it is.
        ranges: the largest absolute value to be told apart, of each product's activation, and with
            ``outputs`` of each convolution's output.
        quantised: names of the product nodes to quantise.
        outputs: quantise the outputs of convolutions too, for ONNX Runtime's CPU kernels.

    Returns:
        A checked model, float32 around its int8 products. `precision.fp16_from_fp32` takes it.

    Raises:
        ExportError: a name is no product, or a range is missing or not finite.
    """
    wanted = set(quantised)
    chosen = {product.node: product for product in products(flat) if product.node in wanted}
    needed = {product.activation for product in chosen.values()}
    if outputs:
        needed |= {product.output for product in chosen.values() if product.kind != LINEAR}
    problems = [f"{name} is no product with weights" for name in sorted(wanted - set(chosen))]
    problems += [f"{name} has no range" for name in sorted(needed - set(ranges))]
    problems += [
        f"{name} has the range {ranges[name]}"
        for name in sorted(needed & set(ranges))
        if not 0 <= ranges[name] < np.inf
    ]
    if problems:
        raise ExportError(f"cannot quantise: {'; '.join(problems)}: calibrate this model again")
    model = ModelProto()
    model.CopyFrom(flat)
    pairs = _Pairs(model, ranges)
    for node in flat.graph.node:
        product = chosen.get(node.name)
        if product is None:
            pairs.keep(node)
        else:
            pairs.quantise(node, with_output=outputs and product.kind != LINEAR)
    pairs.finish()
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def with_int8_blocks(model: ModelProto, ranges: Mapping[str, float], whole: Collection[str]) -> ModelProto:
    """Makes block operators their forms with int8 products (`plugins.hybrid_block`).

    Args:
        model: float32, with these operators; it is left as it is.
        ranges: as `int8_from_fp32` takes them.
        whole: names of the nodes.

    Returns:
        A checked model; the operators' products are those that `int8_from_fp32` would make of them.
    """
    made = ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    formal = {function.name: function for function in model.functions}
    added: dict[str, TensorProto] = {}

    def add(name: str, values: npt.NDArray[Any]) -> str:
        added[name] = numpy_helper.from_array(values, name)
        return name

    for node in made.graph.node:
        if node.name not in whole:
            continue
        op_type, inputs = node.op_type, dict(zip(formal[node.op_type].input, node.input, strict=True))
        first = formal[op_type].input[0]  # of operators that quantise what they read, it alone
        maps = {first: inputs[first]}
        outputs = dict(zip(formal[op_type].output, node.output, strict=True))
        if "input_weight" in inputs:
            parts = [weights[inputs.pop(name)] for name in ("step_weight", "input_weight", "output_weight")]
            merged = f"{node.name}/features_weight"
            weights[merged] = np.concatenate(parts, axis=1)
            inputs = _in_order(WEIGHTS[op_type + INT8], maps | inputs | {"features_weight": merged})
        scales = []
        for name in INT8_WEIGHTS[op_type]:
            weight = weights[inputs[name]]
            integers, steps = quantised_weight(weight, 0 if weight.ndim == 4 else 1)
            scales.append(add(f"{inputs[name]}:scale", steps))
            inputs[name] = add(f"{inputs[name]}:int8", integers)
        for name in INT8_VALUES[op_type]:
            value = (maps | outputs).get(name, f"{node.name}/{name}")
            scales.append(add(f"{value}:scale", activation_scale(ranges[value])))
        node.op_type = op_type + INT8
        node.input[:] = [*inputs.values(), *scales]
    used = {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend([*kept, *added.values()])
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    functions = {function.name: function for function in (*made.functions, *int8_block_functions(opset))}
    in_use = functions_called(made.graph.node, functions)
    kept_functions = [function for name, function in functions.items() if name in in_use]
    del made.functions[:]
    made.functions.extend(kept_functions)
    onnx.checker.check_model(made, full_check=True)
    return made


def _in_order(names: Iterable[str], values: Mapping[str, str]) -> dict[str, str]:
    """The values that have names, in the order of these, the others before them."""
    named = {name: values[name] for name in names if name in values}
    return {name: value for name, value in values.items() if name not in named} | named


class _Pairs:
    """Rebuilds a graph node by node, with Q/DQ pairs where they are asked for."""

    def __init__(self, model: ModelProto, ranges: Mapping[str, float]) -> None:
        self.model, self.ranges = model, ranges
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.added: dict[str, TensorProto] = {}
        self.quantised_values: set[str] = set()
        self.renamed: dict[str, str] = {}

    def keep(self, original: NodeProto) -> NodeProto:
        """The node as it is, but for inputs that a pair replaced."""
        node = NodeProto()
        node.CopyFrom(original)
        node.input[:] = [self.renamed.get(name, name) for name in node.input]
        self.nodes.append(node)
        return node

    def quantise(self, original: NodeProto, with_output: bool) -> None:
        """The node with pairs before it, and with ``with_output`` behind it."""
        node = NodeProto()
        node.CopyFrom(original)
        activation, weight = node.input[0], node.input[1]
        node.input[0] = self._activation(activation, self.renamed.get(activation, activation), node.name)
        node.input[1] = self._weight(weight, CHANNEL_AXIS[node.op_type], node.name)
        self.nodes.append(node)
        if with_output:
            (output,) = node.output
            node.output[0] = output + WIDE
            self.renamed[output] = self._activation(output, node.output[0], f"{node.name}:out")

    def finish(self) -> None:
        """Puts the nodes, and the weights that are still used, into the model."""
        used = {name for node in self.nodes for name in node.input}
        tensors = [tensor for name, tensor in self.weights.items() if name in used]
        graph = self.model.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*tensors, *self.added.values()])

    def _activation(self, value: str, source: str, reader: str) -> str:
        """``source``, quantised once with the range of ``value``, dequantised for this reader."""
        scale = self._add(f"{value}:scale", activation_scale(self.ranges[value]))
        zero = self._add("int8:zero", np.array(0, np.int8))
        integer = f"{value}:int8"
        if integer not in self.quantised_values:
            self.quantised_values.add(integer)
            self.nodes.append(
                helper.make_node("QuantizeLinear", [source, scale, zero], [integer], f"{integer}/Q")
            )
        return self._dequantised([integer, scale, zero], f"{reader}:x")

    def _weight(self, name: str, axis: int, reader: str) -> str:
        """The weight as int8, dequantised for this reader."""
        integers, scales = quantised_weight(numpy_helper.to_array(self.weights[name]), axis)
        integer = self._add(f"{name}:int8", integers)
        scale = self._add(f"{name}:scale", scales)
        zero = self._add(f"int8:zeros_{len(scales)}", np.zeros(len(scales), np.int8))
        return self._dequantised([integer, scale, zero], f"{reader}:weight", axis=axis)

    def _dequantised(self, inputs: list[str], name: str, axis: int | None = None) -> str:
        node = helper.make_node("DequantizeLinear", inputs, [name], f"{name}/DQ")
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)
        return name

    def _add(self, name: str, values: npt.NDArray[Any]) -> str:
        self.added.setdefault(name, numpy_helper.from_array(values, name))
        return name


def activation_scale(largest: float) -> npt.NDArray[np.float32]:
    """The step between integers for values up to ``largest``; a value that is always 0 gets a step of 1."""
    return _held_by_float16(np.array(largest / LARGEST if largest > 0 else 1.0))


def quantised_weight(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A weight as int8 of the same shape, and one scale for each channel along ``axis``."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(others)
    scales = _held_by_float16(np.where(largest > 0, largest / LARGEST, 1.0))
    steps = weight.astype(np.float64) / np.expand_dims(scales.astype(np.float64), others)
    return np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8), scales


def _held_by_float16(scales: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The least float16 values not below these, so that a file with float16 around has the same integers."""
    tiny = np.finfo(np.float16).smallest_subnormal
    halves = np.maximum(scales, tiny).astype(np.float16)
    up = np.nextafter(halves, np.float16(np.inf))
    return np.where(halves.astype(np.float64) < scales, up, halves).astype(np.float32)
