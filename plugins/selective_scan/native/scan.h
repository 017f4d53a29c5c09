// The scan on whatever machine this is: chooses kernels, splits the work, shares it out.
#pragma once

#include "problem.h"

namespace msmamba {

// Whoever owns threads: runs `body(data)` on up to `width` of them at once and waits for all.
struct Parallel {
  void* owner;
  int width;
  void (*run)(void* owner, int width, void (*body)(void*), void* data);
};

// The best kernels this machine can run, or those chosen with `select_kernels`.
const Kernels& active_kernels();

#if defined(__aarch64__)
// NEON's kernels where int8 products take the processor's dot products.
constexpr const char* kDotProductName = "neon+dotprod";
#endif

// Chooses kernels by name ("avx512", "avx2", "neon+dotprod", "neon", "baseline"); false if this machine or build lacks them.
bool select_kernels(const char* name);

// y (batch, H, W, D) of `inputs.type`. Returns null, or what went wrong.
const char* forward_scan(const ScanShape& shape, const ScanInputs& inputs, void* y, const Parallel& parallel);

// The gradients of all inputs, float32 throughout, from `dy` (batch, H, W, D). Returns null, or what went wrong.
const char* backward_scan(const ScanShape& shape, const ScanInputs& inputs, const float* dy,
                          const ScanGradients& gradients, const Parallel& parallel);

}  // namespace msmamba
