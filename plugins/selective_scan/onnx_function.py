"""The 2D selective scan as a model-local ONNX function of standard operators.

A file that holds this function beside its ``SelectiveScan2D`` nodes runs in any ONNX runtime; a runtime
with a kernel or plugin of that name uses it instead. The recurrence is one ONNX ``Scan`` over all four
directions: of the forms that ONNX Runtime executes (``Scan``, ``LinearAttention`` in two versions,
unrolling), it was the fastest, and it neither underflows nor keeps L * D * N values.

Dims as in the package: batch, H W map, L = H*W, D channels, N states, K = 4 directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import DIRECTIONS

if TYPE_CHECKING:
    from onnx import FunctionProto
    from onnx.defs import OpSchema

DOMAIN = "msmamba"
DOMAIN_VERSION = 1
OP_TYPE = "SelectiveScan2D"
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""Attributes of every node: TensorRT finds the plugin by them."""


def _function_text(opset: int) -> str:
    """The function in ONNX's textual form."""
    return f"""
<domain: "{DOMAIN}", opset_import: ["" : {opset}]>
{OP_TYPE} <plugin_namespace, plugin_version> (x, delta, A, B, C, D, delta_bias) => (y)
{{
  one = Constant <value_ints = [1]> ()
  any = Constant <value_ints = [-1]> ()
  zero = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  before_first = Constant <value_ints = [-9223372036854775807]> ()
  batch = Shape <start = 0, end = 1> (x)
  height = Shape <start = 1, end = 2> (x)
  width = Shape <start = 2, end = 3> (x)
  channels = Shape <start = 3, end = 4> (x)
  states = Shape <start = 2, end = 3> (A)
  directions = Shape <start = 0, end = 1> (A)
  map_shape = Concat <axis = 0> (any, batch, one, channels)
  state_shape = Concat <axis = 0> (any, batch, one, states)

  map = Cast <to = 1> (x)
  steps = Cast <to = 1> (delta)
  raw = Add (steps, delta_bias)
  step = Softplus (raw)
  inputs = Cast <to = 1> (B)
  outputs = Cast <to = 1> (C)

  map_rows_hw = Transpose <perm = [1, 2, 0, 3]> (map)
  map_columns_wh = Transpose <perm = [2, 1, 0, 3]> (map)
  map_rows = Reshape (map_rows_hw, map_shape)
  map_columns = Reshape (map_columns_wh, map_shape)
  map_forward = Concat <axis = 2> (map_rows, map_columns)
  map_backward = Slice (map_forward, last, before_first, zero, any)
  map_ordered = Concat <axis = 2> (map_forward, map_backward)
{_in_scan_order("step", "map_shape")}
{_in_scan_order("inputs", "state_shape")}
{_in_scan_order("outputs", "state_shape")}

  column = Constant <value_ints = [-1]> ()
  row = Constant <value_ints = [-2]> ()
  product = Mul (step_ordered, map_ordered)
  step_columns = Unsqueeze (step_ordered, column)
  product_columns = Unsqueeze (product, column)
  input_rows = Unsqueeze (inputs_ordered, row)
  output_columns = Unsqueeze (outputs_ordered, column)
  start_shape = Concat <axis = 0> (batch, directions, channels, states)
  start = ConstantOfShape (start_shape)
  end, scanned_columns = Scan <num_scan_inputs = 4, body = step_of_scan
    (float[b, k, d, n] h, float[b, k, d, 1] step_t, float[b, k, d, 1] product_t,
     float[b, k, 1, n] input_t, float[b, k, n, 1] output_t)
    => (float[b, k, d, n] h_next, float[b, k, d, 1] y_t)
    {{
      exponent = Mul (step_t, A)
      decay = Exp (exponent)
      kept = Mul (decay, h)
      added = Mul (product_t, input_t)
      h_next = Add (kept, added)
      y_t = MatMul (h_next, output_t)
    }}> (start, step_columns, product_columns, input_rows, output_columns)
  scanned = Squeeze (scanned_columns, column)

  scanned_forward, scanned_reversed = Split <axis = 2, num_outputs = 2> (scanned)
  scanned_backward = Slice (scanned_reversed, last, before_first, zero, any)
  both = Add (scanned_forward, scanned_backward)
  both_rows, both_columns = Split <axis = 2, num_outputs = 2> (both)
  row_shape = Concat <axis = 0> (height, width, batch, channels)
  column_shape = Concat <axis = 0> (width, height, batch, channels)
  rows_hw = Reshape (both_rows, row_shape)
  columns_wh = Reshape (both_columns, column_shape)
  rows = Transpose <perm = [2, 0, 1, 3]> (rows_hw)
  columns = Transpose <perm = [2, 1, 0, 3]> (columns_wh)
  scans = Add (rows, columns)
  skip_weights = ReduceSum <keepdims = 0> (D, zero)
  skip = Mul (skip_weights, map)
  total = Add (scans, skip)
  y = CastLike (total, x)
}}
"""


def _in_scan_order(name: str, shape: str) -> str:
    """Lines that lay ``name``, (batch, H, W, K, ·), out in each direction's order: (L, batch, K, ·).

    Directions 0 and 1 walk rows and columns; 2 and 3 walk them backwards.
    """
    parts = ", ".join(f"{name}_{k}" for k in range(DIRECTIONS))
    lines = [f"{parts} = Split <axis = 3, num_outputs = {DIRECTIONS}> ({name})"]
    for k in range(DIRECTIONS):
        permutation = [1, 2, 0, 3, 4] if k % 2 == 0 else [2, 1, 0, 3, 4]
        lines.append(f"{name}_{k}_map = Transpose <perm = {permutation}> ({name}_{k})")
        lines.append(f"{name}_{k}_sequence = Reshape ({name}_{k}_map, {shape})")
    lines += [
        f"{name}_forward = Concat <axis = 2> ({name}_0_sequence, {name}_1_sequence)",
        f"{name}_forth = Concat <axis = 2> ({name}_2_sequence, {name}_3_sequence)",
        f"{name}_backward = Slice ({name}_forth, last, before_first, zero, any)",
        f"{name}_ordered = Concat <axis = 2> ({name}_forward, {name}_backward)",
    ]
    return "\n".join(f"  {line}" for line in lines)


def scan_function(opset: int) -> FunctionProto:
    """The function, to be added to a model's ``functions``.

    Args:
        opset: the model's version of the standard operators, at least 20.
    """
    from onnx import parser

    return parser.parse_function(_function_text(opset))


def scan_schema() -> OpSchema:
    """The operator's signature, for exporters and checkers."""
    from onnx.defs import OpSchema

    parameter, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    return OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        doc="The 2D selective scan: four directions, summed.",
        inputs=[
            parameter("x", "T", "(batch, H, W, D)"),
            parameter("delta", "T", "(batch, H, W, K, D)"),
            parameter("A", "S", "(K, D, N)"),
            parameter("B", "T", "(batch, H, W, K, N)"),
            parameter("C", "T", "(batch, H, W, K, N)"),
            parameter("D", "S", "(K, D)"),
            parameter("delta_bias", "S", "(K, D)"),
        ],
        outputs=[parameter("y", "T", "(batch, H, W, D)")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(float16)"], "the map's type"),
            ("S", ["tensor(float)"], "the state's type"),
        ],
        attributes=[
            attribute(name, OpSchema.AttrType.STRING, "read by TensorRT", required=False)
            for name in PLUGIN_ATTRIBUTES
        ],
    )
