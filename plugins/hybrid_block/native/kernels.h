// Defines the table of the block's kernels for the instruction set this file is compiled for.
//
// Each block_kernels_<set>.cpp includes this once with MSMAMBA_BLOCK_KERNELS (the table's variable),
// MSMAMBA_KERNELS_NAME and MSMAMBA_LANES (float32 lanes of its widest vector) defined; setup.py gives each its
// compiler flags.
#pragma once

#include "local_branch.h"
#include "mifa.h"
#include "scan_inputs.h"
#include "scan_outputs.h"

namespace {

using Local = LocalBranch<MSMAMBA_LANES>;
using Inputs = ScanInputs<MSMAMBA_LANES>;
using Outputs = ScanOutputs<MSMAMBA_LANES>;
using Fusion = MIFA<MSMAMBA_LANES>;

constexpr msmamba::Phase by_positions(int64_t count, decltype(msmamba::Phase::run) run) {
  return {msmamba::Phase::kPositions, count, run};
}

constexpr msmamba::Phase by_rows(int64_t positions, decltype(msmamba::Phase::run) run) {
  return {msmamba::Phase::kRows, positions, run};
}

template <typename Operator>
constexpr msmamba::OperatorKernels kernels_of(msmamba::Phase first, msmamba::Phase second) {
  return {Operator::packed_bytes, Operator::pack, Operator::shared_bytes, Operator::scratch_bytes, 2, {first, second}};
}

// The operators over maps of one element type.
template <typename Element>
constexpr msmamba::ElementKernels kernels_over() {
  return {{
      kernels_of<Local>(by_positions(256, Local::convolve<Element>),
                        by_positions(Local::kTilePositions, Local::project<Element>)),
      kernels_of<Inputs>(by_positions(Inputs::kTilePositions, Inputs::project<Element>),
                         by_positions(Inputs::kTilePositions, Inputs::expand<Element>)),
      kernels_of<Outputs>(by_positions(Outputs::kTilePositions, Outputs::project<Element>),
                          by_rows(64, Outputs::merge<Element>)),
      kernels_of<Fusion>(by_rows(64, Fusion::fuse<Element>), by_rows(512, Fusion::attend<Element>)),
  }};
}

}  // namespace

namespace msmamba {

extern const BlockKernels MSMAMBA_BLOCK_KERNELS;
const BlockKernels MSMAMBA_BLOCK_KERNELS = {
    MSMAMBA_KERNELS_NAME,
    {kernels_over<float>(), kernels_over<Half>()},
};

}  // namespace msmamba
