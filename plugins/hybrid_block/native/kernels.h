// Defines the table of the block's kernels for the instruction set this file is compiled for.
//
// Each block_kernels_<set>.cpp includes this once with MSMAMBA_BLOCK_KERNELS (the table's variable),
// MSMAMBA_KERNELS_NAME and MSMAMBA_LANES (float32 lanes of its widest vector) defined; setup.py gives each its
// compiler flags.
#pragma once

#include "local_branch.h"
#include "mifa.h"
#include "scan_branch.h"
#include "scan_inputs.h"
#include "scan_outputs.h"

namespace {

using Local = LocalBranch<MSMAMBA_LANES>;
using Inputs = ScanInputs<MSMAMBA_LANES>;
using Outputs = ScanOutputs<MSMAMBA_LANES>;
using Fusion = MIFA<MSMAMBA_LANES>;
using Branch = ScanBranch<MSMAMBA_LANES>;

using msmamba::OperatorKernels;
using msmamba::Phase;

constexpr Phase by_positions(int64_t count, decltype(Phase::run) run) { return {Phase::kPositions, count, run}; }
constexpr Phase by_rows(int64_t positions, decltype(Phase::run) run) { return {Phase::kRows, positions, run}; }
constexpr Phase by_groups(decltype(Phase::run) run) { return {Phase::kGroups, 0, run}; }

template <typename Operator, typename... Phases>
constexpr OperatorKernels kernels_of(Phases... phases) {
  return {Operator::packed_bytes,  Operator::pack,     Operator::shared_bytes,
          Operator::scratch_bytes, sizeof...(phases), {phases...}};
}

}  // namespace

namespace msmamba {

extern const BlockKernels MSMAMBA_BLOCK_KERNELS;
const BlockKernels MSMAMBA_BLOCK_KERNELS = {
    MSMAMBA_KERNELS_NAME,
    {
        kernels_of<Local>(by_positions(256, Local::convolve), by_positions(Local::kTilePositions, Local::project)),
        kernels_of<Inputs>(by_positions(Inputs::kTilePositions, Inputs::project),
                           by_positions(Inputs::kTilePositions, Inputs::expand)),
        kernels_of<Outputs>(by_positions(Outputs::kTilePositions, Outputs::project), by_rows(64, Outputs::merge)),
        kernels_of<Fusion>(by_rows(64, Fusion::fuse), by_rows(512, Fusion::attend)),
        kernels_of<Branch>(by_positions(64, Branch::norm), by_groups(Branch::scan), by_rows(64, Branch::merge)),
    },
};

}  // namespace msmamba
