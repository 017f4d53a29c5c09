// What one call of the scan is: plain data that crosses from the doors to the kernels.
//
// Dims as in the package: batch; H, W the map, L = H * W positions; D channels; N states; K = 4 directions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msmamba {

constexpr int kDirections = 4;

enum class ElementType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct ScanShape {
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t states;
};

// Arguments of the contract (plugins/selective_scan/__init__.py), contiguous, at any address.
struct ScanInputs {
  ElementType type;          // of x, delta, B and C
  const void* x;             // (batch, H, W, D)
  const void* delta;         // (batch, H, W, K, D)
  const float* A;            // (K, D, N)
  const void* B;             // (batch, H, W, K, N)
  const void* C;             // (batch, H, W, K, N)
  const float* D;            // (K, D)
  const float* delta_bias;   // (K, D)
};

// Gradients of the inputs, float32, in their shapes.
struct ScanGradients {
  float* x;
  float* delta;
  float* A;
  float* B;
  float* C;
  float* D;
  float* delta_bias;
};

// Vectors of channels that one task may hold.
constexpr int kMostVectors = 4;

// Channels [first_channel, first_channel + channels) of sequences [first_sequence, last_sequence).
struct ForwardTask {
  int64_t first_sequence;
  int64_t last_sequence;
  int64_t first_channel;
  int channels;
  bool own_adders;  // the processor's additions have units of their own beside its multiply-adds'
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  int lanes;  // channels of a vector
  // Bytes of scratch, aligned to 64, that `forward` needs.
  size_t (*forward_scratch)(const ScanShape&);
  void (*forward)(const ScanShape&, const ScanInputs&, void* y, const ForwardTask&, void* scratch);
  // Likewise for the gradients of one sequence; inputs and `dy` are float32, the gradients of `A`, `D` and
  // `delta_bias` have one row for each sequence: (batch, ...).
  size_t (*backward_scratch)(const ScanShape&);
  void (*backward)(const ScanShape&, const ScanInputs&, const float* dy, const ScanGradients&, int64_t sequence,
                   void* scratch);
};

}  // namespace msmamba
