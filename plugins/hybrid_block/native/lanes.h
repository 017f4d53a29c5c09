// Vectors at the ends of rows, sums across lanes, shuffles, and the functions that the block needs beyond the
// scan's.
#pragma once

#include "../../selective_scan/native/element.h"

// For lambdas that are the inside of a hot loop.
#define MSMAMBA_INLINE_BODY __attribute__((always_inline))

namespace {

// Which lanes of a vector hold channels: all, or the first few. Lanes beyond read as zero and are not written.
template <int Lanes>
struct AllLanes {
  static constexpr int count = Lanes;
};
template <int Lanes>
struct SomeLanes {
  int count;
};

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> load(const float* source, AllLanes<Lanes>) {
  return load<Lanes>(source);
}

template <int Lanes>
MSMAMBA_INLINE void store(float* target, Float<Lanes> value, AllLanes<Lanes>) {
  store<Lanes>(target, value);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> load(const float* source, SomeLanes<Lanes> used) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    return (Float<Lanes>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << used.count) - 1), source);
  }
#elif defined(__aarch64__)
  if constexpr (Lanes == 4) return (Float<Lanes>)few_loaded(source, used.count);
#endif
  float lanes[Lanes] = {};
  for (int i = 0; i < used.count; ++i) lanes[i] = source[i];
  return load<Lanes>(lanes);
}

template <int Lanes>
MSMAMBA_INLINE void store(float* target, Float<Lanes> value, SomeLanes<Lanes> used) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    _mm512_mask_storeu_ps(target, static_cast<__mmask16>((1u << used.count) - 1), (__m512)value);
    return;
  }
#elif defined(__aarch64__)
  if constexpr (Lanes == 4) return few_stored(target, (float32x4_t)value, used.count);
#endif
  float lanes[Lanes];
  store<Lanes>(lanes, value);
  for (int i = 0; i < used.count; ++i) target[i] = lanes[i];
}

// The same of float16 memory: read and written as float32 vectors.

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> load(const Half* source, AllLanes<Lanes>) {
  return widened<Lanes>(source);
}

template <int Lanes>
MSMAMBA_INLINE void store(Half* target, Float<Lanes> value, AllLanes<Lanes>) {
  narrowed<Lanes>(target, value);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> load(const Half* source, SomeLanes<Lanes> used) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << used.count) - 1), source);
    return (Float<Lanes>)_mm512_maskz_cvtph_ps(kAllLanes, bits);
  }
#endif
#if defined(__F16C__)
  if constexpr (Lanes == 8) {  // groups of few channels often end in four
    if (used.count == 4) return (Float<Lanes>)_mm256_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source)));
  }
#endif
  return load_lanes<Lanes>(source, used.count);
}

template <int Lanes>
MSMAMBA_INLINE void store(Half* target, Float<Lanes> value, SomeLanes<Lanes> used) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) {
    const __m256i bits =
        _mm512_maskz_cvtps_ph(kAllLanes, (__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(target, static_cast<__mmask16>((1u << used.count) - 1), bits);
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (Lanes == 8) {
    if (used.count == 4) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(target),
                       _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      return;
    }
  }
#endif
  store_lanes<Lanes>(target, value, used.count);
}

// Whether `store_streamed` is another store than `store`.
#if defined(__AVX2__)
constexpr bool kHasStreamedStores = true;
#else
constexpr bool kHasStreamedStores = false;
#endif

// Stores past the caches, for memory that would have left them before it is read: the line is not fetched first. The
// address is a multiple of the vector's size, and `end_streaming` comes before another thread is told that it is there.
template <int Lanes>
MSMAMBA_INLINE void store_streamed(float* target, Float<Lanes> value) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) return _mm512_stream_ps(target, (__m512)value);
#endif
#if defined(__AVX2__)
  if constexpr (Lanes == 8) return _mm256_stream_ps(target, (__m256)value);
#endif
  store<Lanes>(target, value);
}

MSMAMBA_INLINE void end_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// `value` with the lanes beyond set to zero.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> kept(Float<Lanes> value, AllLanes<Lanes>) {
  return value;
}
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> kept(Float<Lanes> value, SomeLanes<Lanes> used) {
  Int<Lanes> lane;
#pragma GCC unroll 16
  for (int i = 0; i < Lanes; ++i) lane[i] = i;
  return lane < used.count ? value : Float<Lanes>{};
}

// Calls `body(first, used)` for every vector of a row of `count` floats.
template <int Lanes, typename Body>
MSMAMBA_INLINE void for_each_vector(int64_t count, Body body) {
  int64_t first = 0;
  for (; first + Lanes <= count; first += Lanes) body(first, AllLanes<Lanes>{});
  if (first < count) body(first, SomeLanes<Lanes>{static_cast<int>(count - first)});
}

template <int Lanes>
constexpr int64_t whole_vectors(int64_t count) {
  return (count + Lanes - 1) / Lanes * Lanes;
}

// The first and the second half of a vector.
template <int Lanes>
struct Halves {
  Float<Lanes / 2> low;
  Float<Lanes / 2> high;
};

template <int Lanes>
MSMAMBA_INLINE Halves<Lanes> halves(Float<Lanes> v) {
  if constexpr (Lanes == 16) {
    return {__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
            __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)};
  } else if constexpr (Lanes == 8) {
    return {__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7)};
  } else {
    return {__builtin_shufflevector(v, v, 0, 1), __builtin_shufflevector(v, v, 2, 3)};
  }
}

template <int Lanes>
MSMAMBA_INLINE float sum_across(Float<Lanes> v) {
  if constexpr (Lanes == 2) {
    return v[0] + v[1];
  } else {
    const Halves<Lanes> parts = halves<Lanes>(v);
    return sum_across<Lanes / 2>(parts.low + parts.high);
  }
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> square_root(Float<Lanes> v) {
#if defined(__AVX512VL__)
  if constexpr (Lanes == 16) return (Float<Lanes>)_mm512_maskz_sqrt_ps(kAllLanes, (__m512)v);
#endif
#if defined(__AVX2__)
  if constexpr (Lanes == 8) return (Float<Lanes>)_mm256_sqrt_ps((__m256)v);
#elif defined(__aarch64__)
  if constexpr (Lanes == 4) return (Float<Lanes>)vsqrtq_f32((float32x4_t)v);
#endif
  Float<Lanes> root = v;
  for (int i = 0; i < Lanes; ++i) root[i] = __builtin_sqrtf(v[i]);
  return root;
}

// Even lanes first, then odd lanes: a channel shuffle in pairs.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> unzipped(Float<Lanes> v) {
  if constexpr (Lanes == 16) {
    return __builtin_shufflevector(v, v, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  } else if constexpr (Lanes == 8) {
    return __builtin_shufflevector(v, v, 0, 2, 4, 6, 1, 3, 5, 7);
  } else {
    return __builtin_shufflevector(v, v, 0, 2, 1, 3);
  }
}

// Writes `count` lanes of `value`, at most half of a vector, from lane 0 or from the middle.
template <int Lanes>
MSMAMBA_INLINE void store_half(float* target, Float<Lanes / 2> value, int count) {
  if (count == Lanes / 2) {
    __builtin_memcpy(target, &value, sizeof value);
  } else {
    for (int i = 0; i < count; ++i) target[i] = value[i];
  }
}

// Every fourth lane, from lane 0, 1, 2 and 3 on: a channel shuffle in fours.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> unzipped_by_four(Float<Lanes> v) {
  if constexpr (Lanes == 16) {
    return __builtin_shufflevector(v, v, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  } else if constexpr (Lanes == 8) {
    return __builtin_shufflevector(v, v, 0, 4, 1, 5, 2, 6, 3, 7);
  } else {
    return v;
  }
}

// Writes `parts` parts of a vector, each its first `count` lanes, `stride` apart. It is narrowed whole: one
// instruction, where pieces of it would each take one.
template <int Lanes, int Parts>
MSMAMBA_INLINE void store_parts(Half* target, int64_t stride, Float<Lanes> value, int count) {
  constexpr int kWidth = Lanes / Parts;
  Half lanes[Lanes];
  narrowed<Lanes>(lanes, value);
#pragma GCC unroll 4
  for (int part = 0; part < Parts; ++part) {
    if (count == kWidth) {
      __builtin_memcpy(target + part * stride, lanes + part * kWidth, kWidth * sizeof(Half));
    } else {
      for (int i = 0; i < count; ++i) put_element(target + part * stride + i, lanes[part * kWidth + i]);
    }
  }
}

// Every second channel to `even`, the others to `odd`; `used.count` is even.
template <int Lanes, typename Used>
MSMAMBA_INLINE void store_unzipped(float* even, float* odd, Float<Lanes> value, Used used) {
  const Halves<Lanes> parts = halves<Lanes>(unzipped<Lanes>(value));
  store_half<Lanes>(even, parts.low, used.count / 2);
  store_half<Lanes>(odd, parts.high, used.count / 2);
}

// Every fourth channel to `target`, the next ones `stride`, 2 * `stride` and 3 * `stride` further;
// `used.count` is a multiple of 4.
template <int Lanes, typename Used>
MSMAMBA_INLINE void store_unzipped_by_four(float* target, int64_t stride, Float<Lanes> value, Used used) {
  const Float<Lanes> parts = unzipped_by_four<Lanes>(value);
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    constexpr int kWidth = Lanes / 4;
    if (used.count == Lanes) {
      __builtin_memcpy(target + part * stride, reinterpret_cast<const float*>(&parts) + part * kWidth,
                       kWidth * sizeof(float));
    } else {
      for (int i = 0; i < used.count / 4; ++i) target[part * stride + i] = parts[part * kWidth + i];
    }
  }
}

template <int Lanes, typename Used>
MSMAMBA_INLINE void store_unzipped(Half* even, Half* odd, Float<Lanes> value, Used used) {
  store_parts<Lanes, 2>(even, odd - even, unzipped<Lanes>(value), used.count / 2);
}

template <int Lanes, typename Used>
MSMAMBA_INLINE void store_unzipped_by_four(Half* target, int64_t stride, Float<Lanes> value, Used used) {
  store_parts<Lanes, 4>(target, stride, unzipped_by_four<Lanes>(value), used.count / 4);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> relu(Float<Lanes> v) {
  return at_least<Lanes>(v, 0.0f);
}

// 1 + exp(-v), from 1 to about 1e38, for v of at least -kMostLogistic. The exponent is one product, so that a
// negative v costs the exponential |v| / 2 ulp: where |v| is large, what is divided by it is next to nothing.
constexpr float kMostLogistic = 87.3f;  // less than kMostExponent * ln 2
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> logistic_divisor(Float<Lanes> v) {
  return exp2_of_at_most<Lanes>(v * -kLog2E) + 1.0f;
}

// 1 / (1 + exp(-v)) likewise: of any v below that it is next to nothing.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> logistic_of_held(Float<Lanes> v) {
  return 1.0f / logistic_divisor<Lanes>(v);
}

template <int Lanes>
MSMAMBA_INLINE Float<Lanes> logistic(Float<Lanes> v) {
  return logistic_of_held<Lanes>(at_least<Lanes>(v, -kMostLogistic));
}

// v / (1 + exp(-v)). Where v is beyond what the divisor takes the result is next to nothing.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> silu(Float<Lanes> v) {
  const Float<Lanes> held = at_least<Lanes>(v, -kMostLogistic);
  return held / logistic_divisor<Lanes>(held);
}

// v / 2 * (1 + erf(v / sqrt(2))). The error function is v * P(v^2) / Q(v^2), fitted up to 5.3, where it is 1
// in float32: absolute error 4e-7, rounding included. Below -5.3 the result is 0, and a large v would multiply that
// error.
template <int Lanes>
MSMAMBA_INLINE Float<Lanes> gelu(Float<Lanes> v) {
  const Float<Lanes> from_below = at_least<Lanes>(v, -5.3f), held = at_most<Lanes>(from_below, 5.3f);
  const Float<Lanes> u = held * held;
  const Float<Lanes> P =
      ((((4.81005981e-08f * u + 1.27581455e-05f) * u + 3.20670111e-04f) * u + 9.25599343e-03f) * u + 6.58716560e-02f) *
          u +
      7.97884508e-01f;
  const Float<Lanes> Q =
      ((((1.23716916e-06f * u + 7.13525445e-05f) * u + 1.83657455e-03f) * u + 2.81388509e-02f) * u + 2.49224107e-01f) *
          u +
      1.0f;
  const Float<Lanes> half = from_below * 0.5f;
  return half * (held * P / Q) + half;
}

}  // namespace
