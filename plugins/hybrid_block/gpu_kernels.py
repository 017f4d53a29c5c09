"""Which GPU kernels the hybrid block has, and what of a map one program of each owns; no GPU library.

The functions of the block's operators (`onnx_functions`) are matrix products and, between them, steps: each
of `STEPS` is one kernel, and MIFA, which has no product, is three. `native/gpu_block.cpp` launches them, with
the sizes that stand here. The grid's second axis is the image, but for ``row_sums`` and
``channel_attention``, whose third it is.

- Convolutions have ``LANES`` walks a program: a lane goes down a column of the map, for as many lines as
  leave the GPU enough programs, with two channels of each position, or one. The third axis is what of a
  position exceeds a program.
- Layer norms have a program for ``ROWS`` positions, ``row_sums`` for a line of the map and ``LANES``
  channels, ``channel_attention`` for ``POSITIONS`` and ``LANES``.
"""

from __future__ import annotations

WARPS = 4
_WALKS = {"LANES": 32 * WARPS}
_NORMS = {"ROWS": 2 * WARPS, "LANES": 32}
_ROWS = {"ROWS": WARPS, "LANES": 64}
CONSTANTS: dict[str, dict[str, int]] = {
    "local_depthwise": _WALKS,
    "local_expansion": _WALKS,
    "grouped_norm": _NORMS,
    "gated_convolution": _WALKS,
    "gated_norm": _NORMS,
    "merged_groups": _WALKS,
    "shuffled_norm": _NORMS,
    "weighted_branches": _WALKS,
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
