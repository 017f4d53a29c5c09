"""What a model's file needs before TensorRT reads it, without PyTorch: msmamba's functions written out.

Only onnx is imported here, so that a device can build an engine from a bundle.
"""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import ModelProto

from ..plugins.hybrid_block import OPERATORS as BLOCK_OPERATORS
from ..plugins.selective_scan.onnx_function import DOMAIN

INPUT, OUTPUT = "image", "logits"
"""Names of the network's input (batch, 3, S, S) and output (batch, classes)."""


def inlined_model(model: ModelProto) -> ModelProto:
    """The model with every msmamba function but the scan's written out in standard operators, and all types.

    A value that stood inside node ``module/operator`` is named ``module/operator/value``. A model without
    such functions comes back with its types inferred. `onnx_model.flat_model` folds the shapes too.
    """
    named = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in BLOCK_OPERATORS]
    inlined: ModelProto = onnx.inliner.inline_selected_functions(
        model, [(DOMAIN, name) for name in BLOCK_OPERATORS]
    )
    _name_after_callers(inlined, [node.name for node in named])
    typed: ModelProto = onnx.shape_inference.infer_shapes(inlined, strict_mode=True)
    return typed


def _name_after_callers(flat: ModelProto, callers: list[str]) -> None:
    """Turns the inliner's ``value__7`` into the seventh caller's ``module/operator/value``, nodes alike."""
    outside = {value.name for value in (*flat.graph.input, *flat.graph.output, *flat.graph.initializer)}
    renamed: dict[str, str] = {}
    for node in flat.graph.node:
        for value in node.output:
            stem, _, number = value.rpartition("__")
            if stem and number.isdigit() and value not in outside:
                renamed[value] = f"{callers[int(number) - 1]}/{stem}"
    for node in flat.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(value, value) for value in names]
        node.name = node.name or f"{node.output[0]}/{node.op_type}"
