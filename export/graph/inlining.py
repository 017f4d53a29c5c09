"""What a model's file needs before TensorRT reads it, without PyTorch: msmamba's functions written out.

Only onnx is imported here, so that a device can build an engine from a bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import onnx
import onnx.inliner
from onnx import FunctionProto, ModelProto, NodeProto

from ...plugins.hybrid_block import INT8_OPERATORS, OPERATORS, STEPS
from ...plugins.selective_scan.onnx_function import DOMAIN

INPUT, OUTPUT = "image", "logits"
"""Names of the network's input (batch, 3, S, S) and output (batch, classes)."""


BLOCK_OPERATORS = (*OPERATORS, *INT8_OPERATORS)

_KEPT = "kept "


def inlined_model(model: ModelProto, kept: Collection[str] = ()) -> ModelProto:
    """The model with every msmamba function but the scan's written out in standard operators, and all types.

    A value that stood inside node ``module/operator`` is named ``module/operator/value``. A model without
    such functions comes back with its types inferred. `onnx_model.flat_model` folds the shapes too.

    Args:
        model: it is left as it is.
        kept: names of nodes that stay calls of their functions.
    """
    marked = ModelProto()
    marked.CopyFrom(model)
    callers = []
    for node in block_nodes(marked):
        if node.name in kept:
            node.op_type = _KEPT + node.op_type  # a name that the inliner finds no function for
        else:
            callers.append(node.name)
    # The steps first, into the functions that call them, whose values then have names of one caller.
    stepless = onnx.inliner.inline_selected_functions(marked, [(DOMAIN, name) for name in STEPS])
    for function in stepless.functions:
        _name_plainly(function)
    inlined: ModelProto = onnx.inliner.inline_selected_functions(
        stepless, [(DOMAIN, name) for name in BLOCK_OPERATORS]
    )
    _name_after_callers(inlined, callers)
    for node in inlined.graph.node:
        node.op_type = node.op_type.removeprefix(_KEPT)
    in_use = functions_called(block_nodes(inlined), {function.name: function for function in model.functions})
    lacking = in_use - {function.name for function in inlined.functions}
    inlined.functions.extend(function for function in model.functions if function.name in lacking)
    typed: ModelProto = onnx.shape_inference.infer_shapes(inlined, strict_mode=True)
    return typed


def block_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes of the hybrid block's operators (`plugins.hybrid_block`), in order."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in BLOCK_OPERATORS]


def functions_called(nodes: Iterable[NodeProto], functions: Mapping[str, FunctionProto]) -> set[str]:
    """Names of the functions that nodes call, themselves or by one another."""
    called = {node.op_type for node in nodes if node.domain == DOMAIN} & set(functions)
    return called.union(*(functions_called(functions[name].node, functions) for name in called))


def _name_plainly(function: FunctionProto) -> None:
    """Takes the inliner's ``__7`` off the values of a function, where that tells them apart still."""
    values = [value for node in function.node for value in node.output]
    stems = Counter(value.rpartition("__")[0] or value for value in values)
    taken = {*function.input, *function.output, *values}
    renamed = {}
    for value in values:
        stem, _, number = value.rpartition("__")
        if number.isdigit() and stems[stem] == 1 and stem not in taken:
            renamed[value] = stem
    _rename(function.node, renamed)


def _rename(nodes: Iterable[NodeProto], renamed: Mapping[str, str]) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(value, value) for value in names]


def _name_after_callers(flat: ModelProto, callers: list[str]) -> None:
    """Turns the inliner's ``value__7`` into the seventh caller's ``module/operator/value``, nodes alike."""
    outside = {value.name for value in (*flat.graph.input, *flat.graph.output, *flat.graph.initializer)}
    renamed: dict[str, str] = {}
    for node in flat.graph.node:
        for value in node.output:
            stem, _, number = value.rpartition("__")
            if stem and number.isdigit() and value not in outside:
                renamed[value] = f"{callers[int(number) - 1]}/{stem}"
    _rename(flat.graph.node, renamed)
    for node in flat.graph.node:
        node.name = node.name or f"{node.output[0]}/{node.op_type}"
