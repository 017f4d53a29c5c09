// Defines the table of the resize's kernels for the instruction set this file is compiled for.
//
// Each resize_kernels_<set>.cpp includes this once with MSMAMBA_RESIZE_KERNELS (the table's variable),
// MSMAMBA_KERNELS_NAME and MSMAMBA_LANES (32-bit lanes of its widest vector) defined; setup.py gives each its compiler
// flags. All of it is integers, so every set has the same bits.
//
// Along the columns neighbouring bytes of a line are independent, and fill a vector. Along the rows neighbouring
// lines are: a band of them is turned, so that the bytes of one place lie together, then back.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../../selective_scan/native/vector.h"
#include "resize.h"

namespace {

using msmamba::kBandLines;
using msmamba::kBits;
using msmamba::kChannels;
using msmamba::Tap;

constexpr uint32_t kHalf = 1u << (kBits - 1);

// Pixels of a band that are turned at a time: with the sums, they fit the first-level cache.
constexpr int64_t kPixelsAtOnce = 256;

// Bytes of a band at one pixel, and sums at one value: those of each channel for each line.
constexpr int kBandBytes = kChannels * kBandLines;

typedef uint32_t Sums __attribute__((vector_size(MSMAMBA_LANES * 4)));
typedef uint32_t UnalignedSums __attribute__((vector_size(MSMAMBA_LANES * 4), aligned(1), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(kBandLines)));
typedef uint8_t UnalignedBytes __attribute__((vector_size(kBandLines), aligned(1), may_alias));

// The lower or the upper bytes of `a` and `b`, in turn.
MSMAMBA_INLINE Bytes interleaved(Bytes a, Bytes b, int half) {
  return half == 0 ? __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
                   : __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

constexpr int kVectors = kBandLines / MSMAMBA_LANES;  // of sums, for one vector of bytes

// One byte in each lane.
MSMAMBA_INLINE void widen(const uint8_t* source, Sums widened[kVectors]) {
  const Bytes bytes = *reinterpret_cast<const UnalignedBytes*>(source);
#if MSMAMBA_LANES == 16
  widened[0] = reinterpret_cast<Sums>(_mm512_maskz_cvtepu8_epi32(kAllLanes, reinterpret_cast<__m128i>(bytes)));
#elif MSMAMBA_LANES == 8
  widened[0] = reinterpret_cast<Sums>(_mm256_cvtepu8_epi32(reinterpret_cast<__m128i>(bytes)));
  widened[1] = reinterpret_cast<Sums>(_mm256_cvtepu8_epi32(_mm_srli_si128(reinterpret_cast<__m128i>(bytes), 8)));
#elif defined(__aarch64__)
  // By table, whose entries beyond the bytes are zeros: little-endian, as every platform is that this is built for.
  alignas(16) static constexpr uint32_t kFirst[4] = {0xffffff00, 0xffffff01, 0xffffff02, 0xffffff03};
  const uint8x16_t first = vreinterpretq_u8_u32(vld1q_u32(kFirst));
  for (uint8_t i = 0; i < 4; ++i) {
    const uint8x16_t places = vorrq_u8(first, vreinterpretq_u8_u32(vdupq_n_u32(4u * i)));
    widened[i] = reinterpret_cast<Sums>(vqtbl1q_u8(reinterpret_cast<uint8x16_t>(bytes), places));
  }
#else  // interleaved with zeros twice: little-endian, as every platform is that this is built for
  const Bytes zeros = {};
  for (int half = 0; half < 2; ++half) {
    const Bytes words = interleaved(bytes, zeros, half);
    for (int quarter = 0; quarter < 2; ++quarter) {
      typedef uint16_t Words __attribute__((vector_size(kBandLines)));
      const Words pairs = reinterpret_cast<Words>(words), none = {};
      widened[2 * half + quarter] = reinterpret_cast<Sums>(
          quarter == 0 ? __builtin_shufflevector(pairs, none, 0, 8, 1, 9, 2, 10, 3, 11)
                       : __builtin_shufflevector(pairs, none, 4, 12, 5, 13, 6, 14, 7, 15));
    }
  }
#endif
}

// Bytes, one in each lane, times a coefficient.
#if defined(__SSE2__) && !defined(__SSE4_1__)
// SSE2 multiplies no 32-bit lanes, but adds up products of pairs of signed 16-bit ones: the byte times the
// coefficient's low 7 bits, and 2^7 times the byte times the others, of which 2^22, the largest, has one too many.
struct Factor {
  explicit Factor(uint32_t factor) {
    const uint32_t high = factor >> 7 < 32767 ? factor >> 7 : 32767;
    pair = _mm_set1_epi32(static_cast<int>(high << 16 | (factor - (high << 7))));
  }
  Sums operator*(Sums bytes) const {
    return reinterpret_cast<Sums>(_mm_madd_epi16(reinterpret_cast<__m128i>(bytes | bytes << 23), pair));
  }
  __m128i pair;
};
#else
struct Factor {
  explicit Factor(uint32_t factor) : value(factor) {}
  Sums operator*(Sums bytes) const { return bytes * value; }
  uint32_t value;
};
#endif

// `Count` vectors of bytes times a coefficient, added to their sums.
template <int Count>
MSMAMBA_INLINE void add(const uint8_t* bytes, uint32_t coefficient, Sums* sums) {
  const Factor factor(coefficient);
  for (int v = 0; v < Count; ++v) {
    Sums widened[kVectors];
    widen(bytes + v * kBandLines, widened);
    for (int i = 0; i < kVectors; ++i) sums[v * kVectors + i] += factor * widened[i];
  }
}

MSMAMBA_INLINE Sums load_sums(const uint32_t* sums) { return *reinterpret_cast<const UnalignedSums*>(sums); }

MSMAMBA_INLINE void store_sums(uint32_t* sums, Sums value) { *reinterpret_cast<UnalignedSums*>(sums) = value; }

MSMAMBA_INLINE uint8_t rounded(uint32_t sum) {
  const uint32_t value = sum >> kBits;
  return static_cast<uint8_t>(value < 255 ? value : 255);
}

// `Count` vectors of bytes along the columns.
template <int Count>
MSMAMBA_INLINE void columns_block(const Tap& tap, const uint8_t* source, int64_t stride, uint8_t* target) {
  Sums sums[Count * kVectors];
  for (Sums& sum : sums) sum = kHalf - Sums{};
  for (int64_t i = 0; i < tap.count; ++i) add<Count>(source + i * stride, tap.factors[i], sums);
  uint32_t values[Count * kBandLines];
  for (int v = 0; v < Count * kVectors; ++v) store_sums(values + v * MSMAMBA_LANES, sums[v]);
  for (int i = 0; i < Count * kBandLines; ++i) target[i] = rounded(values[i]);
}

void along_columns(const Tap& tap, const uint8_t* source, int64_t stride, int64_t bytes, uint8_t* target) {
  constexpr int kWide = MSMAMBA_LANES == 16 ? 4 : 2;  // vectors of bytes whose sums stay in registers
  source += tap.first * stride;
  int64_t done = 0;
  for (; done + kWide * kBandLines <= bytes; done += kWide * kBandLines) {
    columns_block<kWide>(tap, source + done, stride, target + done);
  }
  for (; done + kBandLines <= bytes; done += kBandLines) {
    columns_block<1>(tap, source + done, stride, target + done);
  }
  if (done == bytes) return;
  if (bytes >= kBandLines) {  // the last vector covers some bytes once more
    return columns_block<1>(tap, source + bytes - kBandLines, stride, target + bytes - kBandLines);
  }
  for (; done < bytes; ++done) {
    uint32_t sum = kHalf;
    for (int64_t i = 0; i < tap.count; ++i) sum += source[i * stride + done] * tap.factors[i];
    target[done] = rounded(sum);
  }
}

// Turns 16 x 16 bytes. Interleaving the first half of the rows with the second is a quarter of the way.
MSMAMBA_INLINE void turn(Bytes rows[kBandLines]) {
  for (int step = 0; step < 4; ++step) {
    Bytes next[kBandLines];
    for (int i = 0; i < kBandLines / 2; ++i) {
      next[2 * i] = interleaved(rows[i], rows[i + kBandLines / 2], 0);
      next[2 * i + 1] = interleaved(rows[i], rows[i + kBandLines / 2], 1);
    }
    for (int i = 0; i < kBandLines; ++i) rows[i] = next[i];
  }
}

// `bytes` of each line from `source` on, turned: (bytes, kBandLines), padded to whole blocks. Lines that a short
// band lacks are its last one again.
void turn_in(const uint8_t* source, int64_t stride, int lines, int64_t bytes, uint8_t* turned) {
  for (int64_t at = 0; at < bytes; at += kBandLines) {
    const int64_t left = bytes - at;
    Bytes rows[kBandLines];
    for (int line = 0; line < kBandLines; ++line) {
      const uint8_t* const from = source + (line < lines ? line : lines - 1) * stride + at;
      if (left >= kBandLines) {
        rows[line] = *reinterpret_cast<const UnalignedBytes*>(from);
      } else {
        rows[line] = Bytes{};
        std::memcpy(&rows[line], from, static_cast<size_t>(left));
      }
    }
    turn(rows);
    for (int i = 0; i < kBandLines; ++i) {
      *reinterpret_cast<UnalignedBytes*>(turned + (at + i) * kBandLines) = rows[i];
    }
  }
}

// The reverse: the lines that there are, `bytes` of each.
void turn_out(const uint8_t* turned, int64_t bytes, int lines, uint8_t* target, int64_t stride) {
  for (int64_t at = 0; at < bytes; at += kBandLines) {
    const int64_t left = bytes - at;
    Bytes rows[kBandLines];
    for (int i = 0; i < kBandLines; ++i) {
      rows[i] = *reinterpret_cast<const UnalignedBytes*>(turned + (at + i) * kBandLines);
    }
    turn(rows);
    for (int line = 0; line < lines; ++line) {
      uint8_t* const to = target + line * stride + at;
      if (left >= kBandLines) {
        *reinterpret_cast<UnalignedBytes*>(to) = rows[line];
      } else {
        std::memcpy(to, &rows[line], static_cast<size_t>(left));
      }
    }
  }
}

// What of a value's pixels lies in [first, last) of the row, turned: added to its sums.
MSMAMBA_INLINE void add_pixels(const Tap& tap, int64_t first, int64_t last, const uint8_t* turned, uint32_t* sums) {
  const int64_t from = tap.first > first ? tap.first : first;
  const int64_t end = tap.first + tap.count, to = end < last ? end : last;
  Sums held[kChannels * kVectors];
  for (int v = 0; v < kChannels * kVectors; ++v) held[v] = load_sums(sums + v * MSMAMBA_LANES);
  for (int64_t x = from; x < to; ++x) {
    add<kChannels>(turned + (x - first) * kBandBytes, tap.factors[x - tap.first], held);
  }
  for (int v = 0; v < kChannels * kVectors; ++v) store_sums(sums + v * MSMAMBA_LANES, held[v]);
}

// A band's scratch: its sums (S, 3, kBandLines), and what is turned, of the source and of the result.
struct RowsScratch {
  explicit RowsScratch(int64_t size)
      : sums(static_cast<size_t>(size) * kBandBytes * sizeof(uint32_t)),
        turned(static_cast<size_t>(kPixelsAtOnce) * kBandBytes),
        result(static_cast<size_t>(size * kChannels + kBandLines) * kBandLines) {}

  size_t sums, turned, result;  // bytes
};

size_t rows_scratch(int64_t size) {
  const RowsScratch needed(size);
  return needed.sums + needed.turned + needed.result;
}

void along_rows(const Tap* taps, int64_t size, const uint8_t* source, int64_t source_stride, int lines,
                uint8_t* target, int64_t target_stride, void* scratch) {
  const RowsScratch pieces(size);
  uint32_t* const sums = static_cast<uint32_t*>(scratch);
  uint8_t* const turned = static_cast<uint8_t*>(scratch) + pieces.sums;
  uint8_t* const result = turned + pieces.turned;

  for (int64_t i = 0; i < size * kBandBytes; ++i) sums[i] = kHalf;
  const int64_t end = taps[size - 1].first + taps[size - 1].count;
  int64_t value = 0;  // the first whose pixels have not all been seen
  for (int64_t first = 0; first < end; first += kPixelsAtOnce) {
    const int64_t last = first + kPixelsAtOnce < end ? first + kPixelsAtOnce : end;
    turn_in(source + first * kChannels, source_stride, lines, (last - first) * kChannels, turned);
    while (taps[value].first + taps[value].count <= first) ++value;
    for (int64_t i = value; i < size && taps[i].first < last; ++i) {
      add_pixels(taps[i], first, last, turned, sums + i * kBandBytes);
    }
  }
  for (int64_t i = 0; i < size * kBandBytes; ++i) result[i] = rounded(sums[i]);
  turn_out(result, size * kChannels, lines, target, target_stride);
}

}  // namespace

namespace msmamba {

extern const ResizeKernels MSMAMBA_RESIZE_KERNELS;
const ResizeKernels MSMAMBA_RESIZE_KERNELS = {MSMAMBA_KERNELS_NAME, rows_scratch, along_rows, along_columns};

}  // namespace msmamba
