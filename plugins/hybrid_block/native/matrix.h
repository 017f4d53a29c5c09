// Products of a few rows with a weight matrix, the matrix laid out once for the kernel.
//
// Columns stand in panels of up to three vectors, each panel (depth, vectors, lanes), so that the innermost loop
// reads one stream; a panel stays in the second-level cache while all rows of the tile pass over it. Rows
// beyond a column's first and last weight that is not zero are left out, panel by panel: what a
// block-diagonal matrix costs is its blocks.
#pragma once

#include "../../selective_scan/native/scratch.h"
#include "lanes.h"

namespace {

constexpr int kPanelVectors = 3;

// Rows that share each vector of weights. Rows times vectors are the sums held in registers: 24 of 32, or
// 12 of 16.
template <int Lanes>
constexpr int rows_at_once() {
#if defined(__AVX512F__) || defined(__aarch64__)
  return 8;
#else
  return 4;
#endif
}

template <int Lanes>
class Matrix {
 public:
  Matrix(int64_t depth, int64_t columns, Scratch& scratch)
      : depth_(depth),
        columns_(columns),
        vectors_(whole_vectors<Lanes>(columns) / Lanes),
        panels_((vectors_ + kPanelVectors - 1) / kPanelVectors),
        weights_(scratch.floats(depth * vectors_ * Lanes)),
        spans_(scratch.integers(2 * panels_)) {}

  // `weight(k, column)` for every row k of the matrix and every column.
  template <typename Weight>
  void pack(Weight weight) {
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = first_vector(panel) * Lanes, width = first_vector(panel + 1) * Lanes - first;
      float* const target = weights_ + first * depth_;
      int64_t begin = depth_, end = 0;
      for (int64_t k = 0; k < depth_; ++k) {
        for (int64_t i = 0; i < width; ++i) {
          const float value = first + i < columns_ ? weight(k, first + i) : 0.0f;
          target[k * width + i] = value;
          if (value != 0.0f) {
            begin = k < begin ? k : begin;
            end = k + 1;
          }
        }
      }
      spans_[2 * panel] = begin;
      spans_[2 * panel + 1] = end;
    }
  }

  // Passes every vector of `a` (rows, depth), its rows `stride` apart, times the matrix to
  // `emit(row, column, product, used)`.
  template <typename Emit>
  MSMAMBA_INLINE void multiply(const float* a, int64_t stride, int64_t rows, Emit emit) const {
    constexpr int kRows = rows_at_once<Lanes>();
    const int64_t strips = (rows + kRows - 1) / kRows;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = first_vector(panel), vectors = first_vector(panel + 1) - first;
      for (int64_t strip = 0; strip < strips; ++strip) {
        // Strips of even height: a short last one would wait for its own sums.
        const int64_t row = rows * strip / strips;
        const int64_t height = rows * (strip + 1) / strips - row;
        const Strip part = {a + row * stride, stride, row, height, panel, first};
        if (vectors == 3) {
          multiply_strip<kRows, 3>(part, emit);
        } else if (vectors == 2) {
          multiply_strip<kRows, 2>(part, emit);
        } else {
          multiply_strip<kRows, 1>(part, emit);
        }
      }
    }
  }

 private:
  struct Strip {
    const float* a;
    int64_t stride;
    int64_t row;
    int64_t height;
    int64_t panel;
    int64_t vector;  // the panel's first
  };

  int64_t first_vector(int64_t panel) const { return vectors_ * panel / panels_; }

  // `Rows` is the strip's height or, to find it, more.
  template <int Rows, int Vectors, typename Emit>
  MSMAMBA_INLINE void multiply_strip(const Strip& strip, Emit emit) const {
    if constexpr (Rows > 1) {
      if (strip.height < Rows) return multiply_strip<Rows - 1, Vectors>(strip, emit);
    }
    Float<Lanes> sums[Rows][Vectors];
    sum_products(strip, sums);
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      const int64_t column = (strip.vector + v) * Lanes;
      if (column + Lanes <= columns_) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) emit(strip.row + r, column, sums[r][v], AllLanes<Lanes>{});
      } else {
        const SomeLanes<Lanes> used = {static_cast<int>(columns_ - column)};
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) emit(strip.row + r, column, sums[r][v], used);
      }
    }
  }

  template <int Rows, int Vectors>
  MSMAMBA_INLINE void sum_products(const Strip& strip, Float<Lanes> (&sums)[Rows][Vectors]) const {
    const int64_t begin = spans_[2 * strip.panel], end = spans_[2 * strip.panel + 1];
    const float* weights = weights_ + (strip.vector * depth_ + begin * Vectors) * Lanes;
    const float* a[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      a[r] = strip.a + r * strip.stride;
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) sums[r][v] = Float<Lanes>{};
    }
    for (int64_t k = begin; k < end; ++k, weights += Vectors * Lanes) {
      Float<Lanes> weight[Vectors];
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) weight[v] = load<Lanes>(weights + v * Lanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Float<Lanes> value = broadcast<Lanes>(a[r][k]);
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) sums[r][v] += value * weight[v];
      }
    }
  }

  int64_t depth_;
  int64_t columns_;
  int64_t vectors_;
  int64_t panels_;
  float* weights_;   // panel after panel (depth, vectors, lanes)
  int64_t* spans_;   // (panels, 2): the rows that are not zero
};

}  // namespace
