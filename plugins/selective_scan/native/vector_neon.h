// What NEON does in other instructions than the compilers make of vector.h, which includes this.
//
// A multiply-add of NEON overwrites its addend, so a constant that is added has to be brought into the register first: by a
// copy, which occupies a unit that could multiply, or by a load, which does not. Compilers keep constants in registers
// and copy them; here they are loaded where they are used.
#pragma once

#include <arm_neon.h>

namespace {

// Constants, each in every lane.
template <int Count>
struct Constants {
  alignas(16) float lanes[Count][4];
};

template <int Count>
constexpr Constants<Count> in_every_lane(const float (&values)[Count]) {
  Constants<Count> constants{};
  for (int i = 0; i < Count; ++i) {
    for (float& lane : constants.lanes[i]) lane = values[i];
  }
  return constants;
}

// One of them, loaded anew for each `use`, which keeps compilers from loading it once for all.
template <int index, int Count>
MSMAMBA_INLINE float32x4_t loaded_for(float32x4_t use, const Constants<Count>& constants) {
  static_assert(index < Count, "there is no such constant");
  float32x4_t value;
  asm("ldr %q0, [%1, %2]" : "=w"(value) : "r"(&constants), "i"(16 * index), "w"(use));
  return value;
}

struct TwoConstants {
  float32x4_t first, second;
};

// Two neighbours, by one instruction.
template <int index, int Count>
MSMAMBA_INLINE TwoConstants two_loaded_for(float32x4_t use, const Constants<Count>& constants) {
  static_assert(index + 1 < Count, "there are no such constants");
  TwoConstants values;
  asm("ldp %q0, %q1, [%2, %3]"
      : "=w"(values.first), "=w"(values.second)
      : "r"(&constants), "i"(16 * index), "w"(use));
  return values;
}

// 2^f = 1 + f * q(f), f in [-1/2, 1/2]: relative error 1.1e-7. The first factor of q, and its addends.
constexpr float kPowerFactor = 0.0013300607f;
constexpr Constants<4> kPowerAddends = in_every_lane({0.009669691f, 0.055505585f, 0.24022283f, 0.6931472f});

MSMAMBA_INLINE float32x4_t power_series(float32x4_t f) {
  const TwoConstants upper = two_loaded_for<0>(f, kPowerAddends);
  const float32x4_t head = vfmaq_f32(upper.second, vfmaq_f32(upper.first, f, vdupq_n_f32(kPowerFactor)), f);
  const TwoConstants lower = two_loaded_for<2>(head, kPowerAddends);
  return vfmaq_f32(lower.second, vfmaq_f32(lower.first, head, f), f);
}

// 2^z: a table of powers would save terms of the series, and cost more than that: `tbl` looks bytes up, whose indices have to
// be made of each lane's.
template <>
struct Exp2<4> {
  static constexpr int kFractionBits = 0;
  MSMAMBA_INLINE static Float<4> power(Float<4> rounded, Float<4>, Float<4> f) {
    const float32x4_t scaled = (float32x4_t)((Int<4>)rounded << 23);  // kRounding brings the exponent's bias along
    return (Float<4>)vfmaq_f32(scaled, scaled, vmulq_f32((float32x4_t)f, power_series((float32x4_t)f)));
  }
};

template <>
constexpr float kRounding<4> = 12582912.0f + 127.0f;

// Within 2.5 ulp. The power is scaled by a sum onto its exponent, which the low bits of a NaN's `rounded` could turn into a
// number: a NaN of `b` has none (`pack_A` sees to it); one of `a`, a step size, makes the state NaN by itself.
template <>
MSMAMBA_INLINE Float<4> exp2_of_product<4, false>(Float<4> a_, Float<4> b_) {
  static constexpr Constants<2> kAddends = in_every_lane({12582912.0f, 1.0f});
  const float32x4_t a = (float32x4_t)a_, b = (float32x4_t)b_;
  const float32x4_t rounding = vdupq_n_f32(kAddends.lanes[0][0]);
  const TwoConstants addends = two_loaded_for<0>(b, kAddends);
  const float32x4_t rounded = vfmaq_f32(addends.first, a, b);
  const float32x4_t f = vfmaq_f32(vsubq_f32(rounding, rounded), a, b);
  const float32x4_t power = vfmaq_f32(addends.second, f, power_series(f));
  int32x4_t exponent_step = vdupq_n_s32(1 << 23);
  asm("" : "+w"(exponent_step));  // else compilers make a shift and an addition of it
  return (Float<4>)vmlaq_s32((int32x4_t)power, (int32x4_t)rounded, exponent_step);
}

template <>
MSMAMBA_INLINE Float<4> exp_minus_abs<4>(Float<4> v) {
  static constexpr Constants<1> kRoundings = in_every_lane({kRounding<4>});
  const float32x4_t minus_abs = (float32x4_t)((Int<4>)v | INT32_MIN);
  const float32x4_t z = vmaxq_f32(minus_abs, vdupq_n_f32(-kMostExponent * kLn2));
  const float32x4_t log2_e = vdupq_n_f32(kLog2E);
  const float32x4_t rounded = vfmaq_f32(loaded_for<0>(z, kRoundings), z, log2_e);
  const float32x4_t minus_part = vsubq_f32(vdupq_n_f32(kRounding<4>), rounded);
  const float32x4_t rest = vfmaq_f32(vfmaq_f32(minus_part, z, log2_e), z, vdupq_n_f32(kLog2ERest));
  return Exp2<4>::power((Float<4>)rounded, Float<4>{}, (Float<4>)rest);
}

template <>
MSMAMBA_INLINE Float<4> log1p_of_fraction<4>(Float<4> e_) {
  static constexpr Constants<3> kAddends = in_every_lane({0.28001806f, 0.40021527f, 0.6666642f});
  const float32x4_t e = (float32x4_t)e_, s = vdivq_f32(e, vaddq_f32(e, vdupq_n_f32(2.0f)));
  const float32x4_t square = vmulq_f32(s, s);
  const TwoConstants upper = two_loaded_for<0>(square, kAddends);
  const float32x4_t head =
      vfmaq_f32(upper.second, vfmaq_f32(upper.first, square, vdupq_n_f32(0.28011987f)), square);
  const float32x4_t tail = vfmaq_f32(loaded_for<2>(square, kAddends), head, square);
  return (Float<4>)vfmaq_f32(vaddq_f32(s, s), s, vmulq_f32(tail, square));
}

}  // namespace
