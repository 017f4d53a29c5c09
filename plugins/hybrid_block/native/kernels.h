// Defines the table of the block's kernels for the instruction set this file is compiled for.
//
// Each block_kernels_<set>.cpp includes this once with MSMAMBA_BLOCK_KERNELS (the table's variable),
// MSMAMBA_KERNELS_NAME and MSMAMBA_LANES (float32 lanes of its widest vector) defined; setup.py gives each its
// compiler flags.
#pragma once

#include "operator_tables.h"

namespace {

using Fusion = MIFA<MSMAMBA_LANES>;

// The operators over maps of one element type.
template <typename Element>
constexpr msmamba::ElementKernels kernels_over() {
  using Arithmetic = Floats<MSMAMBA_LANES>;
  return {{
      local_branch<Element, Arithmetic>(),
      scan_inputs<Element, Arithmetic>(),
      scan_outputs<Element, Arithmetic>(),
      kernels_of<Fusion>(by_rows(64, Fusion::fuse<Element>), by_rows(512, Fusion::attend<Element>)),
      patch_merging<Element, Arithmetic>(),
      scan_features<Element, Arithmetic>(),
      projected_scan<Element, Arithmetic>(),
  }};
}

}  // namespace

namespace msmamba {

extern const BlockKernels MSMAMBA_BLOCK_KERNELS;
const BlockKernels MSMAMBA_BLOCK_KERNELS = {
    MSMAMBA_KERNELS_NAME,
    {kernels_over<float>(), kernels_over<Half>()},
    int8_kernels(),
};

}  // namespace msmamba
