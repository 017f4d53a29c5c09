// Products of integers by NEON's own instructions; part of integers.h, which includes this.
#pragma once

#include <arm_neon.h>

namespace {

// Four bytes a word.
template <>
struct Integers<4> {
  static constexpr bool kInteger = true;
  static constexpr int kValues = 4;
  static constexpr int32_t kOffset = 0;
  using Word = int32_t;
  using Vector = Int<4>;

  template <typename Value>
  static Word word(Value value) {
    return four_bytes(value);
  }
  MSMAMBA_INLINE static void put(Word* word, Int<4> values) {
    const int16x4_t shorts = vmovn_s32((int32x4_t)values);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(shorts, shorts));
    __builtin_memcpy(word, &bytes, sizeof *word);
  }
  MSMAMBA_INLINE static Int<4> vector(const Word* words) { return load_integers<4>(words); }
  MSMAMBA_INLINE static Int<4> broadcast(Word word) {
    int32x4_t words = vdupq_n_s32(word);
    asm("" : "+w"(words));  // else compilers, knowing that its halves are alike, turn those of the columns round
    return (Int<4>)words;
  }

#if defined(MSMAMBA_DOT_PRODUCTS)
  // One instruction for the four products of each lane, written out because compilers want different flags for it: who
  // calls asks the processor first.
  static constexpr int kRows = kRowsAtOnce;
  static constexpr bool kByLanes = true;
  using Sum = Int<4>;
  MSMAMBA_INLINE static Sum begun(Int<4> offset) { return offset; }
  MSMAMBA_INLINE static Int<4> total(Sum sum) { return sum; }
  MSMAMBA_INLINE static void add(Sum& sum, Int<4> row, Int<4> columns) {
    asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(columns), "w"(row));
  }
  template <int lane>
  MSMAMBA_INLINE static void add_lane(Sum& sum, Int<4> row, Int<4> columns) {
    asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.4b[%c3]" : "+w"(sum) : "w"(columns), "w"(row), "i"(lane));
  }
#else
  // Bytes multiply to 16 bits, and pairs of those are added to sums of 32: two for each column. Rows times three vectors
  // times two are 18 registers; with 24 compilers come to copy them.
  static constexpr int kRows = 3;
  static constexpr bool kByLanes = false;
  struct Sum {
    int32x4_t first, second;  // of the first two columns, and of the others
  };
  MSMAMBA_INLINE static Sum begun(Int<4>) { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }  // the offset is always 0
  MSMAMBA_INLINE static Int<4> total(Sum sum) { return (Int<4>)vpaddq_s32(sum.first, sum.second); }
  MSMAMBA_INLINE static void add(Sum& sum, Int<4> row, Int<4> columns) {
    const int8x16_t values = (int8x16_t)row, weights = (int8x16_t)columns;
    sum.first = vpadalq_s16(sum.first, vmull_s8(vget_low_s8(values), vget_low_s8(weights)));
    sum.second = vpadalq_s16(sum.second, vmull_high_s8(values, weights));
  }
#endif
};

template <>
constexpr bool kHasFma<4> = true;
MSMAMBA_INLINE Float<4> rest_of(Float<4> c, Float<4> a, Float<4> b) {
  return (Float<4>)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

}  // namespace
