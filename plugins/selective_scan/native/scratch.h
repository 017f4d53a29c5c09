// One allocation, handed out in pieces aligned to 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<char*>(memory)) {}

  float* floats(int64_t count) {
    char* const piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
    return reinterpret_cast<float*>(piece);
  }

  // Bytes that `take(scratch)` would take.
  template <typename Take>
  static size_t measure(Take take) {
    Scratch nothing(nullptr);
    take(nothing);
    return nothing.used_;
  }

 private:
  char* memory_;
  size_t used_ = 0;
};

}  // namespace
