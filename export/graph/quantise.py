"""INT8 written into the graph: which products take int8, as Q/DQ pairs, and the proof.

TensorRT's strongly typed networks and ONNX Runtime both read quantisation off the file: a value that goes
through ``QuantizeLinear`` and ``DequantizeLinear`` before a product is int8 there, and the runtime merges the
three into an int8 kernel. All is symmetric (zero point 0): one scale for an activation, one for each output
channel of a weight. Weights are stored as int8.

Only the *inputs* of products are quantised, as TensorRT fuses best; ONNX Runtime's CPU kernels for
convolutions give int8 only, so a file meant for it has the convolutions' outputs quantised too. A product's
input gets a pair of its own: what else reads the value, the scan and the residual above all, reads it
unrounded. (That is why `onnxruntime.quantization.QDQQuantizer` does not do here: it puts the pair in front
of every reader.)

The residual rule (quantise the residual input of an Add behind a convolution, or the two are not fused) has
no place to apply: no Add of this network joins a product to an earlier activation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import ExportError, InputError
from ...plugins.selective_scan.onnx_function import OP_TYPE
from .inlining import INPUT

LARGEST = 127
"""The largest integer used; -128 is left out, so that the scale is the same on both sides."""

CONVOLUTION, DEPTHWISE, LINEAR = "convolution", "depthwise", "linear"
KINDS = (CONVOLUTION, DEPTHWISE, LINEAR)
"""Kinds of products: dense convolutions, those of one channel at a time, and matrix products with weights."""

PLAN_FORMAT = 1

_WIDE = ":wide"  # what a convolution gives before it is quantised

_UNIT = re.compile(r"patch_embed|layers\.\d+\.(blocks\.\d+|downsample)|head")
_CHANNEL_AXIS = {"Conv": 0, "MatMul": 1}


QUANTISED_KINDS = (CONVOLUTION, LINEAR)
"""Depthwise convolutions stay in floating point: they are a twentieth of the multiply-adds, do as much harm
as all dense convolutions, and take ONNX Runtime five times as long in int8 as in float32 (docs/int8.md)."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies an activation by a weight."""

    node: str
    unit: str
    """The part of the network that it belongs to, such as ``layers.0.blocks.1``."""
    kind: str
    activation: str
    """Name of the value that it takes."""
    output: str
    macs: int
    """Multiply-adds for one image."""


def products(flat: ModelProto) -> list[Product]:
    """The products of a flat model that int8 can hold, in order.

    The head is none: its logits are what is compared and thresholded, and it is a thousandth of the work.
    """
    weights = {tensor.name: tensor for tensor in flat.graph.initializer}
    shapes = _shapes(flat)
    found = []
    for node in flat.graph.node:
        if node.op_type not in _CHANNEL_AXIS or node.input[1] not in weights:
            continue
        # By the result's name: the optimiser makes some nodes anew, with names of its own.
        unit = _UNIT.match(node.output[0])
        weight = weights[node.input[1]].dims
        each = weight[0] if node.op_type == "MatMul" else int(np.prod(weight[1:]))  # per output value
        dense = DEPTHWISE if weight[1] == 1 else CONVOLUTION
        found.append(
            Product(
                node=node.name,
                unit=unit.group() if unit else node.output[0],
                kind=LINEAR if node.op_type == "MatMul" else dense,
                activation=node.input[0],
                output=node.output[0],
                macs=each * int(np.prod(shapes[node.output[0]])),
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
    stem = group[0].name.rpartition("/")[0].rpartition("/")[0]
    weight, widths, product = f"{stem}/merged_weight", f"{stem}/merged_widths", f"{stem}/merged"
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


@dataclass(frozen=True)
class Plan:
    """Which products are quantised: those of some kinds, but for units that are kept in floating point."""

    kept: tuple[str, ...] = ()
    """Units, such as ``layers.0.blocks.1``; the one whose quantisation does most harm comes first."""
    kinds: tuple[str, ...] = QUANTISED_KINDS

    def chosen(self, found: Sequence[Product]) -> list[Product]:
        """The products to quantise.

        Raises:
            ExportError: a unit or a kind is unknown, or nothing is left to quantise.
        """
        units = dict.fromkeys(product.unit for product in found)
        strange = [unit for unit in self.kept if unit not in units]
        strange += [kind for kind in self.kinds if kind not in KINDS]
        if strange:
            raise ExportError(
                f"the plan names {', '.join(map(repr, strange))}: this network has the units "
                f"{', '.join(units)} and the kinds {', '.join(KINDS)}; make a plan for this network"
            )
        left = [product for product in found if product.kind in self.kinds and product.unit not in self.kept]
        if not left:
            raise ExportError("int8 was asked for, but the plan leaves no product to quantise")
        return left

    def to_json(self) -> str:
        """The plan as a file's content."""
        return json.dumps({"format_version": PLAN_FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Plan:
        """Reads a plan; ``source`` names it in messages.

        Raises:
            InputError: it is none, or of a newer format.
        """
        try:
            data = json.loads(text)
            if data["format_version"] != PLAN_FORMAT:
                raise ValueError(f"format version {data['format_version']}, expected {PLAN_FORMAT}")
            lists = [data["kept"], data["kinds"]]
            if not all(isinstance(each, list) and all(isinstance(x, str) for x in each) for each in lists):
                raise ValueError("'kept' and 'kinds' are not lists of names")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"'{source}' is no plan that can be read ({type(error).__name__}: {error}): make one with "
                "'mmdeploy export --int8'"
            ) from error
        return cls(kept=tuple(data["kept"]), kinds=tuple(data["kinds"]))


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
    """The nodes whose activation and weight both come out of int8 values, as runtimes look for them."""
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
        if node.op_type in _CHANNEL_AXIS and all(map(is_int8, node.input[:2]))
    ]


def int8_proof(model: ModelProto, flat: ModelProto) -> Int8Proof:
    """Reads the int8 products off a finished model.

    Args:
        model: what `int8_from_fp32` made, in float32 or float16.
        flat: what it was made from, with all operators written out.
    """
    found = products(flat)
    in_int8 = {node.output[0].removesuffix(_WIDE) for node in int8_nodes(model)}
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
        node.input[1] = self._weight(weight, _CHANNEL_AXIS[node.op_type], node.name)
        self.nodes.append(node)
        if with_output:
            (output,) = node.output
            node.output[0] = output + _WIDE
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
