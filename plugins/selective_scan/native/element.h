// Reading and writing float32, float16 and bfloat16 memory as float32 vectors.
#pragma once

#include <type_traits>

#include "problem.h"
#include "vector.h"

namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// `widened` and `narrowed` convert one full vector at any address (float16 and bfloat16: to nearest even).

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> widened(const float* source) {
  return load<Lanes>(source);
}

template <int Lanes>
MSMAMBA_INLINE void narrowed(float* target, Float<Lanes> value) {
  store<Lanes>(target, value);
}

template <int Lanes>
struct Bits16 {
  typedef uint16_t Vector __attribute__((vector_size(Lanes * 2)));
  typedef uint16_t Unaligned __attribute__((vector_size(Lanes * 2), aligned(1), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(Lanes * 4)));
};

template <int Lanes>
MSMAMBA_INLINE typename Bits16<Lanes>::Wide wide_bits(const void* source) {
  const typename Bits16<Lanes>::Vector bits = *static_cast<const typename Bits16<Lanes>::Unaligned*>(source);
  return __builtin_convertvector(bits, typename Bits16<Lanes>::Wide);
}

template <int Lanes>
MSMAMBA_INLINE void store_low_bits(void* target, typename Bits16<Lanes>::Wide bits) {
  *static_cast<typename Bits16<Lanes>::Unaligned*>(target) =
      __builtin_convertvector(bits, typename Bits16<Lanes>::Vector);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> widened(const BFloat16* source) {
  return (Float<Lanes>)(wide_bits<Lanes>(source) << 16);
}

template <int Lanes>
MSMAMBA_INLINE void narrowed(BFloat16* target, Float<Lanes> value) {
  using Wide = typename Bits16<Lanes>::Wide;
  const Wide bits = (Wide)value;
  const Wide rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store_low_bits<Lanes>(target, (Wide)(value == value ? (Int<Lanes>)rounded : Int<Lanes>{} + 0x7fc0));
}

#if defined(__aarch64__)
// Four elements of 16 bits as float32. NEON converts float16 itself.
MSMAMBA_INLINE float32x4_t widened_bits(uint16x4_t bits, const Half*) {
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}
MSMAMBA_INLINE float32x4_t widened_bits(uint16x4_t bits, const BFloat16*) {
  return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}
MSMAMBA_INLINE uint16x4_t half_bits(float32x4_t value) { return vreinterpret_u16_f16(vcvt_f16_f32(value)); }
#endif

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> widened(const Half* source) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    return (Float<Lanes>)_mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  }
#endif
#if defined(__F16C__)
  if constexpr (Lanes == 8) {
    return (Float<Lanes>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  }
  if constexpr (Lanes == 4) {
    return (Float<Lanes>)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source)));
  }
#elif defined(__aarch64__)
  if constexpr (Lanes == 4) {
    uint16x4_t bits;
    __builtin_memcpy(&bits, source, sizeof bits);
    return (Float<Lanes>)widened_bits(bits, source);
  }
#endif
  // Read the bits as a float32 that is 2^112 too small and scale it: exact for subnormals too. Infinities
  // and NaNs are those that come out at 2^16 or more; their exponent field is filled up.
  using Wide = typename Bits16<Lanes>::Wide;
  const Wide bits = wide_bits<Lanes>(source);
  const Float<Lanes> magnitude = (Float<Lanes>)((bits & 0x7fffu) << 13) * 0x1p112f;
  const Int<Lanes> special = (magnitude >= 65536.0f) & 0x7f800000;
  return (Float<Lanes>)((Int<Lanes>)magnitude | special | (Int<Lanes>)((bits & 0x8000u) << 16));
}

template <int Lanes>
MSMAMBA_INLINE void narrowed(Half* target, Float<Lanes> value) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                        _mm512_maskz_cvtps_ph(kAllLanes, (__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (Lanes == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                     _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return;
  }
  if constexpr (Lanes == 4) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(target),
                     _mm_cvtps_ph((__m128)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return;
  }
#elif defined(__aarch64__)
  if constexpr (Lanes == 4) {
    const uint16x4_t bits = half_bits((float32x4_t)value);
    __builtin_memcpy(target, &bits, sizeof bits);
    return;
  }
#endif
  using Wide = typename Bits16<Lanes>::Wide;
  const Wide bits = (Wide)value;
  const Wide sign = (bits >> 16) & 0x8000u;
  const Wide magnitude = bits & 0x7fffffffu;
  // Normal results: rebias the exponent and round the 13 bits that drop off; a carry moves up as it should.
  const Wide normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 1/2 lets the float32 adder do the shift and the rounding.
  const Wide subnormal = (Wide)((Float<Lanes>)magnitude + 0.5f) - 0x3f000000u;
  Int<Lanes> result = (Int<Lanes>)magnitude < 0x38800000 ? (Int<Lanes>)subnormal : (Int<Lanes>)normal;
  result = (Int<Lanes>)magnitude >= 0x477ff000 ? Int<Lanes>{} + 0x7c00 : result;  // 65520 and up: infinity
  result = value == value ? result : Int<Lanes>{} + 0x7e00;
  store_low_bits<Lanes>(target, (Wide)result | sign);
}

// Memory of the callers may begin at any address: single elements go through these, never through `*pointer`.

template <typename Element>
MSMAMBA_INLINE Element element_at(const Element* source) {
  Element value;
  __builtin_memcpy(&value, source, sizeof value);
  return value;
}

template <typename Element>
MSMAMBA_INLINE void put_element(Element* target, Element value) {
  __builtin_memcpy(target, &value, sizeof value);
}

#if defined(__aarch64__)
// One to three elements, which compilers would copy to memory and back by calls: what is beyond reads as zero, and is not
// written.

MSMAMBA_INLINE float32x4_t few_loaded(const float* source, int count) {
  if (count == 1) return vsetq_lane_f32(element_at(source), vdupq_n_f32(0.0f), 0);
  float32x2_t pair;
  __builtin_memcpy(&pair, source, sizeof pair);
  const float32x4_t two = vcombine_f32(pair, vdup_n_f32(0.0f));
  return count == 2 ? two : vsetq_lane_f32(element_at(source + 2), two, 2);
}

template <typename Element>
MSMAMBA_INLINE float32x4_t few_loaded(const Element* source, int count) {
  uint16x4_t bits = vdup_n_u16(0);
  if (count == 1) {
    bits = vset_lane_u16(element_at(source).bits, bits, 0);
  } else {
    uint32_t pair;
    __builtin_memcpy(&pair, source, sizeof pair);
    bits = vreinterpret_u16_u32(vset_lane_u32(pair, vdup_n_u32(0), 0));
    if (count == 3) bits = vset_lane_u16(element_at(source + 2).bits, bits, 2);
  }
  return widened_bits(bits, source);
}

MSMAMBA_INLINE void few_stored(float* target, float32x4_t value, int count) {
  if (count == 1) return put_element(target, vgetq_lane_f32(value, 0));
  const float32x2_t pair = vget_low_f32(value);
  __builtin_memcpy(target, &pair, sizeof pair);
  if (count == 3) put_element(target + 2, vgetq_lane_f32(value, 2));
}

MSMAMBA_INLINE void few_stored(Half* target, float32x4_t value, int count) {
  const uint16x4_t bits = half_bits(value);
  if (count == 1) return put_element(target, Half{vget_lane_u16(bits, 0)});
  const uint32_t pair = vget_lane_u32(vreinterpret_u32_u16(bits), 0);
  __builtin_memcpy(target, &pair, sizeof pair);
  if (count == 3) put_element(target + 2, Half{vget_lane_u16(bits, 2)});
}
#endif

// The first `count` lanes of a vector; the others read as zero and are not written.

template <int Lanes, typename Element>
MSMAMBA_INLINE Float<Lanes> load_lanes(const Element* source, int count) {
  if (count == Lanes) return widened<Lanes>(source);
#if defined(__aarch64__)
  if constexpr (Lanes == 4) return (Float<Lanes>)few_loaded(source, count);
#endif
  Element lanes[Lanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = element_at(source + i);
  return widened<Lanes>(lanes);
}

template <int Lanes, typename Element>
MSMAMBA_INLINE void store_lanes(Element* target, Float<Lanes> value, int count) {
  if (count == Lanes) return narrowed<Lanes>(target, value);
#if defined(__aarch64__)
  if constexpr (Lanes == 4 && !std::is_same_v<Element, BFloat16>) {
    return few_stored(target, (float32x4_t)value, count);
  }
#endif
  Element lanes[Lanes];
  narrowed<Lanes>(lanes, value);
  for (int i = 0; i < count; ++i) put_element(target + i, lanes[i]);
}

}  // namespace
