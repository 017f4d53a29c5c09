// One allocation, handed out in pieces aligned to 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<char*>(memory)) {}

  float* floats(int64_t count) { return static_cast<float*>(piece(static_cast<size_t>(count) * sizeof(float))); }

  int64_t* integers(int64_t count) { return static_cast<int64_t*>(piece(static_cast<size_t>(count) * sizeof(int64_t))); }

  // Bytes that `take(scratch)` would take.
  template <typename Take>
  static size_t measure(Take take) {
    Scratch nothing(nullptr);
    take(nothing);
    return nothing.used_;
  }

 private:
  void* piece(size_t bytes) {
    char* const start = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (bytes + 63) / 64 * 64;
    return start;
  }

  char* memory_;
  size_t used_ = 0;
};

}  // namespace
