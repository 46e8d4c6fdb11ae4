// Sixteen numbers in a register of AVX-512; bfloat16 and int8 where the instructions are asked for.

#pragma once

#define VEC_AVX512

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vec {
  __m512 all;
};

inline Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Vec v) { _mm512_storeu_ps(to, v.all); }
inline __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
// The first `count` values, up to 16, and zeros behind them.
inline Vec load_some(const float* from, int count) { return {_mm512_maskz_loadu_ps(first(count), from)}; }
inline void store_some(float* to, Vec v, int count) { _mm512_mask_storeu_ps(to, first(count), v.all); }
inline Vec all(float x) { return {_mm512_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.all, b.all)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.all, b.all)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.all, b.all)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.all, b.all)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.all)}; }
inline Vec with_sign(Vec a, Vec b) { return {_mm512_or_ps(a.all, _mm512_and_ps(b.all, _mm512_set1_ps(-0.0f)))}; }
inline Vec nearest(Vec a) { return {_mm512_roundscale_ps(a.all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// Of a power that is not whole, by the whole one below.
inline Vec times_power_of_2(Vec a, Vec power) { return {_mm512_scalef_ps(a.all, power.all)}; }
inline Vec fraction(Vec a) { return {_mm512_reduce_ps(a.all, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
inline Vec minus_product(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(b.all, c.all, a.all)}; }
// The smaller magnitude; of a number and NaN, the number's.
inline Vec smaller_size(Vec a, Vec b) { return {_mm512_range_ps(a.all, b.all, 0b1010)}; }

#define LOOKS_UP_32
// The whole number nearest to `factor` times `a`, in the last bits of each lane.
inline Vec nearest_place(Vec a, float factor) { return multiply_add(a, all(factor), all(8388608.0f)); }  // 2^23
// Of 32 numbers, that at this place.
inline Vec look_up(const float (&table)[32], Vec place) {
  return {_mm512_permutex2var_ps(_mm512_loadu_ps(table), _mm512_castps_si512(place.all), _mm512_loadu_ps(table + 16))};
}
// To 2^-14.
inline Vec rough_reciprocal(Vec a) { return {_mm512_rcp14_ps(a.all)}; }
// One step of Newton's method behind it.
inline Vec reciprocal(Vec a) {
  const __m512 rough = _mm512_rcp14_ps(a.all);
  return {_mm512_mul_ps(rough, _mm512_fnmadd_ps(a.all, rough, _mm512_set1_ps(2.0f)))};
}
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.all); }

#if defined(__AVX512VNNI__)
struct Levels {
  __m512i all;
};

inline Levels load(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
inline Levels operator+(Levels a, Levels b) { return {_mm512_add_epi32(a.all, b.all)}; }
inline Vec to_float(Levels v) { return {_mm512_cvtepi32_ps(v.all)}; }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.all); }
#define LARGEST_OF_EACH
// The largest lane of each.
inline Vec largest_of_each(const Vec (&rows)[16]) {
  // Of every four rows' quarters one, of quarters' halves one, of halves' lanes one.
  __m512 quarters[4], halves[2];
  for (int i = 0; i < 4; ++i) {
    const auto of_two = [&](__m512 a, __m512 b) {
      return _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const __m512 a = of_two(rows[i].all, rows[i + 4].all), b = of_two(rows[i + 8].all, rows[i + 12].all);
    quarters[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  const auto of_two = [](__m512 a, __m512 b) {
    return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  for (int i = 0; i < 2; ++i) halves[i] = of_two(quarters[i], quarters[i + 2]);
  return {of_two(halves[0], halves[1])};
}
inline void store_levels(uint8_t* to, Vec v) {
  const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(v.all), _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(whole));
}
inline void store_levels(uint8_t* to, Vec a, Vec b, Vec c, Vec d) {
  const __m512i ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a.all), _mm512_cvtps_epi32(b.all));
  const __m512i cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c.all), _mm512_cvtps_epi32(d.all));
  // Packing goes by quarters of a register: quarter i holds quarter i of a, b, c and d.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd)));
}

// Replaces each of `count` levels by that at its place in `table`, which has 256.
inline void look_up(const uint8_t* table, uint8_t* levels, int count) {
  const __m512i parts[] = {_mm512_loadu_si512(table), _mm512_loadu_si512(table + 64), _mm512_loadu_si512(table + 128),
                           _mm512_loadu_si512(table + 192)};
#if defined(__AVX512VBMI__)
  const auto found = [&](__m512i places) {
    const __m512i low = _mm512_permutex2var_epi8(parts[0], places, parts[1]);
    const __m512i high = _mm512_permutex2var_epi8(parts[2], places, parts[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(places), low, high);
  };
#else
  // The table as 128 pairs: a level's place in them and in its pair, for the even levels and the odd ones.
  const auto found_of_16 = [&](__m512i places) {
    const __m512i pair = _mm512_srli_epi16(places, 1);
    const __m512i low = _mm512_permutex2var_epi16(parts[0], pair, parts[1]);
    const __m512i high = _mm512_permutex2var_epi16(parts[2], pair, parts[3]);
    const __mmask32 is_high = _mm512_test_epi16_mask(places, _mm512_set1_epi16(128));
    const __m512i shift = _mm512_slli_epi16(_mm512_and_si512(places, _mm512_set1_epi16(1)), 3);
    return _mm512_srlv_epi16(_mm512_mask_blend_epi16(is_high, low, high), shift);
  };
  const auto found = [&](__m512i places) {
    const __m512i byte = _mm512_set1_epi16(255);
    const __m512i even = _mm512_and_si512(found_of_16(_mm512_and_si512(places, byte)), byte);
    return _mm512_or_si512(even, _mm512_slli_epi16(found_of_16(_mm512_srli_epi16(places, 8)), 8));
  };
#endif
  int c = 0;
  for (; c + 64 <= count; c += 64) _mm512_storeu_si512(levels + c, found(_mm512_loadu_si512(levels + c)));
  if (c < count) {
    const __mmask64 left = (1ull << (count - c)) - 1;
    _mm512_mask_storeu_epi8(levels + c, left, found(_mm512_maskz_loadu_epi8(left, levels + c)));
  }
}
#endif

// The upper half of a float32 is a bfloat16.
inline Vec upper_half(Vec v) {
  return {_mm512_and_ps(v.all, _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}
// Words of the upper halves of two.
inline void store_upper_halves(uint32_t* to, Vec low, Vec high) {
  const __m512i below = _mm512_srli_epi32(_mm512_castps_si512(low.all), 16);
  const __m512i above = _mm512_castps_si512(upper_half(high).all);
  _mm512_storeu_si512(to, _mm512_or_si512(above, below));
}
// The lower one of two in words.
inline Vec load_lower_half(const uint32_t* from) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16))};
}

#if defined(__AVX512BF16__)
inline Vec widened(__m256i bits) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}; }
inline Vec load_bf16(const uint16_t* from) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Vec load_some_bf16(const uint16_t* from, int count) {
  return widened(_mm256_maskz_loadu_epi16(first(count), from));
}
inline void store_bf16(uint16_t* to, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(v.all));
}
inline void store_some_bf16(uint16_t* to, Vec v, int count) {
  _mm256_mask_storeu_epi16(to, first(count), (__m256i)_mm512_cvtneps_pbh(v.all));
}
// Words of two, to the nearest bfloat16.
inline void store_pairs(uint32_t* to, Vec low, Vec high) {
  const auto half = [](Vec v) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v.all)); };
  _mm512_storeu_si512(to, _mm512_or_si512(half(low), _mm512_slli_epi32(half(high), 16)));
}
#endif

}  // namespace
