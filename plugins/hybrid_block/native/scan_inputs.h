// ScanInputs: LayerNorm, groups, input projection, depthwise 3x3 with SiLU, and the projections to delta, B and C.
//
// h channels in G groups of d; D inner channels; P = G * D with padding; L = H * W. Within the kernel the groups of
// a position stay side by side, so that few channels a group still fill vectors; each is written to the map
// of its own group. First the norm and the input projection; then, tile by tile, the convolution and the
// projections of its result.
#pragma once

#include "depthwise.h"
#include "layer_norm.h"
#include "matrix.h"
#include "packing.h"

namespace {

template <int Lanes, typename Arithmetic>
class ScanInputs {
 public:
  static constexpr int64_t kTilePositions = 64;

  static size_t packed_bytes(const msmamba::BlockSizes& sizes) {
    return layout_bytes<Weights>(sizes);
  }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    const float *in = source[2], *conv = source[3], *conv_bias = source[4], *step_expand = source[6];
    // To step features, B and C: of integers one matrix, whose columns stand side by side.
    const float *steps = source[5], *inputs, *outputs;
    int64_t steps_width = sizes.steps, states_width = sizes.states;
    if constexpr (Arithmetic::kInteger) {
      inputs = steps + sizes.steps;
      outputs = inputs + sizes.states;
      steps_width = states_width = sizes.steps + 2 * sizes.states;
    } else {
      inputs = source[7];
      outputs = source[8];
    }
    const int64_t inner = sizes.inner, wide = sizes.groups * inner, padded = whole_vectors<Lanes>(wide);
    auto weights = layout_in<Weights>(packed, sizes);
    copy_row<Lanes>(weights.norm_weight, source[0], sizes.half);
    copy_row<Lanes>(weights.norm_bias, source[1], sizes.half);
    // `left` is the product's left side, which is the number of its weight's scales, too.
    const auto pack_matrix = [&](Matrix<Lanes, Arithmetic>& matrix, int left, int64_t first_column, auto weight) {
      if constexpr (Arithmetic::kInteger) {
        const float *const columns = source[7 + left] + first_column, *const rows = source[10 + left];
        matrix.pack(weight, [&](int64_t column) { return *rows * columns[column]; });
        weights.scales[left] = *rows;
      } else {
        matrix.pack(weight);
      }
    };
    pack_matrix(weights.flow, kTokens, 0, [&](int64_t k, int64_t column) { return in[k * 2 * inner + column]; });
    pack_matrix(weights.gate, kTokens, inner,
                [&](int64_t k, int64_t column) { return in[k * 2 * inner + inner + column]; });
    for (int tap = 0; tap < kTaps; ++tap) {
      fill_row<Lanes>(weights.conv + tap * padded, wide, [&](int64_t c) { return conv[c % inner * kTaps + tap]; });
    }
    fill_row<Lanes>(weights.conv_bias, wide, [&](int64_t c) { return conv_bias[c % inner]; });
    pack_matrix(weights.steps, kFeatures, 0, [&](int64_t k, int64_t column) { return steps[k * steps_width + column]; });
    pack_matrix(weights.delta, kSteps, 0,
                [&](int64_t k, int64_t column) { return step_expand[k * kDirections * inner + column]; });
    pack_matrix(weights.B, kFeatures, sizes.steps,
                [&](int64_t k, int64_t column) { return inputs[k * states_width + column]; });
    pack_matrix(weights.C, kFeatures, sizes.steps + sizes.states,
                [&](int64_t k, int64_t column) { return outputs[k * states_width + column]; });
  }

  // The half of the input projection that the convolution reads: (batch, L, P).
  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return static_cast<size_t>(map.batch * map.positions() * padded_width(sizes)) * sizeof(float);
  }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape&) {
    return layout_bytes<Buffers>(sizes);
  }

  template <typename Element>
  static void project(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const msmamba::BlockSizes& sizes = call.sizes;
    const int64_t half = sizes.half, model = sizes.model, inner = sizes.inner, padded = padded_width(sizes);
    const int64_t length = call.map.positions(), count = tile.last - tile.first;
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const auto buffers = layout_in<Buffers>(memory, sizes);
    const Element* const x = map_in<Element>(call, 0) + (tile.image * length + tile.first) * 2 * half + half;
    float* const flow = static_cast<float*>(call.shared) + (tile.image * length + tile.first) * padded;

    layer_norm<Lanes>(x, 2 * half, count, half, weights.norm_weight, weights.norm_bias,
                      [&](int64_t row, int64_t first, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                        store<Lanes>(buffers.normed + row * half + first, value, used);
                      });
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t row = (tile.image * sizes.groups + group) * length + tile.first;
      Element* const tokens = map_out<Element>(call, 0) + row * model;
      Element* const gate = map_out<Element>(call, 1) + row * inner;
      const float* const normed = buffers.normed + group * model;
      copy_rows(tokens, model, normed, half, count);
      const auto rows =
          left_side<Lanes, Arithmetic>({normed, half}, count, model, weights.scales + kTokens, buffers.integers);
      weights.flow.multiply(rows, count, RowsTo{flow + group * inner, padded});
      weights.gate.multiply(rows, count, RowsTo{gate, inner});
    }
  }

  template <typename Element>
  static void expand(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const msmamba::BlockSizes& sizes = call.sizes;
    const int64_t inner = sizes.inner, wide = sizes.groups * inner, padded = padded_width(sizes);
    const int64_t height = call.map.height, width = call.map.width, length = height * width;
    const int64_t count = tile.last - tile.first, padded_steps = whole_vectors<Lanes>(sizes.steps);
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const auto buffers = layout_in<Buffers>(memory, sizes);
    const float* const flow = static_cast<const float*>(call.shared) + tile.image * length * padded;
    // Vectors of float16 are half a cache line, which other stores would part from the other half.
    constexpr bool kMayStream = kHasStreamedStores && sizeof(Element) == sizeof(float);
    const int64_t for_the_scan = kDirections * inner + 2 * sizes.states;  // floats of delta, B and C at one position
    const bool streamed = kMayStream && call.map.batch * sizes.groups * length * for_the_scan > kFloatsInCaches;

    for_each_row(tile.first, tile.last, width, [&](int64_t line, int64_t first, int64_t last) {
      float* const target = buffers.features + (line * width - tile.first) * padded;
      for_each_vector<Lanes>(wide, [&](int64_t c, auto used) {
        const Lines<float> lines[1] = {neighbouring_lines(flow + c, line, height, width * padded, padded)};
        const Float<Lanes> bias = load<Lanes>(weights.conv_bias + c);
        convolve_line<Lanes, 1, 1>(
            lines, first, last, width, weights.conv + c, padded, used,
            [&](int64_t position, const Convolved<Lanes, 1, 1>& result) MSMAMBA_INLINE_BODY {
              store<Lanes>(target + position * padded + c, result.sums[0][0] + bias);
            });
      });
    });
    // In a loop of its own: one chain with the convolution's would be too long for the processor to begin others in time.
    for (int64_t i = 0; i < count * padded; i += Lanes) {
      store<Lanes>(buffers.features + i, silu<Lanes>(load<Lanes>(buffers.features + i)));
    }
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t row = (tile.image * sizes.groups + group) * length + tile.first;
      const float* const features = buffers.features + group * inner;
      const int64_t delta_width = kDirections * inner;
      copy_rows(map_out<Element>(call, 2) + row * inner, inner, features, padded, count);
      const auto rows =
          left_side<Lanes, Arithmetic>({features, padded}, count, inner, weights.scales + kFeatures, buffers.integers);
      weights.steps.multiply(rows, count, RowsTo{buffers.steps, padded_steps});
      const auto project = [&](const auto& matrix, auto from, RowsTo<Element> to) MSMAMBA_INLINE_BODY {
        if constexpr (kMayStream) {
          if (streamed) return matrix.multiply_streamed(from, count, to);
        }
        matrix.multiply(from, count, to);
      };
      project(weights.B, rows, {map_out<Element>(call, 4) + row * sizes.states, sizes.states});
      project(weights.C, rows, {map_out<Element>(call, 5) + row * sizes.states, sizes.states});
      const auto steps = left_side<Lanes, Arithmetic>({buffers.steps, padded_steps}, count, sizes.steps,
                                                      weights.scales + kSteps, buffers.integers);
      project(weights.delta, steps, {map_out<Element>(call, 3) + row * delta_width, delta_width});
    }
    if (streamed) end_streaming();
  }

 private:
  static constexpr int64_t kDirections = 4;

  // Of delta, B and C together: more have left the second-level caches, and mostly the third's share, when the scan
  // comes to read them.
  static constexpr int64_t kFloatsInCaches = 2 * 1024 * 1024;

  // The left sides of products.
  enum { kTokens, kFeatures, kSteps, kLeftSides };

  static int64_t padded_width(const msmamba::BlockSizes& sizes) {
    return whole_vectors<Lanes>(sizes.groups * sizes.inner);
  }

  // `count` rows of `width` values, the source's `stride` apart, the target's dense.
  template <typename Element>
  static void copy_rows(Element* target, int64_t width, const float* source, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      for_each_vector<Lanes>(width, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
        store<Lanes>(target + i * width + c, load<Lanes>(source + i * stride + c, used), used);
      });
    }
  }

  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : norm_weight(padded_row<Lanes>(scratch, sizes.half)),
          norm_bias(padded_row<Lanes>(scratch, sizes.half)),
          flow(sizes.model, sizes.inner, scratch),
          gate(sizes.model, sizes.inner, scratch),
          conv(scratch.floats(kTaps * padded_width(sizes))),
          conv_bias(scratch.floats(padded_width(sizes))),
          steps(sizes.inner, sizes.steps, scratch),
          delta(sizes.steps, kDirections * sizes.inner, scratch),
          B(sizes.inner, sizes.states, scratch),
          C(sizes.inner, sizes.states, scratch),
          scales(scratch.floats(kLeftSides)) {}

    float* norm_weight;               // (h)
    float* norm_bias;                 // (h)
    Matrix<Lanes, Arithmetic> flow;   // (d, D): to the convolution
    Matrix<Lanes, Arithmetic> gate;   // (d, D)
    float* conv;                      // (9, P), once for every group
    float* conv_bias;                 // (P)
    Matrix<Lanes, Arithmetic> steps;  // (D, K*R)
    Matrix<Lanes, Arithmetic> delta;  // (K*R, K*D), a block for each direction
    Matrix<Lanes, Arithmetic> B;      // (D, K*N)
    Matrix<Lanes, Arithmetic> C;      // (D, K*N)
    float* scales;                    // (kLeftSides), of integers: what one is worth
  };

  struct Buffers {
    Buffers(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : normed(scratch.floats(kTilePositions * sizes.half)),
          features(scratch.floats(kTilePositions * padded_width(sizes))),
          steps(scratch.floats(kTilePositions * whole_vectors<Lanes>(sizes.steps))),
          integers(words_of<Lanes, Arithmetic>(scratch, kTilePositions, deepest(sizes))) {}

    static int64_t deepest(const msmamba::BlockSizes& sizes) {
      const int64_t depth = sizes.model > sizes.inner ? sizes.model : sizes.inner;
      return depth > sizes.steps ? depth : sizes.steps;
    }

    float* normed;                        // (kTilePositions, h)
    float* features;                      // (kTilePositions, P)
    float* steps;                         // (kTilePositions, K*R padded), one group
    typename Arithmetic::Word* integers;  // the left side of one product, of integers
  };
};

}  // namespace
