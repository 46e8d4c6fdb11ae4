// Sixteen numbers in four registers of NEON; int8 where the instructions are asked for.

#pragma once

#define VEC_NEON

#include <arm_neon.h>

#include <cstdint>

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
// The size of `a`, which is not negative, with the sign of `b`.
inline Vec with_sign(Vec a, Vec b) {
  EACH_PART a.part[i] = vbslq_f32(vdupq_n_u32(0x80000000u), b.part[i], a.part[i]);
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

inline Vec rough_reciprocal(Vec a) { return reciprocal(a); }

#if defined(__ARM_FEATURE_DOTPROD)
struct Levels {
  int32x4_t part[4];
};

inline Levels load(const int32_t* from) {
  return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
}
inline Vec to_float(Levels v) {
  Vec result;
  EACH_PART result.part[i] = vcvtq_f32_s32(v.part[i]);
  return result;
}
inline float largest(Vec a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.part[0], a.part[1]), vmaxq_f32(a.part[2], a.part[3])));
}

// Levels are stored less 128, as int8.
inline uint8x16_t turned(uint8x16_t levels) { return veorq_u8(levels, vdupq_n_u8(128)); }
inline void store_levels(uint8_t* to, Vec v) {
  const auto narrow = [&](int i) {
    const auto half = [&](int part) { return vqmovn_s32(vcvtnq_s32_f32(v.part[part])); };
    return vqmovun_s16(vcombine_s16(half(i), half(i + 1)));
  };
  vst1q_u8(to, turned(vcombine_u8(narrow(0), narrow(2))));
}
inline void store_levels(uint8_t* to, Vec a, Vec b, Vec c, Vec d) {
  store_levels(to, a);
  store_levels(to + 16, b);
  store_levels(to + 32, c);
  store_levels(to + 48, d);
}

// Replaces each of `count` levels by that at its place in `table`, which has 256.
inline void look_up(const uint8_t* table, uint8_t* levels, int count) {
  uint8x16x4_t quarters[4];
  for (int i = 0; i < 16; ++i) quarters[i / 4].val[i % 4] = vld1q_u8(table + 16 * i);
  for (int c = 0; c < count; c += 16) {
    const uint8x16_t places = turned(vld1q_u8(levels + c));
    uint8x16_t found = vqtbl4q_u8(quarters[0], places);
    for (int i = 1; i < 4; ++i) {  // places outside of a quarter leave what was found
      found = vqtbx4q_u8(found, quarters[i], vsubq_u8(places, vdupq_n_u8(static_cast<uint8_t>(64 * i))));
    }
    vst1q_u8(levels + c, turned(found));
  }
}
#endif

#undef EACH_PART

}  // namespace
