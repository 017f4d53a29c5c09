"""Precision written into the graph: which values of an ONNX file are float16, and the proof.

TensorRT's strongly typed networks, and every other runtime, take the types that the file states, so
precision is decided here and nowhere else. Input and output stay float32. A hybrid block stays its operators:
their functions are written in float16, with the same parts in float32 that the flat form has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import ExportError
from ...plugins.hybrid_block import OPERATORS as BLOCK_OPERATORS
from ...plugins.hybrid_block import STATE_INPUTS, STEPS
from ...plugins.selective_scan.onnx_function import DOMAIN, OP_TYPE
from ...runtime.backend import FEATURES

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

KEPT_IN_FLOAT32 = {
    "ReduceMean": "its sum runs over a whole map, up to 3,136 positions at 224x224",
    "Gemm": "the logits are what is compared and thresholded, and the layer is a thousandth of the work",
}
"""Operators that stay in float32, and why."""

FLOAT32_INSIDE = {
    OP_TYPE: "float16 in and out; steps, states and sums are float32 inside, and so are A, D and delta_bias",
    "LayerNormalization": "float16 in and out; mean and variance are float32 inside (stash_type 1)",
}
"""Operators with float16 inputs and outputs that compute in float32, and why."""

_NOT_COMPUTING = ("Cast", "Constant", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class PrecisionProof:
    """What the types in a file say."""

    nodes: Mapping[str, int]
    """Computing nodes by the type of their result, such as ``{"float16": 700, "float32": 12}``."""
    float32_nodes: Mapping[str, str]
    """The nodes of a float16 file that compute in float32, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"nodes": dict(self.nodes), "float32_nodes": dict(self.float32_nodes)}


def fp16_from_fp32(original: ModelProto) -> ModelProto:
    """Converts a float32 model to float16.

    Args:
        original: what `onnx_model.onnx_from_network` or `onnx_model.flat_model` made; it is left as it is.

    Returns:
        The model with float16 weights and activations but for `KEPT_IN_FLOAT32`, the scan's state
        matrices, and the input and output. Block operators stay what they are, over float16, and so do their
        functions; `onnx_model.flat_model` writes them out.

    Raises:
        ExportError: weights are too large for float16; the tensors are named.
    """
    model = ModelProto()
    model.CopyFrom(original)
    converter = _Converter(model)
    nodes = [converted for node in original.graph.node for converted in converter.converted(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend(converter.weights_in_use())
    functions = [float16_function(function) for function in original.functions]
    del model.graph.value_info[:], model.functions[:]
    model.functions.extend(functions)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def precision_proof(model: ModelProto) -> PrecisionProof:
    """Reads the type of every computing node's result off a flat model.

    Args:
        model: with inferred types, as `onnx_model.flat_model` returns it.
    """
    types = _types_of(model)
    counts: Counter[str] = Counter()
    kept = {}
    for node in model.graph.node:
        kind = types.get(node.output[0])
        if node.op_type in _NOT_COMPUTING or kind not in (FLOAT, HALF):
            continue
        counts["float16" if kind == HALF else "float32"] += 1
        if kind == FLOAT and node.op_type in KEPT_IN_FLOAT32:
            kept[node.name] = KEPT_IN_FLOAT32[node.op_type]
        elif kind == HALF and node.op_type in FLOAT32_INSIDE:
            kept[node.name] = FLOAT32_INSIDE[node.op_type]
    return PrecisionProof(nodes=dict(counts), float32_nodes=kept if counts["float16"] else {})


def float16_function(function: FunctionProto) -> FunctionProto:
    """A block operator's function over float16, casts around what stays in float32; others as they are.

    The scan's computes in float32 whatever it is given.
    """
    converted = FunctionProto()
    converted.CopyFrom(function)
    if function.name not in (*BLOCK_OPERATORS, *STEPS):
        return converted
    del converted.node[:]
    narrowed: dict[str, str] = {}
    for original in function.node:
        node = NodeProto()
        node.CopyFrom(original)
        node.input[:] = [narrowed.get(name, name) for name in node.input]
        if node.op_type == "LayerNormalization":
            _set_attribute(node, "stash_type", FLOAT)
        if node.op_type not in KEPT_IN_FLOAT32:
            converted.node.append(node)
            continue
        source, (result,) = node.input[0], node.output
        node.input[0] = f"{source}:float32"
        narrowed[result] = f"{result}:float16"
        converted.node.extend(
            [
                helper.make_node("Cast", [source], [node.input[0]], to=FLOAT),
                node,
                helper.make_node("Cast", [result], [narrowed[result]], to=HALF),
            ]
        )
    return converted


class _Converter:
    """Carries the type of every value through the graph, in its order, and casts where types meet."""

    def __init__(self, model: ModelProto) -> None:
        self.types = _types_of(model)
        self.outputs = {value.name for value in model.graph.output}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.in_use: dict[str, TensorProto] = {}
        self.casts: dict[tuple[str, int], str] = {}

    def converted(self, original: NodeProto) -> list[NodeProto]:
        """The node in its new types, behind the casts that it needs."""
        node = NodeProto()
        node.CopyFrom(original)
        floating = any(self.types.get(name) in (FLOAT, HALF) for name in (*node.input, *node.output))
        kind = FLOAT if not floating or node.op_type in KEPT_IN_FLOAT32 else HALF
        casts: list[NodeProto] = []
        shown: list[NodeProto] = []
        for position, name in enumerate(node.input):
            is_state = node.domain == DOMAIN and position in STATE_INPUTS.get(node.op_type, ())
            wanted = FLOAT if is_state else kind
            if name in self.weights:
                node.input[position] = self._weight(name, wanted)
            elif self.types.get(name) in (FLOAT, HALF) and self.types[name] != wanted:
                node.input[position] = self._cast(name, wanted, casts)
        for position, name in enumerate(node.output):
            if self.types.get(name) != FLOAT:
                continue
            if kind == HALF and name == FEATURES:  # an output is float32, whatever makes it
                node.output[position] = self.casts[name, HALF] = f"{name}:float16"
                shown.append(
                    helper.make_node("Cast", [node.output[position]], [name], name=f"{name}/Cast", to=FLOAT)
                )
                continue
            if kind == HALF and name in self.outputs:
                raise ExportError(f"output {name!r} would become float16: {node.name} must stay float32")
            self.types[name] = kind
        if node.op_type == "LayerNormalization":
            _set_attribute(node, "stash_type", FLOAT)
        return [*casts, node, *shown]

    def weights_in_use(self) -> list[TensorProto]:
        """The weights in the types that the converted nodes take.

        Raises:
            ExportError: some are too large for float16.
        """
        too_large = [
            f"{name} (up to {largest:.3g})"
            for name, tensor in self.in_use.items()
            if tensor.data_type == HALF
            and (largest := np.abs(numpy_helper.to_array(self.weights[_stem(name)])).max(initial=0))
            > np.finfo(np.float16).max
        ]
        if too_large:
            raise ExportError(
                f"{len(too_large)} weights are too large for float16 (65504): {', '.join(too_large)}: "
                f"export in float32"
            )
        return list(self.in_use.values())

    def _weight(self, name: str, wanted: int) -> str:
        """The name of a weight in the type wanted; of the two types, the first met keeps the plain name."""
        tensor = self.weights[name]
        if tensor.data_type == FLOAT and wanted == HALF:
            with np.errstate(over="ignore"):
                tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
        if name in self.in_use and self.in_use[name].data_type != tensor.data_type:
            second = TensorProto()
            second.CopyFrom(tensor)
            second.name = name = f"{name}{_SECOND_TYPE}"
            tensor = second
        self.in_use.setdefault(name, tensor)
        return name

    def _cast(self, name: str, wanted: int, casts: list[NodeProto]) -> str:
        """The name of a value in the type wanted, cast once."""
        if (name, wanted) not in self.casts:
            result = f"{name}:{'float16' if wanted == HALF else 'float32'}"
            self.casts[name, wanted] = result
            casts.append(helper.make_node("Cast", [name], [result], name=f"{result}/Cast", to=wanted))
        return self.casts[name, wanted]


_SECOND_TYPE = ":second_type"


def _stem(name: str) -> str:
    return name.removesuffix(_SECOND_TYPE)


def _types_of(model: ModelProto) -> dict[str, int]:
    """Element types of all values that the graph declares or its shape inference found."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _set_attribute(node: NodeProto, name: str, value: int) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
