// ScanOutputs: LayerNorm, SiLU gate, projection, partial depthwise 3x3, shuffle, H and W swapped, residual,
// LayerNorm, shuffle.
//
// D inner channels; h channels in G groups of d, P = h with padding; q convolved channels of each d; L = H * W.
// First the projection of every position into a map with the groups side by side; then one row of the
// output at a time, whose positions are a column of that map. The shuffle within a group costs nothing: it
// is the order of the projection's columns.
#pragma once

#include "depthwise.h"
#include "layer_norm.h"
#include "matrix.h"
#include "packing.h"

namespace {

template <int Lanes, typename Arithmetic>
class ScanOutputs {
 public:
  static constexpr int64_t kTilePositions = 64;

  static size_t packed_bytes(const msmamba::BlockSizes& sizes) {
    return layout_bytes<Weights>(sizes);
  }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    const float *project = source[2], *project_bias = source[3], *conv = source[4], *conv_bias = source[5];
    const int64_t half = sizes.half, model = sizes.model, padded = whole_vectors<Lanes>(half);
    // Channel c of the shuffled group was channel `from(c)`: pairs become two halves.
    const auto from = [&](int64_t c) { return c % (model / 2) * 2 + c / (model / 2); };
    auto weights = layout_in<Weights>(packed, sizes);
    copy_row<Lanes>(weights.out_norm_weight, source[0], sizes.inner);
    copy_row<Lanes>(weights.out_norm_bias, source[1], sizes.inner);
    weights.project.pack([&](int64_t k, int64_t c) { return project[k * model + from(c)]; },
                         [&](int64_t c) {
                           const float *project_scale = source[9], *gated_scale = source[10];
                           return *gated_scale * project_scale[from(c)];
                         });
    if constexpr (Arithmetic::kInteger) *weights.gated_scale = *source[10];
    fill_row<Lanes>(weights.project_bias, model, [&](int64_t c) { return project_bias[from(c)]; });
    const auto fill = [&](float* row, auto value) {
      fill_row<Lanes>(row, half, [&](int64_t c) {
        const int64_t channel = from(c % model);
        return channel < sizes.convolved ? value(channel) : 0.0f;
      });
    };
    for (int tap = 0; tap < kTaps; ++tap) {
      // The map's columns are read as lines, so the taps are transposed.
      const int transposed = tap % 3 * 3 + tap / 3;
      fill(weights.conv + tap * padded, [&](int64_t channel) { return conv[channel * kTaps + transposed]; });
    }
    fill(weights.conv_bias, [&](int64_t channel) { return conv_bias[channel]; });
    fill(weights.convolved, [](int64_t) { return 1.0f; });
    *weights.residual_scale = source[6][0];
    copy_row<Lanes>(weights.norm_weight, source[7], half);
    copy_row<Lanes>(weights.norm_bias, source[8], half);
  }

  // After the projection and its SiLU: (batch, L, P).
  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return static_cast<size_t>(map.batch * map.positions() * whole_vectors<Lanes>(sizes.half)) * sizeof(float);
  }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    // Gated rows of one group in the first phase; one row of the output in the second.
    const size_t gated = layout_bytes<Buffers>(sizes);
    const size_t line = static_cast<size_t>(map.width * whole_vectors<Lanes>(sizes.half)) * sizeof(float);
    return gated > line ? gated : line;
  }

  template <typename Element>
  static void project(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const msmamba::BlockSizes& sizes = call.sizes;
    const int64_t inner = sizes.inner, padded = whole_vectors<Lanes>(sizes.half);
    const int64_t length = call.map.positions(), count = tile.last - tile.first;
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const auto buffers = layout_in<Buffers>(memory, sizes);
    float* const gated = buffers.gated;
    float* const map = static_cast<float*>(call.shared) + (tile.image * length + tile.first) * padded;

    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t row = (tile.image * sizes.groups + group) * length + tile.first;
      const Element* const y = map_in<Element>(call, 0) + row * inner;
      const Element* const gate = map_in<Element>(call, 1) + row * inner;
      layer_norm<Lanes>(y, inner, count, inner, weights.out_norm_weight, weights.out_norm_bias,
                        [&](int64_t position, int64_t first, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                          store<Lanes>(gated + position * inner + first, value, used);
                        });
      // In loops of its own SiLU takes whole vectors, across the ends of rows.
      for_each_vector<Lanes>(count * inner, [&](int64_t i, auto used) MSMAMBA_INLINE_BODY {
        store<Lanes>(gated + i, load<Lanes>(gated + i, used) * silu<Lanes>(load<Lanes>(gate + i, used)), used);
      });
      const auto rows = left_side<Lanes, Arithmetic>({gated, inner}, count, inner, weights.gated_scale,
                                                     buffers.integers);
      weights.project.multiply(rows, count, RowsTo{map + group * sizes.model, padded},
                               [&](int64_t column, Float<Lanes> product) MSMAMBA_INLINE_BODY {
                                 return product + load<Lanes>(weights.project_bias + column);
                               });
    }
    for (int64_t i = 0; i < count; ++i) {
      for_each_vector<Lanes>(sizes.half, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
        float* const at = map + i * padded + c;
        store<Lanes>(at, silu<Lanes>(load<Lanes>(at, used)), used);
      });
    }
  }

  template <typename Element>
  static void merge(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* scratch) {
    const int64_t half = call.sizes.half, padded = whole_vectors<Lanes>(half);
    const int64_t width = call.map.width, length = call.map.positions();
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    float* const line = static_cast<float*>(scratch);

    for (int64_t row = tile.first; row < tile.last; ++row) {
      convolve_column(call, weights, tile.image, row, line);
      add_residual<Element>(call, *weights.residual_scale, tile.image, row, line);
      Element* const scanned = map_out<Element>(call, 0) + (tile.image * length + row * width) * half;
      layer_norm<Lanes>(line, padded, width, half, weights.norm_weight, weights.norm_bias,
                        [&](int64_t position, int64_t first, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                          Element* const target = scanned + position * half + first / 2;
                          store_unzipped<Lanes>(target, target + half / 2, value, used);
                        });
    }
  }

 private:
  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : out_norm_weight(padded_row<Lanes>(scratch, sizes.inner)),
          out_norm_bias(padded_row<Lanes>(scratch, sizes.inner)),
          project(sizes.inner, sizes.model, scratch),
          project_bias(padded_row<Lanes>(scratch, sizes.model)),
          conv(scratch.floats(kTaps * whole_vectors<Lanes>(sizes.half))),
          conv_bias(padded_row<Lanes>(scratch, sizes.half)),
          convolved(padded_row<Lanes>(scratch, sizes.half)),
          residual_scale(scratch.floats(1)),
          norm_weight(padded_row<Lanes>(scratch, sizes.half)),
          norm_bias(padded_row<Lanes>(scratch, sizes.half)),
          gated_scale(scratch.floats(1)) {}

    float* out_norm_weight;             // (D)
    float* out_norm_bias;               // (D)
    Matrix<Lanes, Arithmetic> project;  // (D, d), columns shuffled
    float* project_bias;                // (d), shuffled
    float* conv;                        // (9, P), shuffled; zero for channels that are not convolved
    float* conv_bias;                   // (P), likewise
    float* convolved;                   // (P): 1 for convolved channels, 0 for the others
    float* residual_scale;              // (1)
    float* norm_weight;                 // (h)
    float* norm_bias;                   // (h)
    float* gated_scale;                 // (1), of integers: what one is worth
  };

  struct Buffers {
    Buffers(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : gated(scratch.floats(kTilePositions * sizes.inner)),
          integers(words_of<Lanes, Arithmetic>(scratch, kTilePositions, sizes.inner)) {}

    float* gated;                         // (kTilePositions, D), one group
    typename Arithmetic::Word* integers;  // the same, of integers
  };

  // Column `column` of the projected map, its convolved channels through the convolution: (H, P).
  static void convolve_column(const msmamba::BlockCall& call, const Weights& weights, int64_t image, int64_t column,
                              float* line) {
    const int64_t padded = whole_vectors<Lanes>(call.sizes.half);
    const int64_t height = call.map.height, width = call.map.width;
    const float* const map = static_cast<const float*>(call.shared) + image * height * width * padded;
    for_each_vector<Lanes>(call.sizes.half, [&](int64_t c, auto used) {
      const Float<Lanes> convolved = load<Lanes>(weights.convolved + c);
      const Lines<float> lines[1] = {neighbouring_lines(map + c, column, width, padded, width * padded)};
      if (sum_across<Lanes>(convolved) == 0.0f) {
        for (int64_t i = 0; i < height; ++i) {
          store<Lanes>(line + i * padded + c, load<Lanes>(lines[0].here.at(i), used));
        }
        return;
      }
      const Float<Lanes> bias = load<Lanes>(weights.conv_bias + c);
      convolve_line<Lanes, 1, 1>(lines, 0, height, height, weights.conv + c, padded, used,
                                 [&](int64_t i, const Convolved<Lanes, 1, 1>& result) MSMAMBA_INLINE_BODY {
                                   store<Lanes>(line + i * padded + c, result.sums[0][0] + bias);
                                 });
      for (int64_t i = 0; i < height; ++i) {
        float* const at = line + i * padded + c;
        const Float<Lanes> value = silu<Lanes>(load<Lanes>(at));
        store<Lanes>(at, convolved != 0.0f ? value : load<Lanes>(lines[0].here.at(i), used));
      }
    });
  }

  // Adds the tokens of a row, times `scale`, to `line` (W, P).
  template <typename Element>
  static void add_residual(const msmamba::BlockCall& call, float scale, int64_t image, int64_t row, float* line) {
    const int64_t model = call.sizes.model, groups = call.sizes.groups;
    const int64_t padded = whole_vectors<Lanes>(call.sizes.half);
    const int64_t width = call.map.width, length = call.map.positions();
    for (int64_t group = 0; group < groups; ++group) {
      const Element* const tokens = map_in<Element>(call, 2) + ((image * groups + group) * length + row * width) * model;
      for (int64_t i = 0; i < width; ++i) {
        float* const target = line + i * padded + group * model;
        for_each_vector<Lanes>(model, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
          const Float<Lanes> residual = load<Lanes>(tokens + i * model + c, used) * scale;
          store<Lanes>(target + c, load<Lanes>(target + c, used) + residual, used);
        });
      }
    }
  }
};

}  // namespace
