// The scan on whatever machine this is: chooses kernels, splits the work, shares it out.
#pragma once

#include <cstring>

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

// The kernels of a set that a processor without dot products shares, but that int8 products take those.
#if defined(__aarch64__)
constexpr const char* kDotProductName = "neon+dotprod";
#else
constexpr const char* kDotProductName = "avx2+vnni";
#endif

// Whether the active kernels are that set's, with dot products or without.
inline bool active_kernels_are(const char* set) {
  const char* const name = active_kernels().name;
  const size_t length = std::strlen(set);
  return std::strncmp(name, set, length) == 0 && (name[length] == '\0' || name[length] == '+');
}

// Chooses kernels by name ("avx512", "avx2+vnni", "avx2", "neon+dotprod", "neon", "baseline"); false if this machine or
// build lacks them.
bool select_kernels(const char* name);

// y (batch, H, W, D) of `inputs.type`. Returns null, or what went wrong.
const char* forward_scan(const ScanShape& shape, const ScanInputs& inputs, void* y, const Parallel& parallel);

// The gradients of all inputs, float32 throughout, from `dy` (batch, H, W, D). Returns null, or what went wrong.
const char* backward_scan(const ScanShape& shape, const ScanInputs& inputs, const float* dy,
                          const ScanGradients& gradients, const Parallel& parallel);

}  // namespace msmamba
