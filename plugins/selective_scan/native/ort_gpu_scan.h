// The custom operator msmamba::SelectiveScan2D on CUDAExecutionProvider, by the compiled kernels of a package.
#pragma once

#include "gpu_scan.h"
#include "ort_support.h"

namespace msmamba::ort {

// The operators of the package that was offered to this thread, which takes the offer back; none without one.
Operators offered_gpu_operators(const Api& api);

}  // namespace msmamba::ort
