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
#endif

#define MSMAMBA_INLINE inline __attribute__((always_inline))
#define MSMAMBA_NOINLINE __attribute__((noinline))
// GCC takes a function that only prefetches for one without effect and drops the call unless it must inline it.
#define MSMAMBA_INLINE_LAMBDA __attribute__((always_inline))

namespace {

constexpr float kLog2E = 1.442695041f;
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

// Both return the bound only where `value` lies beyond it: a NaN stays a NaN.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> at_least(Float<Lanes> value, float bound) {
  return value < bound ? broadcast<Lanes>(bound) : value;
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> at_most(Float<Lanes> value, float bound) {
  return value > bound ? broadcast<Lanes>(bound) : value;
}

#if defined(__AVX512VL__)
// The masked forms, with no lane masked, stand in for the plain ones: GCC 12 warns of an uninitialised
// variable inside its own definitions of those (GCC bug 105593). The instructions are the same.
constexpr __mmask16 kAllLanes = 0xffff;
#endif

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> round_to_nearest(Float<Lanes> value) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    return (Float<Lanes>)_mm512_maskz_roundscale_ps(kAllLanes, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
  }
#endif
#if defined(__AVX2__)
  if constexpr (Lanes == 8) {
    return (Float<Lanes>)_mm256_round_ps((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
#endif
  // Beside 1.5 * 2^23 a float32 has no bits left for a fraction.
  const float magic = 12582912.0f;
  return (value + magic) - magic;
}

// mantissa * 2^exponent for an integral exponent and a mantissa in [1/2, 2]. Where AVX-512 is missing the
// exponent is held within [-126, 127]: results beyond come back as about 1e-38 and 1e38.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> scale_by_power_of_two(Float<Lanes> mantissa, Float<Lanes> exponent) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    return (Float<Lanes>)_mm512_maskz_scalef_ps(kAllLanes, (__m512)mantissa, (__m512)exponent);
  }
  if constexpr (Lanes == 8) return (Float<Lanes>)_mm256_scalef_ps((__m256)mantissa, (__m256)exponent);
#endif
  const Float<Lanes> held = at_most<Lanes>(at_least<Lanes>(exponent, -126.0f), 127.0f);
  const Int<Lanes> shift = __builtin_convertvector(held, Int<Lanes>) << 23;
  return (Float<Lanes>)((Int<Lanes>)mantissa + shift);
}

// 2^f for f in [-1/2, 1/2]: 1 + f * (a polynomial), minimax in relative error with the constant pinned to 1. The pin
// matters: a decay near 1 is raised to a power of thousands by the recurrence, and it makes the error vanish
// with the step size.

// Degree 5, its slope pinned to ln 2: relative error 1.1e-7.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp2_fraction(Float<Lanes> f) {
  const Float<Lanes> upper = ((0.0013300607f * f + 0.009669691f) * f + 0.055505585f) * f + 0.24022283f;
  return (upper * f + 0.6931472f) * f + 1.0f;
}

// Degree 6: relative error 1.6e-8, below float32's own rounding.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp2_fraction_precise(Float<Lanes> f) {
  const Float<Lanes> upper =
      (((0.00015353363f * f + 0.0013398874f) * f + 0.009618437f) * f + 0.055503324f) * f + 0.24022648f;
  return (upper * f + 0.6931472f) * f + 1.0f;
}

#if defined(__AVX512VL__)
// 2^(i/16) for i below 16; every second one serves vectors of eight lanes.
alignas(64) constexpr float kPowersOfTwo[16] = {1.0f,       1.0442737f, 1.0905077f, 1.1387886f, 1.1892071f, 1.2418578f,
                                                1.2968396f, 1.3542556f, 1.4142135f, 1.4768262f, 1.5422108f, 1.6104903f,
                                                1.6817929f, 1.7562522f, 1.8340081f, 1.9152066f};
alignas(32) constexpr float kEighthPowersOfTwo[8] = {1.0f,       1.0905077f, 1.1892071f, 1.2968396f,
                                                     1.4142135f, 1.5422108f, 1.6817929f, 1.8340081f};

// 2^z as 2^n * T[i] * 2^f: the table T of 2^(i/16) (or i/8) is one register, so f is at most 1/32 (1/16), and two terms
// fewer do. The scan's inner loop, bound by multiply-adds, runs a tenth faster for it.
MSMAMBA_INLINE Float<16> exp2_by_table(Float<16> z) {
  const Float<16> steps = (Float<16>)_mm512_maskz_roundscale_ps(kAllLanes, (__m512)z, 4 << 4);  // to sixteenths
  const Float<16> f = z - steps;
  // Beside 1.5 * 2^19 the last bits of a float32 count sixteenths.
  const __m512i index = (__m512i)(steps + 786432.0f);
  const Float<16> table = (Float<16>)_mm512_permutexvar_ps(index, _mm512_load_ps(kPowersOfTwo));
  const Float<16> power = ((0.055502344f * f + 0.24023429f) * f + 0.6931472f) * f + 1.0f;
  return (Float<16>)_mm512_maskz_scalef_ps(kAllLanes, (__m512)(power * table), (__m512)steps);  // by floor(steps)
}

MSMAMBA_INLINE Float<8> exp2_by_table(Float<8> z) {
  const Float<8> steps = (Float<8>)_mm256_roundscale_ps((__m256)z, 3 << 4);  // to eighths
  const Float<8> f = z - steps;
  const __m256i index = (__m256i)(steps + 1572864.0f);
  const Float<8> table = (Float<8>)_mm256_permutevar8x32_ps(_mm256_load_ps(kEighthPowersOfTwo), index);
  const Float<8> power = ((0.055504266f * f + 0.24025749f) * f + 0.6931472f) * f + 1.0f;
  return (Float<8>)_mm256_scalef_ps((__m256)(power * table), (__m256)steps);
}
#endif

// 2^z for finite z, within 2.5 ulp where the result is normal. NaN gives NaN.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp2(Float<Lanes> z) {
#if defined(__AVX512VL__)
  if constexpr (Lanes >= 8) return exp2_by_table(z);
#endif
  const Float<Lanes> whole = round_to_nearest<Lanes>(z);
  return scale_by_power_of_two<Lanes>(exp2_fraction<Lanes>(z - whole), whole);
}

// The same within 1.5 ulp. Gradients add up products of many decays, to which the other's error is systematic.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp2_precise(Float<Lanes> z) {
  const Float<Lanes> whole = round_to_nearest<Lanes>(z);
  return scale_by_power_of_two<Lanes>(exp2_fraction_precise<Lanes>(z - whole), whole);
}

// exp(-|v|), in [0, 1], for any v.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> exp_minus_abs(Float<Lanes> v) {
  // Below -104 the exponential is zero in float32; the bound keeps infinities out of the reduction.
  const Float<Lanes> z = at_least<Lanes>(v < 0.0f ? v : -v, -104.0f);
  const Float<Lanes> whole = round_to_nearest<Lanes>(z * kLog2E);
  // ln 2 in two parts: `whole` times the first is exact, so no digits of a large |v| are lost.
  const Float<Lanes> rest = (z - whole * 0.693359375f) - whole * -2.12194440e-4f;
  return scale_by_power_of_two<Lanes>(exp2_fraction_precise<Lanes>(rest * kLog2E), whole);
}

// log(1 + exp(v)) for any v, within 3.5 ulp where the result is normal.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> softplus(Float<Lanes> v) {
  const Float<Lanes> e = exp_minus_abs<Lanes>(v);
  // log(1 + e) = 2 atanh(s), an odd series in s = e / (2 + e), which is at most 1/3.
  const Float<Lanes> s = e / (e + 2.0f);
  const Float<Lanes> square = s * s;
  const Float<Lanes> tail = ((0.28011987f * square + 0.28001806f) * square + 0.40021527f) * square + 0.6666642f;
  const Float<Lanes> log1p = s * (tail * square) + (s + s);
  return at_least<Lanes>(v, 0.0f) + log1p;
}

// 1 / (1 + exp(-v)), the derivative of softplus.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> sigmoid(Float<Lanes> v) {
  const Float<Lanes> e = exp_minus_abs<Lanes>(v);
  const Float<Lanes> numerator = v < 0.0f ? e : broadcast<Lanes>(1.0f);
  return numerator / (e + 1.0f);
}

}  // namespace
