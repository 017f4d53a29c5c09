// Defines the table of kernels of the instruction set this file is compiled for.
//
// Each kernels_<set>.cpp includes this once with MSMAMBA_KERNELS (the table's variable) and MSMAMBA_LANES (float32
// lanes of its widest vector) defined; setup.py gives each its compiler flags.
#pragma once

#include "backward.h"
#include "forward.h"

namespace {

// Few channels left over at the end of a row go through vectors of half the width.
constexpr int kNarrowLanes = MSMAMBA_LANES > 8 ? MSMAMBA_LANES / 2 : MSMAMBA_LANES;

template <typename Element>
using Forward = ForwardScan<MSMAMBA_LANES, kNarrowLanes, Element>;

void forward(const ScanShape& shape, const ScanInputs& inputs, void* y, const ForwardTask& task, void* scratch) {
  switch (inputs.type) {
    case msmamba::ElementType::kFloat32:
      return Forward<float>(shape, inputs, y, scratch).run(task);
    case msmamba::ElementType::kFloat16:
      return Forward<Half>(shape, inputs, y, scratch).run(task);
    case msmamba::ElementType::kBFloat16:
      return Forward<BFloat16>(shape, inputs, y, scratch).run(task);
  }
}

using Backward = BackwardScan<MSMAMBA_LANES, kNarrowLanes>;

void backward(const ScanShape& shape, const ScanInputs& inputs, const float* dy, const ScanGradients& gradients,
              int64_t sequence, void* scratch) {
  Backward(shape, inputs, dy, gradients, scratch).run(sequence);
}

}  // namespace

namespace msmamba {

extern const Kernels MSMAMBA_KERNELS;
const Kernels MSMAMBA_KERNELS = {
    MSMAMBA_KERNELS_NAME,
    MSMAMBA_LANES,
    Forward<float>::scratch_bytes,
    forward,
    Backward::scratch_bytes,
    backward,
};

}  // namespace msmamba
