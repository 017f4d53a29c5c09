// ScanFeatures: of a map's last channels LayerNorm, groups, input projection, depthwise 3x3 with SiLU.
//
// h channels in G groups of d; D inner channels; P = G * D with padding; L = H * W. Within the kernel the groups of
// a position stay side by side, so that few channels a group still fill vectors; each is written to the map
// of its own group. First the norm and the input projection; then, tile by tile, the convolution.
#pragma once

#include "depthwise.h"
#include "layer_norm.h"
#include "matrix.h"
#include "packing.h"

namespace {

template <int Lanes, typename Arithmetic>
class ScanFeatures {
 public:
  static constexpr int64_t kTilePositions = 64;

  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : norm_weight(padded_row<Lanes>(scratch, sizes.half)),
          norm_bias(padded_row<Lanes>(scratch, sizes.half)),
          flow(sizes.model, sizes.inner, scratch),
          gate(sizes.model, sizes.inner, scratch),
          conv(scratch.floats(kTaps * padded_width(sizes))),
          conv_bias(scratch.floats(padded_width(sizes))),
          tokens_scale(scratch.floats(1)) {}

    // `source` are the weights from norm_weight to conv_bias; of integers `in_scales` are what one of each column is
    // worth.
    void pack(const msmamba::BlockSizes& sizes, const float* const* source, const float* in_scales,
              const float* one_of_tokens) {
      const float *in = source[2], *taps = source[3], *bias = source[4];
      const int64_t inner = sizes.inner, wide = sizes.groups * inner, padded = padded_width(sizes);
      copy_row<Lanes>(norm_weight, source[0], sizes.half);
      copy_row<Lanes>(norm_bias, source[1], sizes.half);
      const auto pack_half = [=](Matrix<Lanes, Arithmetic>& matrix, int64_t first) {
        matrix.pack([=](int64_t k, int64_t column) { return in[k * 2 * inner + first + column]; },
                    [=](int64_t column) { return *one_of_tokens * in_scales[first + column]; });
      };
      pack_half(flow, 0);
      pack_half(gate, inner);
      for (int tap = 0; tap < kTaps; ++tap) {
        fill_row<Lanes>(conv + tap * padded, wide, [&](int64_t c) { return taps[c % inner * kTaps + tap]; });
      }
      fill_row<Lanes>(conv_bias, wide, [&](int64_t c) { return bias[c % inner]; });
      if constexpr (Arithmetic::kInteger) *tokens_scale = *one_of_tokens;
    }

    float* norm_weight;              // (h)
    float* norm_bias;                // (h)
    Matrix<Lanes, Arithmetic> flow;  // (d, D): to the convolution
    Matrix<Lanes, Arithmetic> gate;  // (d, D)
    float* conv;                     // (9, P), once for every group
    float* conv_bias;                // (P)
    float* tokens_scale;             // of integers: what one is worth
  };

  struct Buffers {
    Buffers(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : normed(scratch.floats(kTilePositions * sizes.half)),
          features(scratch.floats(kTilePositions * padded_width(sizes))),
          integers(words_of<Lanes, Arithmetic>(scratch, kTilePositions, sizes.model)) {}

    float* normed;                        // (kTilePositions, h)
    float* features;                      // (kTilePositions, P)
    typename Arithmetic::Word* integers;  // the left side of one product, of integers
  };

  static int64_t padded_width(const msmamba::BlockSizes& sizes) {
    return whole_vectors<Lanes>(sizes.groups * sizes.inner);
  }

  static size_t packed_bytes(const msmamba::BlockSizes& sizes) { return layout_bytes<Weights>(sizes); }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    constexpr bool kInteger = Arithmetic::kInteger;
    layout_in<Weights>(packed, sizes)
        .pack(sizes, source, kInteger ? source[5] : nullptr, kInteger ? source[6] : nullptr);
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
    const int64_t length = call.map.positions(), count = tile.last - tile.first, channels = call.map.channels;
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const auto buffers = layout_in<Buffers>(memory, sizes);
    const Element* const map = map_in<Element>(call, 0) + (tile.image * length + tile.first) * channels;
    const Element* const x = map + channels - half;
    float* const flow = static_cast<float*>(call.shared) + (tile.image * length + tile.first) * padded;

    layer_norm<Lanes>(x, channels, count, half, weights.norm_weight, weights.norm_bias,
                      [&](int64_t row, int64_t first, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                        store<Lanes>(buffers.normed + row * half + first, value, used);
                      });
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t row = (tile.image * sizes.groups + group) * length + tile.first;
      Element* const tokens = map_out<Element>(call, 0) + row * model;
      Element* const gate = map_out<Element>(call, 1) + row * inner;
      const float* const normed = buffers.normed + group * model;
      copy_rows<Lanes>(tokens, model, normed, half, count);
      const auto rows =
          left_side<Lanes, Arithmetic>({normed, half}, count, model, weights.tokens_scale, buffers.integers);
      weights.flow.multiply(rows, count, RowsTo{flow + group * inner, padded});
      weights.gate.multiply(rows, count, RowsTo{gate, inner});
    }
  }

  // A tile's features, of all groups, to the buffer and to the maps of their groups.
  template <typename Element>
  static void convolve(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const msmamba::BlockSizes& sizes = call.sizes;
    const int64_t inner = sizes.inner, wide = sizes.groups * inner, padded = padded_width(sizes);
    const int64_t height = call.map.height, width = call.map.width, length = height * width;
    const int64_t count = tile.last - tile.first;
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const auto buffers = layout_in<Buffers>(memory, sizes);
    const float* const flow = static_cast<const float*>(call.shared) + tile.image * length * padded;

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
      copy_rows<Lanes>(map_out<Element>(call, 2) + row * inner, inner, buffers.features + group * inner, padded, count);
    }
  }
};

}  // namespace
