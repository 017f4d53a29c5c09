// The tables of the block's operators, as templates over what they multiply; MSMAMBA_LANES is defined by who includes this.
#pragma once

#include "local_branch.h"
#include "mifa.h"
#include "patch_merging.h"
#include "projected_scan.h"
#include "scan_inputs.h"
#include "scan_outputs.h"

namespace {

constexpr msmamba::Phase by_positions(int64_t count, decltype(msmamba::Phase::run) run) {
  return {msmamba::Phase::kPositions, count, run};
}

constexpr msmamba::Phase by_rows(int64_t positions, decltype(msmamba::Phase::run) run) {
  return {msmamba::Phase::kRows, positions, run};
}

template <typename Operator, typename... Phases>
constexpr msmamba::OperatorKernels kernels_of(Phases... phases) {
  return {Operator::packed_bytes,  Operator::pack,     Operator::shared_bytes,
          Operator::scratch_bytes, sizeof...(phases), {phases...}, nullptr};
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
constexpr msmamba::OperatorKernels scan_features() {
  using Features = ScanFeatures<MSMAMBA_LANES, Arithmetic>;
  return kernels_of<Features>(by_positions(Features::kTilePositions, Features::template project<Element>),
                              by_positions(Features::kTilePositions, Features::template convolve<Element>));
}

template <typename Element, typename Arithmetic>
constexpr msmamba::OperatorKernels projected_scan() {
  using Scan = ProjectedScan<MSMAMBA_LANES, Arithmetic>;
  using msmamba::Phase;
  auto kernels = kernels_of<Scan>(
      by_positions(Scan::kTilePositions, Scan::template make_step_features<Element>),
      Phase{Phase::kImages, 0, Scan::template scan<Element>},
      Phase{Phase::kImagesByDirection, 0, Scan::template scan_direction<Element>},
      Phase{Phase::kPositionsByImages, Scan::kTilePositions, Scan::template add_directions<Element>});
  kernels.together = Scan::together;
  return kernels;
}

template <typename Element, typename Arithmetic>
constexpr msmamba::OperatorKernels scan_outputs() {
  using Outputs = ScanOutputs<MSMAMBA_LANES, Arithmetic>;
  return kernels_of<Outputs>(by_positions(Outputs::kTilePositions, Outputs::template project<Element>),
                             by_rows(64, Outputs::template merge<Element>));
}

template <typename Element, typename Arithmetic>
constexpr msmamba::OperatorKernels patch_merging() {
  using Merging = PatchMerging<MSMAMBA_LANES, Arithmetic>;
  return kernels_of<Merging>(by_rows(Merging::kTilePositions, Merging::template merge<Element>));
}

constexpr msmamba::Int8Kernels int8_kernels() {
  using Arithmetic = Integers<MSMAMBA_LANES>;
  return {{local_branch<float, Arithmetic>(), scan_inputs<float, Arithmetic>(), scan_outputs<float, Arithmetic>(),
           scan_features<float, Arithmetic>(), projected_scan<float, Arithmetic>(), patch_merging<float, Arithmetic>()}};
}

}  // namespace
