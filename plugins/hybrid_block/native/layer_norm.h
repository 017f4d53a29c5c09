// LayerNorm of one row of channels.
#pragma once

#include "lanes.h"

namespace {

constexpr float kLayerNormEpsilon = 1e-5f;

// Passes every normalised vector of a row, scaled and shifted, to `emit(first, value, used)`. The variance is that
// of the differences from the mean: squares of the row itself would lose its digits where the mean is large.
template <int Lanes, typename Element, typename Emit>
MSMAMBA_INLINE void layer_norm(const Element* row, int64_t count, const float* weight, const float* bias, Emit emit) {
  const float scale = 1.0f / static_cast<float>(count);
  Float<Lanes> sum{};
  for_each_vector<Lanes>(count, [&](int64_t first, auto used) MSMAMBA_INLINE_BODY {
    sum += load<Lanes>(row + first, used);
  });
  const Float<Lanes> mean = broadcast<Lanes>(sum_across<Lanes>(sum) * scale);

  Float<Lanes> squares{};
  for_each_vector<Lanes>(count, [&](int64_t first, auto used) MSMAMBA_INLINE_BODY {
    const Float<Lanes> difference = load<Lanes>(row + first, used) - kept<Lanes>(mean, used);
    squares += difference * difference;
  });
  const float variance = sum_across<Lanes>(squares) * scale;
  const Float<Lanes> inverse = broadcast<Lanes>(1.0f / __builtin_sqrtf(variance + kLayerNormEpsilon));

  for_each_vector<Lanes>(count, [&](int64_t first, auto used) MSMAMBA_INLINE_BODY {
    const Float<Lanes> normed = (load<Lanes>(row + first, used) - mean) * inverse;
    emit(first, normed * load<Lanes>(weight + first, used) + load<Lanes>(bias + first, used), used);
  });
}

}  // namespace
