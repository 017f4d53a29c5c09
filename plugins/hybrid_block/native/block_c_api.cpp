// The door for ctypes to the block's operators: plain functions over pointers, threads from the scan's pool.
#include "../../selective_scan/native/export.h"
#include "../../selective_scan/native/thread_pool.h"
#include "block.h"

namespace {

msmamba::BlockSizes named(const int64_t* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
}

}  // namespace

// Why sizes make no operator (a number of msmamba::BlockOperator), a static string, or null where they do. `sizes` are h,
// G, d, D, K*R, K*N and q.
MSMAMBA_EXPORT const char* msmamba_block_unfit(int32_t op, const int64_t* sizes) {
  return msmamba::unfit_sizes(static_cast<msmamba::BlockOperator>(op), named(sizes));
}

// Packs the weights of an operator, float32, contiguous and in the contract's order, for the instruction set in use and
// maps of `element` (a number of msmamba::ElementType, float32 or float16); the sizes are not unfit. Returns null when out
// of memory; otherwise the caller destroys it.
MSMAMBA_EXPORT void* msmamba_block_create(int32_t op, int32_t element, const int64_t* sizes,
                                          const float* const* weights) {
  return msmamba::PackedOperator::create(static_cast<msmamba::BlockOperator>(op),
                                         static_cast<msmamba::ElementType>(element), named(sizes), weights)
      .release();
}

// Maps in and out in the contract's order, contiguous, the first of so many channels. Returns null when done, otherwise
// what went wrong (a static string).
MSMAMBA_EXPORT const char* msmamba_block_run(const void* packed, int64_t batch, int64_t height, int64_t width,
                                             int64_t channels, const void* const* inputs, void* const* outputs) {
  const auto run = [](void*, int threads, void (*body)(void*), void* data) {
    msmamba::run_in_pool(threads, body, data);
  };
  const msmamba::Parallel pool = {nullptr, msmamba::pool_width(), run};
  return static_cast<const msmamba::PackedOperator*>(packed)->run({batch, height, width, channels}, inputs, outputs,
                                                                    pool);
}

MSMAMBA_EXPORT void msmamba_block_destroy(void* packed) { delete static_cast<msmamba::PackedOperator*>(packed); }
