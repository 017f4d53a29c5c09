// The recurrence over one tile of steps, and the order in which the steps visit the map.
//
// A tile is a run of steps whose operands stand densely in the first-level cache, whatever the layout and
// type they came from. Who scans fills a tile (operands by position), advances the recurrence over it, and
// drains it (outputs by position); only filling knows where `delta` comes from, so a caller that computes
// its step sizes on the fly fills tiles from that and never stores `delta`.
//
// Lanes are channels: every vector operation serves `Lanes` channels at one state, B and C are broadcast,
// and no sum runs across lanes. Of `Sequences` = 2 even lanes are channels of one sequence and odd lanes those of another,
// so that few channels of each fill a vector; their B and C stand in pairs.
#pragma once

#include "element.h"

namespace {

constexpr int kTileSteps = 32;

// A and step sizes beyond this are held to it where they meet in the decay, so that their product stays finite; the
// decay is zero long before.
constexpr float kLargestFactor = 1e19f;

// One tile of one vector of channels. `pace` is delta' * log2(e), at most kLargestFactor: the decay is then
// exp2(pace * A). (Scaling A instead would round it once for all steps, an error that the steps add up.) `drive` is
// delta' * x.
struct Tile {
  int steps;
  int states;
  const float* pace;      // (steps, Lanes)
  const float* drive;     // (steps, Lanes)
  const float* const* B;  // by step: (states, Sequences), at any address
  const float* const* C;  // likewise
  float* const* sums;     // by step: the outputs so far, (Lanes) of them at `first`
  int first;
  bool add;               // to the sums, or begin them
};

// Walks the raster positions of one direction, in its order.
class DirectionCursor {
 public:
  DirectionCursor(int direction, int64_t height, int64_t width) {
    const bool columns = (direction & 1) != 0;
    const bool reversed = (direction & 2) != 0;
    run_ = columns ? height : width;
    along_ = columns ? width : 1;
    // From the last position of one row or column to the first of the next.
    across_ = (columns ? 1 : width) - (run_ - 1) * along_;
    next_ = reversed ? height * width - 1 : 0;
    if (reversed) {
      along_ = -along_;
      across_ = -across_;
    }
    left_in_run_ = run_;
    left_ = height * width;
  }

  // Up to `most` positions; returns their number, 0 at the end.
  MSMAMBA_INLINE int next_positions(int64_t* positions, int most) {
    const int steps = left_ < most ? static_cast<int>(left_) : most;
    for (int t = 0; t < steps; ++t) {
      positions[t] = next_;
      if (--left_in_run_ == 0) {
        next_ += across_;
        left_in_run_ = run_;
      } else {
        next_ += along_;
      }
    }
    left_ -= steps;
    return steps;
  }

 private:
  int64_t run_;
  int64_t along_;
  int64_t across_;
  int64_t next_;
  int64_t left_in_run_;
  int64_t left_;
};

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> pace_of(Float<Lanes> step) {
  return at_most<Lanes>(step * kLog2E, kLargestFactor);
}

// Step sizes from what softplus takes, several in turns: each is a long chain of instructions that wait for one another.
// Steps of a narrow vector go through it in pairs, as wide vectors.
template <int Lanes, int Wide, int Steps>
MSMAMBA_INLINE void step_sizes(Float<Lanes> (&steps)[Steps]) {
  if constexpr (Lanes < Wide && Steps == 1) {
    steps[0] = low_half<Lanes>(softplus<Wide>(joined<Lanes>(steps[0], steps[0])));
  } else if constexpr (Lanes < Wide) {
    static_assert(Steps % 2 == 0, "whole pairs");
    Float<Wide> pairs[Steps / 2];
#pragma GCC unroll 2
    for (int i = 0; i < Steps / 2; ++i) pairs[i] = joined<Lanes>(steps[2 * i], steps[2 * i + 1]);
    softplus_of_each<Wide>(pairs);
#pragma GCC unroll 2
    for (int i = 0; i < Steps / 2; ++i) {
      steps[2 * i] = low_half<Lanes>(pairs[i]);
      steps[2 * i + 1] = high_half<Lanes>(pairs[i]);
    }
  } else {
    softplus_of_each<Lanes>(steps);
  }
}

// Whether the exponents of a tile's decays are at most `most`, given the largest |pace| and |A| of each lane (NaN aside).
template <int Lanes>
MSMAMBA_INLINE bool exponents_are_within(float most, Float<Lanes> largest_pace, Float<Lanes> largest_A) {
  const Int<Lanes> beyond = largest_pace * largest_A > most;
  int32_t any = 0;
  for (int lane = 0; lane < Lanes; ++lane) any |= beyond[lane];
  return any == 0;
}

// How the decays of a tile are made: of any size, or all of them normal float32, which saves holding every exponent
// within bounds; and both on a processor whose additions have units of their own beside its multiply-adds'. Where a decay
// is normal its bits do not depend on whether the tile's others are.
enum class Decay { kAny, kAnyByAdders, kNormal, kNormalByAdders };

// Where the last one pays: on Zen 4 it takes 4 % off the scan with AVX-512, and adds 1 % to it with AVX2.
#if defined(__AVX512VL__)
constexpr bool kHasAddersForm = true;
#else
constexpr bool kHasAddersForm = false;
#endif

// The value that each lane's sequence has, of the neighbours at `values`.
template <int Lanes, int Sequences>
MSMAMBA_INLINE auto of_sequences(const float* values) {
  if constexpr (Sequences == 1) {
    return element_at(values);
  } else {
    return pair_in_lanes<Lanes>(values);
  }
}

// One step of one state; returns its part of the output.
template <int Lanes, Decay decay_by, int Sequences>
MSMAMBA_INLINE Float<Lanes> advance_state(Float<Lanes>& h, Float<Lanes> pace, Float<Lanes> drive, const float* A,
                                          const float* b, const float* c) {
  const Float<Lanes> rate = load<Lanes>(A);
  Float<Lanes> decay;
  if constexpr (decay_by == Decay::kAnyByAdders) {
    decay = exp2<Lanes>(unfused<Lanes>(pace * rate));
  } else if constexpr (decay_by == Decay::kAny && kHasAddersForm) {
    // Of a copy of `pace`: a product that is used by itself, too, would not be fused where it is one of `normal`.
    const Float<Lanes> exponent = unfused<Lanes>(pace) * rate, other = exp2<Lanes>(exponent);
    const Float<Lanes> normal = exp2_of_product<Lanes, false>(pace, rate);
    decay = larger<Lanes>(exponent, -exponent) <= kMostExponent ? normal : other;
  } else if constexpr (decay_by == Decay::kAny) {
    decay = exp2<Lanes>(pace * rate);
  } else {
    decay = exp2_of_product<Lanes, decay_by == Decay::kNormalByAdders>(pace, rate);
  }
  h = decay * h + drive * of_sequences<Lanes, Sequences>(b);
  return h * of_sequences<Lanes, Sequences>(c);
}

// The same, by adders, in four stages.
template <int Lanes>
class StagedState {
 public:
  MSMAMBA_INLINE void reduce(Float<Lanes> pace, const float* A) {
    z_ = unfused<Lanes>(pace * load<Lanes>(A));
    rounded_ = z_ + kRounding<Lanes>;
    part_ = rounded_ - kRounding<Lanes>;
    in_turn<Lanes>(rounded_);
    in_turn<Lanes>(part_);
  }

  MSMAMBA_INLINE void approximate() {
    f_ = z_ - part_;
    factor_ = CubicExp2<Lanes>::factor(rounded_, part_);
    quadratic_ = CubicExp2<Lanes>::quadratic(f_);
    in_turn<Lanes>(f_);
    in_turn<Lanes>(factor_);
    in_turn<Lanes>(quadratic_);
  }

  MSMAMBA_INLINE void join() {
    decay_ = factor_ * CubicExp2<Lanes>::cubic(f_, quadratic_);
    in_turn<Lanes>(decay_);
  }

  template <int Sequences>
  MSMAMBA_INLINE void advance(Float<Lanes>& h, Float<Lanes> drive, const float* b, const float* c, Float<Lanes>& sum) {
    h = decay_ * h + drive * of_sequences<Lanes, Sequences>(b);
    sum += h * of_sequences<Lanes, Sequences>(c);
    in_turn<Lanes>(sum);
  }

 private:
  Float<Lanes> z_, rounded_, part_, f_, factor_, quadratic_, decay_;
};

#if defined(__aarch64__)
// One step of the state in a lane of `b`. That `pace` seems to depend on the state before keeps compilers from working at
// many states in turns, for which there are too few registers; the processor itself does that.
template <Decay decay_by, int lane>
MSMAMBA_INLINE void advance_lane(Float<4>& h, Float<4>& pace, Float<4> drive, const float* A, float32x4_t b) {
  const Float<4> rate = load<4>(A);
  Float<4> decay;
  if constexpr (decay_by == Decay::kAny) {
    decay = exp2<4>(pace * rate);
  } else {
    decay = exp2_of_product<4, false>(pace, rate);
  }
  h *= decay;
  h = (Float<4>)vfmaq_laneq_f32((float32x4_t)h, (float32x4_t)drive, b, lane);
  asm("" : "+w"(pace) : "w"(h));
}

// One step of four states, whose B and C come in a vector each: NEON multiplies by a lane. Adds their parts of the output to
// two sums.
template <Decay decay>
MSMAMBA_INLINE void advance_four_states(Float<4>* h, Float<4>& pace, Float<4> drive, const float* A, const float* B,
                                        const float* C, Float<4> (&sums)[2]) {
  const float32x4_t b = (float32x4_t)load<4>(B);
  advance_lane<decay, 0>(h[0], pace, drive, A, b);
  advance_lane<decay, 1>(h[1], pace, drive, A + 4, b);
  advance_lane<decay, 2>(h[2], pace, drive, A + 8, b);
  advance_lane<decay, 3>(h[3], pace, drive, A + 12, b);
  asm("" : "+r"(C) : "w"(h[3]));  // C is not needed earlier
  const float32x4_t c = (float32x4_t)load<4>(C);
  sums[0] = (Float<4>)vfmaq_laneq_f32((float32x4_t)sums[0], (float32x4_t)h[0], c, 0);
  sums[1] = (Float<4>)vfmaq_laneq_f32((float32x4_t)sums[1], (float32x4_t)h[1], c, 1);
  sums[0] = (Float<4>)vfmaq_laneq_f32((float32x4_t)sums[0], (float32x4_t)h[2], c, 2);
  sums[1] = (Float<4>)vfmaq_laneq_f32((float32x4_t)sums[1], (float32x4_t)h[3], c, 3);
}
#endif

template <int Lanes>
MSMAMBA_INLINE void put_output(const Tile& tile, int t, Float<Lanes> output) {
  float* const sum = tile.sums[t] + tile.first;
  store<Lanes>(sum, tile.add ? load<Lanes>(sum) + output : output);
}

// `States` is known to the compiler: the states stay in registers throughout the tile.
template <int Lanes, int States, Decay decay, int Sequences, typename Meanwhile>
MSMAMBA_INLINE void advance_tile_in_registers(const Tile& tile, const float* A, float* state,
                                              Meanwhile meanwhile) {
  Float<Lanes> h[States];
#pragma GCC unroll 16
  for (int n = 0; n < States; ++n) h[n] = load<Lanes>(state + n * Lanes);
  for (int t = 0; t < tile.steps; ++t) {
    const Float<Lanes> pace = load<Lanes>(tile.pace + t * Lanes);
    const Float<Lanes> drive = load<Lanes>(tile.drive + t * Lanes);
    const float* const B = tile.B[t];
    const float* const C = tile.C[t];
    meanwhile(t);
    Float<Lanes> sums[2] = {};  // two: half the latency
#if defined(__aarch64__)
    static_assert(States % 4 == 0 && Sequences == 1, "whole vectors of B and C");
    Float<Lanes> pace_in_turn = pace;
#pragma GCC unroll 4
    for (int n = 0; n < States; n += 4) {
      advance_four_states<decay>(h + n, pace_in_turn, drive, A + n * Lanes, B + n, C + n, sums);
    }
#else
    if constexpr (decay == Decay::kNormalByAdders) {
      // Of one state after the other, in their order, the processor would see no more than some four at a time, each
      // a chain of thirty cycles: the stages of neighbouring states take turns.
      StagedState<Lanes> states[States];
#pragma GCC unroll 19
      for (int n = 0; n < States + 3; ++n) {
        if (n < States) states[n].reduce(pace, A + n * Lanes);
        if (n >= 1 && n - 1 < States) states[n - 1].approximate();
        if (n >= 2 && n - 2 < States) states[n - 2].join();
        if (n < 3) continue;
        const int last = (n - 3) * Sequences;
        states[n - 3].template advance<Sequences>(h[n - 3], drive, B + last, C + last, sums[(n - 3) % 2]);
      }
    } else {
      Float<Lanes> pace_in_turn = pace;
#pragma GCC unroll 16
      for (int n = 0; n < States; ++n) {
        const int at = n * Sequences;
        sums[n % 2] += advance_state<Lanes, decay, Sequences>(h[n], pace_in_turn, drive, A + n * Lanes, B + at, C + at);
#if defined(__clang__) && defined(__AVX2__) && !defined(__AVX512F__)
        // As for ARM: else LLVM begins with the decays of all states, and keeps them in memory.
        asm("" : "+x"(pace_in_turn), "+x"(sums[n % 2]) : "x"(h[n]));
#endif
      }
    }
#endif
    put_output<Lanes>(tile, t, sums[0] + sums[1]);
  }
#pragma GCC unroll 16
  for (int n = 0; n < States; ++n) store<Lanes>(state + n * Lanes, h[n]);
}

template <int Lanes, Decay decay, int Sequences, typename Meanwhile>
MSMAMBA_INLINE void advance_tile_in_memory(const Tile& tile, const float* A, float* state, Meanwhile meanwhile) {
  for (int t = 0; t < tile.steps; ++t) {
    meanwhile(t);
    const Float<Lanes> pace = load<Lanes>(tile.pace + t * Lanes);
    const Float<Lanes> drive = load<Lanes>(tile.drive + t * Lanes);
    Float<Lanes> sum{};
    for (int n = 0; n < tile.states; ++n) {
      Float<Lanes> h = load<Lanes>(state + n * Lanes);
      const int at = n * Sequences;
      sum += advance_state<Lanes, decay, Sequences>(h, pace, drive, A + n * Lanes, tile.B[t] + at, tile.C[t] + at);
      store<Lanes>(state + n * Lanes, h);
    }
    put_output<Lanes>(tile, t, sum);
  }
}

// Advances `state` (states, Lanes) over the tile and adds its output to the sums. `A` (states, Lanes) comes from pack_A.
// Decays by `kNormal` need exponents within kMostExponent, `kNormalByAdders` within kMostCubicExponent.
// `meanwhile(t)` runs with every step: address arithmetic and prefetching cost nothing beside the
// recurrence, which leaves half of the machine's issue slots free.
template <int Lanes, Decay decay, int Sequences, typename Meanwhile>
MSMAMBA_NOINLINE void advance_tile(const Tile& tile, const float* A, float* state, Meanwhile meanwhile) {
  if (tile.states == 16) {
    advance_tile_in_registers<Lanes, 16, decay, Sequences>(tile, A, state, meanwhile);
  } else {
    advance_tile_in_memory<Lanes, decay, Sequences>(tile, A, state, meanwhile);
  }
}

// Of a tile: the largest |pace| and |A| of each lane, and whether additions have units of their own.
template <int Lanes>
struct Exponents {
  Float<Lanes> pace;
  Float<Lanes> A;
  bool own_adders;
};

// `advance_tile` by the least work that the exponents allow.
template <int Lanes, int Sequences, typename Meanwhile>
MSMAMBA_INLINE void advance_within(const Exponents<Lanes>& largest, const Tile& tile, const float* A, float* state,
                                   Meanwhile meanwhile) {
  if constexpr (kHasAddersForm) {
    if (largest.own_adders) {
      if (exponents_are_within<Lanes>(kMostCubicExponent, largest.pace, largest.A)) {
        return advance_tile<Lanes, Decay::kNormalByAdders, Sequences>(tile, A, state, meanwhile);
      }
      return advance_tile<Lanes, Decay::kAnyByAdders, Sequences>(tile, A, state, meanwhile);
    }
  }
  if (exponents_are_within<Lanes>(kMostExponent, largest.pace, largest.A)) {
    return advance_tile<Lanes, Decay::kNormal, Sequences>(tile, A, state, meanwhile);
  }
  advance_tile<Lanes, Decay::kAny, Sequences>(tile, A, state, meanwhile);
}

}  // namespace
