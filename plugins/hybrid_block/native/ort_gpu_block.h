// The custom operators of the hybrid block on CUDAExecutionProvider, by the compiled kernels of a package.
#pragma once

#include <memory>
#include <vector>

#include "../../selective_scan/native/gpu_package.h"
#include "../../selective_scan/native/ort_support.h"

namespace msmamba::ort {

// The operators for one element type that the package has kernels for; they must live as long as it, since ONNX
// Runtime keeps pointers to them.
std::vector<std::shared_ptr<CustomOp>> block_steps(ElementType element, gpu::Package* package);

}  // namespace msmamba::ort
