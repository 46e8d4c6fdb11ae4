// Sixteen numbers in plain C++: the reference for the other instruction sets, which runs everywhere.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  float lane[16];
};

#define EACH_LANE for (int i = 0; i < 16; ++i)

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(v.lane, from, sizeof v.lane);
  return v;
}
inline void store(float* to, Vec v) { std::memcpy(to, v.lane, sizeof v.lane); }
// The first `count` values, up to 16, and zeros behind them.
inline Vec load_some(const float* from, int count) {
  Vec v;
  EACH_LANE v.lane[i] = i < count ? from[i] : 0.0f;
  return v;
}
inline void store_some(float* to, Vec v, int count) { std::memcpy(to, v.lane, count * sizeof(float)); }
inline Vec all(float x) {
  Vec v;
  EACH_LANE v.lane[i] = x;
  return v;
}
inline Vec operator+(Vec a, Vec b) {
  EACH_LANE a.lane[i] += b.lane[i];
  return a;
}
inline Vec operator-(Vec a, Vec b) {
  EACH_LANE a.lane[i] -= b.lane[i];
  return a;
}
inline Vec operator*(Vec a, Vec b) {
  EACH_LANE a.lane[i] *= b.lane[i];
  return a;
}
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
// If one is NaN, the second, as on x86.
inline Vec max(Vec a, Vec b) {
  EACH_LANE a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
inline Vec min(Vec a, Vec b) {
  EACH_LANE a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
inline Vec abs(Vec a) {
  EACH_LANE a.lane[i] = std::fabs(a.lane[i]);
  return a;
}
// The size of `a`, which is not negative, with the sign of `b`.
inline Vec with_sign(Vec a, Vec b) {
  EACH_LANE a.lane[i] = std::copysign(a.lane[i], b.lane[i]);
  return a;
}
inline Vec nearest(Vec a) {
  EACH_LANE a.lane[i] = std::nearbyintf(a.lane[i]);
  return a;
}
inline Vec times_power_of_2(Vec a, Vec power) {
  EACH_LANE a.lane[i] = std::ldexp(a.lane[i], power.lane[i] < -200.0f ? -200 : static_cast<int>(power.lane[i]));
  return a;
}
inline Vec reciprocal(Vec a) {
  EACH_LANE a.lane[i] = 1.0f / a.lane[i];
  return a;
}
inline Vec rough_reciprocal(Vec a) { return reciprocal(a); }
inline float largest(Vec a) {
  float found = a.lane[0];
  EACH_LANE found = a.lane[i] > found ? a.lane[i] : found;
  return found;
}
inline float sum(Vec a) {
  float total = 0.0f;
  EACH_LANE total += a.lane[i];
  return total;
}

inline float bf16_to_float(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline Vec load_bf16(const uint16_t* from) {
  Vec v;
  EACH_LANE v.lane[i] = bf16_to_float(from[i]);
  return v;
}
inline Vec load_some_bf16(const uint16_t* from, int count) {
  Vec v;
  EACH_LANE v.lane[i] = i < count ? bf16_to_float(from[i]) : 0.0f;
  return v;
}
// The upper half of a float32 is a bfloat16.
inline uint32_t upper_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> 16;
}
inline Vec upper_half(Vec v) {
  EACH_LANE v.lane[i] = bf16_to_float(upper_half(v.lane[i]));
  return v;
}
// Words of the upper halves of two.
inline void store_upper_halves(uint32_t* to, Vec low, Vec high) {
  EACH_LANE to[i] = upper_half(low.lane[i]) | upper_half(high.lane[i]) << 16;
}
// The lower one of two in words.
inline Vec load_lower_half(const uint32_t* from) {
  Vec v;
  EACH_LANE v.lane[i] = bf16_to_float(from[i] & 0xffff);
  return v;
}
inline void store_bf16(uint16_t* to, Vec v) { EACH_LANE to[i] = float_to_bf16(v.lane[i]); }
inline void store_some_bf16(uint16_t* to, Vec v, int count) {
  for (int i = 0; i < count; ++i) to[i] = float_to_bf16(v.lane[i]);
}
// Words of two, to the nearest bfloat16.
inline void store_pairs(uint32_t* to, Vec low, Vec high) {
  EACH_LANE to[i] = float_to_bf16(low.lane[i]) | static_cast<uint32_t>(float_to_bf16(high.lane[i])) << 16;
}

// `sum` and the products of both halves of `word` with those of each word at `weights`.
inline Vec dot_bf16(uint32_t word, const uint32_t* weights, Vec sum) {
  const float low = bf16_to_float(word & 0xffff), high = bf16_to_float(word >> 16);
  EACH_LANE sum.lane[i] += low * bf16_to_float(weights[i] & 0xffff) + high * bf16_to_float(weights[i] >> 16);
  return sum;
}

struct Levels {
  int32_t lane[16];
};

inline Levels load(const int32_t* from) {
  Levels v;
  std::memcpy(v.lane, from, sizeof v.lane);
  return v;
}
inline Levels operator+(Levels a, Levels b) {
  EACH_LANE a.lane[i] += b.lane[i];
  return a;
}
inline Vec to_float(Levels v) {
  Vec result;
  EACH_LANE result.lane[i] = static_cast<float>(v.lane[i]);
  return result;
}
inline void store_levels(uint8_t* to, Vec v) {
  EACH_LANE {
    const float whole = std::nearbyintf(v.lane[i]);
    to[i] = static_cast<uint8_t>(whole > 255.0f ? 255.0f : whole > 0.0f ? whole : 0.0f);
  }
}
inline void store_levels(uint8_t* to, Vec a, Vec b, Vec c, Vec d) {
  store_levels(to, a);
  store_levels(to + 16, b);
  store_levels(to + 32, c);
  store_levels(to + 48, d);
}

// Replaces each of `count` levels by that at its place in `table`.
inline void look_up(const uint8_t* table, uint8_t* levels, int count) {
  for (int i = 0; i < count; ++i) levels[i] = table[levels[i]];
}

// `sum` and the products of the four uint8 of `word` with the four int8 of each word at `weights`.
inline Levels dot_int8(uint32_t word, const uint32_t* weights, Levels sum) {
  for (int byte = 0; byte < 4; ++byte) {
    const int level = word >> 8 * byte & 0xff;
    EACH_LANE sum.lane[i] += level * static_cast<int8_t>(weights[i] >> 8 * byte & 0xff);
  }
  return sum;
}

#undef EACH_LANE

}  // namespace
