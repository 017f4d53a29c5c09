// The numbers that products are made of: float32, or int8 by the scales that a file states, summed in int32.
//
// Rows and columns are cut into words of 32 bits that hold one or more neighbouring values of the depth, so that one
// instruction multiplies a row's word with a vector of columns' words. Whatever the form, the sums are those of the
// integers, exactly.
#pragma once

#include "lanes.h"

#if defined(__SSE2__) && !defined(__AVX2__)
#include <emmintrin.h>
#endif

namespace {

// Rows in memory, `stride` words apart.
template <typename Word>
struct RowsOf {
  const Word* start;
  int64_t stride;
};
template <typename Element>
struct RowsTo {
  Element* start;
  int64_t stride;
};
template <typename Element>
RowsTo(Element*, int64_t) -> RowsTo<Element>;

// Rows that share each vector of columns. Rows times the three vectors of a panel are the sums held in registers: 24 of
// 32, or 12 of 16; 21 where vectors of the rows' words stand beside them.
#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 8;
#elif defined(__aarch64__)
constexpr int kRowsAtOnce = 7;
#else
constexpr int kRowsAtOnce = 4;
#endif

template <int Lanes>
struct Floats {
  static constexpr bool kInteger = false;
  static constexpr int kValues = 1;  // of a word
  static constexpr int kRows = kRowsAtOnce;
  using Word = float;
  using Vector = Float<Lanes>;  // of words
  using Sum = Float<Lanes>;

  template <typename Value>
  static Word word(Value value) {
    return value(0);
  }
  MSMAMBA_INLINE static Float<Lanes> vector(const Word* words) { return load<Lanes>(words); }
  MSMAMBA_INLINE static Float<Lanes> broadcast(Word word) { return ::broadcast<Lanes>(word); }
  MSMAMBA_INLINE static void add(Sum& sum, Float<Lanes> row, Float<Lanes> columns) { sum += row * columns; }

#if defined(__aarch64__)
  static constexpr bool kByLanes = true;  // whether there is `add_lane`, which multiplies by one word of several of a row
  template <int lane>
  MSMAMBA_INLINE static void add_lane(Sum& sum, Float<Lanes> row, Float<Lanes> columns) {
    sum = (Sum)vfmaq_laneq_f32((float32x4_t)sum, (float32x4_t)columns, (float32x4_t)row, lane);
  }
#else
  static constexpr bool kByLanes = false;
#endif
};

// Unaligned vectors of integers.
template <int Lanes>
MSMAMBA_INLINE Int<Lanes> load_integers(const int32_t* source) {
  Int<Lanes> value;
  __builtin_memcpy(&value, source, sizeof value);
  return value;
}

// A word of four values, the first in its lowest byte.
template <typename Value>
int32_t four_bytes(Value value) {
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= (static_cast<uint32_t>(static_cast<int32_t>(value(i))) & 0xffu) << (8 * i);
  return static_cast<int32_t>(bits);
}

template <int Lanes>
struct Integers {
  static constexpr bool kInteger = true;
  using Word = int32_t;
  using Vector = Int<Lanes>;  // of words
  using Sum = Int<Lanes>;
  static constexpr int kRows = kRowsAtOnce;
  static constexpr bool kByLanes = false;
  // Sums that begin with `offset`, and what they come to.
  MSMAMBA_INLINE static Sum begun(Int<Lanes> offset) { return offset; }
  MSMAMBA_INLINE static Int<Lanes> total(Sum sum) { return sum; }

#if defined(__AVX512VL__) || (defined(__AVX2__) && defined(MSMAMBA_DOT_PRODUCTS))
  // VNNI, AVX-512's or AVX's own, written out because this file's flags do not have it: who calls asks the processor
  // first. A row's bytes are unsigned, 128 too large; `kOffset` times the columns' sums, which sums begin with, makes up
  // for it.
  static constexpr int kValues = 4;
  static constexpr int32_t kOffset = -128;
  template <typename Value>
  static Word word(Value value) {
    return four_bytes(value);
  }
  MSMAMBA_INLINE static void put(Word* words, Int<Lanes> values) {
#if defined(__AVX512VL__)
    typedef uint8_t Bytes __attribute__((vector_size(Lanes)));
    const Bytes bytes = __builtin_convertvector(values + 128, Bytes);
    __builtin_memcpy(words, &bytes, sizeof bytes);
#else
    // As a conversion would, for which GCC takes the values out one by one.
    const __m256i raised = (__m256i)(values + 128);
    const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(raised), _mm256_extracti128_si256(raised, 1));
    const __m128i bytes = _mm_packus_epi16(shorts, shorts);
    __builtin_memcpy(words, &bytes, Lanes);
#endif
  }
  MSMAMBA_INLINE static void add(Sum& sum, Int<Lanes> row, Int<Lanes> columns) {
#if defined(__AVX512VL__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(columns));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(row), "x"(columns));
#endif
  }
#elif defined(__SSE2__)
  // Pairs of 16 bits, multiplied and added in one instruction: bytes would saturate.
  static constexpr int kValues = 2;
  static constexpr int32_t kOffset = 0;
  template <typename Value>
  static Word word(Value value) {
    const uint32_t low = static_cast<uint32_t>(static_cast<int32_t>(value(0))) & 0xffffu;
    return static_cast<Word>(low | static_cast<uint32_t>(static_cast<int32_t>(value(1))) << 16);
  }
  MSMAMBA_INLINE static void put(Word* words, Int<Lanes> values) {
    typedef int16_t Shorts __attribute__((vector_size(2 * Lanes)));
    const Shorts shorts = __builtin_convertvector(values, Shorts);
    __builtin_memcpy(words, &shorts, sizeof shorts);
  }
  MSMAMBA_INLINE static void add(Sum& sum, Int<Lanes> row, Int<Lanes> columns) {
#if defined(__AVX2__)
    sum += (Int<Lanes>)_mm256_madd_epi16((__m256i)row, (__m256i)columns);
#else
    sum += (Int<Lanes>)_mm_madd_epi16((__m128i)row, (__m128i)columns);
#endif
  }
#else
  static constexpr int kValues = 1;
  static constexpr int32_t kOffset = 0;
  template <typename Value>
  static Word word(Value value) {
    return static_cast<Word>(value(0));
  }
  MSMAMBA_INLINE static void put(Word* words, Int<Lanes> values) { __builtin_memcpy(words, &values, sizeof values); }
  MSMAMBA_INLINE static void add(Sum& sum, Int<Lanes> row, Int<Lanes> columns) { sum += row * columns; }
#endif

  MSMAMBA_INLINE static Int<Lanes> vector(const Word* words) { return load_integers<Lanes>(words); }
  MSMAMBA_INLINE static Int<Lanes> broadcast(Word word) { return word - Int<Lanes>{}; }
};

// What one of some integers is worth, and its inverse.
template <int Lanes>
struct Step {
  explicit Step(float scale_) : scale(broadcast<Lanes>(scale_)), inverse(1.0f / scale) {}

  Float<Lanes> scale;
  Float<Lanes> inverse;
};

// Whether there is `rest_of`: c - a * b, rounded once.
template <int Lanes>
constexpr bool kHasFma = false;
#if defined(__AVX512VL__)
template <>
constexpr bool kHasFma<16> = true;
MSMAMBA_INLINE Float<16> rest_of(Float<16> c, Float<16> a, Float<16> b) {
  return (Float<16>)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#endif
#if defined(__FMA__)
template <>
constexpr bool kHasFma<8> = true;
MSMAMBA_INLINE Float<8> rest_of(Float<8> c, Float<8> a, Float<8> b) {
  return (Float<8>)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#endif

#if defined(__aarch64__)
}  // namespace
#include "integers_neon.h"
namespace {
#endif

// value / scale, rounded as a division rounds it. That occupies its unit as long as ten products; with the inverse
// rounded to the nearest, one step from the product with it gives the same (Markstein, IBM Journal of Research and
// Development 34, 1990, theorem 7). Where the product is infinite the step gives no number, and the product stands.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> quotient(Float<Lanes> value, const Step<Lanes>& step) {
  if constexpr (kHasFma<Lanes>) {
    const Float<Lanes> near = value * step.inverse;
    const Float<Lanes> exact = near + rest_of(value, near, step.scale) * step.inverse;
    return exact == exact ? exact : near;
  } else {
    return value / step.scale;
  }
}

// The integer that QuantizeLinear gives: value / scale to the nearest, ties to even, held to int8. NaN gives -128.
template <int Lanes>
MSMAMBA_INLINE Int<Lanes> quantised(Float<Lanes> value, const Step<Lanes>& step) {
  const Float<Lanes> above = larger<Lanes>(quotient<Lanes>(value, step), broadcast<Lanes>(-128.0f));
#if defined(__aarch64__)
  if constexpr (Lanes == 4) return (Int<Lanes>)vcvtnq_s32_f32((float32x4_t)smaller<Lanes>(above, broadcast<Lanes>(127.0f)));
#endif
  const float rounding = 12582912.0f;  // beside 1.5 * 2^23 the low bits of a float32 are those of an integer
  return (Int<Lanes>)(smaller<Lanes>(above, broadcast<Lanes>(127.0f)) + rounding) - 0x4b400000;
}

// `value` as QuantizeLinear and DequantizeLinear leave it.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> rounded_to(Float<Lanes> value, const Step<Lanes>& step) {
  return __builtin_convertvector(quantised<Lanes>(value, step), Float<Lanes>) * step.scale;
}

// Words of a row of `depth` values in `left_side`.
template <int Lanes, typename Arithmetic>
constexpr int64_t row_words(int64_t depth) {
  return whole_vectors<Lanes>(depth) / Arithmetic::kValues;
}

// `count` rows of `depth` floats as the left side of a product: as they are, or as integers in `buffer`
// (count, row_words).
template <int Lanes, typename Arithmetic>
MSMAMBA_INLINE RowsOf<typename Arithmetic::Word> left_side(RowsOf<float> rows, int64_t count, int64_t depth,
                                                           const float* scale, typename Arithmetic::Word* buffer) {
  if constexpr (!Arithmetic::kInteger) {
    return rows;
  } else {
    const Step<Lanes> step(*scale);
    const int64_t words = row_words<Lanes, Arithmetic>(depth);
    for (int64_t i = 0; i < count; ++i) {
      for_each_vector<Lanes>(depth, [&](int64_t c, auto used) MSMAMBA_INLINE_BODY {
        Arithmetic::put(buffer + i * words + c / Arithmetic::kValues,
                        quantised<Lanes>(load<Lanes>(rows.start + i * rows.stride + c, used), step));
      });
    }
    return {buffer, words};
  }
}

}  // namespace
