// Depthwise 3x3 convolutions of channels-last maps, one vector of channels at a time.
//
// A line is a row of the map, or a column where a map is read transposed. Three neighbouring lines slide by
// with the taps and a window of the map in registers, so each value is read once for a line.
#pragma once

#include "lanes.h"

namespace {

constexpr int kTaps = 9;

// Zeros to stand for a line outside the map.
template <typename Element>
alignas(64) constexpr Element kZeros[16] = {};

template <typename Element>
struct Line {
  const Element* start;  // a vector of channels at position 0
  int64_t step;          // elements from one position to the next

  MSMAMBA_INLINE const Element* at(int64_t position) const { return start + position * step; }
};

template <typename Element>
struct Lines {
  Line<Element> before, here, after;
};

// Line `index` of `count` with its neighbours: positions `step` apart, lines `line_step`. `map` points at the
// vector of channels at the first position of the first line.
template <typename Element>
MSMAMBA_INLINE Lines<Element> neighbouring_lines(const Element* map, int64_t index, int64_t count, int64_t line_step,
                                                 int64_t step) {
  const Line<Element> outside = {kZeros<Element>, 0};
  const auto line = [&](int64_t i) {
    return i < 0 || i >= count ? outside : Line<Element>{map + i * line_step, step};
  };
  return {line(index - 1), line(index), line(index + 1)};
}

// The sums at one position, by map and by filter, and the maps' own values there.
template <int Lanes, int Maps, int Filters>
struct Convolved {
  Float<Lanes> sums[Maps][Filters];
  Float<Lanes> centres[Maps];
};

// Convolves positions [first, last) of a line of `width` in each of `Maps` maps with each of `Filters` filters
// and passes the results to `emit(position, Convolved)`. Positions beyond the line's ends count as zero.
// `taps` (Filters, 9, ·) has its vectors `tap_step` floats apart, lines outermost.
template <int Lanes, int Maps, int Filters, typename Element, typename Used, typename Emit>
MSMAMBA_INLINE void convolve_line(const Lines<Element> (&maps)[Maps], int64_t first, int64_t last, int64_t width,
                                  const float* taps, int64_t tap_step, Used used, Emit emit) {
  Float<Lanes> tap[Filters][kTaps];
#pragma GCC unroll 18
  for (int i = 0; i < Filters * kTaps; ++i) tap[i / kTaps][i % kTaps] = load<Lanes>(taps + i * tap_step);

  Float<Lanes> window[Maps][kTaps];  // three lines by three positions
  const auto read_position = [&](int column, int64_t position) MSMAMBA_INLINE_BODY {
#pragma GCC unroll 2
    for (int map = 0; map < Maps; ++map) {
      const Line<Element> lines[3] = {maps[map].before, maps[map].here, maps[map].after};
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        window[map][3 * i + column] =
            position < 0 || position >= width ? Float<Lanes>{} : load<Lanes>(lines[i].at(position), used);
      }
    }
  };
  read_position(0, first - 1);
  read_position(1, first);
  for (int64_t position = first; position < last; ++position) {
    read_position(2, position + 1);
    Convolved<Lanes, Maps, Filters> result;
#pragma GCC unroll 2
    for (int map = 0; map < Maps; ++map) {
#pragma GCC unroll 2
      for (int filter = 0; filter < Filters; ++filter) {
        Float<Lanes> sum = window[map][0] * tap[filter][0];
#pragma GCC unroll 8
        for (int i = 1; i < kTaps; ++i) sum += window[map][i] * tap[filter][i];
        result.sums[map][filter] = sum;
      }
      result.centres[map] = window[map][4];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        window[map][3 * i] = window[map][3 * i + 1];
        window[map][3 * i + 1] = window[map][3 * i + 2];
      }
    }
    emit(position, result);
  }
}

// Calls `body(row, first, last)` for the part of each row of a map that positions [first, last) cover, with
// columns `first` to `last`.
template <typename Body>
MSMAMBA_INLINE void for_each_row(int64_t first, int64_t last, int64_t width, Body body) {
  while (first < last) {
    const int64_t row = first / width, start = row * width;
    const int64_t end = last < start + width ? last : start + width;
    body(row, first - start, end - start);
    first = end;
  }
}

}  // namespace
