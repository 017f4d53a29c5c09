// Products of a few rows with a weight matrix, the matrix laid out once for the kernel.
//
// Columns stand in panels of up to three vectors, each panel (words, vectors, lanes), so that the innermost loop
// reads one stream; a panel stays in the second-level cache while all rows of the tile pass over it. Rows
// beyond a column's first and last weight that is not zero are left out, panel by panel: what a
// block-diagonal matrix costs is its blocks. What the numbers are is the arithmetic's (`integers.h`); the depth is
// counted in its words.
#pragma once

#include "../../selective_scan/native/scratch.h"
#include "integers.h"

namespace {

constexpr int kPanelVectors = 3;

// Products that are summed up one after the other, each rounding what was there: longer sums are sums of such.
constexpr int64_t kDeepestSum = 512;

// Floats of a matrix that leaves room in a second-level cache of 512 KiB.
constexpr int64_t kSmallMatrix = 64 * 1024;

template <int Lanes, typename Arithmetic>
class Matrix {
  using Word = typename Arithmetic::Word;
  using Vector = typename Arithmetic::Vector;
  using Sum = typename Arithmetic::Sum;

 public:
  Matrix(int64_t depth, int64_t columns, Scratch& scratch)
      : depth_(depth),
        words_((depth + Arithmetic::kValues - 1) / Arithmetic::kValues),
        columns_(columns),
        vectors_(whole_vectors<Lanes>(columns) / Lanes),
        panels_((vectors_ + kPanelVectors - 1) / kPanelVectors),
        weights_(reinterpret_cast<Word*>(scratch.floats(words_ * vectors_ * Lanes))),
        spans_(scratch.integers(2 * panels_)),
        scales_(Arithmetic::kInteger ? scratch.floats(vectors_ * Lanes) : nullptr),
        offsets_(Arithmetic::kInteger ? reinterpret_cast<int32_t*>(scratch.floats(vectors_ * Lanes)) : nullptr) {}

  // `weight(k, column)` for every row k of the matrix and every column; of integers `scale(column)` too, what one of
  // the product is worth. Of floats nobody calls it.
  template <typename Weight, typename Scale>
  void pack(Weight weight, Scale scale) {
    const Shares panels(vectors_, panels_);
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = panels.first(panel) * Lanes, width = panels.size(panel) * Lanes;
      Word* const target = weights_ + first * words_;
      int64_t begin = words_, end = 0;
      for (int64_t w = 0; w < words_; ++w) {
        for (int64_t i = 0; i < width; ++i) {
          const Word word = Arithmetic::word([&](int j) {
            const int64_t k = w * Arithmetic::kValues + j;
            return k < depth_ && first + i < columns_ ? weight(k, first + i) : 0.0f;
          });
          target[w * width + i] = word;
          if (word != 0) {
            begin = w < begin ? w : begin;
            end = w + 1;
          }
        }
      }
      spans_[2 * panel] = begin;
      spans_[2 * panel + 1] = end;
    }
    if constexpr (Arithmetic::kInteger) {
      for (int64_t column = 0; column < vectors_ * Lanes; ++column) {
        int32_t sum = 0;
        for (int64_t k = 0; column < columns_ && k < depth_; ++k) sum += static_cast<int32_t>(weight(k, column));
        offsets_[column] = Arithmetic::kOffset * sum;
        scales_[column] = column < columns_ ? scale(column) : 0.0f;
      }
    }
  }

  // target = finish(column, a * matrix), vector by vector, for `count` rows of `a` (count, depth).
  template <bool streamed = false, typename Element, typename Finish>
  MSMAMBA_INLINE void multiply(RowsOf<Word> a, int64_t count, RowsTo<Element> target, Finish finish) const {
    // Strips of even height: a short last one would wait for its own sums.
    constexpr int kRows = Arithmetic::kRows;
    const Shares strips(count, (count + kRows - 1) / kRows), panels(vectors_, panels_);
    // A small matrix stays near while whole rows of the product are written one after the other, as the
    // machine's prefetching likes them; of a large one each panel is fetched once for all rows.
    const bool by_rows = words_ * vectors_ * Lanes <= kSmallMatrix;
    const int64_t outer = by_rows ? strips.parts : panels.parts, inner = by_rows ? panels.parts : strips.parts;
    for (int64_t i = 0; i < outer; ++i) {
      for (int64_t j = 0; j < inner; ++j) {
        const int64_t strip = by_rows ? i : j, panel = by_rows ? j : i;
        const int64_t row = strips.first(strip), vector = panels.first(panel);
        const Block<Element> block = {{a.start + row * a.stride, a.stride},
                                      {target.start + row * target.stride + vector * Lanes, target.stride},
                                      strips.size(strip),
                                      vector,
                                      spans_ + 2 * panel};
        switch (panels.size(panel)) {
          case 3: multiply_block<kRows, 3, streamed>(block, finish); break;
          case 2: multiply_block<kRows, 2, streamed>(block, finish); break;
          default: multiply_block<kRows, 1, streamed>(block, finish); break;
        }
      }
    }
  }

  // The product as it is.
  template <bool streamed = false, typename Element>
  MSMAMBA_INLINE void multiply(RowsOf<Word> a, int64_t count, RowsTo<Element> target) const {
    multiply<streamed>(a, count, target, [](int64_t, Float<Lanes> value) MSMAMBA_INLINE_BODY { return value; });
  }

  // Likewise, past the caches (`store_streamed`) where the target's rows begin at whole vectors.
  void multiply_streamed(RowsOf<Word> a, int64_t count, RowsTo<float> target) const {
    constexpr uintptr_t kVector = Lanes * sizeof(float);
    if (reinterpret_cast<uintptr_t>(target.start) % kVector == 0 && target.stride % Lanes == 0) {
      multiply<true>(a, count, target);
    } else {
      multiply(a, count, target);
    }
  }

 private:
  // `total` things in `parts` parts whose sizes differ by one at most, the larger ones first.
  struct Shares {
    Shares(int64_t total, int64_t parts_) : parts(parts_), least(total / parts_), larger(total % parts_) {}

    int64_t size(int64_t part) const { return least + (part < larger ? 1 : 0); }
    int64_t first(int64_t part) const { return part * least + (part < larger ? part : larger); }

    int64_t parts;
    int64_t least;
    int64_t larger;
  };

  // One strip of rows times one panel.
  template <typename Element>
  struct Block {
    RowsOf<Word> a;
    RowsTo<Element> target;
    int64_t height;
    int64_t vector;       // the panel's first
    const int64_t* span;  // the panel's rows that are not zero
  };

  // `Rows` is the block's height or, to find it, more.
  template <int Rows, int Vectors, bool streamed, typename Element, typename Finish>
  MSMAMBA_INLINE void multiply_block(const Block<Element>& block, Finish finish) const {
    if constexpr (Rows > 1) {
      if (block.height < Rows) return multiply_block<Rows - 1, Vectors, streamed>(block, finish);
    }
    if constexpr (!streamed) {
      // The target is mostly memory not seen before: it arrives while the sums are made.
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) {
          __builtin_prefetch(block.target.start + r * block.target.stride + v * Lanes, 1);
        }
      }
    }
    Sum sums[Rows][Vectors];
    sum_products(block, sums);
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      const int64_t column = (block.vector + v) * Lanes;
      Element* const target = block.target.start + v * Lanes;
      const auto write = [&](auto used) MSMAMBA_INLINE_BODY {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          store<Lanes>(target + r * block.target.stride, finish(column, product(column, sums[r][v])), used);
        }
      };
      if constexpr (streamed) {
        if (column + Lanes <= columns_) {
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) {
            store_streamed<Lanes>(target + r * block.target.stride, finish(column, product(column, sums[r][v])));
          }
          continue;
        }
      }
      if (column + Lanes <= columns_) {
        write(AllLanes<Lanes>{});
      } else {
        write(SomeLanes<Lanes>{static_cast<int>(columns_ - column)});
      }
    }
  }

  template <int Rows, int Vectors, typename Element>
  MSMAMBA_INLINE void sum_products(const Block<Element>& block, Sum (&sums)[Rows][Vectors]) const {
    const int64_t begin = block.span[0], end = block.span[1];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) {
        if constexpr (Arithmetic::kInteger) {
          sums[r][v] = Arithmetic::begun(load_integers<Lanes>(offsets_ + (block.vector + v) * Lanes));
        } else {
          sums[r][v] = Sum{};
        }
      }
    }
    if constexpr (Arithmetic::kInteger) {
      add_products(block, begin, end, sums);
    } else {
      alignas(64) float kept[Rows * Vectors * Lanes];  // the sums of what is done
      for (int64_t w = begin;;) {
        const int64_t stop = end - w > kDeepestSum ? w + kDeepestSum : end;
        add_products(block, w, stop, sums);
        if (w > begin) {
#pragma GCC unroll 8
          for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
            for (int v = 0; v < Vectors; ++v) sums[r][v] += load<Lanes>(kept + (r * Vectors + v) * Lanes);
          }
        }
        if (stop == end) break;
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
          for (int v = 0; v < Vectors; ++v) {
            store<Lanes>(kept + (r * Vectors + v) * Lanes, sums[r][v]);
            sums[r][v] = Sum{};
          }
        }
        asm volatile("" : : "r"(kept) : "memory");  // registers hold the sums at work, and no others
        w = stop;
      }
    }
  }

  // Those of the rows [begin, end) of the matrix.
  template <int Rows, int Vectors, typename Element>
  MSMAMBA_INLINE void add_products(const Block<Element>& block, int64_t begin, int64_t end,
                                   Sum (&sums)[Rows][Vectors]) const {
    const Word* weights = weights_ + (block.vector * words_ + begin * Vectors) * Lanes;
    const Word* a[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) a[r] = block.a.start + r * block.a.stride;
    int64_t w = begin;
    if constexpr (Arithmetic::kByLanes) {
      for (; w + Lanes <= end; w += Lanes, weights += Lanes * Vectors * Lanes) {
        Vector row[Rows];
        int64_t offset = w;
        asm("" : "+r"(offset));  // else compilers keep, and advance, an address for each row
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) row[r] = Arithmetic::vector(a[r] + offset);
        add_lane<0, Rows, Vectors>(row, weights, sums);
        add_lane<1, Rows, Vectors>(row, weights, sums);
        add_lane<2, Rows, Vectors>(row, weights, sums);
        add_lane<3, Rows, Vectors>(row, weights, sums);
      }
    }
    for (; w < end; ++w, weights += Vectors * Lanes) {
      Vector weight[Vectors];
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) weight[v] = Arithmetic::vector(weights + v * Lanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vector value = Arithmetic::broadcast(a[r][w]);
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) {
          Arithmetic::add(sums[r][v], value, weight[v]);
#if defined(__clang__) && defined(__AVX2__) && !defined(__AVX512F__)
          // Else LLVM reads the next row's word before this one is done with, for which a sum leaves its register.
          asm("" : "+x"(sums[r][v]), "+r"(w));
#endif
        }
      }
    }
  }

  // Four words of each row times four rows of the panel, one by one: the rows' words in a lane of their vectors.
  template <int lane, int Rows, int Vectors>
  MSMAMBA_INLINE static void add_lane(const Vector (&row)[Rows], const Word* weights, Sum (&sums)[Rows][Vectors]) {
    Vector weight[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) weight[v] = Arithmetic::vector(weights + (lane * Vectors + v) * Lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) Arithmetic::template add_lane<lane>(sums[r][v], row[r], weight[v]);
    }
  }

  // What a vector of sums comes to.
  MSMAMBA_INLINE Float<Lanes> product(int64_t column, Sum sum) const {
    if constexpr (Arithmetic::kInteger) {
      return __builtin_convertvector(Arithmetic::total(sum), Float<Lanes>) * load<Lanes>(scales_ + column);
    } else {
      return sum;
    }
  }

  int64_t depth_;
  int64_t words_;
  int64_t columns_;
  int64_t vectors_;
  int64_t panels_;
  Word* weights_;     // panel after panel (words, vectors, lanes)
  int64_t* spans_;    // (panels, 2)
  float* scales_;     // (vectors, lanes), of integers
  int32_t* offsets_;  // likewise: what sums begin with
};

}  // namespace
