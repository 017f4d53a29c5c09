// An operator of the hybrid block on whatever machine this is: its weights packed once, run any number of times.
#pragma once

#include <memory>

#include "../../selective_scan/native/scan.h"
#include "operators.h"

namespace msmamba {

// Bounds that no network comes near and no size in bytes overflows at: of each of the block's sizes, and of the positions
// of all maps of a call.
constexpr int64_t kMostWidth = int64_t{1} << 16;
constexpr int64_t kMostPositions = int64_t{1} << 28;

constexpr const char* kTooWide = "a size is beyond 65,536";

// Whether a size is beyond `kMostWidth`.
bool too_wide(const BlockSizes& sizes);

// Why weights of these sizes make no operator of the block, or null.
const char* unfit_sizes(BlockOperator op, const BlockSizes& sizes);

// Why the operator of these sizes does not run on maps of this shape, or null.
const char* unfit_map(BlockOperator op, const BlockSizes& sizes, const MapShape& map);

class PackedOperator {
 public:
  // For maps of `element`, which is float32 or float16. Copies what it needs of the weights, whose sizes are not unfit.
  // Returns null when out of memory.
  static std::unique_ptr<PackedOperator> create(BlockOperator op, ElementType element, const BlockSizes& sizes,
                                                const float* const* weights);
  ~PackedOperator();
  PackedOperator(const PackedOperator&) = delete;
  PackedOperator& operator=(const PackedOperator&) = delete;

  // Writes all of the outputs, of which an empty batch has none; safe to call from several threads at once. Returns null, or what went wrong.
  const char* run(const MapShape& map, const void* const* inputs, void* const* outputs,
                  const Parallel& parallel) const;

  const BlockSizes& sizes() const { return sizes_; }

 private:
  PackedOperator(BlockOperator op, const OperatorKernels& kernels, const BlockSizes& sizes, void* packed);

  const BlockOperator op_;
  const OperatorKernels& kernels_;
  const BlockSizes sizes_;
  void* const packed_;
};

}  // namespace msmamba
