// LayerNorm of rows of channels.
#pragma once

#include "lanes.h"

namespace {

constexpr float kLayerNormEpsilon = 1e-5f;

// Passes every normalised vector of `count` rows, `stride` elements apart, scaled and shifted, to
// `emit(row, first, value, used)`. The variance is that of the differences from the mean: squares of the row itself
// would lose its digits where the mean is large.
//
// As many rows as a vector has lanes go together: their sums across lanes, square roots and divisions, a chain of
// waiting each, are then one for all.
template <int Lanes, typename Element, typename Emit>
MSMAMBA_INLINE void layer_norm(const Element* rows, int64_t stride, int64_t count, int64_t channels, const float* weight,
                               const float* bias, Emit emit) {
  const float scale = 1.0f / static_cast<float>(channels);
  alignas(64) float partial[Lanes * Lanes] = {}, means[Lanes], inverses[Lanes];  // by row
  for (int64_t start = 0; start < count; start += Lanes) {
    const int together = static_cast<int>(count - start < Lanes ? count - start : Lanes);
    const Element* const first_row = rows + start * stride;
    for (int r = 0; r < together; ++r) {
      Float<Lanes> sum{};
      for_each_vector<Lanes>(channels, [&](int64_t first, auto used) MSMAMBA_INLINE_BODY {
        sum += load<Lanes>(first_row + r * stride + first, used);
      });
      store<Lanes>(partial + r * Lanes, sum);
    }
    store<Lanes>(means, sums_of_rows<Lanes>(partial) * scale);
    for (int r = 0; r < together; ++r) {
      const Float<Lanes> mean = broadcast<Lanes>(means[r]);
      Float<Lanes> squares{};
      for_each_vector<Lanes>(channels, [&](int64_t first, auto used) MSMAMBA_INLINE_BODY {
        const Float<Lanes> difference =
            load<Lanes>(first_row + r * stride + first, used) - kept<Lanes>(mean, used);
        squares += difference * difference;
      });
      store<Lanes>(partial + r * Lanes, squares);
    }
    store<Lanes>(inverses, 1.0f / square_root<Lanes>(sums_of_rows<Lanes>(partial) * scale + kLayerNormEpsilon));
    for (int r = 0; r < together; ++r) {
      const Float<Lanes> mean = broadcast<Lanes>(means[r]), inverse = broadcast<Lanes>(inverses[r]);
      for_each_vector<Lanes>(channels, [&](int64_t first, auto used) MSMAMBA_INLINE_BODY {
        const Float<Lanes> normed = (load<Lanes>(first_row + r * stride + first, used) - mean) * inverse;
        emit(start + r, first, normed * load<Lanes>(weight + first, used) + load<Lanes>(bias + first, used), used);
      });
    }
  }
}

}  // namespace
