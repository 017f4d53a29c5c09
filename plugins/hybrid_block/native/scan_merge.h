// The end of ScanBranch, row by row: partial depthwise 3x3, H and W swapped, residual, LayerNorm, shuffle.
//
// h channels in G groups of d, P = h with padding; q convolved channels of each d; L = H * W. A row of the output is a
// column of the projected map.
#pragma once

#include "depthwise.h"
#include "layer_norm.h"
#include "packing.h"

namespace {

// Channel `c` of a group shuffled in pairs was channel `unshuffled(c, d)` before.
inline int64_t unshuffled(int64_t c, int64_t model) { return c % (model / 2) * 2 + c / (model / 2); }

template <int Lanes>
class ScanMerge {
 public:
  ScanMerge(const msmamba::BlockSizes& sizes, Scratch& scratch)
      : sizes_(sizes),
        padded_(whole_vectors<Lanes>(sizes.half)),
        conv_(scratch.floats(kTaps * padded_)),
        conv_bias_(scratch.floats(padded_)),
        convolved_(scratch.floats(padded_)),
        residual_scale_(scratch.floats(1)),
        norm_weight_(scratch.floats(padded_)),
        norm_bias_(scratch.floats(padded_)) {}

  void pack(const float* conv, const float* conv_bias, const float* residual_scale, const float* norm_weight,
            const float* norm_bias) {
    const auto fill = [&](float* row, auto value) {
      fill_row<Lanes>(row, sizes_.half, [&](int64_t c) {
        const int64_t channel = unshuffled(c % sizes_.model, sizes_.model);
        return channel < sizes_.convolved ? value(channel) : 0.0f;
      });
    };
    for (int tap = 0; tap < kTaps; ++tap) {
      // The map's columns are read as lines, so the taps are transposed.
      const int transposed = tap % 3 * 3 + tap / 3;
      fill(conv_ + tap * padded_, [&](int64_t channel) { return conv[channel * kTaps + transposed]; });
    }
    fill(conv_bias_, [&](int64_t channel) { return conv_bias[channel]; });
    fill(convolved_, [](int64_t) { return 1.0f; });
    *residual_scale_ = *residual_scale;
    copy_row<Lanes>(norm_weight_, norm_weight, sizes_.half);
    copy_row<Lanes>(norm_bias_, norm_bias, sizes_.half);
  }

  // Row `row` of one image's output (H, W, h), from its projected map (H, W, P), channels of each group shuffled,
  // and its tokens (H, W, h). `line` has room for (W, P).
  void merge_row(const msmamba::MapShape& map, int64_t row, const float* projected, const float* tokens, float* line,
                 float* scanned) const {
    convolve_column(map, row, projected, line);
    const int64_t half = sizes_.half;
    for (int64_t i = 0; i < map.width; ++i) {
      const int64_t position = row * map.width + i;
      float* const sum = line + i * padded_;
      for_each_vector<Lanes>(half, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
        const Float<Lanes> residual = load<Lanes>(tokens + position * half + c, used) * *residual_scale_;
        store<Lanes>(sum + c, load<Lanes>(sum + c) + residual);
      });
      float* const target = scanned + position * half;
      layer_norm<Lanes>(sum, half, norm_weight_, norm_bias_,
                        [&](int64_t c, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                          store_unzipped<Lanes>(target + c / 2, target + half / 2 + c / 2, value, used);
                        });
    }
  }

 private:
  // Column `column` of the projected map, its convolved channels through the convolution and SiLU: (H, P).
  void convolve_column(const msmamba::MapShape& map, int64_t column, const float* projected, float* line) const {
    for (int64_t c = 0; c < padded_; c += Lanes) {
      const Float<Lanes> convolved = load<Lanes>(convolved_ + c);
      const Lines lines[1] = {neighbouring_lines(projected + c, column, map.width, padded_, map.width * padded_)};
      if (sum_across<Lanes>(convolved) == 0.0f) {
        for (int64_t i = 0; i < map.height; ++i) {
          store<Lanes>(line + i * padded_ + c, load<Lanes>(lines[0].here.at(i)));
        }
        continue;
      }
      const Float<Lanes> bias = load<Lanes>(conv_bias_ + c);
      convolve_line<Lanes, 1, 1>(
          lines, 0, map.height, map.height, conv_ + c, padded_, AllLanes<Lanes>{},
          [&](int64_t i, const Convolved<Lanes, 1, 1>& result) MSMAMBA_INLINE_BODY {
            const Float<Lanes> value = silu<Lanes>(result.sums[0][0] + bias);
            store<Lanes>(line + i * padded_ + c, convolved != 0.0f ? value : result.centres[0]);
          });
    }
  }

  const msmamba::BlockSizes& sizes_;
  int64_t padded_;
  float* conv_;            // (9, P), shuffled; zero for channels that are not convolved
  float* conv_bias_;       // (P), likewise
  float* convolved_;       // (P): 1 for convolved channels, 0 for the others
  float* residual_scale_;  // (1)
  float* norm_weight_;     // (P)
  float* norm_bias_;       // (P)
};

}  // namespace
