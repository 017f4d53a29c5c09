// ProjectedScan2D: the scan of features, which makes delta, B and C of them where the recurrence uses them.
//
// Those are six to nine times the features and more than caches hold: writing and reading them took as long as the
// products that make them. Here a task takes a sequence through all four directions; only its step features are made
// beforehand, and the rest for the steps of one tile at a time, which stay in the first-level cache.
//
// Few channels fill a vector poorly: of 24, AVX-512 leaves half of every second one idle. So a task may take
// two sequences, whose left-over channels share a vector, lane by lane in turns.
//
// Where there are too few sequences for all threads the operands are made first, by positions (`project`), and the scan
// goes over them as SelectiveScan2D does, by channels. Both give the same, bit for bit.
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
  static constexpr int64_t kSequences = Lanes > kNarrow ? 2 : 1;  // of a task, at most

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
    weights.products.pack(sizes, from);
    const auto B_of = Products::B_of(sizes, from), C_of = Products::C_of(sizes, from);
    for (int64_t c = 0; c < padded; ++c) weights.skip[c] = 0.0f;
    for (int64_t k = 0; k < kDirections; ++k) {
      // Of B and C of all directions those of this one.
      const auto is_B = [=](int64_t column) { return column < states; };
      const float* const B_columns = Products::columns_from(from, sizes.steps + k * states);
      const float* const C_columns = Products::columns_from(from, sizes.steps + sizes.states + k * states);
      float* const worth = weights.columns;
      for (int64_t column = 0; Arithmetic::kInteger && column < 2 * states; ++column) {
        worth[column] = is_B(column) ? B_columns[column] : C_columns[column - states];
      }
      pack_matrix(weights.projections[k], from.features, worth, [&](int64_t row, int64_t column) {
        return is_B(column) ? B_of(row, k * states + column) : C_of(row, k * states + column - states);
      });
      for (int64_t c = 0; c < padded; ++c) {
        const bool idle = c >= inner;
        for (int64_t r = 0; r < dims.rank; ++r) {
          const int64_t row = k * dims.rank + r;
          weights.expand[row * padded + c] = idle ? 0.0f : from.expand[(row * kDirections + k) * inner + c];
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
      if constexpr (kSequences == 2) {
        if (!dims.pairs()) continue;
        const float* const alone = weights.A + (k * padded + dims.full) * states;
        for (int64_t n = 0; n < states; ++n) {
          const Float<kNarrow> rates = load<kNarrow>(alone + n * kNarrow);
          store<Lanes>(weights.pair_A + (k * states + n) * Lanes, in_turns<kNarrow>(rates, rates));
        }
      }
    }
    const int64_t per_channel = kDirections * inner;
    for (int64_t i = 0; i < per_channel * states; ++i) weights.scan_A[i] = A[i];
    for (int64_t i = 0; i < per_channel; ++i) weights.scan_D[i] = D[i];
    for (int64_t i = 0; i < per_channel; ++i) weights.scan_bias[i] = delta_bias[i];
  }

  // What `project` makes: delta, B and C of all positions.
  static size_t shared_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    return Scratch::measure([&](Scratch& scratch) { Shared(sizes, map, scratch); });
  }

  static size_t scratch_bytes(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map) {
    const size_t scanning = Scratch::measure([&](Scratch& scratch) { Buffers(Dims(sizes), map, scratch); });
    const size_t projecting = layout_bytes<ProjectBuffers>(sizes);
    return scanning > projecting ? scanning : projecting;
  }

  // One or two whole sequences.
  template <typename Element>
  static void scan(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    if constexpr (kSequences == 2) {
      if (tile.last - tile.first == 2 && Dims(call.sizes).pairs()) {
        return Task<Element, 2>(call, tile.first, memory).run();
      }
    }
    for (int64_t sequence = tile.first; sequence < tile.last; ++sequence) {
      Task<Element, 1>(call, sequence, memory).run();
    }
  }

  // The operands of a tile's positions, to `shared`.
  template <typename Element>
  static void project(const msmamba::BlockCall& call, const msmamba::Tile& tile, void* memory) {
    const msmamba::BlockSizes& sizes = call.sizes;
    const int64_t inner = sizes.inner, length = call.map.positions(), count = tile.last - tile.first;
    const int64_t row = tile.image * length + tile.first;
    const auto weights = layout_in<Weights>(call.packed, sizes);
    const auto buffers = layout_in<ProjectBuffers>(memory, sizes);
    const Shared shared = shared_of(call);
    const bool streamed = Products::template streamed<float>(sizes, call.map.batch * length);
    widen_rows<Element>(buffers.features, map_in<Element>(call, 0) + row * inner, inner, count);
    if constexpr (kIsHalf<Element>) {
      copy_rows<Lanes>(shared.x + row * inner, inner, buffers.features, whole_vectors<Lanes>(inner), count);
    }
    weights.products.write(sizes, {buffers.features, whole_vectors<Lanes>(inner)}, count, buffers.products,
                           typename Products::template Maps<float>{shared.delta + row * kDirections * inner,
                                                                   shared.B + row * sizes.states,
                                                                   shared.C + row * sizes.states},
                           streamed);
    if (streamed) end_streaming();
  }

  // What the scan is called with after `project`, in float32.
  template <typename Element>
  static msmamba::ScanOperands operands(const msmamba::BlockCall& call) {
    const auto weights = layout_in<Weights>(call.packed, call.sizes);
    const Shared shared = shared_of(call);
    const void* const x = kIsHalf<Element> ? shared.x : call.inputs[0];
    return {{msmamba::ElementType::kFloat32, x, shared.delta, weights.scan_A, shared.B, shared.C, weights.scan_D,
             weights.scan_bias},
            kIsHalf<Element> ? shared.y : call.outputs[0]};
  }

  // What the scan made of it, to `y`, where that is float16.
  template <typename Element>
  static void narrow(const msmamba::BlockCall& call, const msmamba::Tile& tile, void*) {
    const int64_t inner = call.sizes.inner, row = tile.image * call.map.positions() + tile.first;
    copy_rows<Lanes>(map_out<Element>(call, 0) + row * inner, inner, shared_of(call).y + row * inner, inner,
                     tile.last - tile.first);
  }

 private:
  struct Dims {
    explicit Dims(const msmamba::BlockSizes& sizes)
        : vectors(static_cast<int>(sizes.inner)),
          inner(sizes.inner),
          padded(vectors.padded()),
          full(sizes.inner / Lanes * Lanes),
          states(sizes.states / kDirections),
          rank(sizes.steps / kDirections) {}

    // Whether left-over channels of two sequences fit one vector.
    bool pairs() const { return kSequences == 2 && inner > full && inner - full <= kNarrow; }

    // Floats of a position's sums of `count` sequences: full vectors, one sequence's after the other's, and what is
    // left over.
    int64_t sums(int count) const { return count == 1 ? padded : 2 * full + Lanes; }

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
        : products(sizes, scratch),
          projections{{dims.inner, 2 * dims.states, scratch},
                      {dims.inner, 2 * dims.states, scratch},
                      {dims.inner, 2 * dims.states, scratch},
                      {dims.inner, 2 * dims.states, scratch}},
          columns(scratch.floats(2 * dims.states)),
          expand(scratch.floats(sizes.steps * dims.padded)),
          delta_worth(scratch.floats(Arithmetic::kInteger ? kDirections * dims.padded : 0)),
          bias(scratch.floats(kDirections * dims.padded)),
          reach(scratch.floats(kDirections * dims.padded)),
          skip(scratch.floats(dims.padded)),
          A(scratch.floats(kDirections * dims.states * dims.padded)),
          pair_A(scratch.floats(dims.pairs() ? kDirections * dims.states * Lanes : 0)),
          scan_A(scratch.floats(kDirections * dims.inner * dims.states)),
          scan_D(scratch.floats(kDirections * dims.inner)),
          scan_bias(scratch.floats(kDirections * dims.inner)) {}

    Products products;
    Matrix<Lanes, Arithmetic> projections[kDirections];  // (D, 2N): B and C of a direction
    float* columns;      // (2N), of integers while packing: what one of the matrix' columns is worth
    float* expand;       // (K, R, P): delta's weights; of integers these
    float* delta_worth;  // (K, P), of integers: what one of delta's sums is worth
    float* bias;         // (K, P)
    float* reach;        // (K, P): the largest |A| of any state
    float* skip;         // (P): the four directions' skip weights, summed
    float* A;            // (K, vectors, N, lanes)
    float* pair_A;       // (K, N, lanes): of the vector that two sequences share
    float* scan_A;       // as the contract has them: (K, D, N)
    float* scan_D;       // (K, D)
    float* scan_bias;    // (K, D)
  };

  template <typename Element>
  static constexpr bool kIsHalf = sizeof(Element) < sizeof(float);

  struct Shared {
    Shared(const msmamba::BlockSizes& sizes, const msmamba::MapShape& map, Scratch& scratch) {
      const int64_t rows = map.batch * map.positions();
      delta = scratch.floats(rows * kDirections * sizes.inner);
      B = scratch.floats(rows * sizes.states);
      C = scratch.floats(rows * sizes.states);
      x = scratch.floats(rows * sizes.inner);
      y = scratch.floats(rows * sizes.inner);
    }

    float* delta;  // (batch, L, K, D)
    float* B;      // (batch, L, K, N)
    float* C;      // (batch, L, K, N)
    float* x;      // (batch, L, D), of float16 maps: the features
    float* y;      // likewise
  };

  static Shared shared_of(const msmamba::BlockCall& call) {
    Scratch scratch(call.shared);
    return Shared(call.sizes, call.map, scratch);
  }

  struct ProjectBuffers {
    ProjectBuffers(const msmamba::BlockSizes& sizes, Scratch& scratch)
        : features(scratch.floats(kTilePositions * whole_vectors<Lanes>(sizes.inner))),
          products(sizes, kTilePositions, scratch) {}

    float* features;  // (kTilePositions, D padded)
    typename Products::Buffers products;
  };

  // Of a task; a tile is one of the recurrence's.
  struct Buffers {
    Buffers() = default;
    Buffers(const Dims& dims, const msmamba::MapShape& map, Scratch& scratch) {
      const int64_t length = map.positions(), row = whole_vectors<Lanes>(dims.inner), states = dims.states;
      const int64_t sums = dims.sums(1) > dims.sums(kSequences) ? dims.sums(1) : dims.sums(kSequences);
      for (int s = 0; s < kSequences; ++s) {
        steps[s] = scratch.floats(length * kDirections * dims.rank);
        words[s] = words_of<Lanes, Arithmetic>(scratch, length, dims.inner);
        x[s] = scratch.floats(kTileSteps * row);
        projections[s] = scratch.floats(kTileSteps * 2 * states + Lanes);
      }
      sum = scratch.floats(length * sums);
      state = scratch.floats(states * sums);
      tile_words = words_of<Lanes, Arithmetic>(scratch, kTileSteps, dims.inner);
      tile_steps = scratch.floats(kTileSteps * dims.rank * 2);
      pairs = scratch.floats(kTileSteps * 4 * states + 2 * Lanes);
      pace = scratch.floats(kTileSteps * Lanes);
      drive = scratch.floats(kTileSteps * Lanes);
      features = scratch.floats(kTilePositions * row);
    }

    float* steps[kSequences];        // (L, K, R); of integers these
    Word* words[kSequences];         // (L, row's words), of integers: the features
    float* x[kSequences];            // (kTileSteps, D padded): a tile's features
    float* projections[kSequences];  // (kTileSteps, 2N): its B and C
    float* sum;                      // (L, sums): the output of the directions so far
    float* state;                    // (vectors, N, lanes)
    Word* tile_words;                // (kTileSteps, row's words)
    float* tile_steps;               // (kTileSteps, R, sequences)
    float* pairs;                    // (kTileSteps, 2N, 2): B and C of two sequences in turns
    float* pace;                     // (kTileSteps, lanes)
    float* drive;                    // (kTileSteps, lanes)
    float* features;                 // (kTilePositions, D padded): of products beforehand
  };

  // `count` dense rows of features as float32, (count, D padded), zero beyond D.
  template <typename Element>
  MSMAMBA_INLINE static void widen_rows(float* target, const Element* source, int64_t inner, int64_t count) {
    const int64_t row = whole_vectors<Lanes>(inner);
    for (int64_t i = 0; i < count; ++i) {
      for_each_vector<Lanes>(inner, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
        store<Lanes>(target + i * row + c, load<Lanes>(source + i * inner + c, used));
      });
    }
  }

  // `Count` sequences, through all four directions.
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
          weights_(layout_in<Weights>(call.packed, sizes_)) {
      Scratch scratch(memory);
      buffers_ = Buffers(dims_, map_, scratch);
      const int64_t first = first_sequence * map_.positions() * dims_.inner;
      for (int s = 0; s < Count; ++s) {
        x_[s] = map_in<Element>(call, 0) + first + s * map_.positions() * dims_.inner;
        y_[s] = map_out<Element>(call, 0) + first + s * map_.positions() * dims_.inner;
        point_at(operands_[s], buffers_.projections[s], 1);
      }
      point_at(pairs_, buffers_.pairs, 2);
    }

    void run() {
      for (int s = 0; s < Count; ++s) make_step_features(s);
      // Columns first, so that the direction that writes `y` goes through it row by row.
      scan<First>(1);
      scan<Middle>(3);
      scan<Middle>(0);
      scan<Last>(2);
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

    MSMAMBA_NOINLINE void make_step_features(int s) const {
      const int64_t inner = dims_.inner, width = sizes_.steps;
      for (int64_t first = 0; first < map_.positions(); first += kTilePositions) {
        const int64_t left = map_.positions() - first, count = left < kTilePositions ? left : kTilePositions;
        widen_rows<Element>(buffers_.features, x_[s] + first * inner, inner, count);
        Word* words = nullptr;
        if constexpr (Arithmetic::kInteger) words = buffers_.words[s] + first * row_words<Lanes, Arithmetic>(inner);
        const auto rows = left_side<Lanes, Arithmetic>({buffers_.features, row_}, count, inner,
                                                       weights_.products.scales + Products::kFeatures, words);
        float* const made = buffers_.steps[s] + first * width;
        weights_.products.steps.multiply(rows, count, RowsTo{made, width});
        if constexpr (Arithmetic::kInteger) {
          const Step<Lanes> step(weights_.products.scales[Products::kSteps]);
          for_each_vector<Lanes>(count * width, [&](int64_t i, auto used) MSMAMBA_INLINE_BODY {
            const Int<Lanes> integers = quantised<Lanes>(load<Lanes>(made + i, used), step);
            store<Lanes>(made + i, __builtin_convertvector(integers, Float<Lanes>), used);
          });
        }
      }
    }

    template <Turn turn>
    void scan(int direction) {
      const int64_t padded = dims_.padded, full = dims_.full, states = dims_.states;
      for (int64_t i = 0; i < sums_ * states; ++i) buffers_.state[i] = 0.0f;
      DirectionCursor cursor(direction, map_.height, map_.width);
      Positions tiles[2];
      Positions *here = &tiles[0], *next = &tiles[1];
      find(cursor, *here);
      while (here->steps > 0) {
        find(cursor, *next);
        for (int s = 0; s < Count; ++s) project(direction, s, *here);
        const float* const A = weights_.A + direction * padded * states;
        for (int s = 0; s < Count; ++s) {
          take_steps<1>(direction, s, *here);
          for (int64_t first = 0; first < full; first += Lanes) {
            advance<turn, Lanes, 1>(direction, s, first, s * full + first, A + first * states, *here, *next);
          }
          if constexpr (Count == 1) {
            const int64_t left = padded - full;
            if (left > kNarrow) advance<turn, Lanes, 1>(direction, 0, full, full, A + full * states, *here, *next);
            if (left == kNarrow) advance<turn, kNarrow, 1>(direction, 0, full, full, A + full * states, *here, *next);
          }
        }
        if constexpr (Count == 2) {
          take_steps<2>(direction, 0, *here);
          pair_projections(*here);
          advance<turn, Lanes, 2>(direction, 0, full, 2 * full, weights_.pair_A + direction * states * Lanes, *here,
                                  *next);
        }
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
      for (int t = 0; t < tile.steps; ++t) tile.sums[t] = buffers_.sum + tile.at[t] * sums_;
    }

    // Gathers a tile's features, and makes B and C of them.
    MSMAMBA_NOINLINE void project(int direction, int s, const Positions& tile) const {
      const int64_t inner = dims_.inner;
      for (int t = 0; t < tile.steps; ++t) {
        widen_rows<Element>(buffers_.x[s] + t * row_, x_[s] + tile.at[t] * inner, inner, 1);
      }
      RowsOf<Word> rows;
      if constexpr (Arithmetic::kInteger) {
        const int64_t words = row_words<Lanes, Arithmetic>(inner);
        for (int t = 0; t < tile.steps; ++t) {
          __builtin_memcpy(buffers_.tile_words + t * words, buffers_.words[s] + tile.at[t] * words,
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
      const int64_t rank = dims_.rank;
      for (int t = 0; t < tile.steps; ++t) {
        const int64_t from = (tile.at[t] * kDirections + direction) * rank;
        for (int64_t r = 0; r < rank; ++r) {
          for (int i = 0; i < Sequences; ++i) {
            buffers_.tile_steps[(t * rank + r) * Sequences + i] = buffers_.steps[s + i][from + r];
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
      const int64_t padded = dims_.padded, rank = dims_.rank, at = direction * padded + first;
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
    Buffers buffers_;
    const Element* x_[Count];  // (L, D)
    Element* y_[Count];        // (L, D)
    Operands operands_[Count];
    Operands pairs_;
  };
};

}  // namespace
