// Sixteen numbers in four registers of NEON.

#pragma once

#include <arm_neon.h>

namespace {

struct Vec {
  float32x4_t part[4];
};

#define EACH_PART for (int i = 0; i < 4; ++i)

inline Vec load(const float* from) {
  return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}
inline void store(float* to, Vec v) { EACH_PART vst1q_f32(to + 4 * i, v.part[i]); }
inline Vec all(float x) { return {{vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}}; }
inline Vec operator+(Vec a, Vec b) {
  EACH_PART a.part[i] = vaddq_f32(a.part[i], b.part[i]);
  return a;
}
inline Vec operator-(Vec a, Vec b) {
  EACH_PART a.part[i] = vsubq_f32(a.part[i], b.part[i]);
  return a;
}
inline Vec operator*(Vec a, Vec b) {
  EACH_PART a.part[i] = vmulq_f32(a.part[i], b.part[i]);
  return a;
}
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  EACH_PART c.part[i] = vfmaq_f32(c.part[i], a.part[i], b.part[i]);
  return c;
}
inline Vec max(Vec a, Vec b) {
  EACH_PART a.part[i] = vmaxq_f32(a.part[i], b.part[i]);
  return a;
}
inline Vec min(Vec a, Vec b) {
  EACH_PART a.part[i] = vminq_f32(a.part[i], b.part[i]);
  return a;
}
inline Vec abs(Vec a) {
  EACH_PART a.part[i] = vabsq_f32(a.part[i]);
  return a;
}
inline Vec nearest(Vec a) {
  EACH_PART a.part[i] = vrndnq_f32(a.part[i]);
  return a;
}
// Below 2^-126 the result is zero instead of a subnormal number.
inline Vec times_power_of_2(Vec a, Vec power) {
  EACH_PART {
    const int32x4_t exponent = vcvtnq_s32_f32(vmaxq_f32(power.part[i], vdupq_n_f32(-127.0f)));
    const int32x4_t bits = vshlq_n_s32(vaddq_s32(exponent, vdupq_n_s32(127)), 23);
    a.part[i] = vmulq_f32(a.part[i], vreinterpretq_f32_s32(bits));
  }
  return a;
}
inline Vec reciprocal(Vec a) {
  EACH_PART a.part[i] = vdivq_f32(vdupq_n_f32(1.0f), a.part[i]);
  return a;
}
inline float sum(Vec a) {
  return vaddvq_f32(vaddq_f32(vaddq_f32(a.part[0], a.part[1]), vaddq_f32(a.part[2], a.part[3])));
}

#undef EACH_PART

}  // namespace
