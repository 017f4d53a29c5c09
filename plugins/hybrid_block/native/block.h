// An operator of the hybrid block on whatever machine this is: its weights packed once, run any number of times.
#pragma once

#include <memory>

#include "../../selective_scan/native/scan.h"
#include "operators.h"

namespace msmamba {

class PackedOperator {
 public:
  // Copies what it needs of the weights. Returns null when out of memory.
  static std::unique_ptr<PackedOperator> create(BlockOperator op, const BlockSizes& sizes,
                                                const float* const* weights);
  ~PackedOperator();
  PackedOperator(const PackedOperator&) = delete;
  PackedOperator& operator=(const PackedOperator&) = delete;

  // Writes all of the outputs; safe to call from several threads at once. Returns null, or what went wrong.
  const char* run(const MapShape& map, const float* const* inputs, float* const* outputs,
                  const Parallel& parallel) const;

  const BlockSizes& sizes() const { return sizes_; }

 private:
  PackedOperator(const OperatorKernels& kernels, const BlockSizes& sizes, void* packed);

  const OperatorKernels& kernels_;
  const BlockSizes sizes_;
  void* const packed_;
};

}  // namespace msmamba
