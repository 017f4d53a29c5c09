"""Which GPU kernels the hybrid block has, and what of a map one program of each owns; no GPU library.

The functions of the block's operators (`onnx_functions`) are matrix products and, between them, steps: each
of `STEPS` is one kernel, and MIFA, which has no product, is three. `native/gpu_block.cpp` launches them, with
the sizes that stand here: kernels of maps have a program for every ``ELEMENTS`` values of an image's output;
layer norms one for ``ROWS`` positions; ``row_sums`` one for a line of the map and ``LANES`` channels;
``channel_attention`` one for ``POSITIONS`` and ``LANES``. The second axis of the grid is the image, and of
these two the third.
"""

from __future__ import annotations

WARPS = 4
_ELEMENTS = {"ELEMENTS": 32 * WARPS}
_ROWS = {"ROWS": WARPS, "LANES": 64}
CONSTANTS: dict[str, dict[str, int]] = {
    "local_depthwise": _ELEMENTS,
    "local_expansion": _ELEMENTS,
    "grouped_norm": _ROWS,
    "gated_convolution": _ELEMENTS,
    "gated_norm": _ROWS,
    "merged_groups": _ELEMENTS,
    "shuffled_norm": _ROWS,
    "weighted_branches": _ELEMENTS,
    "row_sums": _ROWS,
    "channel_attention": {"POSITIONS": 64, **_ROWS},
}
"""The kernels, and the compile-time arguments of each."""
STEP_KERNELS: dict[str, tuple[str, ...]] = {
    "LocalDepthwise": ("local_depthwise",),
    "LocalExpansion": ("local_expansion",),
    "GroupedNorm": ("grouped_norm",),
    "GatedConvolution": ("gated_convolution",),
    "GatedNorm": ("gated_norm",),
    "MergedGroups": ("merged_groups",),
    "ShuffledNorm": ("shuffled_norm",),
    "MIFA": ("weighted_branches", "row_sums", "channel_attention"),
}
"""The kernels of each step, in the order of their launches."""
FLOAT32_POINTERS = ("sums",)
"""What is float32 whatever the maps are; all other pointers are of the maps' type."""
