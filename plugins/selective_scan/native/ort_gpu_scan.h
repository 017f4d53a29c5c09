// The custom operators on CUDAExecutionProvider, by the compiled kernels of a package: the scan, and what the hybrid
// block does between its products where the package has kernels for that.
#pragma once

#include "ort_support.h"

namespace msmamba::ort {

// The operators of the package that was offered to this thread, which takes the offer back; none without one.
Operators offered_gpu_operators(const Api& api);

}  // namespace msmamba::ort
