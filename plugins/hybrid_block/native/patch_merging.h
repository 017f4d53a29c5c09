// PatchMerging: 2x2 neighbours to channels, LayerNorm, projection.
//
// C channels, 4C of a patch, 2C of the result. A tile of rows has the patches whose first row lies in it.
#pragma once

#include "layer_norm.h"
#include "matrix.h"
#include "packing.h"

namespace {

template <int Lanes, typename Arithmetic>
class PatchMerging {
 public:
  static constexpr int64_t kTilePositions = 256;  // of the map that is merged

  static size_t packed_bytes(const msmamba::BlockSizes& sizes) { return layout_bytes<Weights>(sizes); }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    const int64_t channels = sizes.half;
    auto weights = layout_in<Weights>(packed, sizes);
    copy_row<Lanes>(weights.norm_weight, source[0], kNeighbours * channels);
    copy_row<Lanes>(weights.norm_bias, source[1], kNeighbours * channels);
    weights.reduction.pack([&](int64_t k, int64_t column) { return source[2][k * 2 * channels + column]; },
                           [&](int64_t column) { return *source[4] * source[3][column]; });
    if constexpr (Arithmetic::kInteger) *weights.normed_scale = *source[4];
  }

  static size_t shared_bytes(const msmamba::BlockSizes&, const msmamba::MapShape&) { return 0; }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape&) {
    return layout_bytes<Buffers>(sizes);
  }

  template <typename Element>
  static void merge(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* scratch) {
    const int64_t channels = call.sizes.half, depth = kNeighbours * channels;
    const int64_t width = call.map.width, columns = width / 2;
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const Element* const x = map_in<Element>(call, 0) + tile.image * call.map.positions() * channels;
    Element* const y = map_out<Element>(call, 0) + tile.image * (call.map.positions() / kNeighbours) * 2 * channels;
    const auto buffers = layout_in<Buffers>(scratch, call.sizes);
    float* const patches = buffers.patches;

    const int64_t end = (tile.last + 1) / 2 * columns;
    for (int64_t first = (tile.first + 1) / 2 * columns; first < end; first += kPatches) {
      const int64_t count = end - first < kPatches ? end - first : kPatches;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = (first + i) / columns, column = (first + i) % columns;
        gather(x + (2 * row * width + 2 * column) * channels, width * channels, channels, patches + i * depth);
      }
      layer_norm<Lanes>(patches, depth, count, depth, weights.norm_weight, weights.norm_bias,
                        [&](int64_t patch, int64_t c, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                          store<Lanes>(patches + patch * depth + c, value, used);
                        });
      const auto rows =
          left_side<Lanes, Arithmetic>({patches, depth}, count, depth, weights.normed_scale, buffers.integers);
      weights.reduction.multiply(rows, count, RowsTo{y + first * 2 * channels, 2 * channels});
    }
  }

 private:
  static constexpr int64_t kNeighbours = 4;
  static constexpr int64_t kPatches = 64;  // that go through the projection together

  // Neighbours in the order (0,0) (1,0) (0,1) (1,1), (row, column); `stride` elements from row to row.
  template <typename Element>
  static void gather(const Element* x, int64_t stride, int64_t channels, float* patch) {
    for (int64_t neighbour = 0; neighbour < kNeighbours; ++neighbour) {
      const Element* const from = x + neighbour % 2 * stride + neighbour / 2 * channels;
      for_each_vector<Lanes>(channels, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
        store<Lanes>(patch + neighbour * channels + c, load<Lanes>(from + c, used), used);
      });
    }
  }

  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : norm_weight(padded_row<Lanes>(scratch, kNeighbours * sizes.half)),
          norm_bias(padded_row<Lanes>(scratch, kNeighbours * sizes.half)),
          reduction(kNeighbours * sizes.half, 2 * sizes.half, scratch),
          normed_scale(scratch.floats(1)) {}

    float* norm_weight;                   // (4C)
    float* norm_bias;                     // (4C)
    Matrix<Lanes, Arithmetic> reduction;  // (4C, 2C)
    float* normed_scale;                  // of integers: what one is worth
  };

  struct Buffers {
    Buffers(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : patches(scratch.floats(kPatches * kNeighbours * sizes.half)),
          integers(words_of<Lanes, Arithmetic>(scratch, kPatches, kNeighbours * sizes.half)) {}

    float* patches;                       // (kPatches, 4C)
    typename Arithmetic::Word* integers;  // the same, of integers
  };
};

}  // namespace
