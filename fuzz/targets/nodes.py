"""ONNX files of one native operator, whose shapes, types and attributes are anything."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from seeds import Seeds

from msmamba.plugins.hybrid_block import INT8, INT8_WEIGHTS, OPERATORS

from .target import written

SIDE = 8
"""Of the image."""

# Shapes of inputs by the letters of the contract; the first input is a map made from the image.
_OPERATORS: dict[str, tuple[dict[str, tuple[str, ...]], int, tuple[str, ...]]] = {
    "LocalBranch": (
        {
            "x": ("b", "H", "W", "C"),
            "scale": ("h",),
            "shift": ("h",),
            "depthwise_weight": ("h", "1", "3", "3"),
            "depthwise_bias": ("h",),
            "expand_weight": ("C", "1", "3", "3"),
            "expand_bias": ("C",),
            "project_weight": ("h", "C", "1", "1"),
            "project_bias": ("h",),
        },
        1,
        ("channels",),
    ),
    "ScanInputs": (
        {
            "x": ("b", "H", "W", "C"),
            "norm_weight": ("h",),
            "norm_bias": ("h",),
            "in_weight": ("d", "E"),
            "conv_weight": ("D", "1", "3", "3"),
            "conv_bias": ("D",),
            "step_weight": ("D", "S"),
            "step_expand": ("S", "X"),
            "input_weight": ("D", "N"),
            "output_weight": ("D", "N"),
        },
        6,
        ("channels", "groups"),
    ),
    "ScanOutputs": (
        {
            "y": ("g", "H", "W", "D"),
            "gate": ("g", "H", "W", "D"),
            "tokens": ("g", "H", "W", "d"),
            "out_norm_weight": ("D",),
            "out_norm_bias": ("D",),
            "project_weight": ("D", "d"),
            "project_bias": ("d",),
            "conv_weight": ("q", "1", "3", "3"),
            "conv_bias": ("q",),
            "residual_scale": ("1",),
            "norm_weight": ("h",),
            "norm_bias": ("h",),
        },
        1,
        ("channels", "groups"),
    ),
    "MIFA": (
        {
            "local": ("b", "H", "W", "h"),
            "scanned": ("b", "H", "W", "h"),
            "conv_weight": ("h", "1", "3", "3"),
            "conv_bias": ("h",),
            "attention_weight": ("C",),
        },
        1,
        ("channels",),
    ),
    "PatchMerging": (
        {
            "x": ("b", "H", "W", "h"),
            "norm_weight": ("Q",),
            "norm_bias": ("Q",),
            "reduction_weight": ("Q", "C"),
        },
        1,
        (),
    ),
    "ScanFeatures": (
        {
            "x": ("b", "H", "W", "c"),
            "norm_weight": ("h",),
            "norm_bias": ("h",),
            "in_weight": ("d", "E"),
            "conv_weight": ("D", "1", "3", "3"),
            "conv_bias": ("D",),
        },
        3,
        ("channels", "groups"),
    ),
    "ProjectedScan2D": (
        {
            "features": ("g", "H", "W", "D"),
            "step_weight": ("D", "S"),
            "step_expand": ("S", "X"),
            "input_weight": ("D", "N"),
            "output_weight": ("D", "N"),
            "A": ("4", "D", "n"),
            "D": ("4", "D"),
            "delta_bias": ("4", "D"),
        },
        1,
        (),
    ),
    "SelectiveScan2D": (
        {
            "x": ("b", "H", "W", "D"),
            "delta": ("b", "H", "W", "4", "D"),
            "A": ("4", "D", "n"),
            "B": ("b", "H", "W", "4", "n"),
            "C": ("b", "H", "W", "4", "n"),
            "D": ("4", "D"),
            "delta_bias": ("4", "D"),
        },
        1,
        (),
    ),
}


def _in_int8(op_type: str, scales: dict[str, tuple[str, ...]]) -> None:
    """Adds the form of an operator with int8 products: its weights' scales, and those of values."""
    inputs, outputs, attributes = _OPERATORS[op_type]
    inputs = {
        "features_weight" if name == "step_weight" else name: ("D", "M") if name == "step_weight" else letters
        for name, letters in inputs.items()
        if name not in ("input_weight", "output_weight")
    }
    _OPERATORS[op_type + INT8] = ({**inputs, **scales}, outputs, attributes)


_in_int8("LocalBranch", {"project_weight_scale": ("h",), "expanded_kept_scale": (), "projected_scale": ()})
_in_int8("ScanOutputs", {"project_weight_scale": ("d",), "gated_scale": ()})
_in_int8("PatchMerging", {"reduction_weight_scale": ("C",), "normed_scale": ()})
_in_int8("ScanFeatures", {"in_weight_scale": ("E",), "tokens_scale": ()})
_in_int8(
    "ProjectedScan2D",
    {
        "features_weight_scale": ("M",),
        "step_expand_scale": ("X",),
        "features_scale": (),
        "step_features_scale": (),
    },
)
_in_int8(
    "ScanInputs",
    {
        "in_weight_scale": ("E",),
        "features_weight_scale": ("M",),
        "step_expand_scale": ("X",),
        "tokens_scale": (),
        "features_scale": (),
        "step_features_scale": (),
    },
)
_ODD = (0, 0, 1, 2, 3, 5, 7, 16, 17, 33, 64, 1000, 65_537)


class Nodes:
    """A classifier around the operator.

    Its inputs are constants, or computed so that only running tells their shape; its outputs are summed into
    the logits.
    """

    inputs = 2000

    def __init__(self, seeds: Seeds) -> None:
        self._image = np.zeros((1, 3, SIDE, SIDE), np.float32)

    def make(self, generator: random.Random, folder: Path) -> Path:
        return written(folder / "model.onnx", _model(generator))

    def open(self, path: Path) -> object:
        from msmamba.runtime import open_session

        with open_session(path, threads=2) as session:
            return session.run(self._image)


def _model(generator: random.Random) -> bytes:
    import onnx
    from onnx import helper, numpy_helper

    op_type = generator.choice(list(_OPERATORS))
    inputs, outputs, attributes = _OPERATORS[op_type]
    sizes = _sizes(generator)
    nodes, initializers, names = [], [], []
    has_half = op_type in OPERATORS and generator.random() < 0.3
    in_int8 = INT8_WEIGHTS.get(op_type.removesuffix(INT8), ()) if op_type.endswith(INT8) else ()
    for name, letters in inputs.items():
        shape = [int(letter) if letter.isdigit() else sizes[letter] for letter in letters]
        in_half = has_half and name not in ("A", "D", "delta_bias")
        usual = np.int8 if name in in_int8 else np.float16 if in_half else np.float32
        if generator.random() < 0.08:
            shape = _other(shape, generator)
        dtype = generator.choice((np.float16, np.float64, np.int64)) if generator.random() < 0.03 else usual
        names.append("" if generator.random() < 0.01 else name)
        if generator.random() < 0.3:  # computed: known when it runs, and not before
            initializers.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}_shape"))
            value = numpy_helper.from_array(np.array([generator.uniform(-2, 2)]).astype(dtype))
            nodes.append(helper.make_node("ReduceSum", ["image"], [f"{name}_zero"], keepdims=0))
            nodes.append(
                helper.make_node("Cast", [f"{name}_zero"], [f"{name}_int"], to=onnx.TensorProto.INT64)
            )
            nodes.append(helper.make_node("Add", [f"{name}_shape", f"{name}_int"], [f"{name}_shape2"]))
            nodes.append(helper.make_node("ConstantOfShape", [f"{name}_shape2"], [name], value=value))
        elif np.prod(shape, dtype=float) <= 1 << 20:
            array = np.random.default_rng(generator.getrandbits(32)).normal(size=shape).astype(dtype)
            initializers.append(numpy_helper.from_array(array, name))
        else:
            initializers.append(numpy_helper.from_array(np.zeros([0], dtype), name))
    made = [f"out{number}" for number in range(max(1, outputs + generator.choice((0, 0, 0, 0, 0, 0, -1, 1))))]
    said: dict[str, Any] = {
        name: generator.choice((1, 2, 4, sizes["h"], 0, -1, 2**40))
        for name in attributes
        if generator.random() < 0.9
    }
    if names and generator.random() < 0.03:
        names = names[:-1]
    nodes.append(helper.make_node(op_type, names, made, domain="msmamba", **said))
    sums = []
    for name in made:
        nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{name}_float"], [f"{name}_sum"], keepdims=0))
        sums.append(f"{name}_sum")
    nodes.append(helper.make_node("Sum", sums, ["sum"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["image"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Add", ["flat", "sum"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["b", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", 3])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("msmamba", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def _sizes(generator: random.Random) -> dict[str, int]:
    """Sizes that fit together, but for some."""
    d, groups = generator.choice((2, 4, 6, 8, 16)), generator.choice((1, 2, 4))
    D, n = 2 * d, generator.choice((1, 2, 16))
    batch, height, width = (
        generator.choice((1, 1, 2)),
        generator.choice((1, 3, 8)),
        generator.choice((1, 3, 8)),
    )
    if generator.random() < 0.7:
        width = height
    h = d * groups
    sizes: dict[str, Any] = {
        "b": batch,
        "g": batch * groups,
        "H": height,
        "W": width,
        "c": generator.choice((h, 2 * h, 2 * h + 1, h - 1)),
        "h": h,
        "C": 2 * h,
        "Q": 4 * h,
        "d": d,
        "D": D,
        "E": 2 * D,
        "X": 4 * D,
        "S": 4,
        "M": 4 + 8 * n,
        "N": 4 * n,
        "n": n,
        "q": max(1, d // 4),
    }
    while generator.random() < 0.4:
        letter = generator.choice(list(sizes))
        sizes[letter] = generator.choice(_ODD)
    return sizes


def _other(shape: list[int], generator: random.Random) -> list[int]:
    """Another rank or side."""
    shape = list(shape)
    match generator.randrange(4):
        case 0:
            shape.insert(generator.randrange(len(shape) + 1), generator.choice((0, 1, 2)))
        case 1 if shape:
            shape.pop(generator.randrange(len(shape)))
        case 2 if shape:
            shape[generator.randrange(len(shape))] = generator.choice(_ODD)
        case _:
            shape = [generator.choice(_ODD) for _ in range(generator.randrange(7))]
    return shape
