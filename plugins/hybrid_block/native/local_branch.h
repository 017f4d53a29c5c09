// LocalBranch: batch norm, depthwise 3x3, a depthwise 3x3 to two outputs a channel, 1x1; ReLU after each convolution.
//
// h channels, P of them with padding; L = H * W. First the depthwise convolution of the whole map; then, tile by
// tile, the expanding one into a buffer that the 1x1 convolution, a matrix product, reads at once.
#pragma once

#include "depthwise.h"
#include "matrix.h"
#include "packing.h"

namespace {

template <int Lanes, typename Arithmetic>
class LocalBranch {
 public:
  static constexpr int64_t kTilePositions = 64;

  static size_t packed_bytes(const msmamba::BlockSizes& sizes) {
    return layout_bytes<Weights>(sizes);
  }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    const float *scale = source[0], *shift = source[1], *depthwise = source[2], *depthwise_bias = source[3],
                *expand = source[4], *expand_bias = source[5], *project = source[6], *project_bias = source[7];
    const int64_t half = sizes.half, padded = whole_vectors<Lanes>(half);
    auto weights = layout_in<Weights>(packed, sizes);
    for (int tap = 0; tap < kTaps; ++tap) {
      fill_row<Lanes>(weights.depthwise + tap * padded, half,
                      [&](int64_t c) { return depthwise[c * kTaps + tap] * scale[c]; });
      for (int filter = 0; filter < 2; ++filter) {
        fill_row<Lanes>(weights.expand + (filter * kTaps + tap) * padded, half,
                        [&](int64_t c) { return expand[(2 * c + filter) * kTaps + tap]; });
      }
    }
    for (int border = 0; border < kBorders * kBorders; ++border) {
      fill_row<Lanes>(weights.depthwise_bias + border * padded, half, [&](int64_t c) {
        return depthwise_bias[c] + shift[c] * sum_within(depthwise + c * kTaps, border / kBorders, border % kBorders);
      });
    }
    for (int filter = 0; filter < 2; ++filter) {
      fill_row<Lanes>(weights.expand_bias + filter * padded, half,
                      [&](int64_t c) { return expand_bias[2 * c + filter]; });
    }
    weights.project.pack(
        [&](int64_t k, int64_t column) {
          const int64_t filter = k / padded, c = k % padded;
          return c < half ? project[column * 2 * half + 2 * c + filter] : 0.0f;
        },
        [&](int64_t column) {
          const float *project_scale = source[8], *expanded_scale = source[9];
          return *expanded_scale * project_scale[column];
        });
    if constexpr (Arithmetic::kInteger) {
      const float *expanded_scale = source[9], *projected_scale = source[10];
      weights.scales[0] = *expanded_scale;
      weights.scales[1] = *projected_scale;
    }
    copy_row<Lanes>(weights.project_bias, project_bias, half);
  }

  // After the depthwise convolution: (batch, L, P).
  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return static_cast<size_t>(map.batch * map.positions() * whole_vectors<Lanes>(sizes.half)) * sizeof(float);
  }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape&) {
    return layout_bytes<Buffers>(sizes);
  }

  template <typename Element>
  static void convolve(const msmamba::BlockCall& call, const msmamba::Tile& tile, void*) {
    const int64_t half = call.sizes.half, padded = whole_vectors<Lanes>(half), channels = 2 * half;
    const int64_t height = call.map.height, width = call.map.width, first_position = tile.image * height * width;
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const Element* const x = map_in<Element>(call, 0) + first_position * channels;
    float* const target = static_cast<float*>(call.shared) + first_position * padded;

    for_each_row(tile.first, tile.last, width, [&](int64_t row, int64_t first, int64_t last) {
      const float* const biases = weights.depthwise_bias + border_of(row, height) * kBorders * padded;
      float* const target_row = target + row * width * padded;
      for_each_vector<Lanes>(half, [&](int64_t c, auto used) {
        const Lines<Element> lines[1] = {neighbouring_lines(x + c, row, height, width * channels, channels)};
        convolve_line<Lanes, 1, 1>(
            lines, first, last, width, weights.depthwise + c, padded, used,
            [&](int64_t position, const Convolved<Lanes, 1, 1>& result) MSMAMBA_INLINE_BODY {
              const float* const bias = biases + border_of(position, width) * padded + c;
              store<Lanes>(target_row + position * padded + c, relu<Lanes>(result.sums[0][0] + load<Lanes>(bias)));
            });
      });
    });
  }

  template <typename Element>
  static void project(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const int64_t half = call.sizes.half, padded = whole_vectors<Lanes>(half);
    const int64_t height = call.map.height, width = call.map.width, first_position = tile.image * height * width;
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const float* const source = static_cast<const float*>(call.shared) + first_position * padded;
    const auto buffers = layout_in<Buffers>(memory, call.sizes);
    float* const expanded = buffers.expanded;
    Element* const local = map_out<Element>(call, 0) + (first_position + tile.first) * half;

    for_each_row(tile.first, tile.last, width, [&](int64_t row, int64_t first, int64_t last) {
      float* const target = expanded + (row * width - tile.first) * 2 * padded;
      for (int64_t c = 0; c < padded; c += Lanes) {
        const Lines<float> lines[1] = {neighbouring_lines(source + c, row, height, width * padded, padded)};
        const Float<Lanes> bias[2] = {load<Lanes>(weights.expand_bias + c),
                                      load<Lanes>(weights.expand_bias + padded + c)};
        convolve_line<Lanes, 1, 2>(
            lines, first, last, width, weights.expand + c, padded, AllLanes<Lanes>{},
            [&](int64_t position, const Convolved<Lanes, 1, 2>& result) MSMAMBA_INLINE_BODY {
              float* const pair = target + position * 2 * padded + c;
              store<Lanes>(pair, relu<Lanes>(result.sums[0][0] + bias[0]));
              store<Lanes>(pair + padded, relu<Lanes>(result.sums[0][1] + bias[1]));
            });
      }
    });
    const int64_t count = tile.last - tile.first;
    const auto rows = left_side<Lanes, Arithmetic>({expanded, 2 * padded}, count, 2 * padded, weights.scales,
                                                   buffers.integers);
    const Step<Lanes> projected(Arithmetic::kInteger ? weights.scales[1] : 1.0f);
    weights.project.multiply(rows, count, RowsTo{local, half},
                             [&](int64_t column, Float<Lanes> product) MSMAMBA_INLINE_BODY {
                               const Float<Lanes> value = product + load<Lanes>(weights.project_bias + column);
                               if constexpr (Arithmetic::kInteger) {
                                 return relu<Lanes>(rounded_to<Lanes>(value, projected));
                               } else {
                                 return relu<Lanes>(value);
                               }
                             });
  }

 private:
  // Where a position or row stands: which of its two neighbours exist. The norm comes before the padding, so its
  // shift reaches only the taps within the map: its part of the bias depends on where.
  static constexpr int kBorders = 4;

  MSMAMBA_INLINE static int64_t border_of(int64_t index, int64_t count) {
    return (index > 0 ? 1 : 0) + (index + 1 < count ? 2 : 0);
  }

  // The sum of the taps that lie within the map.
  static float sum_within(const float* taps, int row_border, int column_border) {
    float sum = 0.0f;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        if (exists(i, row_border) && exists(j, column_border)) sum += taps[3 * i + j];
      }
    }
    return sum;
  }

  static bool exists(int neighbour, int border) {
    return neighbour == 1 || (border & (neighbour == 0 ? 1 : 2)) != 0;
  }

  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : depthwise(padded_rows(scratch, sizes, kTaps)),
          depthwise_bias(padded_rows(scratch, sizes, kBorders * kBorders)),
          expand(padded_rows(scratch, sizes, 2 * kTaps)),
          expand_bias(padded_rows(scratch, sizes, 2)),
          project(2 * whole_vectors<Lanes>(sizes.half), sizes.half, scratch),
          project_bias(padded_rows(scratch, sizes, 1)),
          scales(scratch.floats(2)) {}

    static float* padded_rows(Scratch& scratch, const msmamba::BlockSizes& sizes, int64_t rows) {
      return scratch.floats(rows * whole_vectors<Lanes>(sizes.half));
    }

    float* depthwise;                   // (9, P), times the norm's scale
    float* depthwise_bias;              // (rows' borders, columns' borders, P), with what the norm's shift adds
    float* expand;                      // (2, 9, P): the first output of each channel, then the second
    float* expand_bias;                 // (2, P)
    Matrix<Lanes, Arithmetic> project;  // (2 * P, h), rows in the order of the expanded channels
    float* project_bias;                // (P)
    float* scales;  // of integers: what one is worth after the expanding convolution, and after the product
  };

  struct Buffers {
    Buffers(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : expanded(scratch.floats(kTilePositions * 2 * whole_vectors<Lanes>(sizes.half))),
          integers(words_of<Lanes, Arithmetic>(scratch, kTilePositions, 2 * whole_vectors<Lanes>(sizes.half))) {}

    float* expanded;                      // (kTilePositions, 2, P)
    typename Arithmetic::Word* integers;  // the same, of integers
  };
};

}  // namespace
