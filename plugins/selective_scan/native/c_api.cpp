// The door for ctypes: plain functions over pointers, threads from the pool of thread_pool.h.
#include "export.h"
#include "scan.h"
#include "thread_pool.h"

namespace {

msmamba::Parallel pool() {
  return {nullptr, msmamba::pool_width(),
          [](void*, int width, void (*body)(void*), void* data) { msmamba::run_in_pool(width, body, data); }};
}

}  // namespace

// Forward scan; arguments as in the contract, contiguous, at any address. `type` numbers msmamba::ElementType.
// Returns null when done, otherwise what went wrong (a static string).
MSMAMBA_EXPORT const char* msmamba_scan_forward(int32_t type, int64_t batch, int64_t height, int64_t width,
                                                int64_t channels, int64_t states, const void* x, const void* delta,
                                                const float* A, const void* B, const void* C, const float* D,
                                                const float* delta_bias, void* y) {
  if (type < 0 || type > 2) return "unknown element type";
  const msmamba::ScanShape shape = {batch, height, width, channels, states};
  const msmamba::ScanInputs inputs = {static_cast<msmamba::ElementType>(type), x, delta, A, B, C, D, delta_bias};
  return msmamba::forward_scan(shape, inputs, y, pool());
}

// Gradients of all inputs from `dy`, in the shapes of the inputs; everything float32.
MSMAMBA_EXPORT const char* msmamba_scan_backward(int64_t batch, int64_t height, int64_t width, int64_t channels,
                                                 int64_t states, const float* dy, const float* x,
                                                 const float* delta, const float* A, const float* B, const float* C,
                                                 const float* D, const float* delta_bias, float* dx, float* ddelta,
                                                 float* dA, float* dB, float* dC, float* dD, float* ddelta_bias) {
  const msmamba::ScanShape shape = {batch, height, width, channels, states};
  const msmamba::ScanInputs inputs = {msmamba::ElementType::kFloat32, x, delta, A, B, C, D, delta_bias};
  return msmamba::backward_scan(shape, inputs, dy, {dx, ddelta, dA, dB, dC, dD, ddelta_bias}, pool());
}

// The instruction set in use: "avx512", "avx2+vnni", "avx2", "neon+dotprod", "neon" or "baseline".
MSMAMBA_EXPORT const char* msmamba_scan_kernels() { return msmamba::active_kernels().name; }

// Chooses the instruction set by that name; 0 if this machine or build lacks it.
MSMAMBA_EXPORT int32_t msmamba_scan_select_kernels(const char* name) { return msmamba::select_kernels(name) ? 1 : 0; }

MSMAMBA_EXPORT int32_t msmamba_scan_threads() { return msmamba::pool_width(); }

MSMAMBA_EXPORT void msmamba_scan_set_threads(int32_t threads) { msmamba::set_pool_width(threads); }
