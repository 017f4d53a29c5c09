// Vectors of float32 lanes, and the elementary functions that the scan needs of them.
//
// Written in the vector extension common to GCC and Clang, so that one text serves AVX-512, AVX2, SSE2 and
// NEON; intrinsics appear only where an instruction set rounds, scales or converts better than that.
//
// Every header compiled per instruction set keeps to an unnamed namespace and includes nothing that has
// inline functions of its own: otherwise the linker could pick, for all callers, the copy of a function
// built for a newer machine than the one it runs on.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MSMAMBA_INLINE inline __attribute__((always_inline))
#define MSMAMBA_NOINLINE __attribute__((noinline))
// GCC takes a function that only prefetches for one without effect and drops the call unless it must inline it.
#define MSMAMBA_INLINE_LAMBDA __attribute__((always_inline))

namespace {

constexpr float kLog2E = 1.442695041f;
constexpr float kLog2ERest = 1.92596303e-8f;  // log2(e) less its float32
constexpr float kLn2 = 0.6931471806f;

template <int Lanes>
struct VectorOf {
  typedef float Float __attribute__((vector_size(Lanes * 4)));
  typedef int32_t Int __attribute__((vector_size(Lanes * 4)));
  // The same bits at any address.
  typedef float UnalignedFloat __attribute__((vector_size(Lanes * 4), aligned(1), may_alias));
};

template <int Lanes>
using Float = typename VectorOf<Lanes>::Float;
template <int Lanes>
using Int = typename VectorOf<Lanes>::Int;

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> broadcast(float value) {
  return value - Float<Lanes>{};
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> load(const float* source) {
  return *reinterpret_cast<const typename VectorOf<Lanes>::UnalignedFloat*>(source);
}

template <int Lanes>
MSMAMBA_INLINE void store(float* target, Float<Lanes> value) {
  *reinterpret_cast<typename VectorOf<Lanes>::UnalignedFloat*>(target) = value;
}

// Two vectors as one of twice the lanes, and its halves.
template <int Lanes>
MSMAMBA_INLINE Float<2 * Lanes> joined(Float<Lanes> low, Float<Lanes> high) {
  static_assert(Lanes == 8, "the only narrow vectors there are");
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> low_half(Float<2 * Lanes> both) {
  return __builtin_shufflevector(both, both, 0, 1, 2, 3, 4, 5, 6, 7);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> high_half(Float<2 * Lanes> both) {
  return __builtin_shufflevector(both, both, 8, 9, 10, 11, 12, 13, 14, 15);
}

// Two floats at any address in turns through the lanes.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> pair_in_lanes(const float* values) {
  typedef int64_t Pairs __attribute__((vector_size(Lanes * 4)));
  int64_t bits;
  __builtin_memcpy(&bits, values, sizeof bits);
  return (Float<Lanes>)(bits - Pairs{});
}

// Lanes of `even` and `odd` in turns.
template <int Lanes>
MSMAMBA_INLINE Float<2 * Lanes> in_turns(Float<Lanes> even, Float<Lanes> odd) {
  static_assert(Lanes == 8, "the only narrow vectors there are");
  return __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
}

// `value`, a product that no addition is to be fused with.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> unfused(Float<Lanes> value) {
#if defined(__AVX512VL__)
  asm("" : "+v"(value));
#elif defined(__FMA__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}

// Keeps what makes `value` before all that follows another call of this (on AVX-512): compilers gather instructions by
// what they make, where taking turns would let the processor work on more of them at a time.
template <int Lanes>
MSMAMBA_INLINE void in_turn(Float<Lanes>& value) {
#if defined(__AVX512VL__)
  asm volatile("" : "+v"(value));
#else
  static_cast<void>(value);
#endif
}

// Sums of neighbouring lanes: those of `a`, then those of `b`.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> sums_of_pairs(Float<Lanes> a, Float<Lanes> b) {
  if constexpr (Lanes == 16) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (Lanes == 8) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  } else {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
  }
}

// The sum of each of `Rows` consecutive rows of `Lanes` floats; with Rows = Lanes, one sum in each lane.
template <int Lanes, int Rows = Lanes>
MSMAMBA_INLINE Float<Lanes> sums_of_rows(const float* rows) {
  if constexpr (Rows == 1) {
    return load<Lanes>(rows);
  } else {
    return sums_of_pairs<Lanes>(sums_of_rows<Lanes, Rows / 2>(rows),
                                sums_of_rows<Lanes, Rows / 2>(rows + Rows / 2 * Lanes));
  }
}

#if defined(__AVX512VL__)
// The masked forms, with no lane masked, stand in for the plain ones: GCC 12 warns of an uninitialised
// variable inside its own definitions of those (GCC bug 105593). The instructions are the same.
constexpr __mmask16 kAllLanes = 0xffff;
#endif

// The larger and the smaller of each lane; `b` where either is NaN. The instructions do just that, but where one side
// is constant the compiler does not see it.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> larger(Float<Lanes> a, Float<Lanes> b) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) return (Float<Lanes>)_mm512_maskz_max_ps(kAllLanes, (__m512)a, (__m512)b);
#endif
#if defined(__AVX2__)
  if constexpr (Lanes == 8) return (Float<Lanes>)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__aarch64__)
  if constexpr (Lanes == 4) return (Float<Lanes>)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b);
#endif
  return a > b ? a : b;
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> smaller(Float<Lanes> a, Float<Lanes> b) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) return (Float<Lanes>)_mm512_maskz_min_ps(kAllLanes, (__m512)a, (__m512)b);
#endif
#if defined(__AVX2__)
  if constexpr (Lanes == 8) return (Float<Lanes>)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__aarch64__)
  if constexpr (Lanes == 4) return (Float<Lanes>)vminnmq_f32((float32x4_t)a, (float32x4_t)b);
#endif
  return a < b ? a : b;
}

// Both return the bound only where `value` lies beyond it: a NaN stays a NaN.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> at_least(Float<Lanes> value, float bound) {
#if defined(__aarch64__)
  if constexpr (Lanes == 4) return (Float<Lanes>)vmaxq_f32(vdupq_n_f32(bound), (float32x4_t)value);
#endif
  return larger<Lanes>(broadcast<Lanes>(bound), value);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> at_most(Float<Lanes> value, float bound) {
#if defined(__aarch64__)
  if constexpr (Lanes == 4) return (Float<Lanes>)vminq_f32(vdupq_n_f32(bound), (float32x4_t)value);
#endif
  return smaller<Lanes>(broadcast<Lanes>(bound), value);
}

// 2^z as 2^n * T[i] * 2^f: z is rounded to a multiple of 1/2^kFractionBits, n + i/2^kFractionBits, and f is the rest.
// The table T fits one register (one entry where there are no permutations), and 2^f = 1 + f * q(f). That form, and
// q(0) = ln 2, matter: a decay near 1 is raised to a power of thousands by the recurrence, and so its error vanishes
// with the step.
//
// `power(rounded, part, f)` takes z in pieces: `rounded` is z + kRounding<Lanes>, in whose low bits stand n and i, and
// `part` is the multiple.
template <int Lanes>
struct Exp2 {
  static constexpr int kFractionBits = 0;
  MSMAMBA_INLINE static Float<Lanes> power(Float<Lanes> rounded, Float<Lanes>, Float<Lanes> f) {
    // f in [-1/2, 1/2]: relative error 1.1e-7.
    const Float<Lanes> q =
        (((0.0013300607f * f + 0.009669691f) * f + 0.055505585f) * f + 0.24022283f) * f + 0.6931472f;
    const Float<Lanes> scale = (Float<Lanes>)(((Int<Lanes>)rounded << 23) + 0x3f800000);
    return scale * f * q + scale;
  }
};

// Another form, on AVX-512: u * 2^f is a cubic whose leading coefficient is 1, which an addition begins where else a
// multiply-add does, and T / u stands in the table. u times the table's first entry is 1 within 2e-10 and q(0) is ln 2
// within 1e-9, so that the error still vanishes with the step, but for the cubic's rounding: 5.3e-8 at most.
//
// 2^z, for z within kMostCubicExponent, is `factor(rounded, part) * cubic(f, quadratic(f))`.
template <int Lanes>
struct CubicExp2;

#if defined(__AVX2__) && !defined(__AVX512VL__)
// Times 2^n, the entry of a table of 8 that the low bits of each lane name. The table holds bits, less i << 20: shifting the
// low bits of `rounded` to the exponent's place brings i along.
MSMAMBA_INLINE Float<8> scaled_entry(const int32_t* table, Float<8> rounded) {
  const __m256 entries = _mm256_load_ps(reinterpret_cast<const float*>(table));
  return (Float<8>)((Int<8>)_mm256_permutevar8x32_ps(entries, (__m256i)rounded) + ((Int<8>)rounded << 20));
}

alignas(32) constexpr int32_t kEighthPowersOfTwo[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                                       0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};

template <>
struct Exp2<8> {
  static constexpr int kFractionBits = 3;
  MSMAMBA_INLINE static Float<8> power(Float<8> rounded, Float<8>, Float<8> f) {
    // f in [-1/16, 1/16]: relative error 3e-8.
    const Float<8> q = (0.055504266f * f + 0.24025749f) * f + 0.6931472f;
    const Float<8> entry = scaled_entry(kEighthPowersOfTwo, rounded);
    return entry * f * q + entry;
  }
};
#endif

#if defined(__AVX512VL__)
// Vectors of 8 and of 16 lanes compute alike, bit for bit: in which of them a channel stands depends on the threads.

// The entry of a table of 16 that the low bits of each lane name.
MSMAMBA_INLINE Float<16> looked_up(const float* table, Float<16> rounded) {
  return (Float<16>)_mm512_maskz_permutexvar_ps(kAllLanes, (__m512i)rounded, _mm512_load_ps(table));
}
MSMAMBA_INLINE Float<8> looked_up(const float* table, Float<8> rounded) {
  return (Float<8>)_mm256_permutex2var_ps(_mm256_load_ps(table), (__m256i)rounded, _mm256_load_ps(table + 8));
}

MSMAMBA_INLINE Float<16> looked_up_of_32(const float* table, Float<16> rounded) {
  return (Float<16>)_mm512_maskz_permutex2var_ps(kAllLanes, _mm512_load_ps(table), (__m512i)rounded,
                                                 _mm512_load_ps(table + 16));
}

// Times 2^floor(exponent).
MSMAMBA_INLINE Float<16> scaled(Float<16> value, Float<16> exponent) {
  return (Float<16>)_mm512_maskz_scalef_ps(kAllLanes, (__m512)value, (__m512)exponent);
}
MSMAMBA_INLINE Float<8> scaled(Float<8> value, Float<8> exponent) {
  return (Float<8>)_mm256_maskz_scalef_ps(static_cast<__mmask8>(kAllLanes), (__m256)value, (__m256)exponent);
}

constexpr float kCubicAtZero = 18.019424f;       // u
constexpr float kCubicSlopeAtZero = 12.490113f;  // u ln 2

// 2^(i/16) / u
alignas(64) constexpr float kCubicSixteenths[16] = {
    0.05549567f, 0.057952672f, 0.060518455f, 0.06319784f, 0.06599584f, 0.06891773f, 0.07196898f, 0.07515532f,
    0.078482725f, 0.08195745f, 0.08558602f, 0.089375235f, 0.093332216f, 0.09746439f, 0.101779506f, 0.10628567f};

template <int Lanes>
struct CubicExp2 {
  MSMAMBA_INLINE static Float<Lanes> quadratic(Float<Lanes> f) { return (f + 4.328889f) * f + kCubicSlopeAtZero; }
  MSMAMBA_INLINE static Float<Lanes> cubic(Float<Lanes> f, Float<Lanes> quadratic) {
    return quadratic * f + kCubicAtZero;  // f in [-1/32, 1/32]: relative error 2e-9
  }
  MSMAMBA_INLINE static Float<Lanes> factor(Float<Lanes> rounded, Float<Lanes> part) {
    return scaled(looked_up(kCubicSixteenths, rounded), part);
  }
};

template <int Lanes>
struct SixteenthsExp2 {
  static constexpr int kFractionBits = 4;
  MSMAMBA_INLINE static Float<Lanes> power(Float<Lanes> rounded, Float<Lanes> part, Float<Lanes> f) {
    const Float<Lanes> cubic = CubicExp2<Lanes>::cubic(f, CubicExp2<Lanes>::quadratic(f));
    // Scaled at last: the table's entry times 2^n may be no normal number where its product with the cubic is.
    return scaled(looked_up(kCubicSixteenths, rounded) * cubic, part);
  }
};

template <>
struct Exp2<16> : SixteenthsExp2<16> {};
template <>
struct Exp2<8> : SixteenthsExp2<8> {};
#endif

template <int Lanes>
constexpr float kRounding = 12582912.0f / (1 << Exp2<Lanes>::kFractionBits);  // 1.5 * 2^23

// Exponents that `exp2_of_product` takes: the result is a normal float32.
constexpr float kMostExponent = 126.0f;
// And those of which both of CubicExp2's factors are.
constexpr float kMostCubicExponent = 120.0f;

// a * b - c, rounded once where the processor can: clang leaves a product that is used twice by itself.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> multiplied_less(Float<Lanes> a, Float<Lanes> b, Float<Lanes> c) {
#if defined(__clang__) && defined(__FMA__)
  return __builtin_elementwise_fma(a, b, -c);
#else
  return a * b - c;
#endif
}

// 2^(a * b) within 2.5 ulp where |a * b| is at most kMostExponent, or NaN. Where multiply-adds are fused the product is not
// rounded; elsewhere, and `by_adders`, it is the rounded product's power.
//
// `by_adders` takes additions in place of multiply-adds where it can: one instruction more, and less time on
// processors whose additions have units of their own (AMD's since Zen).
template <int Lanes, bool by_adders>
MSMAMBA_INLINE Float<Lanes> exp2_of_product(Float<Lanes> a, Float<Lanes> b) {
  if constexpr (by_adders) {
    const Float<Lanes> z = unfused<Lanes>(a * b);
    const Float<Lanes> rounded = z + kRounding<Lanes>;
    const Float<Lanes> part = rounded - kRounding<Lanes>;
    return Exp2<Lanes>::power(rounded, part, z - part);
  } else {
    const Float<Lanes> rounded = a * b + kRounding<Lanes>;
    const Float<Lanes> part = rounded - kRounding<Lanes>;
    return Exp2<Lanes>::power(rounded, part, multiplied_less<Lanes>(a, b, part));
  }
}

// 2^z for z of at most kMostExponent, within 2.5 ulp; results below 2^-126 are held to that. NaN gives NaN.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp2_of_at_most(Float<Lanes> z) {
  const Float<Lanes> held = at_least<Lanes>(z, -kMostExponent);
  const Float<Lanes> rounded = held + kRounding<Lanes>;
  const Float<Lanes> part = rounded - kRounding<Lanes>;
  return Exp2<Lanes>::power(rounded, part, held - part);
}

// Likewise for any z; results beyond 2^126 are held to that, too.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp2(Float<Lanes> z) {
  return exp2_of_at_most<Lanes>(at_most<Lanes>(z, kMostExponent));
}

// exp(-|v|) for any v, down to 2^-126.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp_minus_abs(Float<Lanes> v) {
  const Float<Lanes> minus_abs = (Float<Lanes>)((Int<Lanes>)v | INT32_MIN);
  const Float<Lanes> z = at_least<Lanes>(minus_abs, -kMostExponent * kLn2);
  const Float<Lanes> rounded = z * kLog2E + kRounding<Lanes>;
  const Float<Lanes> part = rounded - kRounding<Lanes>;
  // In two parts, so that no digits of a large |v| are lost.
#if defined(__FMA__) || defined(__aarch64__)
  // log2(e), whose products are not rounded.
  const Float<Lanes> rest = z * kLog2ERest + multiplied_less<Lanes>(z, broadcast<Lanes>(kLog2E), part);
#else
  // ln 2, of which the first part times what was rounded is exact.
  const Float<Lanes> rest = ((z - part * 0.693359375f) - part * -2.12194440e-4f) * kLog2E;
#endif
  return Exp2<Lanes>::power(rounded, part, rest);
}

// log(1 + e) for e in [0, 1], within 2.5 ulp.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> log1p_of_fraction(Float<Lanes> e) {
  // 2 atanh(s), an odd series in s = e / (2 + e), which is at most 1/3.
  const Float<Lanes> s = e / (e + 2.0f);
  const Float<Lanes> square = s * s;
  const Float<Lanes> tail = ((0.28011987f * square + 0.28001806f) * square + 0.40021527f) * square + 0.6666642f;
  return s * (tail * square) + (s + s);
}

#if defined(__AVX512VL__)
// 1 / (1 + i/16) and log(1 + i/16) for i up to 16; what is beyond is not looked up.
alignas(64) constexpr float kInverses[32] = {
    1.0f, 0.941176474f, 0.888888896f, 0.842105269f, 0.800000012f, 0.761904776f, 0.727272749f, 0.695652187f,
    0.666666687f, 0.639999986f, 0.615384638f, 0.592592597f, 0.571428597f, 0.551724136f, 0.533333361f, 0.516129017f,
    0.5f};
alignas(64) constexpr float kLogarithms[32] = {
    0.0f, 0.0606246218f, 0.117783032f, 0.171850264f, 0.223143548f, 0.271933705f, 0.318453729f, 0.362905502f,
    0.405465096f, 0.446287096f, 0.485507816f, 0.523248136f, 0.559615791f, 0.594707131f, 0.628608644f, 0.66139847f,
    0.693147182f};

// By table, since a division occupies its unit for as long as twenty multiply-adds: with c the nearest of the table's
// arguments, log(1 + e) = log(1 + c) + log(1 + r), r = (e - c) / (1 + c), and |r| is at most 1/32.
template <>
MSMAMBA_INLINE Float<16> log1p_of_fraction<16>(Float<16> e) {
  const float rounding = 12582912.0f / 16;  // beside it the low bits of a float32 are those of 16ths
  const Float<16> rounded = e + rounding;
  const Float<16> r = (e - (rounded - rounding)) * looked_up_of_32(kInverses, rounded);
  const Float<16> q = ((-0.25020372f * r + 0.33352386f) * r - 0.5f) * r + 1.0f;
  return r * q + looked_up_of_32(kLogarithms, rounded);
}
#endif

#if defined(__aarch64__)
}  // namespace
#include "vector_neon.h"
namespace {
#endif

// log(1 + exp(v)) for any v, within 3.5 ulp where the result is normal.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> softplus(Float<Lanes> v) {
  return at_least<Lanes>(v, 0.0f) + log1p_of_fraction<Lanes>(exp_minus_abs<Lanes>(v));
}

// Of all values at once, whose instructions take turns: each alone is a long chain in which one waits for the other.
template <int Lanes, int Count>
MSMAMBA_INLINE void softplus_of_each(Float<Lanes> (&values)[Count]) {
  Float<Lanes> parts[Count];
#pragma GCC unroll 4
  for (int i = 0; i < Count; ++i) parts[i] = exp_minus_abs<Lanes>(values[i]);
#pragma GCC unroll 4
  for (int i = 0; i < Count; ++i) values[i] = at_least<Lanes>(values[i], 0.0f) + log1p_of_fraction<Lanes>(parts[i]);
}

// 1 / (1 + exp(-v)), the derivative of softplus.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> sigmoid(Float<Lanes> v) {
  const Float<Lanes> e = exp_minus_abs<Lanes>(v);
  const Float<Lanes> numerator = v < 0.0f ? e : broadcast<Lanes>(1.0f);
  return numerator / (e + 1.0f);
}

}  // namespace
