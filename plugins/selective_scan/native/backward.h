// The gradients of the scan, in float32, without ever holding L x D x N states.
//
// Per sequence and direction the states are computed forwards once, keeping those at the start of every tile; then
// tile after tile, last first, the states are computed again, a few of N at a time, and the gradients run back
// through them. With g the gradient of the states, dy that of the output, and a = exp(delta' * A):
//
//     g_t    = a_{t+1} * g_{t+1} + dy_t * C_t
//     dC_t   = sum over channels of dy_t * h_t             dB_t  = sum over channels of g_t * delta'_t * x_t
//     ddelta'_t = <g_t, B_t> * x_t + <g_t * a_t * h_{t-1}, A>
//     dx_t   = <g_t, B_t> * delta'_t + D * dy_t            dA    = sum over t of g_t * a_t * h_{t-1} * delta'_t
//     ddelta_t  = ddelta'_t * sigmoid(delta_t + bias)      dbias = sum over t of ddelta_t
//
// A task owns one sequence with all its directions and channels, so dx, ddelta, dB and dC have one writer. dA, dD
// and dbias are summed within the sequence; the sums of the sequences are added up afterwards, in their
// order. The result does not depend on the number of threads.
#pragma once

#include "channel_vectors.h"
#include "problem.h"
#include "scratch.h"

namespace {

using msmamba::kDirections;
using msmamba::ScanGradients;
using msmamba::ScanInputs;
using msmamba::ScanShape;

// Steps of a tile, and states that go back through it together: what belongs to both fits the first-level cache.
constexpr int kBackwardSteps = 16;
constexpr int kStateGroup = 4;

template <int Wide, int Narrow>
class BackwardScan {
 public:
  // Bytes of scratch, aligned to 64.
  static size_t scratch_bytes(const ScanShape& shape) {
    return Scratch::measure([&](Scratch& scratch) { Buffers(shape, scratch); });
  }

  // `dy` (batch, H, W, D). Gradients of `A`, `D` and `delta_bias` are those of each sequence: (batch, ...).
  BackwardScan(const ScanShape& shape, const ScanInputs& inputs, const float* dy, const ScanGradients& gradients,
               void* memory)
      : shape_(shape),
        x_(static_cast<const float*>(inputs.x)),
        delta_(static_cast<const float*>(inputs.delta)),
        B_(static_cast<const float*>(inputs.B)),
        C_(static_cast<const float*>(inputs.C)),
        inputs_(inputs),
        dy_(dy),
        gradients_(gradients),
        length_(shape.height * shape.width),
        vectors_(static_cast<int>(shape.channels)) {
    Scratch scratch(memory);
    buffers_ = Buffers(shape, scratch);
  }

  void run(int64_t sequence) {
    sequence_ = sequence;
    skip_paths();
    for (direction_ = 0; direction_ < kDirections; ++direction_) {
      vectors_.for_each([&](int first, auto width) { prepare<decltype(width)::kLanes>(first); });
      walk_forwards();
      walk_backwards();
      vectors_.for_each([&](int first, auto width) { finish<decltype(width)::kLanes>(first); });
    }
  }

 private:
  // P: the channels, padded to whole vectors.
  struct Buffers {
    Buffers() = default;
    Buffers(const ScanShape& shape, Scratch& scratch) {
      const int64_t states = shape.states;
      const int64_t padded = (shape.channels + Narrow - 1) / Narrow * Narrow;
      const int64_t length = shape.height * shape.width, tiles = (length + kBackwardSteps - 1) / kBackwardSteps;
      positions = scratch.integers(length);
      A = scratch.floats(states * padded);
      state = scratch.floats(states * padded);
      kept = scratch.floats(tiles * states * padded);
      dstate = scratch.floats(states * padded);
      dA = scratch.floats(states * padded);
      dbias = scratch.floats(padded);
      B = scratch.floats(kBackwardSteps * states + Wide);
      C = scratch.floats(kBackwardSteps * states + Wide);
      dB = scratch.floats(kBackwardSteps * states);
      dC = scratch.floats(kBackwardSteps * states);
      raw = scratch.floats(kBackwardSteps * padded);
      pace = scratch.floats(kBackwardSteps * padded);
      drive = scratch.floats(kBackwardSteps * padded);
      dy = scratch.floats(kBackwardSteps * padded);
      ddrive = scratch.floats(kBackwardSteps * padded);
      dstep = scratch.floats(kBackwardSteps * padded);
      h = scratch.floats((kBackwardSteps + 1) * kStateGroup * Wide);
      decay = scratch.floats(kBackwardSteps * kStateGroup * Wide);
      dB_lanes = scratch.floats(kBackwardSteps * kStateGroup * Wide);
      dC_lanes = scratch.floats(kBackwardSteps * kStateGroup * Wide);
    }

    // Of one direction.
    int64_t* positions;  // (L)
    float* A;            // (vectors, N, lanes)
    float* state;        // (vectors, N, lanes)
    float* kept;         // (tiles, vectors, N, lanes): the state before each tile
    float* dstate;       // (vectors, N, lanes): gradient of the state, carried to the tile before
    float* dA;           // (vectors, N, lanes): times log2(e)
    float* dbias;        // (P)
    // Of one tile.
    float* B;          // (steps, N)
    float* C;          // (steps, N)
    float* dB;         // (steps, N)
    float* dC;         // (steps, N)
    float* raw;        // (vectors, steps, lanes): delta + bias
    float* pace;       // (vectors, steps, lanes): delta' * log2(e)
    float* drive;      // (vectors, steps, lanes): delta' * x
    float* dy;         // (vectors, steps, lanes)
    float* ddrive;     // (vectors, steps, lanes): gradient of drive
    float* dstep;      // (vectors, steps, lanes): gradient of delta' through the decay
    // Of one tile and group of states.
    float* h;         // (1 + steps, group, lanes): the state before the tile, then after each step
    float* decay;     // (steps, group, lanes)
    float* dB_lanes;  // (steps, group, Wide): a sum over the vectors for each lane
    float* dC_lanes;  // (steps, group, Wide)
  };

  MSMAMBA_INLINE int64_t map_row(int64_t position) const { return sequence_ * length_ + position; }
  MSMAMBA_INLINE int64_t direction_row(int64_t position) const { return map_row(position) * kDirections + direction_; }

  // What passes the recurrence by: dx = dy * (the directions' D, summed), dD = sum of dy * x.
  void skip_paths() {
    const int64_t channels = shape_.channels;
    vectors_.for_each([&](int first, auto width) {
      constexpr int kLanes = decltype(width)::kLanes;
      const int lanes_used = vectors_.used(first, kLanes);
      Float<kLanes> skip{}, dD{};
      for (int k = 0; k < kDirections; ++k) skip += load_lanes<kLanes>(inputs_.D + k * channels + first, lanes_used);
      for (int64_t tile = 0; tile < tiles(); ++tile) {
        Float<kLanes> sum{};  // of one tile: long sums in float32 lose digits
        for (int t = 0; t < steps_of(tile); ++t) {
          const int64_t at = map_row(tile * kBackwardSteps + t) * channels + first;
          const Float<kLanes> dy = load_lanes<kLanes>(dy_ + at, lanes_used);
          sum += dy * load_lanes<kLanes>(x_ + at, lanes_used);
          store_lanes<kLanes>(gradients_.x + at, dy * skip, lanes_used);
        }
        dD += sum;
      }
      for (int k = 0; k < kDirections; ++k) {
        store_lanes<kLanes>(gradients_.D + (sequence_ * kDirections + k) * channels + first, dD, lanes_used);
      }
    });
  }

  template <int Lanes>
  void prepare(int first) {
    const int64_t states = shape_.states;
    const int64_t from = direction_ * shape_.channels + first;
    pack_A<Lanes>(buffers_.A + first * states, inputs_.A + from * states, states, vectors_.used(first, Lanes));
    for (int64_t n = 0; n < states; ++n) {
      const int64_t at = first * states + n * Lanes;
      store<Lanes>(buffers_.state + at, Float<Lanes>{});
      store<Lanes>(buffers_.dstate + at, Float<Lanes>{});
      store<Lanes>(buffers_.dA + at, Float<Lanes>{});
    }
    store<Lanes>(buffers_.dbias + first, Float<Lanes>{});
  }

  MSMAMBA_INLINE int64_t position_at(int64_t tile, int t) const {
    return buffers_.positions[tile * kBackwardSteps + t];
  }
  int64_t tiles() const { return (length_ + kBackwardSteps - 1) / kBackwardSteps; }
  int steps_of(int64_t tile) const {
    const int64_t left = length_ - tile * kBackwardSteps;
    return left < kBackwardSteps ? static_cast<int>(left) : kBackwardSteps;
  }

  // Visits the positions in order, keeping the state before each tile.
  void walk_forwards() {
    const int64_t states = shape_.states, padded = vectors_.padded();
    DirectionCursor cursor(direction_, shape_.height, shape_.width);
    for (int64_t done = 0; done < length_; done += kBackwardSteps) {
      cursor.next_positions(buffers_.positions + done, kBackwardSteps);
    }
    for (int64_t tile = 0; tile < tiles(); ++tile) {
      float* const kept = buffers_.kept + tile * states * padded;
      for (int64_t i = 0; i < states * padded; ++i) kept[i] = buffers_.state[i];
      if (tile + 1 == tiles()) return;  // what comes after the last tile is of no use
      fill_projections(tile);
      vectors_.for_each([&](int first, auto width) {
        constexpr int kLanes = decltype(width)::kLanes;
        fill_vector<kLanes>(tile, first);
        for_each_group([&](int n, auto group) {
          const auto call_for_next = [&](int t) MSMAMBA_INLINE_LAMBDA {
            if (n == 0) prefetch<kLanes>(tile + 1, first, t);
          };
          advance_group<kLanes, decltype(group)::kLanes, false>(tile, first, n, call_for_next);
        });
      });
    }
  }

  void walk_backwards() {
    const int64_t states = shape_.states, padded = vectors_.padded();
    for (int64_t tile = tiles() - 1; tile >= 0; --tile) {
      const float* const kept = buffers_.kept + tile * states * padded;
      for (int64_t i = 0; i < states * padded; ++i) buffers_.state[i] = kept[i];
      fill_projections(tile);
      vectors_.for_each([&](int first, auto width) {
        fill_vector<decltype(width)::kLanes>(tile, first);
        fill_gradients<decltype(width)::kLanes>(tile, first);
      });
      for_each_group([&](int n, auto group) {
        constexpr int kGroup = decltype(group)::kLanes;
        const int rows = steps_of(tile) * kGroup;
        for (int i = 0; i < rows * Wide; ++i) buffers_.dB_lanes[i] = buffers_.dC_lanes[i] = 0.0f;
        vectors_.for_each([&](int first, auto width) {
          constexpr int kLanes = decltype(width)::kLanes;
          const auto call_for_next = [&](int t) MSMAMBA_INLINE_LAMBDA {
            if (n == 0 && tile > 0) prefetch_gradients<kLanes>(tile - 1, first, t);
          };
          advance_group<kLanes, kGroup, true>(tile, first, n, call_for_next);
          retreat_group<kLanes, kGroup>(tile, first, n);
        });
        add_up_lanes<kGroup>(buffers_.dB_lanes, buffers_.dB, n, rows);
        add_up_lanes<kGroup>(buffers_.dC_lanes, buffers_.dC, n, rows);
      });
      vectors_.for_each([&](int first, auto width) { drain_vector<decltype(width)::kLanes>(tile, first); });
      drain_projections(tile);
    }
  }

  // Calls `body(n, Width<count>)` for groups of states n to n + count - 1.
  template <typename Body>
  MSMAMBA_INLINE void for_each_group(Body body) const {
    const int states = static_cast<int>(shape_.states);
    int n = 0;
    for (; n + kStateGroup <= states; n += kStateGroup) body(n, Width<kStateGroup>{});
    for (; n < states; ++n) body(n, Width<1>{});
  }

  // What one vector of channels needs of a step; the first fetches B and C for all.
  template <int Lanes>
  MSMAMBA_INLINE void prefetch(int64_t tile, int first, int t) const {
    if (t >= steps_of(tile)) return;
    const int64_t position = position_at(tile, t), row = direction_row(position), channels = shape_.channels;
    prefetch_span(x_ + map_row(position) * channels + first, vectors_.used(first, Lanes));
    prefetch_span(delta_ + row * channels + first, vectors_.used(first, Lanes));
    if (first > 0) return;
    prefetch_span(B_ + row * shape_.states, shape_.states);
    prefetch_span(C_ + row * shape_.states, shape_.states);
  }

  template <int Lanes>
  MSMAMBA_INLINE void prefetch_gradients(int64_t tile, int first, int t) const {
    prefetch<Lanes>(tile, first, t);
    const int64_t at = map_row(position_at(tile, t)) * shape_.channels + first;
    prefetch_span(dy_ + at, vectors_.used(first, Lanes));
    prefetch_span(gradients_.x + at, vectors_.used(first, Lanes));
  }

  void fill_projections(int64_t tile) {
    const int64_t states = shape_.states;
    for (int t = 0; t < steps_of(tile); ++t) {
      const int64_t row = direction_row(position_at(tile, t));
      copy_widened<Wide>(buffers_.B + t * states, B_ + row * states, states);
      copy_widened<Wide>(buffers_.C + t * states, C_ + row * states, states);
    }
  }

  template <int Lanes>
  void fill_vector(int64_t tile, int first) {
    const int64_t channels = shape_.channels;
    const int lanes_used = vectors_.used(first, Lanes);
    const Float<Lanes> bias = load_lanes<Lanes>(inputs_.delta_bias + direction_ * channels + first, lanes_used);
    for (int t = 0; t < steps_of(tile); ++t) {
      const int64_t position = position_at(tile, t), to = first * kBackwardSteps + t * Lanes;
      const float* const delta = delta_ + direction_row(position) * channels + first;
      const float* const x = x_ + map_row(position) * channels + first;
      const Float<Lanes> raw = load_lanes<Lanes>(delta, lanes_used) + bias;
      const Float<Lanes> step = softplus<Lanes>(raw);
      store<Lanes>(buffers_.raw + to, raw);
      store<Lanes>(buffers_.pace + to, pace_of<Lanes>(step));
      store<Lanes>(buffers_.drive + to, step * load_lanes<Lanes>(x, lanes_used));
    }
  }

  template <int Lanes>
  void fill_gradients(int64_t tile, int first) {
    for (int t = 0; t < steps_of(tile); ++t) {
      const float* const dy = dy_ + map_row(position_at(tile, t)) * shape_.channels + first;
      const int64_t to = first * kBackwardSteps + t * Lanes;
      store<Lanes>(buffers_.dy + to, load_lanes<Lanes>(dy, vectors_.used(first, Lanes)));
      store<Lanes>(buffers_.ddrive + to, Float<Lanes>{});
      store<Lanes>(buffers_.dstep + to, Float<Lanes>{});
    }
  }

  // Advances states n to n + Group - 1 over the tile; where `keep`, fills `h` and `decay` on the way.
  // `meanwhile(t)` runs with every step, as in advance_tile.
  template <int Lanes, int Group, bool keep, typename Meanwhile>
  void advance_group(int64_t tile, int first, int n, Meanwhile meanwhile) {
    const int64_t states = shape_.states, at = first * states + n * Lanes;
    Float<Lanes> A[Group], h[Group];
#pragma GCC unroll 4
    for (int i = 0; i < Group; ++i) {
      A[i] = load<Lanes>(buffers_.A + at + i * Lanes);
      h[i] = load<Lanes>(buffers_.state + at + i * Lanes);
      if constexpr (keep) store<Lanes>(buffers_.h + i * Lanes, h[i]);
    }
    const int steps = steps_of(tile);
    for (int t = 0; t < steps; ++t) {
      meanwhile(t);
      const int64_t from = first * kBackwardSteps + t * Lanes;
      const Float<Lanes> pace = load<Lanes>(buffers_.pace + from), drive = load<Lanes>(buffers_.drive + from);
#pragma GCC unroll 4
      for (int i = 0; i < Group; ++i) {
        const Float<Lanes> decay = exp2<Lanes>(pace * A[i]);
        h[i] = decay * h[i] + drive * buffers_.B[t * states + n + i];
        if constexpr (keep) {
          store<Lanes>(buffers_.decay + (t * Group + i) * Lanes, decay);
          store<Lanes>(buffers_.h + ((t + 1) * Group + i) * Lanes, h[i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Group; ++i) store<Lanes>(buffers_.state + at + i * Lanes, h[i]);
  }

  // Takes the gradients of states n to n + Group - 1 back over the tile.
  template <int Lanes, int Group>
  void retreat_group(int64_t tile, int first, int n) {
    const int64_t states = shape_.states, at = first * states + n * Lanes;
    Float<Lanes> A[Group], g[Group], dA[Group];
#pragma GCC unroll 4
    for (int i = 0; i < Group; ++i) {
      A[i] = load<Lanes>(buffers_.A + at + i * Lanes);
      g[i] = load<Lanes>(buffers_.dstate + at + i * Lanes);
      dA[i] = Float<Lanes>{};
    }
    for (int t = steps_of(tile) - 1; t >= 0; --t) {
      const int64_t from = first * kBackwardSteps + t * Lanes;
      const Float<Lanes> pace = load<Lanes>(buffers_.pace + from), drive = load<Lanes>(buffers_.drive + from);
      const Float<Lanes> dy = load<Lanes>(buffers_.dy + from);
      Float<Lanes> ddrive = load<Lanes>(buffers_.ddrive + from), dstep = load<Lanes>(buffers_.dstep + from);
#pragma GCC unroll 4
      for (int i = 0; i < Group; ++i) {
        const int64_t state_at = t * states + n + i;
        const int64_t before = (t * Group + i) * Lanes, after = before + Group * Lanes;
        float* const dB = buffers_.dB_lanes + (t * Group + i) * Wide;
        float* const dC = buffers_.dC_lanes + (t * Group + i) * Wide;
        g[i] += dy * buffers_.C[state_at];
        store<Lanes>(dC, load<Lanes>(dC) + dy * load<Lanes>(buffers_.h + after));
        store<Lanes>(dB, load<Lanes>(dB) + drive * g[i]);
        ddrive += g[i] * buffers_.B[state_at];
        g[i] *= load<Lanes>(buffers_.decay + before);
        const Float<Lanes> through_decay = g[i] * load<Lanes>(buffers_.h + before);
        dstep += through_decay * A[i];
        dA[i] += through_decay * pace;
      }
      store<Lanes>(buffers_.ddrive + from, ddrive);
      store<Lanes>(buffers_.dstep + from, dstep);
    }
#pragma GCC unroll 4
    for (int i = 0; i < Group; ++i) {
      float* const sum = buffers_.dA + at + i * Lanes;
      store<Lanes>(buffers_.dstate + at + i * Lanes, g[i]);
      store<Lanes>(sum, load<Lanes>(sum) + dA[i]);
    }
  }

  // Adds the lanes of each of `rows` rows (steps, Group) up, into states n to n + Group - 1 of `sums` (steps, N).
  template <int Group>
  void add_up_lanes(const float* lanes, float* sums, int n, int rows) {
    alignas(64) float added[kBackwardSteps * kStateGroup + Wide];
    // The buffer holds whole groups of Wide rows; what is beyond `rows` comes out unused.
    for (int i = 0; i < rows; i += Wide) store<Wide>(added + i, sums_of_rows<Wide>(lanes + i * Wide));
    for (int i = 0; i < rows; ++i) sums[i / Group * shape_.states + n + i % Group] = added[i];
  }

  // Gradients of one vector of x and delta.
  template <int Lanes>
  void drain_vector(int64_t tile, int first) {
    const int64_t channels = shape_.channels;
    const int lanes_used = vectors_.used(first, Lanes);
    Float<Lanes> dbias{};
    for (int t = 0; t < steps_of(tile); ++t) {
      const int64_t from = first * kBackwardSteps + t * Lanes, position = position_at(tile, t);
      const int64_t at = map_row(position) * channels + first;
      const Float<Lanes> x = load_lanes<Lanes>(x_ + at, lanes_used);
      const Float<Lanes> ddrive = load<Lanes>(buffers_.ddrive + from);
      const Float<Lanes> dx = load_lanes<Lanes>(gradients_.x + at, lanes_used);
      store_lanes<Lanes>(gradients_.x + at, dx + ddrive * (load<Lanes>(buffers_.pace + from) * kLn2), lanes_used);
      const Float<Lanes> dstep = ddrive * x + load<Lanes>(buffers_.dstep + from);
      const Float<Lanes> draw = dstep * sigmoid<Lanes>(load<Lanes>(buffers_.raw + from));
      store_lanes<Lanes>(gradients_.delta + direction_row(position) * channels + first, draw, lanes_used);
      dbias += draw;
    }
    store<Lanes>(buffers_.dbias + first, load<Lanes>(buffers_.dbias + first) + dbias);
  }

  void drain_projections(int64_t tile) {
    const int64_t states = shape_.states;
    for (int t = 0; t < steps_of(tile); ++t) {
      const int64_t to = direction_row(position_at(tile, t)) * states, from = t * states;
      for (int64_t n = 0; n < states; ++n) {
        put_element(gradients_.B + to + n, buffers_.dB[from + n]);
        put_element(gradients_.C + to + n, buffers_.dC[from + n]);
      }
    }
  }

  // Gradients of one vector of A and delta_bias.
  template <int Lanes>
  void finish(int first) {
    const int64_t states = shape_.states;
    const int lanes_used = vectors_.used(first, Lanes);
    const int64_t to = (sequence_ * kDirections + direction_) * shape_.channels + first;
    store_lanes<Lanes>(gradients_.delta_bias + to, load<Lanes>(buffers_.dbias + first), lanes_used);
    for (int lane = 0; lane < lanes_used; ++lane) {
      for (int64_t n = 0; n < states; ++n) {
        const float dA = buffers_.dA[first * states + n * Lanes + lane] * kLn2;
        put_element(gradients_.A + (to + lane) * states + n, dA);
      }
    }
  }

  const ScanShape& shape_;
  const float* const x_;
  const float* const delta_;
  const float* const B_;
  const float* const C_;
  const ScanInputs& inputs_;
  const float* const dy_;
  const ScanGradients& gradients_;
  const int64_t length_;
  const ChannelVectors<Wide, Narrow> vectors_;
  Buffers buffers_;
  int64_t sequence_ = 0;
  int direction_ = 0;
};

}  // namespace
