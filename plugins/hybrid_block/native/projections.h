// The products that make the scan's operands of its features: step features and of them delta; B and C.
#pragma once

#include "../../selective_scan/native/problem.h"
#include "matrix.h"
#include "packing.h"

namespace {

// The weights, in the contract's shapes. Of integers `steps` stands for all of the features' columns, side by side, and
// the last four say what one of each is worth; of floats they are null.
struct ProjectionWeights {
  const float* steps;
  const float* expand;
  const float* inputs;
  const float* outputs;
  const float* feature_columns;  // (K*R + 2*K*N)
  const float* delta_columns;    // (K*D)
  const float* features;
  const float* step_features;
};

template <int Lanes, typename Arithmetic>
class Projections {
 public:
  using Word = typename Arithmetic::Word;

  Projections(const msmamba::BlockSizes& sizes, Scratch& scratch)
      : steps(sizes.inner, sizes.steps, scratch),
        delta(sizes.steps, msmamba::kDirections * sizes.inner, scratch),
        B(sizes.inner, sizes.states, scratch),
        C(sizes.inner, sizes.states, scratch),
        scales(scratch.floats(kLeftSides)) {}

  // Buffers of one tile of at most `count` positions.
  struct Buffers {
    Buffers(const msmamba::BlockSizes& sizes, int64_t count, Scratch& scratch)
        : steps(scratch.floats(count * whole_vectors<Lanes>(sizes.steps))),
          integers(words_of<Lanes, Arithmetic>(scratch, count,
                                               sizes.inner > sizes.steps ? sizes.inner : sizes.steps)) {}

    float* steps;    // (count, K*R padded)
    Word* integers;  // the left side of one product, of integers
  };

  // The maps that `write` makes, at its tile's first position.
  template <typename Element>
  struct Maps {
    Element* delta;  // (positions, K*D)
    Element* B;      // (positions, K*N)
    Element* C;      // (positions, K*N)
  };

  void pack(const msmamba::BlockSizes& sizes, const ProjectionWeights& from) {
    const int64_t inner = sizes.inner, width = msmamba::kDirections * inner;
    steps.pack(steps_of(sizes, from), worth_from(from, 0));
    delta.pack([=](int64_t k, int64_t column) { return from.expand[k * width + column]; },
               [=](int64_t column) { return *from.step_features * from.delta_columns[column]; });
    B.pack(B_of(sizes, from), worth_from(from, sizes.steps));
    C.pack(C_of(sizes, from), worth_from(from, sizes.steps + sizes.states));
    pack_scales(from, scales);
  }

  // Of integers: what one of the left sides is worth.
  static void pack_scales(const ProjectionWeights& from, float* scales) {
    if constexpr (Arithmetic::kInteger) {
      scales[kFeatures] = *from.features;
      scales[kSteps] = *from.step_features;
    }
  }

  // The weights of a row of features and a column of step features, B and C.
  static auto steps_of(const msmamba::BlockSizes& sizes, const ProjectionWeights& from) {
    const int64_t width = Arithmetic::kInteger ? sizes.steps + 2 * sizes.states : sizes.steps;
    return [=](int64_t k, int64_t column) { return from.steps[k * width + column]; };
  }
  static auto B_of(const msmamba::BlockSizes& sizes, const ProjectionWeights& from) {
    return state_of(sizes, from.inputs, from.steps, sizes.steps);
  }
  static auto C_of(const msmamba::BlockSizes& sizes, const ProjectionWeights& from) {
    return state_of(sizes, from.outputs, from.steps, sizes.steps + sizes.states);
  }
  // What one of the products of features and the columns from `first` on is worth, of integers.
  static auto worth_from(const ProjectionWeights& from, int64_t first) {
    return [=](int64_t column) { return *from.features * from.feature_columns[first + column]; };
  }

  // `count` rows of features (count, D), `stride` apart, as delta, B and C; `streamed` past the caches.
  template <typename Element>
  MSMAMBA_NOINLINE void write(const msmamba::BlockSizes& sizes, RowsOf<float> features, int64_t count,
                              const Buffers& buffers, const Maps<Element>& maps, bool streamed) const {
    const int64_t padded_steps = whole_vectors<Lanes>(sizes.steps);
    const auto rows = left_side<Lanes, Arithmetic>(features, count, sizes.inner, scales + kFeatures, buffers.integers);
    steps.multiply(rows, count, RowsTo{buffers.steps, padded_steps});
    const auto project = [&](const auto& matrix, auto from, RowsTo<Element> to) MSMAMBA_INLINE_BODY {
      if constexpr (kMayStream<Element>) {
        if (streamed) return matrix.multiply_streamed(from, count, to);
      }
      matrix.multiply(from, count, to);
    };
    project(B, rows, {maps.B, sizes.states});
    project(C, rows, {maps.C, sizes.states});
    const auto left = left_side<Lanes, Arithmetic>({buffers.steps, padded_steps}, count, sizes.steps, scales + kSteps,
                                                   buffers.integers);
    project(delta, left, {maps.delta, msmamba::kDirections * sizes.inner});
  }

  // Whether delta, B and C of so many positions of all sequences are better written past the caches: more than this have
  // left the second-level caches, and mostly the third's share, when the scan comes to read them.
  template <typename Element>
  static bool streamed(const msmamba::BlockSizes& sizes, int64_t positions) {
    constexpr int64_t kFloatsInCaches = 2 * 1024 * 1024;
    const int64_t floats = msmamba::kDirections * sizes.inner + 2 * sizes.states;
    return kMayStream<Element> && positions * floats > kFloatsInCaches;
  }

  Matrix<Lanes, Arithmetic> steps;  // (D, K*R)
  Matrix<Lanes, Arithmetic> delta;  // (K*R, K*D), a block for each direction
  Matrix<Lanes, Arithmetic> B;      // (D, K*N)
  Matrix<Lanes, Arithmetic> C;      // (D, K*N)

  // The left sides of products.
  enum { kFeatures, kSteps, kLeftSides };
  float* scales;  // (kLeftSides), of integers: what one is worth

 private:
  // Vectors of float16 are half a cache line, which other stores would part from the other half.
  template <typename Element>
  static constexpr bool kMayStream = kHasStreamedStores && sizeof(Element) == sizeof(float);

  static auto state_of(const msmamba::BlockSizes& sizes, const float* alone, const float* merged, int64_t first) {
    const float* const start = Arithmetic::kInteger ? merged + first : alone;
    const int64_t width = Arithmetic::kInteger ? sizes.steps + 2 * sizes.states : sizes.states;
    return [=](int64_t k, int64_t column) { return start[k * width + column]; };
  }
};

}  // namespace
