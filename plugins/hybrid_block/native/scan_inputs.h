// ScanInputs: ScanFeatures, and the projections to delta, B and C in the same pass over the map.
//
// Files of earlier versions have it; later ones leave the projections to the scan (projected_scan.h).
#pragma once

#include "projections.h"
#include "scan_features.h"

namespace {

template <int Lanes, typename Arithmetic>
class ScanInputs {
  using Features = ScanFeatures<Lanes, Arithmetic>;
  using Products = Projections<Lanes, Arithmetic>;

 public:
  static constexpr int64_t kTilePositions = Features::kTilePositions;

  static size_t packed_bytes(const msmamba::BlockSizes& sizes) {
    return layout_bytes<Weights>(sizes);
  }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    auto weights = layout_in<Weights>(packed, sizes);
    if constexpr (Arithmetic::kInteger) {
      weights.features.pack(sizes, source, source[7], source[10]);
      weights.products.pack(
          sizes, {source[5], source[6], nullptr, nullptr, source[8], source[9], source[11], source[12]});
    } else {
      weights.features.pack(sizes, source, nullptr, nullptr);
      weights.products.pack(sizes,
                            {source[5], source[6], source[7], source[8], nullptr, nullptr, nullptr, nullptr});
    }
  }

  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return Features::shared_bytes(sizes, map);
  }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape&) {
    return layout_bytes<Buffers>(sizes);
  }

  template <typename Element>
  static void project(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    Features::template project<Element>(call, tile, memory);
  }

  template <typename Element>
  static void expand(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    Features::template convolve<Element>(call, tile, memory);
    const msmamba::BlockSizes& sizes = call.sizes;
    const int64_t inner = sizes.inner, length = call.map.positions(), count = tile.last - tile.first;
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const auto buffers = layout_in<Buffers>(memory, sizes);
    const bool streamed = Products::template streamed<Element>(sizes, call.map.batch * sizes.groups * length);
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t row = (tile.image * sizes.groups + group) * length + tile.first;
      weights.products.write(
          sizes, {buffers.features.features + group * inner, Features::padded_width(sizes)}, count, buffers.products,
          typename Products::template Maps<Element>{map_out<Element>(call, 3) + row * msmamba::kDirections * inner,
                                                    map_out<Element>(call, 4) + row * sizes.states,
                                                    map_out<Element>(call, 5) + row * sizes.states},
          streamed);
    }
    if (streamed) end_streaming();
  }

 private:
  // Both begin with those of ScanFeatures, whose kernels work on them.
  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch) : features(sizes, scratch), products(sizes, scratch) {}

    typename Features::Weights features;
    Products products;
  };

  struct Buffers {
    Buffers(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : features(sizes, scratch), products(sizes, kTilePositions, scratch) {}

    typename Features::Buffers features;
    typename Products::Buffers products;
  };
};

}  // namespace
