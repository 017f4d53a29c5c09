// ScanBranch: everything around and in the scan, from the block's input to the fused output's second operand.
//
// Between the parts stand B, C and delta of every position and direction, six times the map and more than caches
// hold: moving them takes longer than computing them. So nothing of it is stored. A task takes one group through all
// of it; its convolved features stay in the second-level cache, and the projections are made from them for the
// steps of one tile of the recurrence at a time, in the order of the direction, and used at once.
//
// h channels in G groups of d; D inner channels, P of them with padding, for which every weight is zero; N states and R
// step features of a direction; K directions; L = H * W. First the norm of all positions, then the groups, then
// the rows of the output (scan_merge.h).
#pragma once

#include "../../selective_scan/native/channel_vectors.h"
#include "depthwise.h"
#include "layer_norm.h"
#include "matrix.h"
#include "packing.h"
#include "scan_merge.h"

namespace {

template <int Lanes>
class ScanBranch {
 public:
  static size_t packed_bytes(const msmamba::BlockSizes& sizes) { return layout_bytes<Weights>(sizes); }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    const float *norm_weight = source[0], *norm_bias = source[1], *in = source[2], *conv = source[3],
                *conv_bias = source[4], *steps = source[5], *step_expand = source[6], *inputs = source[7],
                *outputs = source[8], *A = source[9], *D = source[10], *delta_bias = source[11],
                *out_norm_weight = source[12], *out_norm_bias = source[13], *project = source[14],
                *project_bias = source[15], *part = source[16], *part_bias = source[17], *residual_scale = source[18];
    const Dims dims(sizes);
    const int64_t inner = dims.inner, padded = dims.padded, states = dims.states, rank = dims.rank;
    // Zero for padded channels.
    const auto within = [&](int64_t channel, const float* value) { return channel < inner ? *value : 0.0f; };

    auto weights = layout_in<Weights>(packed, sizes);
    copy_row<Lanes>(weights.norm_weight, norm_weight, sizes.half);
    copy_row<Lanes>(weights.norm_bias, norm_bias, sizes.half);
    weights.flow.pack([&](int64_t i, int64_t c) { return within(c, in + i * 2 * inner + c); });
    weights.gate.pack([&](int64_t i, int64_t c) { return in[i * 2 * inner + inner + c]; });
    weights.steps.pack([&](int64_t c, int64_t column) { return steps[c * sizes.steps + column]; });
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      fill_row<Lanes>(weights.conv + tap * whole_vectors<Lanes>(padded), inner,
                      [&](int64_t c) { return conv[c * kTaps + tap]; });
    }
    copy_row<Lanes>(weights.conv_bias, conv_bias, inner);
    for (int64_t c = 0; c < padded; ++c) weights.skip[c] = 0.0f;
    for (int64_t k = 0; k < kDirections; ++k) {
      weights.projections[k].pack([&](int64_t c, int64_t column) {
        const bool is_B = column < dims.C;
        const int64_t state = is_B ? column : column - dims.C;
        return state < states ? (is_B ? inputs : outputs)[c * sizes.states + k * states + state] : 0.0f;
      });
      for (int64_t c = 0; c < padded; ++c) {
        for (int64_t r = 0; r < rank; ++r) {
          const int64_t row = k * rank + r;
          weights.step_expand[row * padded + c] = within(c, step_expand + (row * kDirections + k) * inner + c);
        }
        weights.delta_bias[k * padded + c] = within(c, delta_bias + k * inner + c);
        weights.skip[c] += within(c, D + k * inner + c);
      }
      dims.vectors.for_each([&](int first, auto width) {
        constexpr int kLanes = decltype(width)::kLanes;
        pack_A<kLanes>(weights.A + (k * padded + first) * states, A + (k * inner + first) * states, states,
                       dims.vectors.used(first, kLanes));
      });
    }
    copy_row<Lanes>(weights.out_norm_weight, out_norm_weight, inner);
    copy_row<Lanes>(weights.out_norm_bias, out_norm_bias, inner);
    // The shuffle within a group costs nothing: it is the order of these columns.
    const int64_t model = sizes.model;
    weights.project.pack([&](int64_t i, int64_t c) { return project[i * model + unshuffled(c, model)]; });
    fill_row<Lanes>(weights.project_bias, model, [&](int64_t c) { return project_bias[unshuffled(c, model)]; });
    weights.merge.pack(part, part_bias, residual_scale, norm_weight, norm_bias);
  }

  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return Scratch::measure([&](Scratch& scratch) { Shared(sizes, map, scratch); });
  }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    const size_t group = Scratch::measure([&](Scratch& scratch) { Buffers(Dims(sizes), map, scratch); });
    const size_t line = static_cast<size_t>(map.width * whole_vectors<Lanes>(sizes.half)) * sizeof(float);
    return group > line ? group : line;
  }

  static void norm(const msmamba::BlockCall& call, const msmamba::Tile& tile, void*) {
    const int64_t half = call.sizes.half, first = tile.image * call.map.positions() + tile.first;
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const float* const x = call.inputs[0] + first * 2 * half + half;
    float* const tokens = shared_of(call).tokens + first * half;
    for (int64_t i = 0; i < tile.last - tile.first; ++i) {
      layer_norm<Lanes>(x + i * 2 * half, half, weights.norm_weight, weights.norm_bias,
                        [&](int64_t c, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                          store<Lanes>(tokens + i * half + c, value, used);
                        });
    }
  }

  static void scan(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    for (int64_t group = tile.first; group < tile.last; ++group) Group(call, tile.image, group, memory).run();
  }

  static void merge(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const int64_t half = call.sizes.half, first = tile.image * call.map.positions();
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const Shared shared = shared_of(call);
    for (int64_t row = tile.first; row < tile.last; ++row) {
      weights.merge.merge_row(call.map, row, shared.projected + first * whole_vectors<Lanes>(half),
                              shared.tokens + first * half, static_cast<float*>(memory),
                              call.outputs[0] + first * half);
    }
  }

 private:
  static constexpr int64_t kDirections = msmamba::kDirections;
  static constexpr int64_t kTilePositions = 64;
  using Vectors = ChannelVectors<Lanes, (Lanes > 8 ? Lanes / 2 : Lanes)>;

  // Sizes of one group and one direction. The projections of a position are its B and C, side by side.
  struct Dims {
    explicit Dims(const msmamba::BlockSizes& sizes)
        : vectors(static_cast<int>(sizes.inner)),
          inner(sizes.inner),
          padded(vectors.padded()),
          states(sizes.states / kDirections),
          rank(sizes.steps / kDirections),
          C(whole_vectors<Lanes>(states)),
          projections(C + states) {}

    Vectors vectors;
    int64_t inner;        // D
    int64_t padded;       // P
    int64_t states;       // N
    int64_t rank;         // R
    int64_t C;            // the column where C begins
    int64_t projections;  // columns
  };

  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch) : Weights(sizes, Dims(sizes), scratch) {}
    Weights(const msmamba::BlockSizes& sizes, const Dims& dims, Scratch& scratch)
        : norm_weight(padded_row<Lanes>(scratch, sizes.half)),
          norm_bias(padded_row<Lanes>(scratch, sizes.half)),
          flow(sizes.model, dims.padded, scratch),
          gate(sizes.model, dims.inner, scratch),
          conv(scratch.floats(kTaps * whole_vectors<Lanes>(dims.padded))),
          conv_bias(padded_row<Lanes>(scratch, dims.padded)),
          steps(dims.inner, sizes.steps, scratch),
          projections{{dims.inner, dims.projections, scratch},
                      {dims.inner, dims.projections, scratch},
                      {dims.inner, dims.projections, scratch},
                      {dims.inner, dims.projections, scratch}},
          step_expand(scratch.floats(kDirections * dims.rank * dims.padded)),
          delta_bias(scratch.floats(kDirections * dims.padded)),
          A(scratch.floats(kDirections * dims.padded * dims.states)),
          skip(scratch.floats(dims.padded)),
          out_norm_weight(padded_row<Lanes>(scratch, dims.inner)),
          out_norm_bias(padded_row<Lanes>(scratch, dims.inner)),
          project(dims.inner, sizes.model, scratch),
          project_bias(padded_row<Lanes>(scratch, sizes.model)),
          merge(sizes, scratch) {}

    float* norm_weight;                      // (h)
    float* norm_bias;                        // (h)
    Matrix<Lanes> flow;                      // (d, P): to the convolution
    Matrix<Lanes> gate;                      // (d, D)
    float* conv;                             // (9, P)
    float* conv_bias;                        // (P)
    Matrix<Lanes> steps;                     // (D, K*R)
    Matrix<Lanes> projections[kDirections];  // (D, projections)
    float* step_expand;                      // (K, R, P)
    float* delta_bias;                       // (K, P)
    float* A;                                // (K, vectors, N, lanes)
    float* skip;                             // (P): the four directions' skip weights, summed
    float* out_norm_weight;                  // (D)
    float* out_norm_bias;                    // (D)
    Matrix<Lanes> project;                   // (D, d), columns shuffled
    float* project_bias;                     // (d), shuffled
    ScanMerge<Lanes> merge;
  };

  struct Shared {
    Shared(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map, Scratch& scratch)
        : tokens(scratch.floats(map.batch * map.positions() * sizes.half)),
          projected(scratch.floats(map.batch * map.positions() * whole_vectors<Lanes>(sizes.half))) {}

    float* tokens;     // (batch, L, h): the normed input
    float* projected;  // (batch, L, h padded): all groups' outputs before the merge
  };

  static Shared shared_of(const msmamba::BlockCall& call) {
    Scratch scratch(call.shared);
    return Shared(call.sizes, call.map, scratch);
  }

  struct Buffers {
    Buffers(const Dims& dims, const msmamba::MapShape& map, Scratch& scratch)
        : features(scratch.floats(map.positions() * dims.padded)),
          steps(scratch.floats(map.positions() * kDirections * dims.rank)),
          sum(scratch.floats(map.positions() * dims.padded)),
          state(scratch.floats(dims.padded * dims.states)),
          x(scratch.floats(kTileSteps * dims.padded)),
          projections(scratch.floats(kTileSteps * dims.projections)),
          B(scratch.floats(kTileSteps * dims.states)),
          C(scratch.floats(kTileSteps * dims.states)),
          pace(scratch.floats(kTileSteps * Lanes)),
          drive(scratch.floats(kTileSteps * Lanes)),
          output(scratch.floats(kTileSteps * Lanes)),
          gate(scratch.floats(kTilePositions * dims.inner)) {}

    float* features;     // (L, P)
    float* steps;        // (L, K, R)
    float* sum;          // (L, P): before the scan what the convolution reads, then the output so far
    float* state;        // (vectors, N, lanes)
    float* x;            // (kTileSteps, P), as the next six, one tile of the recurrence: its features
    float* projections;  // (kTileSteps, projections)
    float* B;            // (kTileSteps, N)
    float* C;            // (kTileSteps, N)
    float* pace;         // (kTileSteps, lanes)
    float* drive;        // (kTileSteps, lanes)
    float* output;       // (kTileSteps, lanes)
    float* gate;         // (kTilePositions, D)
  };

  // One group of one image on its way from the tokens to the projected map.
  class Group {
   public:
    Group(const msmamba::BlockCall& call, int64_t image, int64_t group, void* memory)
        : sizes_(call.sizes),
          map_(call.map),
          dims_(sizes_),
          weights_(layout_in<Weights>(call.packed, sizes_)),
          buffers_(buffers_in(memory)) {
      const Shared shared = shared_of(call);
      const int64_t first = image * map_.positions();
      tokens_ = shared.tokens + first * sizes_.half + group * sizes_.model;
      projected_ = shared.projected + first * whole_vectors<Lanes>(sizes_.half) + group * sizes_.model;
    }

    void run() {
      make_features();
      // Columns first, so that the direction that finishes the sums goes through them row by row.
      scan<First>(1);
      scan<Middle>(3);
      scan<Middle>(0);
      scan<Last>(2);
      project();
    }

   private:
    enum Turn { First, Middle, Last };

    Buffers buffers_in(void* memory) const {
      Scratch scratch(memory);
      return Buffers(dims_, map_, scratch);
    }

    MSMAMBA_NOINLINE void make_features() {
      const int64_t padded = dims_.padded, width = map_.width;
      float* const flow = buffers_.sum;
      weights_.flow.multiply({tokens_, sizes_.half}, map_.positions(), {flow, padded});
      for (int64_t row = 0; row < map_.height; ++row) {
        float* const target = buffers_.features + row * width * padded;
        for_each_vector<Lanes>(padded, [&](int64_t c, auto used) {
          const Lines lines[1] = {neighbouring_lines(flow + c, row, map_.height, width * padded, padded)};
          const Float<Lanes> bias = load<Lanes>(weights_.conv_bias + c);
          convolve_line<Lanes, 1, 1>(
              lines, 0, width, width, weights_.conv + c, whole_vectors<Lanes>(padded), used,
              [&](int64_t position, const Convolved<Lanes, 1, 1>& result) MSMAMBA_INLINE_BODY {
                store<Lanes>(target + position * padded + c, silu<Lanes>(result.sums[0][0] + bias), used);
              });
        });
      }
      weights_.steps.multiply({buffers_.features, padded}, map_.positions(), {buffers_.steps, sizes_.steps});
    }

    template <Turn turn>
    void scan(int direction) {
      const int64_t padded = dims_.padded, states = dims_.states;
      for (int64_t i = 0; i < padded * states; ++i) buffers_.state[i] = 0.0f;
      DirectionCursor cursor(direction, map_.height, map_.width);
      int64_t positions[kTileSteps], next_positions[kTileSteps];
      int steps = cursor.next_positions(positions, kTileSteps);
      while (steps > 0) {
        const int next_steps = cursor.next_positions(next_positions, kTileSteps);
        fill_projections(direction, positions, steps);
        dims_.vectors.for_each([&](int first, auto width) {
          constexpr int kLanes = decltype(width)::kLanes;
          fill_vector<kLanes>(direction, first, positions, steps);
          const Tile tile = {steps,         static_cast<int>(states), buffers_.pace,  buffers_.drive,
                             buffers_.B, buffers_.C,               buffers_.output};
          const auto call_for_next = [&](int t) MSMAMBA_INLINE_BODY {
            if (t < next_steps) {
              prefetch_span(buffers_.features + next_positions[t] * padded + first, kLanes);
              prefetch_span(buffers_.sum + next_positions[t] * padded + first, kLanes);
            }
          };
          advance_tile<kLanes>(tile, weights_.A + (direction * padded + first) * states,
                               buffers_.state + first * states, call_for_next);
          drain_vector<turn, kLanes>(first, positions, steps);
        });
        for (int t = 0; t < next_steps; ++t) positions[t] = next_positions[t];
        steps = next_steps;
      }
    }

    // Gathers the tile's features and projects them.
    MSMAMBA_NOINLINE void fill_projections(int direction, const int64_t* positions, int steps) {
      const int64_t padded = dims_.padded, states = dims_.states;
      for (int t = 0; t < steps; ++t) copy(buffers_.x + t * padded, buffers_.features + positions[t] * padded, padded);
      weights_.projections[direction].multiply({buffers_.x, padded}, steps,
                                               {buffers_.projections, dims_.projections});
      for (int t = 0; t < steps; ++t) {
        const float* const row = buffers_.projections + t * dims_.projections;
        copy(buffers_.B + t * states, row, states);
        copy(buffers_.C + t * states, row + dims_.C, states);
      }
    }

    MSMAMBA_INLINE static void copy(float* target, const float* source, int64_t count) {
      for_each_vector<Lanes>(count, [&](int64_t i, auto used) MSMAMBA_INLINE_BODY {
        store<Lanes>(target + i, load<Lanes>(source + i, used), used);
      });
    }

    template <int Width>
    MSMAMBA_NOINLINE void fill_vector(int direction, int first, const int64_t* positions, int steps) {
      const int64_t padded = dims_.padded, rank = dims_.rank;
      const Float<Width> bias = load<Width>(weights_.delta_bias + direction * padded + first);
      const float* const expand = weights_.step_expand + direction * rank * padded + first;
      for (int t = 0; t < steps; ++t) {
        const float* const features = buffers_.steps + (positions[t] * kDirections + direction) * rank;
        Float<Width> delta = bias;
        for (int64_t r = 0; r < rank; ++r) delta += features[r] * load<Width>(expand + r * padded);
        const Float<Width> step = softplus<Width>(delta);
        store<Width>(buffers_.pace + t * Width, pace_of<Width>(step));
        store<Width>(buffers_.drive + t * Width, step * load<Width>(buffers_.x + t * padded + first));
      }
    }

    template <Turn turn, int Width>
    MSMAMBA_NOINLINE void drain_vector(int first, const int64_t* positions, int steps) {
      const int64_t padded = dims_.padded;
      const Float<Width> skip = load<Width>(weights_.skip + first);
      for (int t = 0; t < steps; ++t) {
        float* const sum = buffers_.sum + positions[t] * padded + first;
        Float<Width> value = load<Width>(buffers_.output + t * Width);
        if constexpr (turn != First) value += load<Width>(sum);
        if constexpr (turn == Last) value += skip * load<Width>(buffers_.x + t * padded + first);
        store<Width>(sum, value);
      }
    }

    // Norm, gate and output projection.
    MSMAMBA_NOINLINE void project() {
      const int64_t inner = dims_.inner, half = sizes_.half, length = map_.positions();
      for (int64_t start = 0; start < length; start += kTilePositions) {
        const int64_t count = length - start < kTilePositions ? length - start : kTilePositions;
        float* const gated = buffers_.gate;
        weights_.gate.multiply({tokens_ + start * half, half}, count, {gated, inner},
                               [](int64_t, Float<Lanes> value) MSMAMBA_INLINE_BODY { return silu<Lanes>(value); });
        for (int64_t i = 0; i < count; ++i) {
          float* const row = gated + i * inner;
          layer_norm<Lanes>(buffers_.sum + (start + i) * dims_.padded, inner, weights_.out_norm_weight,
                            weights_.out_norm_bias, [&](int64_t c, Float<Lanes> value, auto used) MSMAMBA_INLINE_BODY {
                              store<Lanes>(row + c, value * load<Lanes>(row + c, used), used);
                            });
        }
        const int64_t stride = whole_vectors<Lanes>(half);
        weights_.project.multiply({gated, inner}, count, {projected_ + start * stride, stride},
                                  [&](int64_t c, Float<Lanes> product) MSMAMBA_INLINE_BODY {
                                    return silu<Lanes>(product + load<Lanes>(weights_.project_bias + c));
                                  });
      }
    }

    const msmamba::BlockSizes& sizes_;
    const msmamba::MapShape& map_;
    const Dims dims_;
    const Weights weights_;
    const Buffers buffers_;
    const float* tokens_;  // (L, d), rows h apart
    float* projected_;     // (L, d), rows h padded apart
  };
};

}  // namespace
