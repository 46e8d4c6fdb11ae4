// Sixteen numbers in two registers of AVX2, with FMA; levels of int8 in two more.

#pragma once

#define VEC_AVX2

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vec {
  __m256 low, high;
};

inline Vec load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Vec v) {
  _mm256_storeu_ps(to, v.low);
  _mm256_storeu_ps(to + 8, v.high);
}
inline Vec all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Vec abs(Vec a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
// The size of `a`, which is not negative, with the sign of `b`.
inline Vec with_sign(Vec a, Vec b) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(a.low, _mm256_and_ps(b.low, sign)), _mm256_or_ps(a.high, _mm256_and_ps(b.high, sign))};
}
inline Vec nearest(Vec a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, mode), _mm256_round_ps(a.high, mode)};
}
// Below 2^-126 the result is zero instead of a subnormal number.
inline __m256 times_power_of_2(__m256 a, __m256 power) {
  power = _mm256_max_ps(power, _mm256_set1_ps(-127.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
inline Vec times_power_of_2(Vec a, Vec power) {
  return {times_power_of_2(a.low, power.low), times_power_of_2(a.high, power.high)};
}
// The divider is idle otherwise: an estimate with a step of Newton's method takes longer.
inline Vec reciprocal(Vec a) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return {_mm256_div_ps(one, a.low), _mm256_div_ps(one, a.high)};
}
inline Vec rough_reciprocal(Vec a) { return reciprocal(a); }
inline float sum(Vec a) {
  const __m256 both = _mm256_add_ps(a.low, a.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline float largest(Vec a) {
  const __m256 both = _mm256_max_ps(a.low, a.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

// Sums of products of levels.
struct Levels {
  __m256i low, high;
};

inline __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_bytes(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline Levels load(const int32_t* from) { return {load_bytes(from), load_bytes(from + 8)}; }
inline Vec to_float(Levels v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }

inline __m256i packed(Vec v) { return _mm256_packs_epi32(_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high)); }
inline __m256i packed(Vec a, Vec b) {
  // Packing goes by halves of registers: dwords 0, 4, 1, 5 hold the bytes of a, the others those of b.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(packed(a), packed(b)), order);
}
inline void store_levels(uint8_t* to, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed(v, v)));
}
inline void store_levels(uint8_t* to, Vec a, Vec b, Vec c, Vec d) {
  store_bytes(to, packed(a, b));
  store_bytes(to + 32, packed(c, d));
}

// The bytes at the places of `places` in a table of 256: of its sixteen rows by the lower four bits, then of each two
// of these by one of the upper four.
inline __m256i look_up(const uint8_t* table, __m256i places) {
  const __m256i in_row = _mm256_and_si256(places, _mm256_set1_epi8(15));
  const __m256i by_bit_4 = _mm256_slli_epi16(places, 3), by_bit_5 = _mm256_slli_epi16(places, 2);
  const __m256i by_bit_6 = _mm256_slli_epi16(places, 1);
  const auto row = [&](int i) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), in_row);
  };
  const auto of_two = [&](int i) { return _mm256_blendv_epi8(row(i), row(i + 1), by_bit_4); };
  const auto of_four = [&](int i) { return _mm256_blendv_epi8(of_two(i), of_two(i + 2), by_bit_5); };
  const auto of_eight = [&](int i) { return _mm256_blendv_epi8(of_four(i), of_four(i + 4), by_bit_6); };
  return _mm256_blendv_epi8(of_eight(0), of_eight(8), places);
}

// Replaces each of `count` levels by that at its place in `table`, which has 256.
inline void look_up(const uint8_t* table, uint8_t* levels, int count) {
  int c = 0;
  for (; c + 32 <= count; c += 32) store_bytes(levels + c, look_up(table, load_bytes(levels + c)));
  if (c < count) {
    __m128i* last = reinterpret_cast<__m128i*>(levels + c);
    const __m256i places = _mm256_castsi128_si256(_mm_loadu_si128(last));
    _mm_storeu_si128(last, _mm256_castsi256_si128(look_up(table, places)));
  }
}

}  // namespace
