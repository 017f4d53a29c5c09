// The resize of msmamba's resize.py: what crosses from its door to its kernels.
//
// Dims: a picture of H x W pixels, three bytes each, R, G, B; S the side of the square it is brought to.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../selective_scan/native/scan.h"

namespace msmamba {

constexpr int kChannels = 3;
constexpr int kBits = 22;  // of a coefficient

// Lines that are resized along their rows together, one in each lane of a vector of bytes.
constexpr int kBandLines = 16;

// What one value of a resized line is made of: the pixels from `first` on, each times its coefficient. They go up with
// the values, and those of the first value begin at 0.
struct Tap {
  int64_t first;
  int64_t count;
  const uint32_t* factors;
};

// The kernels of one instruction set.
struct ResizeKernels {
  const char* name;

  size_t (*rows_scratch)(int64_t size);  // bytes

  // `lines` (1 to kBandLines) of them, `source_stride` bytes apart, each to `size` pixels.
  void (*along_rows)(const Tap* taps, int64_t size, const uint8_t* source, int64_t source_stride, int lines,
                     uint8_t* target, int64_t target_stride, void* scratch);

  // One line of `bytes` from the lines of `source`, `source_stride` bytes apart.
  void (*along_columns)(const Tap& tap, const uint8_t* source, int64_t source_stride, int64_t bytes,
                        uint8_t* target);
};

// The part of a picture that is resized: left, top, width, height, in pixels.
struct Part {
  int64_t left;
  int64_t top;
  int64_t width;
  int64_t height;
};

// Where the square goes: to `pixels` (S, S, 3), or through `tables` (3, 256), the value of every byte of each
// channel, to `tensor` (3, S, S). One of `pixels` and `tensor` is null.
struct Square {
  int64_t size;
  uint8_t* pixels;
  const float* tables;
  float* tensor;
};

// Resizes a part of `picture` (H, W, 3). Returns null, or what went wrong.
const char* resize_picture(const uint8_t* picture, int64_t height, int64_t width, const Part& part,
                           const Square& square, const Parallel& parallel);

// One line (or any run) of `count` pixels through `tables`, each channel `plane` floats after the one before.
void look_up(const uint8_t* pixels, int64_t count, const float* tables, float* target, int64_t plane);

}  // namespace msmamba
