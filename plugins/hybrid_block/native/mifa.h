// MIFA: each branch weighted by a convolution of the other, shuffled; then channel attention.
//
// h channels of a branch, P with padding; C = 2h. First the weighting, row by row, which also leaves each row's
// sums; then the attention, from all rows' sums, over the map just written. Sums go row by row so that
// the result does not depend on how rows were shared out.
#pragma once

#include "depthwise.h"
#include "packing.h"

namespace {

template <int Lanes>
class MIFA {
 public:
  static size_t packed_bytes(const msmamba::BlockSizes& sizes) {
    return layout_bytes<Weights>(sizes);
  }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    const int64_t half = sizes.half, padded = whole_vectors<Lanes>(half);
    auto weights = layout_in<Weights>(packed, sizes);
    for (int tap = 0; tap < kTaps; ++tap) {
      fill_row<Lanes>(weights.conv + tap * padded, half, [&](int64_t c) { return source[0][c * kTaps + tap]; });
    }
    copy_row<Lanes>(weights.conv_bias, source[1], half);
    copy_row<Lanes>(weights.attention, source[2], 2 * half);
  }

  // The sums of every row, of the output's channels: (batch, H, C).
  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return static_cast<size_t>(map.batch * map.height * 2 * sizes.half) * sizeof(float);
  }

  // The convolved branches of a row, one vector of channels: (W, 2, Lanes). In the second phase the attention: (C) with
  // padding.
  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    const int64_t row = map.width * 2 * Lanes, attention = whole_vectors<Lanes>(2 * sizes.half);
    return static_cast<size_t>(row > attention ? row : attention) * sizeof(float);
  }

  template <typename Element>
  static void fuse(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* scratch) {
    const int64_t half = call.sizes.half, channels = 2 * half, padded = whole_vectors<Lanes>(half);
    const int64_t height = call.map.height, width = call.map.width, first_position = tile.image * height * width;
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const Element* const local = map_in<Element>(call, 0) + first_position * half;
    const Element* const scanned = map_in<Element>(call, 1) + first_position * half;
    float* const sums = static_cast<float*>(call.shared) + tile.image * height * channels;
    float* const convolved = static_cast<float*>(scratch);

    for (int64_t row = tile.first; row < tile.last; ++row) {
      Element* const y = map_out<Element>(call, 0) + (first_position + row * width) * channels;
      for_each_vector<Lanes>(half, [&](int64_t c, auto used) {
        const Lines<Element> lines[2] = {neighbouring_lines(local + c, row, height, width * half, half),
                                         neighbouring_lines(scanned + c, row, height, width * half, half)};
        const Float<Lanes> bias = load<Lanes>(weights.conv_bias + c);
        // Loops of their own: one chain of both would be too long for the processor to begin the next position's in time.
        convolve_line<Lanes, 2, 1>(
            lines, 0, width, width, weights.conv + c, padded, used,
            [&](int64_t position, const Convolved<Lanes, 2, 1>& result) MSMAMBA_INLINE_BODY {
              store<Lanes>(convolved + 2 * position * Lanes, result.sums[0][0] + bias);
              store<Lanes>(convolved + (2 * position + 1) * Lanes, result.sums[1][0] + bias);
            });
        Float<Lanes> scanned_sum{}, local_sum{};
        for (int64_t position = 0; position < width; ++position) {
          const Float<Lanes> convolved_local = load<Lanes>(convolved + 2 * position * Lanes);
          const Float<Lanes> convolved_scanned = load<Lanes>(convolved + (2 * position + 1) * Lanes);
          const Float<Lanes> local_weight = logistic_of_held<Lanes>(relu<Lanes>(convolved_local));
          const Float<Lanes> scanned_weight = logistic_of_held<Lanes>(gelu<Lanes>(convolved_scanned));
          const Float<Lanes> weighted_scanned = local_weight * load<Lanes>(lines[1].here.at(position), used);
          const Float<Lanes> weighted_local = scanned_weight * load<Lanes>(lines[0].here.at(position), used);
          scanned_sum += weighted_scanned;
          local_sum += weighted_local;
          store_shuffled(y + position * channels, half, c, weighted_scanned, weighted_local, used);
        }
        store_shuffled(sums + row * channels, half, c, scanned_sum, local_sum, used);
      });
    }
  }

  template <typename Element>
  static void attend(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* scratch) {
    const int64_t channels = 2 * call.sizes.half, height = call.map.height, width = call.map.width;
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const float* const sums = static_cast<const float*>(call.shared) + tile.image * height * channels;
    float* const attention = static_cast<float*>(scratch);
    const float scale = 1.0f / static_cast<float>(height * width);
    for_each_vector<Lanes>(channels, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
      Float<Lanes> sum{};
      for (int64_t row = 0; row < height; ++row) sum += load<Lanes>(sums + row * channels + c, used);
      store<Lanes>(attention + c, logistic<Lanes>(sum * scale * load<Lanes>(weights.attention + c)));
    });
    Element* const y = map_out<Element>(call, 0) + (tile.image * height + tile.first) * width * channels;
    for (int64_t position = 0; position < (tile.last - tile.first) * width; ++position) {
      for_each_vector<Lanes>(channels, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
        Element* const at = y + position * channels + c;
        store<Lanes>(at, load<Lanes>(at, used) * load<Lanes>(attention + c), used);
      });
    }
  }

 private:
  // Channels c and on of both weighted branches to their places: of the concatenated channels every fourth,
  // then the next of every four, and so on.
  template <typename Element, typename Used>
  MSMAMBA_INLINE static void store_shuffled(Element* row, int64_t half, int64_t c, Float<Lanes> weighted_scanned,
                                            Float<Lanes> weighted_local, Used used) {
    store_unzipped_by_four<Lanes>(row + c / 4, half / 2, weighted_scanned, used);
    store_unzipped_by_four<Lanes>(row + half / 4 + c / 4, half / 2, weighted_local, used);
  }

  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : conv(scratch.floats(kTaps * whole_vectors<Lanes>(sizes.half))),
          conv_bias(padded_row<Lanes>(scratch, sizes.half)),
          attention(padded_row<Lanes>(scratch, 2 * sizes.half)) {}

    float* conv;       // (9, P)
    float* conv_bias;  // (P)
    float* attention;  // (C)
  };
};

}  // namespace
