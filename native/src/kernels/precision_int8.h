// Operands and weights of int8: more of kernels_impl.h.

#pragma once

namespace {

// Levels of values times `factor` plus `zero`.
inline void quantize_row(const float* values, int count, float factor, float zero, uint8_t* levels) {
  const Vec factors = all(factor), zeros = all(zero);
  int c = 0;
  for (; c + 4 * lanes <= count; c += 4 * lanes) {
    const auto level = [&](int place) { return multiply_add(load(values + c + place * lanes), factors, zeros); };
    store_levels(levels + c, level(0), level(1), level(2), level(3));
  }
  for (; c < count; c += lanes) store_levels(levels + c, multiply_add(load(values + c), factors, zeros));
}

inline Vec sizes_of(const float* values, int count) {
  Vec most = all(0.0f);
  for (int c = 0; c < count; c += lanes) most = max(most, abs(load(values + c)));
  return most;
}

inline float largest_of(const float* values, int count) { return largest(sizes_of(values, count)); }

// The largest and the smallest value of each lane, or zero. Four of each at once, as one would wait for the one before.
inline void extent_of(const float* values, int count, Vec& most, Vec& least) {
  Vec high[] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)}, low[] = {high[0], high[0], high[0], high[0]};
  const auto take = [&](int i, int c) {
    const Vec value = load(values + c);
    high[i] = max(high[i], value);
    low[i] = min(low[i], value);
  };
  int c = 0;
  for (; c + 4 * lanes <= count; c += 4 * lanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) take(i, c + i * lanes);
  }
  for (; c < count; c += lanes) take(0, c);
  most = max(max(high[0], high[1]), max(high[2], high[3]));
  least = min(min(low[0], low[1]), min(low[2], low[3]));
}

#if !defined(LARGEST_OF_EACH)
inline Vec largest_of_each(const Vec (&rows)[lanes]) {
  float most[lanes];
  for (int r = 0; r < lanes; ++r) most[r] = largest(rows[r]);
  return load(most);
}
#endif

inline void quantize_pixel(const float* values, int count, float step, uint8_t* levels) {
  quantize_row(values, count, 1.0f / step, 128.0f, levels);
}

// Calls task(first row, rows) for up to sixteen rows at a time: what holds for a whole row is found for all of them
// first, as the values of a row would have to wait for it.
template <class Task>
inline void each_sixteen_rows(int rows, const Task& task) {
  for (int first = 0; first < rows; first += lanes) task(first, rows - first < lanes ? rows - first : lanes);
}

inline void put_step(float step, uint32_t* operand, int operand_stride) {
  std::memcpy(operand + operand_stride - 1, &step, sizeof step);
}

inline void quantize(const float* values, int stride, int rows, int count, uint32_t* operand, int operand_stride) {
  each_sixteen_rows(rows, [&](int first, int some) {
    Vec most[lanes] = {};
    for (int r = 0; r < some; ++r) most[r] = sizes_of(values + (first + r) * stride, count);
    float steps[lanes], factors[lanes];
    store(steps, largest_of_each(most));
    for (int r = 0; r < lanes; ++r) {
      const float range = steps[r] / 127.0f;
      steps[r] = range > 1e-30f ? range : 1e-30f;
      factors[r] = 1.0f / steps[r];
    }
    for (int r = 0; r < some; ++r) {
      uint32_t* row = operand + (first + r) * operand_stride;
      quantize_row(values + (first + r) * stride, count, factors[r], 128.0f, reinterpret_cast<uint8_t*>(row));
      put_step(steps[r], row, operand_stride);
    }
  });
}

inline void quantize_gelu(const float* values, int stride, int rows, int count, uint32_t* operand, int operand_stride) {
  each_sixteen_rows(rows, [&](int first, int some) {
    Vec most[lanes] = {}, minus_least[lanes] = {};
    for (int r = 0; r < some; ++r) {
      Vec least;
      extent_of(values + (first + r) * stride, count, most[r], least);
      minus_least[r] = all(0.0f) - least;
    }
    float mosts[lanes], minus_leasts[lanes];
    store(mosts, largest_of_each(most));
    store(minus_leasts, largest_of_each(minus_least));
    for (int r = 0; r < some; ++r) {
      swiftformer::GeluTable made;
      const auto& table = swiftformer::gelu_table(-minus_leasts[r], mosts[r], made);
      uint32_t* row = operand + (first + r) * operand_stride;
      uint8_t* levels = reinterpret_cast<uint8_t*>(row);
      quantize_row(values + (first + r) * stride, count, table.factor_before, table.zero_before, levels);
      look_up(table.levels, levels, count);
      put_step(table.step, row, operand_stride);
    }
  });
}

// Which kernels take two words at once, take them from panels of one vector.
#if defined(VEC_AVX2)
static_assert(WIDEST_PANEL == 1);
#endif

struct Int8 {
  using Sum = Levels;
  using Kept = float;
  static constexpr int values_per_word = 4, parts = 1;
  static constexpr bool levels = true;
#if defined(VEC_NEON)
  static constexpr bool signed_levels = true;
#else
  static constexpr bool signed_levels = false;
#endif
  static constexpr decltype(Kernels::quantize) quantize = ::quantize, quantize_gelu = ::quantize_gelu;
  static constexpr decltype(Kernels::largest) largest = largest_of;
  static constexpr decltype(Kernels::quantize_pixel) quantize_pixel = ::quantize_pixel;
#if defined(VEC_AVX512)
  static constexpr int words_at_once = 1;
  using Input = __m512i;
  static __m512i weights(const uint32_t* words) { return _mm512_loadu_si512(words); }
  static Input input(const uint32_t* word) { return _mm512_set1_epi32(static_cast<int>(*word)); }
  static Sum dot(Input input, __m512i weights, Sum sum) {
    // Around the intrinsic, GCC 12 copies every sum in every step.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.all) : "v"(input), "v"(weights));
    return sum;
  }
#elif defined(SWIFTFORMER_AVX_VNNI)
  static constexpr int words_at_once = 1;
  using Input = __m256i;
  static Levels weights(const uint32_t* words) { return {load_bytes(words), load_bytes(words + 8)}; }
  static Input input(const uint32_t* word) { return _mm256_set1_epi32(static_cast<int>(*word)); }
  static Sum dot(Input input, Levels weights, Sum sum) {
    return {dot_of_eight(input, weights.low, sum.low), dot_of_eight(input, weights.high, sum.high)};
  }
#elif defined(VEC_AVX2)
  // Sums of two words' products of even and of odd pairs fit into int16, as weights are made for it.
  static constexpr int words_at_once = 2;
  struct Input {
    __m256i first, second;
  };
  static const uint32_t* weights(const uint32_t* words) { return words; }
  static Input input(const uint32_t* word) {
    return {_mm256_set1_epi32(static_cast<int>(word[0])), _mm256_set1_epi32(static_cast<int>(word[1]))};
  }
  static __m256i pairs(__m256i input, const uint32_t* weights) {
    // From memory: with weights in registers, too few are left for the sums.
    __m256i sums;
    asm("vpmaddubsw %2, %1, %0" : "=x"(sums) : "x"(input), "m"(*reinterpret_cast<const __m256i_u*>(weights)));
    return sums;
  }
  static __m256i dot(Input input, const uint32_t* weights, __m256i sum) {
    const __m256i both = _mm256_add_epi16(pairs(input.first, weights), pairs(input.second, weights + lanes));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
  }
  static Sum dot(Input input, const uint32_t* weights, Sum sum) {
    return {dot(input, weights, sum.low), dot(input, weights + 8, sum.high)};
  }
#elif defined(VEC_NEON)
  static constexpr int words_at_once = 1;
  using Input = int8x16_t;
  struct Weights {
    int8x16_t part[4];
  };
  static Weights weights(const uint32_t* words) {
    const int8_t* bytes = reinterpret_cast<const int8_t*>(words);
    return {{vld1q_s8(bytes), vld1q_s8(bytes + 16), vld1q_s8(bytes + 32), vld1q_s8(bytes + 48)}};
  }
  static Input input(const uint32_t* word) { return vreinterpretq_s8_u32(vdupq_n_u32(*word)); }
  static Sum dot(Input input, Weights weights, Sum sum) {
    for (int i = 0; i < 4; ++i) sum.part[i] = vdotq_s32(sum.part[i], weights.part[i], input);
    return sum;
  }
#else
  static constexpr int words_at_once = 1;
  using Input = uint32_t;
  static const uint32_t* weights(const uint32_t* words) { return words; }
  static Input input(const uint32_t* word) { return *word; }
  static Sum dot(Input input, const uint32_t* weights, Sum sum) { return dot_int8(input, weights, sum); }
#endif
  static Sum start(const Matrix& matrix, int column) { return load(matrix.start + column); }
  static Vec finish(Sum sum, const uint32_t* operand, int operand_stride, const Matrix& matrix, int column) {
    const Vec scaled = to_float(sum) * Fp32::input(operand + operand_stride - 1);
    return multiply_add(scaled, load(matrix.step + column), load(matrix.bias + column));
  }
  static void put(void* row, int at, Vec v) { store(static_cast<float*>(row) + at, v); }
};

}  // namespace
