// The door for ctypes to the resize: plain functions over pointers, threads from the scan's pool.
#include "../../selective_scan/native/export.h"
#include "../../selective_scan/native/thread_pool.h"
#include "resize.h"

// Resizes the part of `picture` (height, width, 3) from `left` and `top` on to a square of `size` pixels: to `pixels`
// or, through `tables`, to `tensor`; see msmamba::Square. Returns null when done, otherwise what went wrong (a static
// string).
MSMAMBA_EXPORT const char* msmamba_resize(const uint8_t* picture, int64_t height, int64_t width, int64_t left,
                                          int64_t top, int64_t part_width, int64_t part_height, int64_t size,
                                          uint8_t* pixels, const float* tables, float* tensor) {
  const msmamba::Parallel pool = {nullptr, msmamba::pool_width(),
                                  [](void*, int threads, void (*body)(void*), void* data) {
                                    msmamba::run_in_pool(threads, body, data);
                                  }};
  return msmamba::resize_picture(picture, height, width, {left, top, part_width, part_height},
                                 {size, pixels, tables, tensor}, pool);
}

// `count` pixels (count, 3) through `tables` (3, 256) to `tensor` (3, count).
MSMAMBA_EXPORT void msmamba_normalise(const uint8_t* pixels, int64_t count, const float* tables, float* tensor) {
  msmamba::look_up(pixels, count, tables, tensor, count);
}
