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

template <typename Element, typename Arithmetic>
constexpr msmamba::OperatorKernels local_branch() {
  using Local = LocalBranch<MSMAMBA_LANES, Arithmetic>;
  return kernels_of<Local>(by_positions(256, Local::template convolve<Element>),
                           by_positions(Local::kTilePositions, Local::template project<Element>));
}

template <typename Element, typename Arithmetic>
constexpr msmamba::OperatorKernels scan_inputs() {
  using Inputs = ScanInputs<MSMAMBA_LANES, Arithmetic>;
  return kernels_of<Inputs>(by_positions(Inputs::kTilePositions, Inputs::template project<Element>),
                            by_positions(Inputs::kTilePositions, Inputs::template expand<Element>));
}

template <typename Element, typename Arithmetic>
constexpr msmamba::OperatorKernels scan_outputs() {
  using Outputs = ScanOutputs<MSMAMBA_LANES, Arithmetic>;
  return kernels_of<Outputs>(by_positions(Outputs::kTilePositions, Outputs::template project<Element>),
                             by_rows(64, Outputs::template merge<Element>));
}

// The operators over maps of one element type.
template <typename Element>
constexpr msmamba::ElementKernels kernels_over() {
  using Arithmetic = Floats<MSMAMBA_LANES>;
  return {{
      local_branch<Element, Arithmetic>(),
      scan_inputs<Element, Arithmetic>(),
      scan_outputs<Element, Arithmetic>(),
      kernels_of<Fusion>(by_rows(64, Fusion::fuse<Element>), by_rows(512, Fusion::attend<Element>)),
  }};
}

using Int8 = Integers<MSMAMBA_LANES>;

}  // namespace

namespace msmamba {

extern const BlockKernels MSMAMBA_BLOCK_KERNELS;
const BlockKernels MSMAMBA_BLOCK_KERNELS = {
    MSMAMBA_KERNELS_NAME,
    {kernels_over<float>(), kernels_over<Half>()},
    {local_branch<float, Int8>(), scan_inputs<float, Int8>(), scan_outputs<float, Int8>()},
};

}  // namespace msmamba
