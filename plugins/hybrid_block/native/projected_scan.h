// ProjectedScan2D: the scan of features, which makes delta, B and C of them where the recurrence uses them.
//
// Those are six to nine times the features and more than caches hold: writing and reading them took as long as the
// products that make them. Here a task goes through whole sequences; only their step features are made beforehand, and
// the rest for the steps of one tile at a time, which stay in the first-level cache.
//
// Few channels fill a vector poorly: of 24, AVX-512 leaves half of every second one idle. So a task may take
// two sequences, whose left-over channels share a vector, lane by lane in turns.
//
// A task takes all four directions of its sequences, one after the other, or, where that leaves threads without work,
// one of them; the directions' outputs are then added up at last, in the same order, so that the bits are the same.
//
// D channels, N states and R step features of each of K = 4 directions; L = H * W positions.
#pragma once

#include "../../selective_scan/native/channel_vectors.h"
#include "projections.h"

namespace {

template <int Lanes, typename Arithmetic>
class ProjectedScan {
  using Products = Projections<Lanes, Arithmetic>;
  using Word = typename Arithmetic::Word;
  static constexpr int kNarrow = Lanes > 8 ? Lanes / 2 : Lanes;
  static constexpr int64_t kDirections = msmamba::kDirections;
  using Vectors = ChannelVectors<Lanes, kNarrow>;

 public:
  static constexpr int64_t kTilePositions = 64;

  // Sequences that a task is better off with.
  static int64_t together(const msmamba::BlockSizes& sizes) { return Dims(sizes).pairs() ? 2 : 1; }

  static size_t packed_bytes(const msmamba::BlockSizes& sizes) { return layout_bytes<Weights>(sizes); }

  static void pack(const msmamba::BlockSizes& sizes, const float* const* source, void* packed) {
    const Dims dims(sizes);
    const int64_t inner = sizes.inner, padded = dims.padded, states = dims.states;
    constexpr int kFirstOfScan = Arithmetic::kInteger ? 2 : 4;
    const float *const A = source[kFirstOfScan], *const D = source[kFirstOfScan + 1],
                *const delta_bias = source[kFirstOfScan + 2];
    ProjectionWeights from = {source[0], source[1], source[2], source[3], nullptr, nullptr, nullptr, nullptr};
    if constexpr (Arithmetic::kInteger) {
      from = {source[0], source[1], nullptr, nullptr, source[5], source[6], source[7], source[8]};
    }
    auto weights = layout_in<Weights>(packed, sizes);
    weights.steps.pack(Products::steps_of(sizes, from), Products::worth_from(from, 0));
    Products::pack_scales(from, weights.scales);
    *weights.rank = directions_are_apart(sizes, from.expand) ? dims.rank : sizes.steps;
    const auto B_of = Products::B_of(sizes, from), C_of = Products::C_of(sizes, from);
    const auto B_worth = Products::worth_from(from, sizes.steps);
    const auto C_worth = Products::worth_from(from, sizes.steps + sizes.states);
    for (int64_t c = 0; c < padded; ++c) weights.skip[c] = 0.0f;
    for (int64_t k = 0; k < kDirections; ++k) {
      // Of B and C of all directions those of this one.
      const int64_t first = k * states;
      weights.projections[k].pack(
          [&](int64_t row, int64_t column) {
            return column < states ? B_of(row, first + column) : C_of(row, first + column - states);
          },
          [&](int64_t column) {
            return column < states ? B_worth(first + column) : C_worth(first + column - states);
          });
      for (int64_t c = 0; c < padded; ++c) {
        const bool idle = c >= inner;
        const int64_t first_row = *weights.rank == dims.rank ? k * dims.rank : 0;
        for (int64_t r = 0; r < *weights.rank; ++r) {
          const float* const row = from.expand + ((first_row + r) * kDirections + k) * inner;
          weights.expand[(k * *weights.rank + r) * padded + c] = idle ? 0.0f : row[c];
        }
        if constexpr (Arithmetic::kInteger) {
          weights.delta_worth[k * padded + c] =
              idle ? 0.0f : *from.step_features * from.delta_columns[k * inner + c];
        }
        weights.bias[k * padded + c] = idle ? 0.0f : delta_bias[k * inner + c];
        weights.skip[c] += idle ? 0.0f : D[k * inner + c];
      }
      const auto pack_rates = [&](auto width, float* packed_A, float* reach, int64_t first) {
        constexpr int kLanes = decltype(width)::kLanes;
        pack_A<kLanes>(packed_A, A + (k * inner + first) * states, states, dims.vectors.used(static_cast<int>(first), kLanes));
        Float<kLanes> largest{};
        for (int64_t n = 0; n < states; ++n) {
          const Float<kLanes> rates = load<kLanes>(packed_A + n * kLanes);
          largest = larger<kLanes>(larger<kLanes>(rates, -rates), largest);
        }
        store<kLanes>(reach, largest);
      };
      dims.vectors.for_each([&](int first, auto width) {
        pack_rates(width, weights.A + (k * padded + first) * states, weights.reach + k * padded + first, first);
      });
      if constexpr (kMostSequences == 2) {
        if (!dims.pairs()) continue;
        const float* const alone = weights.A + (k * padded + dims.full) * states;
        for (int64_t n = 0; n < states; ++n) {
          const Float<kNarrow> rates = load<kNarrow>(alone + n * kNarrow);
          store<Lanes>(weights.pair_A + (k * states + n) * Lanes, in_turns<kNarrow>(rates, rates));
        }
      }
    }
  }

  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return Scratch::measure([&](Scratch& scratch) { Shared(sizes, map, scratch); });
  }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return Scratch::measure([&](Scratch& scratch) { Buffers(Dims(sizes), map, scratch); });
  }

  // The step features of a tile's positions, to `shared`.
  template <typename Element>
  static void make_step_features(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const msmamba::BlockSizes& sizes = call.sizes;
    const int64_t inner = sizes.inner, width = sizes.steps, count = tile.last - tile.first;
    const int64_t first = tile.image * call.map.positions() + tile.first;
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const Shared shared = shared_of(call);
    const Element* const x = map_in<Element>(call, 0) + first * inner;
    RowsOf<float> features;
    if constexpr (sizeof(Element) == sizeof(float)) {
      features = {x, inner};
    } else {
      Scratch scratch(memory);
      float* const wide = Buffers(Dims(sizes), call.map, scratch).features;
      for (int64_t i = 0; i < count; ++i) widen<Element>(wide + i * whole_vectors<Lanes>(inner), x + i * inner, inner);
      features = {wide, whole_vectors<Lanes>(inner)};
    }
    Word* words = nullptr;
    if constexpr (Arithmetic::kInteger) words = shared.words + first * row_words<Lanes, Arithmetic>(inner);
    const auto rows =
        left_side<Lanes, Arithmetic>(features, count, inner, weights.scales + Products::kFeatures, words);
    float* const made = shared.steps + first * width;
    weights.steps.multiply(rows, count, RowsTo{made, width});
    if constexpr (Arithmetic::kInteger) {
      const Step<Lanes> step(weights.scales[Products::kSteps]);
      for_each_vector<Lanes>(count * width, [&](int64_t i, auto used) MSMAMBA_INLINE_BODY {
        const Int<Lanes> integers = quantised<Lanes>(load<Lanes>(made + i, used), step);
        store<Lanes>(made + i, __builtin_convertvector(integers, Float<Lanes>), used);
      });
    }
  }

  // All directions of one or two sequences.
  template <typename Element>
  static void scan(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    for_each_task<Element>(call, tile.first, tile.last, memory, [](auto& task) { task.scan_all(); });
  }

  // One of them, `tile.image`.
  template <typename Element>
  static void scan_direction(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const int direction = static_cast<int>(tile.image);
    for_each_task<Element>(call, tile.first, tile.last, memory, [=](auto& task) { task.scan_one(direction); });
  }

  // The sum of the directions at a tile's positions.
  template <typename Element>
  static void add_directions(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const int64_t first = call.map.batch * tile.image / call.image_tiles;
    const int64_t last = call.map.batch * (tile.image + 1) / call.image_tiles;
    for_each_task<Element>(call, first, last, memory, [&](auto& task) { task.add(tile.first, tile.last); });
  }

 private:
  static constexpr int kMostSequences = Lanes > kNarrow ? 2 : 1;

  struct Dims {
    explicit Dims(const msmamba::BlockSizes& sizes)
        : vectors(static_cast<int>(sizes.inner)),
          inner(sizes.inner),
          padded(vectors.padded()),
          full(sizes.inner / Lanes * Lanes),
          states(sizes.states / kDirections),
          rank(sizes.steps / kDirections) {}

    // Whether left-over channels of two sequences fit one vector.
    bool pairs() const { return kMostSequences == 2 && inner > full && inner - full <= kNarrow; }

    // Floats of a position's sums of `count` sequences: full vectors, one sequence's after the other's, and what is
    // left over.
    int64_t sums(int count) const { return count * padded; }

    Vectors vectors;
    int64_t inner;   // D
    int64_t padded;  // P
    int64_t full;    // channels in full vectors
    int64_t states;  // N
    int64_t rank;    // R
  };

  struct Weights {
    Weights(const msmamba::BlockSizes& sizes, Scratch& scratch) : Weights(sizes, Dims(sizes), scratch) {}
    Weights(const msmamba::BlockSizes& sizes, const Dims& dims, Scratch& scratch)
        : steps(dims.inner, sizes.steps, scratch),
          scales(scratch.floats(Products::kLeftSides)),
          rank(scratch.integers(1)),
          projections{{dims.inner, 2 * dims.states, scratch},
                      {dims.inner, 2 * dims.states, scratch},
                      {dims.inner, 2 * dims.states, scratch},
                      {dims.inner, 2 * dims.states, scratch}},
          expand(scratch.floats(kDirections * sizes.steps * dims.padded)),
          delta_worth(scratch.floats(Arithmetic::kInteger ? kDirections * dims.padded : 0)),
          bias(scratch.floats(kDirections * dims.padded)),
          reach(scratch.floats(kDirections * dims.padded)),
          skip(scratch.floats(dims.padded)),
          A(scratch.floats(kDirections * dims.states * dims.padded)),
          pair_A(scratch.floats(dims.pairs() ? kDirections * dims.states * Lanes : 0)) {}

    Matrix<Lanes, Arithmetic> steps;  // (D, K*R)
    float* scales;                    // (Products::kLeftSides), of integers: what one is worth
    int64_t* rank;  // step features that a direction's step sizes are made of: its own R or, of odd weights, all K*R
    Matrix<Lanes, Arithmetic> projections[kDirections];  // (D, 2N): B and C of a direction
    float* expand;       // (K, rank, P): delta's weights; of integers these
    float* delta_worth;  // (K, P), of integers: what one of delta's sums is worth
    float* bias;         // (K, P)
    float* reach;        // (K, P): the largest |A| of any state
    float* skip;         // (P): the four directions' skip weights, summed
    float* A;            // (K, vectors, N, lanes)
    float* pair_A;       // (K, N, lanes): of the vector that two sequences share
  };

  struct Shared {
    Shared(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map, Scratch& scratch) {
      const int64_t rows = map.batch * map.positions();
      steps = scratch.floats(rows * sizes.steps);
      words = words_of<Lanes, Arithmetic>(scratch, rows, sizes.inner);
      sums = scratch.floats(kDirections * rows * Dims(sizes).padded);
    }

    float* steps;  // (batch, L, K, R); of integers these
    Word* words;   // (batch, L, row's words), of integers: the features
    float* sums;   // (K, batch, L, P): each direction's output, where they are added up at last
  };

  static Shared shared_of(const msmamba::BlockCall& call) {
    Scratch scratch(call.shared);
    return Shared(call.sizes, call.map, scratch);
  }

  // Of a task; a tile is one of the recurrence's.
  struct Buffers {
    Buffers() = default;
    Buffers(const Dims& dims, const msmamba::MapShape& map, Scratch& scratch) {
      const int64_t row = whole_vectors<Lanes>(dims.inner), states = dims.states, sums = dims.sums(kMostSequences);
      for (int s = 0; s < kMostSequences; ++s) {
        x[s] = scratch.floats(kTileSteps * row);
        projections[s] = scratch.floats(kTileSteps * 2 * states + Lanes);
      }
      sum = scratch.floats(map.positions() * sums);
      state = scratch.floats(states * sums);
      tile_words = words_of<Lanes, Arithmetic>(scratch, kTileSteps, dims.inner);
      tile_steps = scratch.floats(kTileSteps * kDirections * dims.rank * kMostSequences);
      pairs = scratch.floats(kTileSteps * 4 * states + 2 * Lanes);
      pace = scratch.floats(kTileSteps * Lanes);
      drive = scratch.floats(kTileSteps * Lanes);
      features = scratch.floats(kTilePositions * row);
    }

    float* x[kMostSequences];            // (kTileSteps, D padded): a tile's features
    float* projections[kMostSequences];  // (kTileSteps, 2N): its B and C
    float* sum;                      // (L, sums): the output of the directions so far
    float* state;                    // (vectors, N, lanes)
    Word* tile_words;                // (kTileSteps, row's words)
    float* tile_steps;               // (kTileSteps, rank, sequences)
    float* pairs;                    // (kTileSteps, 2N, 2): B and C of two sequences in turns
    float* pace;                     // (kTileSteps, lanes)
    float* drive;                    // (kTileSteps, lanes)
    float* features;                 // (kTilePositions, D padded), of float16: before their products
  };

  // A position's features as float32, (D padded), zero beyond D.
  template <typename Element>
  MSMAMBA_INLINE static void widen(float* target, const Element* source, int64_t inner) {
    for_each_vector<Lanes>(inner, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
      store<Lanes>(target + c, load<Lanes>(source + c, used));
    });
  }

  static bool directions_are_apart(const msmamba::BlockSizes& sizes, const float* expand) {
    const int64_t rank = sizes.steps / kDirections, columns = kDirections * sizes.inner;
    for (int64_t row = 0; row < sizes.steps; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        if (row / rank != column / sizes.inner && expand[row * columns + column] != 0.0f) return false;
      }
    }
    return true;
  }

  // Calls `body(task)` for the sequences [first, last): for two at once, or for one after the other.
  template <typename Element, typename Body>
  static void for_each_task(const msmamba::BlockCall& call, int64_t first, int64_t last, void* memory, Body body) {
    if constexpr (kMostSequences == 2) {
      if (last - first == 2 && Dims(call.sizes).pairs()) {
        Task<Element, 2> task(call, first, memory);
        return body(task);
      }
    }
    for (int64_t sequence = first; sequence < last; ++sequence) {
      Task<Element, 1> task(call, sequence, memory);
      body(task);
    }
  }

  // `Count` sequences.
  template <typename Element, int Count>
  class Task {
   public:
    Task(const msmamba::BlockCall& call, int64_t first_sequence, void* memory)
        : sizes_(call.sizes),
          map_(call.map),
          own_adders_(call.own_adders),
          dims_(sizes_),
          row_(whole_vectors<Lanes>(dims_.inner)),
          sums_(dims_.sums(Count)),
          weights_(layout_in<Weights>(call.packed, sizes_)),
          rank_(*weights_.rank) {
      Scratch scratch(memory);
      buffers_ = Buffers(dims_, map_, scratch);
      const Shared shared = shared_of(call);
      const int64_t length = map_.positions();
      for (int s = 0; s < Count; ++s) {
        const int64_t row = (first_sequence + s) * length;
        x_[s] = map_in<Element>(call, 0) + row * dims_.inner;
        y_[s] = map_out<Element>(call, 0) + row * dims_.inner;
        steps_[s] = shared.steps + row * sizes_.steps;
        if constexpr (Arithmetic::kInteger) words_[s] = shared.words + row * row_words<Lanes, Arithmetic>(dims_.inner);
        point_at(operands_[s], buffers_.projections[s], 1);
      }
      point_at(pairs_, buffers_.pairs, 2);
      for (int k = 0; k < kDirections; ++k) {
        apart_[k] = shared.sums + (k * map_.batch + first_sequence) * length * dims_.padded;
      }
    }

    // In the order of `kOrder`, into one sum.
    void scan_all() {
      sum_ = buffers_.sum;
      scan<First>(kOrder[0]);
      scan<Middle>(kOrder[1]);
      scan<Middle>(kOrder[2]);
      scan<Last>(kOrder[3]);
    }

    // Into a sum of its own.
    void scan_one(int direction) {
      sum_ = apart_[direction];
      scan<First>(direction);
    }

    // The sums of all directions at positions [first, last), to `y`.
    void add(int64_t first, int64_t last) {
      Positions tile;
      for (; first < last; first += tile.steps) {
        tile.steps = static_cast<int>(last - first < kTileSteps ? last - first : kTileSteps);
        for (int t = 0; t < tile.steps; ++t) {
          tile.at[t] = first + t;
          tile.sums[t] = buffers_.sum + t * sums_;
          const int64_t row = (first + t) * sums_;
          for (int64_t i = 0; i < sums_; i += kNarrow) {
            Float<kNarrow> sum = load<kNarrow>(apart_[kOrder[0]] + row + i);
#pragma GCC unroll 3
            for (int k = 1; k < kDirections; ++k) sum += load<kNarrow>(apart_[kOrder[k]] + row + i);
            store<kNarrow>(tile.sums[t] + i, sum);
          }
        }
        for (int s = 0; s < Count; ++s) gather(s, tile);
        for_each_place([&](auto width, auto sequences, int s, int64_t first_channel, int64_t place) {
          write<decltype(width)::kLanes, decltype(sequences)::kLanes>(s, first_channel, place, tile);
        });
      }
    }

   private:
    enum Turn { First, Middle, Last };
    static constexpr int kStepsTogether = 4;

    struct Positions {
      int steps;
      int64_t at[kTileSteps];
      float* sums[kTileSteps];
    };

    // Where B and C of a tile's steps stand.
    struct Operands {
      const float* B[kTileSteps];
      const float* C[kTileSteps];
    };

    // Columns first, so that the direction that writes `y` goes through it row by row.
    static constexpr int kOrder[kDirections] = {1, 3, 0, 2};

    // Calls `body(Width<lanes>, Width<sequences>, sequence, first channel, place of its sums)` for every vector.
    template <typename Body>
    MSMAMBA_INLINE void for_each_place(Body body) const {
      const int64_t full = dims_.full;
      for (int s = 0; s < Count; ++s) {
        for (int64_t first = 0; first < full; first += Lanes) body(Width<Lanes>{}, Width<1>{}, s, first, s * full + first);
      }
      if constexpr (Count == 2) {
        body(Width<Lanes>{}, Width<2>{}, 0, full, 2 * full);
      } else {
        const int64_t left = dims_.padded - full;
        if (left > kNarrow) body(Width<Lanes>{}, Width<1>{}, 0, full, full);
        if (left == kNarrow) body(Width<kNarrow>{}, Width<1>{}, 0, full, full);
      }
    }

    template <Turn turn>
    void scan(int direction) {
      const int64_t padded = dims_.padded, states = dims_.states;
      for (int64_t i = 0; i < sums_ * states; ++i) buffers_.state[i] = 0.0f;
      DirectionCursor cursor(direction, map_.height, map_.width);
      Positions tiles[2];
      Positions *here = &tiles[0], *next = &tiles[1];
      find(cursor, *here);
      while (here->steps > 0) {
        find(cursor, *next);
        for (int s = 0; s < Count; ++s) project(direction, s, *here);
        if constexpr (Count == 2) pair_projections(*here);
        int taken = -1;  // the sequence whose step features stand ready; those of two in turns come last
        for_each_place([&](auto width, auto sequences, int s, int64_t first, int64_t place) MSMAMBA_INLINE_BODY {
          constexpr int kSequences = decltype(sequences)::kLanes;
          const int next_taken = kSequences == 1 ? s : Count;
          if (taken != next_taken) take_steps<kSequences>(direction, s, *here);
          taken = next_taken;
          const float* const A = kSequences == 1 ? weights_.A + (direction * padded + first) * states
                                                 : weights_.pair_A + direction * states * Lanes;
          advance<turn, decltype(width)::kLanes, kSequences>(direction, s, first, place, A, *here, *next);
        });
        Positions* const done = here;
        here = next;
        next = done;
      }
    }

    void point_at(Operands& operands, const float* rows, int sequences) const {
      for (int t = 0; t < kTileSteps; ++t) {
        operands.B[t] = rows + t * 2 * dims_.states * sequences;
        operands.C[t] = operands.B[t] + dims_.states * sequences;
      }
    }

    MSMAMBA_NOINLINE void find(DirectionCursor& cursor, Positions& tile) const {
      tile.steps = cursor.next_positions(tile.at, kTileSteps);
      for (int t = 0; t < tile.steps; ++t) tile.sums[t] = sum_ + tile.at[t] * sums_;
    }

    // A tile's features.
    MSMAMBA_INLINE void gather(int s, const Positions& tile) const {
      const int64_t inner = dims_.inner;
      for (int t = 0; t < tile.steps; ++t) widen<Element>(buffers_.x[s] + t * row_, x_[s] + tile.at[t] * inner, inner);
    }

    // Gathers them, and makes B and C of them.
    MSMAMBA_NOINLINE void project(int direction, int s, const Positions& tile) const {
      gather(s, tile);
      RowsOf<Word> rows;
      if constexpr (Arithmetic::kInteger) {
        const int64_t words = row_words<Lanes, Arithmetic>(dims_.inner);
        for (int t = 0; t < tile.steps; ++t) {
          __builtin_memcpy(buffers_.tile_words + t * words, words_[s] + tile.at[t] * words,
                           static_cast<size_t>(words) * sizeof(Word));
        }
        rows = {buffers_.tile_words, words};
      } else {
        rows = {buffers_.x[s], row_};
      }
      const int64_t columns = 2 * dims_.states;
      weights_.projections[direction].multiply(rows, tile.steps, RowsTo{buffers_.projections[s], columns});
    }

    // A tile's step features, of sequence `s` or of two in turns.
    template <int Sequences>
    MSMAMBA_INLINE void take_steps(int direction, int s, const Positions& tile) const {
      const int64_t first = rank_ == dims_.rank ? direction * rank_ : 0;
      for (int t = 0; t < tile.steps; ++t) {
        const int64_t from = tile.at[t] * sizes_.steps + first;
        for (int64_t r = 0; r < rank_; ++r) {
          for (int i = 0; i < Sequences; ++i) {
            buffers_.tile_steps[(t * rank_ + r) * Sequences + i] = steps_[s + i][from + r];
          }
        }
      }
    }

    MSMAMBA_NOINLINE void pair_projections(const Positions& tile) const {
      const int64_t count = tile.steps * 2 * dims_.states;
      for (int64_t i = 0; i < count; i += kNarrow) {
        store<2 * kNarrow>(buffers_.pairs + 2 * i, in_turns<kNarrow>(load<kNarrow>(buffers_.projections[0] + i),
                                                                     load<kNarrow>(buffers_.projections[1] + i)));
      }
    }

    // Constants of a vector's channels: those of `first` on, twice where two sequences share it.
    template <int Width, int Sequences>
    MSMAMBA_INLINE static Float<Width> of_channels(const float* values) {
      if constexpr (Sequences == 1) {
        return load<Width>(values);
      } else {
        return in_turns<Width / 2>(load<Width / 2>(values), load<Width / 2>(values));
      }
    }

    // A vector of channels from `first` on, whose sums stand at `place`, through a tile.
    template <Turn turn, int Width, int Sequences>
    MSMAMBA_INLINE void advance(int direction, int s, int64_t first, int64_t place, const float* A,
                                const Positions& here, const Positions& next) {
      const int64_t states = dims_.states;
      const Operands& operands = Sequences == 1 ? operands_[s] : pairs_;
      const Exponents<Width> largest = {fill<Width, Sequences>(direction, s, first, here.steps),
                                        of_channels<Width, Sequences>(weights_.reach + direction * dims_.padded + first),
                                        own_adders_};
      const Tile tile = {here.steps, static_cast<int>(states), buffers_.pace, buffers_.drive, operands.B, operands.C, here.sums,
                         static_cast<int>(place), turn != First};
      const Element* const ahead[2] = {x_[s] + first, x_[s + Sequences - 1] + first};
      const int64_t inner = dims_.inner;
      // Columns defeat the machine's own prefetching: the features of the next tile are called for meanwhile.
      const auto call_for_next = [&](int t) MSMAMBA_INLINE_LAMBDA {
        if (t >= next.steps) return;
        for (int i = 0; i < Sequences; ++i) prefetch_span(ahead[i] + next.at[t] * inner, Width / Sequences);
      };
      advance_within<Width, Sequences>(largest, tile, A, buffers_.state + place * states, call_for_next);
      if constexpr (turn == Last) write<Width, Sequences>(s, first, place, here);
    }

    // Returns the largest pace of each lane.
    template <int Width, int Sequences>
    MSMAMBA_NOINLINE Float<Width> fill(int direction, int s, int64_t first, int steps) const {
      Float<Width> largest{};
      int t = 0;
      for (; t + kStepsTogether <= steps; t += kStepsTogether) {
        fill_steps<Width, Sequences, kStepsTogether>(direction, s, first, t, largest);
      }
      for (; t < steps; ++t) fill_steps<Width, Sequences, 1>(direction, s, first, t, largest);
      return largest;
    }

    template <int Width, int Sequences, int Steps>
    MSMAMBA_INLINE void fill_steps(int direction, int s, int64_t first, int t, Float<Width>& largest) const {
      const int64_t padded = dims_.padded, rank = rank_, at = direction * padded + first;
      const float* const expand = weights_.expand + direction * rank * padded + first;
      const float* const features = buffers_.tile_steps + t * rank * Sequences;
      const Float<Width> bias = of_channels<Width, Sequences>(weights_.bias + at);
      Float<Width> step[Steps];
#pragma GCC unroll 4
      for (int i = 0; i < Steps; ++i) step[i] = Float<Width>{};
      for (int64_t r = 0; r < rank; ++r) {
        const Float<Width> weight = of_channels<Width, Sequences>(expand + r * padded);
#pragma GCC unroll 4
        for (int i = 0; i < Steps; ++i) {
          step[i] += weight * of_sequences<Width, Sequences>(features + (i * rank + r) * Sequences);
        }
      }
      if constexpr (Arithmetic::kInteger) {
        const Float<Width> worth = of_channels<Width, Sequences>(weights_.delta_worth + at);
#pragma GCC unroll 4
        for (int i = 0; i < Steps; ++i) step[i] = unfused<Width>(step[i] * worth);
      }
#pragma GCC unroll 4
      for (int i = 0; i < Steps; ++i) step[i] += bias;
      step_sizes<Width, Lanes>(step);
#pragma GCC unroll 4
      for (int i = 0; i < Steps; ++i) {
        const Float<Width> pace = pace_of<Width>(step[i]);
        largest = larger<Width>(pace, largest);
        store<Width>(buffers_.pace + (t + i) * Width, pace);
        Float<Width> x;
        if constexpr (Sequences == 1) {
          x = load<Width>(buffers_.x[s] + (t + i) * row_ + first);
        } else {
          x = in_turns<Width / 2>(load<Width / 2>(buffers_.x[0] + (t + i) * row_ + first),
                                  load<Width / 2>(buffers_.x[1] + (t + i) * row_ + first));
        }
        store<Width>(buffers_.drive + (t + i) * Width, step[i] * x);
      }
    }

    // The sums of a tile, and what skips the scan, to `y`.
    template <int Width, int Sequences>
    MSMAMBA_NOINLINE void write(int s, int64_t first, int64_t place, const Positions& tile) const {
      constexpr int kChannels = Width / Sequences;
      const int used = dims_.vectors.used(static_cast<int>(first), kChannels);
      const Float<kChannels> skip = load<kChannels>(weights_.skip + first);
      for (int t = 0; t < tile.steps; ++t) {
        const Float<Width> sum = load<Width>(tile.sums[t] + place);
        Float<kChannels> sums[Sequences];
        if constexpr (Sequences == 1) {
          sums[0] = sum;
        } else {
          const Halves<Width> parts = halves<Width>(unzipped<Width>(sum));
          sums[0] = parts.low;
          sums[1] = parts.high;
        }
        for (int i = 0; i < Sequences; ++i) {
          const Float<kChannels> x = load<kChannels>(buffers_.x[s + i] + t * row_ + first);
          store_lanes<kChannels>(y_[s + i] + tile.at[t] * dims_.inner + first, sums[i] + skip * x, used);
        }
      }
    }

    const msmamba::BlockSizes& sizes_;
    const msmamba::MapShape& map_;
    const bool own_adders_;
    const Dims dims_;
    const int64_t row_;   // floats of a position's features
    const int64_t sums_;  // and of its sums
    const Weights weights_;
    const int64_t rank_;
    Buffers buffers_;
    float* sum_ = nullptr;  // (L, sums): of the directions so far, or of one
    const Element* x_[Count];   // (L, D)
    Element* y_[Count];         // (L, D)
    const float* steps_[Count];  // (L, K, R)
    const Word* words_[Count];   // (L, row's words), of integers
    float* apart_[kDirections];  // (L, sums): each direction's own
    Operands operands_[Count];
    Operands pairs_;
  };
};

}  // namespace
