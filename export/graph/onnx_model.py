"""PyTorch to ONNX: the inference form traced, named after its modules, with its functions beside it.

The file's nodes are standard operators and the operators of domain ``msmamba``. Those come as model-local
functions too, so the file runs wherever ONNX runs; a runtime with kernels for them takes those instead.
Input ``image`` (batch, 3, S, S), outputs ``logits`` (batch, classes) and ``features`` (batch, channels), what
the head takes: float32, any batch. A network whose head takes something else has no features.

`flat_model` gives the same model with one operator only, ``SelectiveScan2D``, and standard ones: what
precision converters, quantisers and TensorRT take.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx
import onnxscript.optimizer
import torch
from onnx import ModelProto, NodeProto
from onnxscript.values import Op, Opset
from torch import Tensor, nn

from ...errors import ExportError
from ...model.networks.family import Network
from ...model.networks.registry import family_of
from ...plugins.hybrid_block import STATE_INPUTS
from ...plugins.hybrid_block.onnx_functions import block_functions
from ...plugins.selective_scan.onnx_function import (
    DOMAIN,
    DOMAIN_VERSION,
    OP_TYPE,
    PLUGIN_ATTRIBUTES,
    scan_function,
    scan_schema,
)
from ...runtime.backend import FEATURES
from .inlining import INPUT, OUTPUT, functions_called, inlined_model

DEFAULT_OPSET = 20
"""The exporter's own version, and the newest that TensorRT 10.3 (JetPack 6) reads."""
_SCOPES = "pkg.torch.onnx.name_scopes"


def onnx_from_network(
    network: Network,
    image_size: int,
    *,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """Exports a network in float32.

    Args:
        network: in evaluation mode, on the CPU; it is left as it is.
        image_size: side S of the images, pixels.
        opset: version of the standard operators, 20 or later.
        metadata: entries for ``metadata_props``.

    Returns:
        A checked model. Nodes and values are named after the PyTorch modules that they come from; the
        result of module ``layers.0.blocks.0.MIFA`` is the value of that name.

    Raises:
        ExportError: the size does not fit the network, or the opset is not supported.
    """
    newest = onnx.defs.onnx_opset_version()
    if not DEFAULT_OPSET <= opset <= newest:
        raise ExportError(f"opset {opset} is not supported: choose one from {DEFAULT_OPSET} to {newest}")
    try:
        network.check_image_shape((1, 3, image_size, image_size))
    except ValueError as error:
        raise ExportError(f"cannot export for {image_size}x{image_size} images: {error}") from error

    model = _traced(family_of(network).inference_form(network, image_size).eval(), image_size)
    _set_opset(model, opset)
    functions = {function.name: function for function in (scan_function(opset), *block_functions(opset))}
    used = functions_called(model.graph.node, functions)
    model.functions.extend(function for name, function in functions.items() if name in used)
    _name_after_modules(model)
    _show_features(model, family_of(network).head)
    _drop_tracing_notes(model)
    model.producer_name, model.producer_version = "msmamba", ""
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def flat_model(model: ModelProto, kept: Collection[str] = ()) -> ModelProto:
    """The model with every msmamba function but the scan's written out in standard operators.

    Shapes are folded to constants, and a value that stood inside node ``module/operator`` is named
    ``module/operator/value``.

    Args:
        model: what `onnx_from_network` made; it is left as it is.
        kept: names of nodes that stay calls of their functions.
    """
    flat = inlined_model(model, kept)
    # Set aside, or the optimiser would write the scan's function out as well.
    functions = list(flat.functions)
    del flat.functions[:]
    flat = onnxscript.optimizer.optimize(flat)
    flat.functions.extend(functions)
    _drop_tracing_notes(flat)
    onnx.helper.set_model_props(flat, {entry.key: entry.value for entry in model.metadata_props})
    onnx.checker.check_model(flat, full_check=True)
    return flat


def scan_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes of the selective scan, in order, with or without its projections."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in STATE_INPUTS]


def _traced(form: nn.Module, image_size: int) -> ModelProto:
    scan = Op(Opset(DOMAIN, DOMAIN_VERSION), OP_TYPE, op_schema=scan_schema())

    def scan_node(
        x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Any:
        return scan(x, delta, A, B, C, D, delta_bias, **PLUGIN_ATTRIBUTES)

    # An example batch of 2: the exporter would take a 1 for a constant.
    example = torch.zeros(2, 3, image_size, image_size)
    with _quiet_exporter():
        program = torch.onnx.export(
            form,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table={torch.ops.msmamba.selective_scan_2d.default: scan_node},
            verbose=False,
        )
    if program is None:
        raise ExportError("the ONNX exporter returned no program")
    model: ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's notes to its own developers off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _set_opset(model: ModelProto, opset: int) -> None:
    # The exporter's own converter fails on local functions; all operators used here mean the same in
    # every version from the exporter's on.
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset


def _module_of(node: NodeProto) -> str:
    """The PyTorch module that a node was traced from, by its path in the network."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    modules = ast.literal_eval(scopes)[:-1]
    return modules[-1] if modules else ""


def _name_after_modules(model: ModelProto) -> None:
    """Names each node ``module/operator``, and each module's last result after the module."""
    formal_outputs = {function.name: list(function.output) for function in model.functions}
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    modules = [_module_of(node) for node in model.graph.node]
    last_of = {module: number for number, module in enumerate(modules) if module}
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for number, (module, node) in enumerate(zip(modules, model.graph.node, strict=True)):
        name = f"{module}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        if len(node.output) > 1:
            labels = formal_outputs.get(node.op_type) or [str(i) for i in range(len(node.output))]
            names = [f"{node.name}:{label}" for label in labels]
        else:
            names = [module if last_of.get(module) == number else node.name]
        renamed.update(zip(node.output, names, strict=True))
    renamed = {old: new for old, new in renamed.items() if old not in kept}
    for node in model.graph.node:
        for names_of in (node.input, node.output):
            names_of[:] = [renamed.get(value, value) for value in names_of]
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _show_features(model: ModelProto, head: str) -> None:
    """Makes what the head takes an output, where that is one row an image: it is computed anyway."""
    taken = next((node.input[0] for node in model.graph.node if node.name.startswith(f"{head}/")), None)
    features = next((value for value in model.graph.value_info if value.name == taken), None)
    if features is None or len(features.type.tensor_type.shape.dim) != 2:
        return
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [FEATURES if name == taken else name for name in names]
    features.name = FEATURES
    model.graph.output.append(features)
    model.graph.value_info.remove(features)


def _drop_tracing_notes(model: ModelProto) -> None:
    """Removes stack traces and the like: they hold paths of the machine that exported."""
    for entry in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del entry.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
