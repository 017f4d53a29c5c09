// What the hybrid block does between its matrix products, by compiled GPU kernels: their launches.
#pragma once

#include "../../selective_scan/native/gpu_package.h"

namespace msmamba::gpu {

// Steps of the block's operators, and MIFA, which has no product (plugins/hybrid_block/gpu_kernels.py).
enum class BlockStep : int {
  kLocalDepthwise,
  kLocalExpansion,
  kGroupedNorm,
  kGatedConvolution,
  kGatedNorm,
  kMergedGroups,
  kShuffledNorm,
  kMIFA,
};
constexpr int kBlockSteps = 8;

// Whether a package has all kernels of a step.
bool has_step(const Package& package, BlockStep step, ElementType element);

// What the letters of a step's tensors stand for (ort_gpu_block.cpp).
struct StepSizes {
  int64_t batch;      // of the first map; of GroupedNorm and MergedGroups in images, whose maps are the groups'
  int64_t height;
  int64_t width;
  int64_t channels;   // of the output; for LocalExpansion of the input, for MIFA of a branch
  int64_t stride;     // channels of the input
  int64_t groups;
  int64_t convolved;  // channels of a group that go through a convolution
};

// Enqueues a step on a stream; inputs and outputs as of its function. Returns what went wrong, or nothing.
std::string run_step(Package* package, BlockStep step, ElementType element, const StepSizes& sizes,
                     const void* const* inputs, void* const* outputs, Stream stream);

}  // namespace msmamba::gpu
