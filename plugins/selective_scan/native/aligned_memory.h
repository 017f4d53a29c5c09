// Memory aligned to 64 bytes: a cache line, and the widest vector.
#pragma once

#include <cstddef>
#include <cstdlib>

#if defined(_WIN32)
#include <malloc.h>
#endif

namespace msmamba {

constexpr size_t kAlignment = 64;

// At least one byte; null when out of memory. For `free_aligned` only.
inline void* allocate_aligned(size_t bytes) {
  const size_t whole = (bytes + kAlignment) / kAlignment * kAlignment;
#if defined(_WIN32)
  return _aligned_malloc(whole, kAlignment);
#else
  return std::aligned_alloc(kAlignment, whole);
#endif
}

inline void free_aligned(void* memory) {
#if defined(_WIN32)
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

}  // namespace msmamba
