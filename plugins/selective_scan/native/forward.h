// The forward scan of the contract: tiles filled from stored `delta`, outputs summed over the directions.
//
// A task owns some channels of some sequences and runs all four directions of them, adding each output to
// a float32 map of its own; nothing is shared between tasks, so there is neither a race nor a
// reduction, and the result does not depend on the number of threads.
//
// Within a task the channels go through the recurrence a vector at a time, tile by tile: B and C of a tile are
// read once for all of them, and x and delta while their cache lines are at hand.
#pragma once

#include "channel_vectors.h"
#include "problem.h"
#include "scratch.h"

namespace {

using msmamba::ForwardTask;
using msmamba::kDirections;
using msmamba::kMostVectors;
using msmamba::ScanInputs;
using msmamba::ScanShape;

// `Wide` lanes for full vectors of channels, `Narrow` for a last vector of few.
template <int Wide, int Narrow, typename Element>
class ForwardScan {
 public:
  // Bytes of scratch, aligned to 64.
  static size_t scratch_bytes(const ScanShape& shape) {
    return Scratch::measure([&](Scratch& scratch) { Buffers(shape, scratch); });
  }

  ForwardScan(const ScanShape& shape, const ScanInputs& inputs, void* y, void* memory)
      : shape_(shape), inputs_(inputs), y_(static_cast<Element*>(y)), length_(shape.height * shape.width) {
    Scratch scratch(memory);
    buffers_ = Buffers(shape, scratch);
  }

  void run(const ForwardTask& task) {
    task_ = task;
    vectors_ = ChannelVectors<Wide, Narrow>(task.channels);
    prepare();
    for (int64_t sequence = task.first_sequence; sequence < task.last_sequence; ++sequence) {
      // Columns first, so that the direction that writes `y` goes through it row by row.
      scan<First>(sequence, 1);
      scan<Middle>(sequence, 3);
      scan<Middle>(sequence, 0);
      scan<Last>(sequence, 2);
    }
  }

 private:
  enum Turn { First, Middle, Last };

  // Channels in the buffers are padded to whole vectors: P of them, at most kMostVectors * Wide.
  struct Buffers {
    Buffers() = default;
    Buffers(const ScanShape& shape, Scratch& scratch) {
      const int64_t padded = kMostVectors * Wide, states = shape.states;
      sum = scratch.floats(shape.height * shape.width * padded);
      A = scratch.floats(kDirections * states * padded);
      state = scratch.floats(states * padded);
      reach = scratch.floats(kDirections * padded);
      bias = scratch.floats(kDirections * padded);
      skip = scratch.floats(padded);
      B = scratch.floats(kTileSteps * states + Wide);
      C = scratch.floats(kTileSteps * states + Wide);
      pace = scratch.floats(kTileSteps * Wide);
      drive = scratch.floats(kTileSteps * Wide);
      output = scratch.floats(kTileSteps * Wide);
    }

    float* sum;     // (L, P): the output of the directions so far
    float* A;       // (K, vectors, N, lanes)
    float* state;   // (vectors, N, lanes)
    float* reach;   // (K, P): the largest |A| of any state
    float* bias;    // (K, P)
    float* skip;    // (P): the four directions' skip weights, summed
    float* B;       // (kTileSteps, N), as the rest: one tile
    float* C;       // (kTileSteps, N)
    float* pace;    // (kTileSteps, lanes)
    float* drive;   // (kTileSteps, lanes)
    float* output;  // (kTileSteps, lanes)
  };

  void prepare() {
    const int64_t channels = shape_.channels, states = shape_.states, padded = vectors_.padded();
    vectors_.for_each([&](int first, auto width) {
      constexpr int kLanes = decltype(width)::kLanes;
      const int lanes_used = vectors_.used(first, kLanes);
      Float<kLanes> skip{};
      for (int k = 0; k < kDirections; ++k) {
        const int64_t from = k * channels + task_.first_channel + first;
        skip += load_lanes<kLanes>(inputs_.D + from, lanes_used);
        store<kLanes>(buffers_.bias + k * padded + first, load_lanes<kLanes>(inputs_.delta_bias + from, lanes_used));
        float* const A = buffers_.A + (k * padded + first) * states;
        pack_A<kLanes>(A, inputs_.A + from * states, states, lanes_used);
        Float<kLanes> reach{};
        for (int64_t n = 0; n < states; ++n) {
          const Float<kLanes> rates = load<kLanes>(A + n * kLanes);
          reach = larger<kLanes>(larger<kLanes>(rates, -rates), reach);
        }
        store<kLanes>(buffers_.reach + k * padded + first, reach);
      }
      store<kLanes>(buffers_.skip + first, skip);
    });
  }

  template <Turn turn>
  void scan(int64_t sequence, int direction) {
    const int states = static_cast<int>(shape_.states);
    const int64_t padded = vectors_.padded();
    for (int64_t i = 0; i < padded * states; ++i) buffers_.state[i] = 0.0f;
    DirectionCursor cursor(direction, shape_.height, shape_.width);
    int64_t positions[kTileSteps], next_positions[kTileSteps];
    int steps = cursor.next_positions(positions, kTileSteps);
    while (steps > 0) {
      fill_projections(sequence, direction, positions, steps);
      // Columns defeat the machine's own prefetching, and the first stage's operands exceed its second-level
      // cache: the operands of the next tile are called for during the recurrence over this one.
      const int next_steps = cursor.next_positions(next_positions, kTileSteps);
      vectors_.for_each([&](int first, auto width) {
        constexpr int kLanes = decltype(width)::kLanes;
        const bool full = vectors_.used(first, kLanes) == kLanes;
        const Float<kLanes> largest_pace =
            full ? fill_vector<kLanes, true>(sequence, direction, first, positions, steps)
                 : fill_vector<kLanes, false>(sequence, direction, first, positions, steps);
        const Tile tile = {steps, states, buffers_.pace, buffers_.drive, buffers_.B, buffers_.C, buffers_.output};
        const auto call_for_next = [&](int t) MSMAMBA_INLINE_LAMBDA {
          if (t < next_steps) prefetch<kLanes>(sequence, direction, first, next_positions[t]);
        };
        const float* const A = buffers_.A + (direction * padded + first) * states;
        float* const state = buffers_.state + first * states;
        if (decays_are_normal<kLanes>(largest_pace, load<kLanes>(buffers_.reach + direction * padded + first))) {
          advance_tile<kLanes, true>(tile, A, state, call_for_next);
        } else {
          advance_tile<kLanes, false>(tile, A, state, call_for_next);
        }
        if (full) {
          drain_vector<turn, kLanes, true>(sequence, first, positions, steps);
        } else {
          drain_vector<turn, kLanes, false>(sequence, first, positions, steps);
        }
      });
      for (int t = 0; t < next_steps; ++t) positions[t] = next_positions[t];
      steps = next_steps;
    }
  }

  // The row of `x` and `y`, and the row of `delta`, `B` and `C`, at one position.
  MSMAMBA_INLINE int64_t map_row(int64_t sequence, int64_t position) const { return sequence * length_ + position; }
  MSMAMBA_INLINE int64_t direction_row(int64_t sequence, int64_t position, int direction) const {
    return map_row(sequence, position) * kDirections + direction;
  }
  MSMAMBA_INLINE const Element* x_at(int64_t row) const {
    return static_cast<const Element*>(inputs_.x) + row * shape_.channels + task_.first_channel;
  }
  MSMAMBA_INLINE const Element* delta_at(int64_t row) const {
    return static_cast<const Element*>(inputs_.delta) + row * shape_.channels + task_.first_channel;
  }
  MSMAMBA_INLINE const Element* B_at(int64_t row) const {
    return static_cast<const Element*>(inputs_.B) + row * shape_.states;
  }
  MSMAMBA_INLINE const Element* C_at(int64_t row) const {
    return static_cast<const Element*>(inputs_.C) + row * shape_.states;
  }

  // What one vector of channels needs at one position; the first fetches B and C for all.
  template <int Lanes>
  MSMAMBA_INLINE void prefetch(int64_t sequence, int direction, int first, int64_t position) const {
    const int64_t row = direction_row(sequence, position, direction);
    prefetch_span(x_at(map_row(sequence, position)) + first, vectors_.used(first, Lanes));
    prefetch_span(delta_at(row) + first, vectors_.used(first, Lanes));
    if (first > 0) return;
    prefetch_span(B_at(row), shape_.states);
    prefetch_span(C_at(row), shape_.states);
  }

  // The loops below are functions of their own, with and without idle lanes, so that each keeps its constants and
  // addresses in registers.

  MSMAMBA_NOINLINE void fill_projections(int64_t sequence, int direction, const int64_t* positions, int steps) {
    const int64_t states = shape_.states;
    for (int t = 0; t < steps; ++t) {
      const int64_t row = direction_row(sequence, positions[t], direction);
      copy_widened<Wide>(buffers_.B + t * states, B_at(row), states);
      copy_widened<Wide>(buffers_.C + t * states, C_at(row), states);
    }
  }

  // Returns the largest pace of each lane.
  template <int Lanes, bool full>
  MSMAMBA_NOINLINE Float<Lanes> fill_vector(int64_t sequence, int direction, int first, const int64_t* positions,
                                            int steps) {
    const int lanes_used = full ? Lanes : vectors_.used(first, Lanes);
    const Float<Lanes> bias = load<Lanes>(buffers_.bias + direction * vectors_.padded() + first);
    Float<Lanes> largest{};
    for (int t = 0; t < steps; ++t) {
      const Element* delta = delta_at(direction_row(sequence, positions[t], direction)) + first;
      const Element* x = x_at(map_row(sequence, positions[t])) + first;
      const Float<Lanes> step = softplus<Lanes>(load_lanes<Lanes>(delta, lanes_used) + bias);
      const Float<Lanes> pace = pace_of<Lanes>(step);
      largest = larger<Lanes>(pace, largest);
      store<Lanes>(buffers_.pace + t * Lanes, pace);
      store<Lanes>(buffers_.drive + t * Lanes, step * load_lanes<Lanes>(x, lanes_used));
    }
    return largest;
  }

  template <Turn turn, int Lanes, bool full>
  MSMAMBA_NOINLINE void drain_vector(int64_t sequence, int first, const int64_t* positions, int steps) {
    const int lanes_used = full ? Lanes : vectors_.used(first, Lanes);
    const Float<Lanes> skip = load<Lanes>(buffers_.skip + first);
    for (int t = 0; t < steps; ++t) {
      float* sum = buffers_.sum + positions[t] * vectors_.padded() + first;
      Float<Lanes> value = load<Lanes>(buffers_.output + t * Lanes);
      if constexpr (turn != First) value += load<Lanes>(sum);
      if constexpr (turn != Last) {
        store<Lanes>(sum, value);
      } else {
        const int64_t row = map_row(sequence, positions[t]);
        value += skip * load_lanes<Lanes>(x_at(row) + first, lanes_used);
        store_lanes<Lanes>(y_ + row * shape_.channels + task_.first_channel + first, value, lanes_used);
      }
    }
  }

  const ScanShape& shape_;
  const ScanInputs& inputs_;
  Element* const y_;
  const int64_t length_;
  Buffers buffers_;
  ForwardTask task_{};
  ChannelVectors<Wide, Narrow> vectors_;
};

}  // namespace
