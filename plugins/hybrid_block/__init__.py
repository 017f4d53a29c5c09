"""The hybrid block around the scan, and the step between stages: one contract, several implementations.

Between the scans the network is many small steps on thin maps, and runtimes lose most of their time moving
those maps between layouts. Five operators, channels last from end to end, hold all that a hybrid block
does (`model.networks.microscopic_mamba.HybridBlock`), and a sixth leads to the next stage::

    x ──► LocalBranch ──────────────────────────────────────► local ─┐
      └─► ScanFeatures ─► ProjectedScan2D ─► ScanOutputs ─► scanned ─► MIFA ─► the block's output

Each is a model-local ONNX function of standard operators (`onnx_functions`), so any runtime executes the
file; ONNX Runtime takes the compiled kernels instead where msmamba's native library is registered.

Dims: batch; H W map, square; C channels of the stage; h = C/2; G channel groups (4); d = h/G; D = 2*d;
N states; R rank of the step size; K = 4 directions; q = d//4 convolved channels of the PSFFN. Weights of
linear layers are (inputs, outputs). All maps and weights are of one type, float32 or float16; the compiled
kernels compute in float32 whatever it is.

``LocalBranch(x, scale, shift, depthwise_weight, depthwise_bias, expand_weight, expand_bias,
project_weight, project_bias) -> local``; attribute ``channels`` = h

    x (batch, H, W, C), of which the first half is used; scale, shift (h): the first batch norm;
    depthwise (h, 1, 3, 3) and (h); expand (2h, 1, 3, 3), two outputs a channel, and (2h);
    project (h, 2h, 1, 1) and (h). The norm, then three convolutions padded with zeros, each followed by
    ReLU. local (batch, H, W, h).

``ScanFeatures(x, norm_weight, norm_bias, in_weight, conv_weight, conv_bias) -> tokens, gate, features``;
attributes ``groups`` = G and ``channels`` = D

    x (batch, H, W, any), of which the last h channels are used; norm (h) twice; in_weight (d, 2D); conv
    (D, 1, 3, 3) and (D). LayerNorm; the groups become the batch; tokens (batch*G, H, W, d); the first
    half of tokens @ in_weight goes through the convolution and SiLU to features (batch*G, H, W, D), the
    second half is gate, same shape.

``ProjectedScan2D(features, step_weight, step_expand, input_weight, output_weight, A, D, delta_bias) -> y``

    features (batch, H, W, D); step_weight (D, K*R), step_expand (K*R, K*D), block diagonal; input_weight
    and output_weight (D, K*N); A (K, D, N), D (K, D) and delta_bias (K, D), float32 in any file.
    delta = features @ step_weight @ step_expand (batch, H, W, K, D); B = features @ input_weight and
    C = features @ output_weight (batch, H, W, K, N). y (batch, H, W, D) is
    SelectiveScan2D(features, delta, A, B, C, D, delta_bias) (`plugins.selective_scan`), which the function
    calls: a file that is written out has its scans as nodes of that operator.

``ScanInputs(x, norm_weight, norm_bias, in_weight, conv_weight, conv_bias, step_weight, step_expand,
input_weight, output_weight) -> tokens, gate, features, delta, B, C``; attributes as ScanFeatures

    ScanFeatures and the projections of ProjectedScan2D, before a SelectiveScan2D: so in files of earlier
    versions.

``ScanOutputs(y, gate, tokens, out_norm_weight, out_norm_bias, project_weight, project_bias, conv_weight,
conv_bias, residual_scale, norm_weight, norm_bias) -> scanned``; attributes ``groups`` = G, ``channels`` = q

    y (batch*G, H, W, D); out_norm (D) twice; project (D, d) and (d); conv (q, 1, 3, 3) and (q);
    residual_scale (1); norm (h) twice. LayerNorm of y, times SiLU(gate); project, SiLU; the first q
    channels through the convolution and SiLU; channel shuffle in d/2 groups; **H and W swapped**; plus
    residual_scale * tokens; the groups become channels again; LayerNorm; channel shuffle in h/2 groups.
    scanned (batch, H, W, h).

``MIFA(local, scanned, conv_weight, conv_bias, attention_weight) -> y``; attribute ``channels`` = h

    local, scanned (batch, H, W, h); conv (h, 1, 3, 3) and (h); attention_weight (2h).
    a = sigmoid(relu(conv(local))) * scanned and b = sigmoid(gelu(conv(scanned))) * local, concatenated,
    channel shuffle in h/2 groups, times sigmoid(mean over H and W * attention_weight). GELU is the exact
    one. y (batch, H, W, C).

``PatchMerging(x, norm_weight, norm_bias, reduction_weight) -> y``

    x (batch, H, W, C), H and W even; norm (4C) twice; reduction_weight (4C, 2C). The channels of 2x2
    neighbours, in the order (0,0) (1,0) (0,1) (1,1) of (row, column); LayerNorm; the product.
    y (batch, H/2, W/2, 2C).

LayerNorm's epsilon is 1e-5. A channel shuffle in g groups views channels as (g, channels/g), transposes
and flattens.

``LocalBranchInt8``, ``ScanFeaturesInt8``, ``ProjectedScan2DInt8``, ``ScanOutputsInt8``, ``PatchMergingInt8``
and, of earlier versions, ``ScanInputsInt8`` are the same over float32 maps with their matrix products in
int8. The weights that `INT8_WEIGHTS` names are int8, and behind the float operator's inputs stand what one
of each of these weights' integers is worth, by output channel, and then what one of each value of
`INT8_VALUES` is worth, scalars. QuantizeLinear with zero point 0 rounds these values before a product reads
them, and ``projected`` behind one; ``tokens`` and ``features`` come out unrounded, and so the scan takes
them. ``features_weight`` (D, K*R + 2*K*N) is step_weight, input_weight and output_weight side by side; it
stands in the place of the first and for the others.
"""

from __future__ import annotations

DOMAIN = "msmamba"
OPERATORS = (
    *("LocalBranch", "ScanInputs", "ScanOutputs", "MIFA"),
    *("PatchMerging", "ScanFeatures", "ProjectedScan2D"),
)
STEPS = (
    *("LocalDepthwise", "LocalExpansion", "GroupedNorm", "GatedConvolution"),
    *("GatedNorm", "MergedGroups", "ShuffledNorm"),
)
"""What the operators' functions call between their matrix products."""
PROJECTED_SCAN = "ProjectedScan2D"
OF_EARLIER_FILES = ("ScanInputs",)
"""Operators that are executed and no longer exported."""
LAYER_NORM_EPSILON = 1e-5

INT8 = "Int8"
"""What the names of the operators end in that multiply in int8."""
INT8_WEIGHTS = {
    "LocalBranch": ("project_weight",),
    "ScanInputs": ("in_weight", "features_weight", "step_expand"),
    "ScanOutputs": ("project_weight",),
    "ScanFeatures": ("in_weight",),
    "ProjectedScan2D": ("features_weight", "step_expand"),
    "PatchMerging": ("reduction_weight",),
}
INT8_VALUES = {
    "LocalBranch": ("expanded_kept", "projected"),
    "ScanInputs": ("tokens", "features", "step_features"),
    "ScanOutputs": ("gated",),
    "ScanFeatures": ("tokens",),
    "ProjectedScan2D": ("features", "step_features"),
    "PatchMerging": ("normed",),
}
INT8_OPERATORS = tuple(name + INT8 for name in INT8_WEIGHTS)
STATE_INPUTS = {"SelectiveScan2D": (2, 5, 6), PROJECTED_SCAN: (5, 6, 7), PROJECTED_SCAN + INT8: (3, 4, 5)}
"""Where each operator that scans takes A, D and delta_bias, which are float32 in any file."""

__all__ = [
    *("DOMAIN", "INT8", "INT8_OPERATORS", "INT8_VALUES", "INT8_WEIGHTS", "LAYER_NORM_EPSILON", "OPERATORS"),
    *("OF_EARLIER_FILES", "PROJECTED_SCAN", "STATE_INPUTS", "STEPS"),
]
