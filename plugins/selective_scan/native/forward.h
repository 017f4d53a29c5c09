// The forward scan of the contract: tiles filled from stored `delta`, outputs summed over the directions.
//
// A task owns some channels of some sequences and runs all four directions of them, adding each output to
// a float32 map of its own; nothing is shared between tasks, so there is neither a race nor a
// reduction, and the result does not depend on the number of threads.
//
// Within a task the channels go through the recurrence a vector at a time, tile by tile: B and C of a tile are
// read once for all of them, and x and delta while their cache lines are at hand.
#pragma once

#include <type_traits>

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
  static constexpr int kStepsTogether = 4;
  static constexpr int kLineFloats = 16;  // of a cache line of 64 bytes
  static constexpr bool kIsFloat32 = std::is_same_v<Element, float>;

  // Where the operands of a tile's steps stand: x and delta at the task's first channel.
  struct Rows {
    int steps;
    const Element* x[kTileSteps];
    const Element* delta[kTileSteps];
    const Element* B[kTileSteps];
    const Element* C[kTileSteps];
    float* sum[kTileSteps];  // the output of the directions so far
  };

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
    }

    float* sum;     // (L, P): the output of the directions so far
    float* A;       // (K, vectors, N, lanes)
    float* state;   // (vectors, N, lanes)
    float* reach;   // (K, P): the largest |A| of any state
    float* bias;    // (K, P)
    float* skip;    // (P): the four directions' skip weights, summed
    float* B;       // (kTileSteps, N), as the rest: one tile; for types other than float32
    float* C;       // (kTileSteps, N)
    float* pace;    // (kTileSteps, lanes)
    float* drive;   // (kTileSteps, lanes)
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
    Rows tiles[2];
    Rows *here = &tiles[0], *next = &tiles[1];
    find_rows(sequence, direction, cursor, *here);
    while (here->steps > 0) {
      widen_projections(*here);
      // Columns defeat the machine's own prefetching, and the first stage's operands exceed its second-level
      // cache: the operands of the next tile are called for during the recurrence over this one.
      find_rows(sequence, direction, cursor, *next);
      vectors_.for_each([&](int first, auto width) {
        constexpr int kLanes = decltype(width)::kLanes;
        const int lanes_used = vectors_.used(first, kLanes);
        const Float<kLanes> bias = load<kLanes>(buffers_.bias + direction * padded + first);
        const Float<kLanes> largest_pace = lanes_used == kLanes ? fill_vector<kLanes, true>(*here, first, bias)
                                                                : fill_vector<kLanes, false>(*here, first, bias);
        const Tile tile = {here->steps, states,    buffers_.pace, buffers_.drive, B_rows(*here),
                           C_rows(*here), here->sum, first,         turn != First};
        // Of short vectors, which share cache lines, one calls for all that its line holds.
        constexpr int kSpan = kLanes < 8 ? kLineFloats : kLanes;
        const int steps_ahead = first % kSpan == 0 ? next->steps : 0, span = vectors_.used(first, kSpan);
        const auto call_for_next = [=](int t) MSMAMBA_INLINE_LAMBDA {
          if (t < steps_ahead) prefetch(*next, t, first, span, states);
        };
        const float* const A = buffers_.A + (direction * padded + first) * states;
        float* const state = buffers_.state + first * states;
        const Float<kLanes> reach = load<kLanes>(buffers_.reach + direction * padded + first);
        advance_within<kLanes, 1>({largest_pace, reach, task_.own_adders}, tile, A, state, call_for_next);
        if constexpr (turn == Last) {
          if (lanes_used == kLanes) {
            write_vector<kLanes, true>(*here, first);
          } else {
            write_vector<kLanes, false>(*here, first);
          }
        }
      });
      Rows* const done = here;
      here = next;
      next = done;
    }
  }

  // What one vector of channels needs at one step; the first fetches B and C for all.
  MSMAMBA_INLINE static void prefetch(const Rows& rows, int t, int first, int channels, int states) {
    prefetch_span(rows.x[t] + first, channels);
    prefetch_span(rows.delta[t] + first, channels);
    if (first > 0) return;
    prefetch_span(rows.B[t], states);
    prefetch_span(rows.C[t], states);
  }

  // The loops below are functions of their own, with and without idle lanes, so that each keeps its constants and
  // addresses in registers.

  // The next tile of a direction; without steps at its end.
  MSMAMBA_NOINLINE void find_rows(int64_t sequence, int direction, DirectionCursor& cursor, Rows& rows) {
    int64_t positions[kTileSteps];
    rows.steps = cursor.next_positions(positions, kTileSteps);
    for (int t = 0; t < rows.steps; ++t) {
      const int64_t row = sequence * length_ + positions[t], direction_row = row * kDirections + direction;
      rows.x[t] = static_cast<const Element*>(inputs_.x) + row * shape_.channels + task_.first_channel;
      rows.delta[t] = static_cast<const Element*>(inputs_.delta) + direction_row * shape_.channels + task_.first_channel;
      rows.B[t] = static_cast<const Element*>(inputs_.B) + direction_row * shape_.states;
      rows.C[t] = static_cast<const Element*>(inputs_.C) + direction_row * shape_.states;
      rows.sum[t] = buffers_.sum + positions[t] * vectors_.padded();
    }
  }

  // B and C as float32, where they stand or in the buffers.
  MSMAMBA_NOINLINE void widen_projections(const Rows& rows) {
    if constexpr (!kIsFloat32) {
      const int64_t states = shape_.states;
      for (int t = 0; t < rows.steps; ++t) {
        wide_B_[t] = buffers_.B + t * states;
        wide_C_[t] = buffers_.C + t * states;
        copy_widened<Wide>(buffers_.B + t * states, rows.B[t], states);
        copy_widened<Wide>(buffers_.C + t * states, rows.C[t], states);
      }
    }
  }
  MSMAMBA_INLINE const float* const* B_rows(const Rows& rows) const {
    if constexpr (kIsFloat32) {
      return rows.B;
    } else {
      return wide_B_;
    }
  }
  MSMAMBA_INLINE const float* const* C_rows(const Rows& rows) const {
    if constexpr (kIsFloat32) {
      return rows.C;
    } else {
      return wide_C_;
    }
  }

  // Returns the largest pace of each lane.
  template <int Lanes, bool full>
  MSMAMBA_NOINLINE Float<Lanes> fill_vector(const Rows& rows, int first, Float<Lanes> bias) {
    const int lanes_used = full ? Lanes : vectors_.used(first, Lanes);
    Float<Lanes> largest{};
    int t = 0;
    for (; t + kStepsTogether <= rows.steps; t += kStepsTogether) {
      fill_steps<Lanes, kStepsTogether>(rows, t, first, lanes_used, bias, largest);
    }
    for (; t < rows.steps; ++t) fill_steps<Lanes, 1>(rows, t, first, lanes_used, bias, largest);
    return largest;
  }

  template <int Lanes, int Steps>
  MSMAMBA_INLINE void fill_steps(const Rows& rows, int t, int first, int lanes_used, Float<Lanes> bias,
                                 Float<Lanes>& largest) {
    Float<Lanes> step[Steps];
#pragma GCC unroll 4
    for (int i = 0; i < Steps; ++i) step[i] = load_lanes<Lanes>(rows.delta[t + i] + first, lanes_used) + bias;
    step_sizes<Lanes, Wide>(step);
#pragma GCC unroll 4
    for (int i = 0; i < Steps; ++i) {
      const Float<Lanes> pace = pace_of<Lanes>(step[i]);
      largest = larger<Lanes>(pace, largest);
      store<Lanes>(buffers_.pace + (t + i) * Lanes, pace);
      store<Lanes>(buffers_.drive + (t + i) * Lanes, step[i] * load_lanes<Lanes>(rows.x[t + i] + first, lanes_used));
    }
  }

  // The sums of a tile, and what skips the scan, to `y`.
  template <int Lanes, bool full>
  MSMAMBA_NOINLINE void write_vector(const Rows& rows, int first) {
    const int lanes_used = full ? Lanes : vectors_.used(first, Lanes);
    const Float<Lanes> skip = load<Lanes>(buffers_.skip + first);
    for (int t = 0; t < rows.steps; ++t) {
      const Float<Lanes> x = load_lanes<Lanes>(rows.x[t] + first, lanes_used);
      Element* const y = y_ + (rows.x[t] - static_cast<const Element*>(inputs_.x));
      store_lanes<Lanes>(y + first, load<Lanes>(rows.sum[t] + first) + skip * x, lanes_used);
    }
  }

  const ScanShape& shape_;
  const ScanInputs& inputs_;
  Element* const y_;
  const int64_t length_;
  Buffers buffers_;
  ForwardTask task_{};
  ChannelVectors<Wide, Narrow> vectors_;
  const float* wide_B_[kTileSteps];  // of the tile at hand, in the buffers
  const float* wide_C_[kTileSteps];
};

}  // namespace
