"""The hybrid block's operators as model-local ONNX functions of standard operators.

Shapes and meaning: the package's docstring. The bodies hold no sizes, so one function serves every block;
convolutions need their number of groups as an attribute, which each node passes on as ``channels``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..selective_scan.onnx_function import DOMAIN_VERSION, OP_TYPE, PLUGIN_ATTRIBUTES
from . import DOMAIN, INT8, INT8_VALUES, INT8_WEIGHTS, LAYER_NORM_EPSILON

if TYPE_CHECKING:
    from onnx import FunctionProto

_NORM = f"LayerNormalization <axis = -1, epsilon = {LAYER_NORM_EPSILON}>"
_FIRST, _LAST = "Transpose <perm = [0, 3, 1, 2]>", "Transpose <perm = [0, 2, 3, 1]>"
_DEPTHWISE = "Conv <group: int = @channels, kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"

_SCAN_ATTRIBUTES = ", ".join(f'{name} = "{value}"' for name, value in PLUGIN_ATTRIBUTES.items())
_FEATURES = f"""  tokens = {DOMAIN}.GroupedNorm <groups: int = @groups> (x, norm_weight, norm_bias)
  projected = MatMul (tokens, in_weight)
  gate, features = {DOMAIN}.GatedConvolution <channels: int = @channels> (projected, conv_weight, conv_bias)
"""
_PROJECTIONS = """  any = Constant <value_ints = [-1]> ()
  keep = Constant <value_ints = [0, 0, 0]> ()
  directions = Constant <value_ints = [4]> ()
  direction_shape = Concat <axis = 0> (keep, directions, any)
  step_features = MatMul (features, step_weight)
  steps = MatMul (step_features, step_expand)
  delta = Reshape (steps, direction_shape)
  inputs = MatMul (features, input_weight)
  B = Reshape (inputs, direction_shape)
  outputs = MatMul (features, output_weight)
  C = Reshape (outputs, direction_shape)
"""

_STEPS = {
    "LocalDepthwise": f"""
LocalDepthwise <channels> (x, scale, shift, weight, bias) => (y)
{{
  half, other_half = Split <axis = -1, num_outputs = 2> (x)
  scaled = Mul (half, scale)
  normed = Add (scaled, shift)
  planes = {_FIRST} (normed)
  depthwise = {_DEPTHWISE} (planes, weight, bias)
  depthwise_kept = Relu (depthwise)
  y = {_LAST} (depthwise_kept)
}}
""",
    "LocalExpansion": f"""
LocalExpansion <channels> (x, weight, bias) => (y)
{{
  depthwise_planes = {_FIRST} (x)
  expanded = {_DEPTHWISE} (depthwise_planes, weight, bias)
  expanded_kept = Relu (expanded)
  y = {_LAST} (expanded_kept)
}}
""",
    "GroupedNorm": f"""
GroupedNorm <groups> (x, weight, bias) => (y)
{{
  any = Constant <value_ints = [-1]> ()
  keep = Constant <value_ints = [0, 0, 0]> ()
  group_count = Constant <value_int: int = @groups> ()
  axis = Constant <value_ints = [0]> ()
  group_list = Unsqueeze (group_count, axis)
  last = Shape (weight)
  sides = Shape <start = 1, end = 3> (x)
  group_shape = Concat <axis = 0> (keep, group_list, any)
  width = Div (last, group_list)
  token_shape = Concat <axis = 0> (any, sides, width)
  first = Neg (last)
  end = Constant <value_ints = [2147483647]> ()

  half = Slice (x, first, end, any)
  normed = {_NORM} (half, weight, bias)
  grouped = Reshape (normed, group_shape)
  batched = Transpose <perm = [0, 3, 1, 2, 4]> (grouped)
  y = Reshape (batched, token_shape)
}}
""",
    "GatedConvolution": f"""
GatedConvolution <channels> (x, weight, bias) => (gate, y)
{{
  flow, gate = Split <axis = -1, num_outputs = 2> (x)
  planes = {_FIRST} (flow)
  convolved = {_DEPTHWISE} (planes, weight, bias)
  convolved_gate = Sigmoid (convolved)
  activated = Mul (convolved, convolved_gate)
  y = {_LAST} (activated)
}}
""",
    "GatedNorm": f"""
GatedNorm (x, gate, weight, bias) => (y)
{{
  normed = {_NORM} (x, weight, bias)
  gate_weight = Sigmoid (gate)
  gate_value = Mul (gate, gate_weight)
  y = Mul (normed, gate_value)
}}
""",
    "MergedGroups": f"""
MergedGroups <groups, channels> (x, tokens, x_bias, conv_weight, conv_bias, scale) => (y)
{{
  any = Constant <value_ints = [-1]> ()
  two = Constant <value_ints = [2]> ()
  keep = Constant <value_ints = [0, 0, 0]> ()
  group_count = Constant <value_int: int = @groups> ()
  axis = Constant <value_ints = [0]> ()
  group_list = Unsqueeze (group_count, axis)
  sides = Shape <start = 1, end = 3> (tokens)
  width = Shape <start = 3, end = 4> (tokens)
  convolved_width = Shape <start = 0, end = 1> (conv_weight)
  passed_width = Sub (width, convolved_width)
  widths = Concat <axis = 0> (convolved_width, passed_width)
  pair_shape = Concat <axis = 0> (keep, any, two)
  flat_shape = Concat <axis = 0> (keep, any)
  group_shape = Concat <axis = 0> (any, group_list, sides, width)

  projected = Add (x, x_bias)
  projected_weight = Sigmoid (projected)
  activated = Mul (projected, projected_weight)
  part, passed = Split <axis = -1> (activated, widths)
  planes = {_FIRST} (part)
  convolved = {_DEPTHWISE} (planes, conv_weight, conv_bias)
  convolved_weight = Sigmoid (convolved)
  convolved_value = Mul (convolved, convolved_weight)
  convolved_part = {_LAST} (convolved_value)
  both = Concat <axis = -1> (convolved_part, passed)
  pairs = Reshape (both, pair_shape)
  swapped_pairs = Transpose <perm = [0, 2, 1, 4, 3]> (pairs)
  swapped = Reshape (swapped_pairs, flat_shape)
  residual = Mul (tokens, scale)
  sum = Add (swapped, residual)
  grouped = Reshape (sum, group_shape)
  ungrouped = Transpose <perm = [0, 2, 3, 1, 4]> (grouped)
  y = Reshape (ungrouped, flat_shape)
}}
""",
    "ShuffledNorm": f"""
ShuffledNorm (x, weight, bias) => (y)
{{
  any = Constant <value_ints = [-1]> ()
  two = Constant <value_ints = [2]> ()
  keep = Constant <value_ints = [0, 0, 0]> ()
  split_shape = Concat <axis = 0> (keep, any, two)
  joined_shape = Concat <axis = 0> (keep, any)

  merged_normed = {_NORM} (x, weight, bias)
  merged_pairs = Reshape (merged_normed, split_shape)
  shuffled = Transpose <perm = [0, 1, 2, 4, 3]> (merged_pairs)
  y = Reshape (shuffled, joined_shape)
}}
""",
}
"""What the operators call between their matrix products, each a kernel of its own on a GPU."""

_BODIES = {
    "LocalBranch": f"""
LocalBranch <channels> (x, scale, shift, depthwise_weight, depthwise_bias, expand_weight, expand_bias,
                        project_weight, project_bias) => (local)
{{
  depthwise_maps = {DOMAIN}.LocalDepthwise <channels: int = @channels>
                   (x, scale, shift, depthwise_weight, depthwise_bias)
  expanded_maps = {DOMAIN}.LocalExpansion <channels: int = @channels>
                  (depthwise_maps, expand_weight, expand_bias)
  expanded_planes = {_FIRST} (expanded_maps)
  projected = Conv <kernel_shape = [1, 1]> (expanded_planes, project_weight, project_bias)
  projected_kept = Relu (projected)
  local = {_LAST} (projected_kept)
}}
""",
    "ScanInputs": f"""
ScanInputs <groups, channels> (x, norm_weight, norm_bias, in_weight, conv_weight, conv_bias, step_weight,
                               step_expand, input_weight, output_weight)
           => (tokens, gate, features, delta, B, C)
{{
{_FEATURES}{_PROJECTIONS}}}
""",
    "ScanFeatures": f"""
ScanFeatures <groups, channels> (x, norm_weight, norm_bias, in_weight, conv_weight, conv_bias)
             => (tokens, gate, features)
{{
{_FEATURES}}}
""",
    "ProjectedScan2D": f"""
ProjectedScan2D (features, step_weight, step_expand, input_weight, output_weight, A, D, delta_bias) => (y)
{{
{_PROJECTIONS}  y = {DOMAIN}.{OP_TYPE} <{_SCAN_ATTRIBUTES}> (features, delta, A, B, C, D, delta_bias)
}}
""",
    "ScanOutputs": f"""
ScanOutputs <groups, channels> (y, gate, tokens, out_norm_weight, out_norm_bias, project_weight, project_bias,
                                conv_weight, conv_bias, residual_scale, norm_weight, norm_bias) => (scanned)
{{
  gated = {DOMAIN}.GatedNorm (y, gate, out_norm_weight, out_norm_bias)
  product = MatMul (gated, project_weight)
  merged = {DOMAIN}.MergedGroups <groups: int = @groups, channels: int = @channels>
           (product, tokens, project_bias, conv_weight, conv_bias, residual_scale)
  scanned = {DOMAIN}.ShuffledNorm (merged, norm_weight, norm_bias)
}}
""",
    "MIFA": f"""
MIFA <channels> (local, scanned, conv_weight, conv_bias, attention_weight) => (y)
{{
  any = Constant <value_ints = [-1]> ()
  four = Constant <value_ints = [4]> ()
  keep = Constant <value_ints = [0, 0, 0]> ()
  sides = Constant <value_ints = [1, 2]> ()
  quad_shape = Concat <axis = 0> (keep, any, four)
  flat_shape = Concat <axis = 0> (keep, any)

  local_planes = {_FIRST} (local)
  local_convolved = {_DEPTHWISE} (local_planes, conv_weight, conv_bias)
  local_kept = Relu (local_convolved)
  local_weight = Sigmoid (local_kept)
  scanned_planes = {_FIRST} (scanned)
  scanned_convolved = {_DEPTHWISE} (scanned_planes, conv_weight, conv_bias)
  scanned_kept = Gelu (scanned_convolved)
  scanned_weight = Sigmoid (scanned_kept)
  weighted_scanned = Mul (local_weight, scanned_planes)
  weighted_local = Mul (scanned_weight, local_planes)
  fused_planes = Concat <axis = 1> (weighted_scanned, weighted_local)
  fused = {_LAST} (fused_planes)
  quads = Reshape (fused, quad_shape)
  shuffled_quads = Transpose <perm = [0, 1, 2, 4, 3]> (quads)
  shuffled = Reshape (shuffled_quads, flat_shape)
  mean = ReduceMean (shuffled, sides)
  weighted_mean = Mul (mean, attention_weight)
  attention = Sigmoid (weighted_mean)
  y = Mul (shuffled, attention)
}}
""",
    "PatchMerging": f"""
PatchMerging (x, norm_weight, norm_bias, reduction_weight) => (y)
{{
  any = Constant <value_ints = [-1]> ()
  two = Constant <value_ints = [2]> ()
  keep = Constant <value_ints = [0]> ()
  height = Shape <start = 1, end = 2> (x)
  width = Shape <start = 2, end = 3> (x)
  rows = Div (height, two)
  columns = Div (width, two)
  patch_shape = Concat <axis = 0> (keep, rows, two, columns, two, any)
  flat_shape = Concat <axis = 0> (keep, rows, columns, any)

  patches = Reshape (x, patch_shape)
  gathered = Transpose <perm = [0, 1, 3, 4, 2, 5]> (patches)
  merged = Reshape (gathered, flat_shape)
  normed = {_NORM} (merged, norm_weight, norm_bias)
  y = MatMul (normed, reduction_weight)
}}
""",
}


def _rounded(value: str, result: str, scale_of: str) -> str:
    """Lines that give ``result``, which is ``value`` at the integers that int8 holds."""
    return f"""  {result}_int8 = QuantizeLinear ({value}, {scale_of}_scale, zero)
  {result} = DequantizeLinear ({result}_int8, {scale_of}_scale, zero)"""


def _product(left: str, weight: str, result: str) -> str:
    """Lines of a matrix product whose operands come out of int8."""
    return f"""{_rounded(left, f"{left}_read", left)}
  {weight}_read = DequantizeLinear <axis = 1> ({weight}, {weight}_scale)
  {result} = MatMul ({left}_read, {weight}_read)"""


_ZERO = "  zero = Constant <value = int8 {0}> ()\n"
_INT8_FEATURES = {"  projected = MatMul (tokens, in_weight)": _product("tokens", "in_weight", "projected")}
_INT8_PROJECTIONS = {
    "  directions = Constant": """  two = Constant <value_ints = [2]> ()
  step_width = Shape <start = 0, end = 1> (step_expand)
  product_width = Shape <start = 1, end = 2> (features_weight)
  states_width = Sub (product_width, step_width)
  state_width = Div (states_width, two)
  widths = Concat <axis = 0> (step_width, state_width, state_width)
  directions = Constant""",
    "  step_features = MatMul (features, step_weight)": (
        _product("features", "features_weight", "merged")
        + "\n  step_features, inputs, outputs = Split <axis = -1> (merged, widths)"
    ),
    "  steps = MatMul (step_features, step_expand)": _product("step_features", "step_expand", "steps"),
    "  inputs = MatMul (features, input_weight)\n": "",
    "  outputs = MatMul (features, output_weight)\n": "",
}
_INT8_LINES = {
    "LocalBranch": {
        "  depthwise_maps =": f"{_ZERO}  depthwise_maps =",
        "  projected = Conv <kernel_shape = [1, 1]> (expanded_planes, project_weight, project_bias)": f"""
{_rounded("expanded_planes", "expanded_read", "expanded_kept")}
  project_weight_read = DequantizeLinear <axis = 0> (project_weight, project_weight_scale)
  projected_wide = Conv <kernel_shape = [1, 1]> (expanded_read, project_weight_read, project_bias)
{_rounded("projected_wide", "projected", "projected")}""",
    },
    "ScanInputs": {
        "step_weight,": "features_weight,",
        "step_expand, input_weight, output_weight": "step_expand",
        "  tokens =": f"{_ZERO}  tokens =",
        **_INT8_FEATURES,
        **_INT8_PROJECTIONS,
    },
    "ScanFeatures": {"  tokens =": f"{_ZERO}  tokens =", **_INT8_FEATURES},
    "ProjectedScan2D": {
        "step_weight, step_expand, input_weight, output_weight": "features_weight, step_expand",
        "  any = Constant": f"{_ZERO}  any = Constant",
        **_INT8_PROJECTIONS,
    },
    "PatchMerging": {
        "  any = Constant": f"{_ZERO}  any = Constant",
        "  y = MatMul (normed, reduction_weight)": _product("normed", "reduction_weight", "y"),
    },
    "ScanOutputs": {
        "  gated =": f"{_ZERO}  gated =",
        "  product = MatMul (gated, project_weight)": _product("gated", "project_weight", "product"),
    },
}
"""What the functions with int8 products have in place of lines of the others."""


def _int8_body(op_type: str) -> str:
    body = _BODIES[op_type]
    for line, replaced in _INT8_LINES[op_type].items():
        before, found, after = body.partition(line)
        if not found:
            raise ValueError(f"{op_type} has no line {line!r}")
        body = before + replaced + after
    scales = ", ".join(f"{name}_scale" for name in (*INT8_WEIGHTS[op_type], *INT8_VALUES[op_type]))
    before, name, after = body.partition(op_type)
    inputs, end, rest = after.partition(")")
    return f"{before}{name}{INT8}{inputs}, {scales}{end}{rest}"


def block_functions(opset: int) -> list[FunctionProto]:
    """The functions of all operators and steps, to be added to a model's ``functions``.

    Args:
        opset: the model's version of the standard operators, at least 20 (Gelu).
    """
    return _parsed([*_STEPS.values(), *_BODIES.values()], opset)  # callers last, as evaluators want them


def int8_block_functions(opset: int) -> list[FunctionProto]:
    """The functions with int8 products, which call the steps too.

    Args:
        opset: the model's version of the standard operators, at least 20 (Gelu).
    """
    return _parsed(map(_int8_body, INT8_WEIGHTS), opset)


def _parsed(bodies: Iterable[str], opset: int) -> list[FunctionProto]:
    from onnx import parser

    imports = f'["" : {opset}, "{DOMAIN}" : {DOMAIN_VERSION}]'
    header = f'<domain: "{DOMAIN}", opset_import: {imports}>'
    return [parser.parse_function(header + body) for body in bodies]
