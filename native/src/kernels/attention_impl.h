// The two passes of efficient additive attention over its tokens: more of kernels_impl.h.

#pragma once

namespace {

inline Vec load_kept(const float* from) { return load(from); }
inline void store_kept(float* to, Vec v) { store(to, v); }
#if defined(SWIFTFORMER_BF16)
inline Vec load_kept(const uint16_t* from) { return load_bf16(from); }
inline void store_kept(uint16_t* to, Vec v) { store_bf16(to, v); }
#endif

// By which values are divided by their root mean square; what counts as zero stays zero.
inline float factor_of(float sum_of_squares, int dim) {
  const float mean = sum_of_squares / static_cast<float>(dim);
  return 1.0f / __builtin_sqrtf(mean > 1e-24f ? mean : 1e-24f);
}

template <class Op>
void pool(const float* key_query, int rows, int channels, int dim, bool normalize, const float* score, float* sums,
          void* kept) {
  typename Op::Kept* to = static_cast<typename Op::Kept*>(kept);
  for (int r = 0; r < rows; ++r, key_query += 2 * channels, to += 2 * channels) {
    Vec of_key = all(0.0f), of_query = all(0.0f), products = all(0.0f);
    for (int c = 0; c < channels; c += lanes) {
      const Vec key = load(key_query + c), query = load(key_query + channels + c);
      of_key = multiply_add(key, key, of_key);
      of_query = multiply_add(query, query, of_query);
      if (score) products = multiply_add(query, load(score + c), products);
    }
    const float key_factor = normalize ? factor_of(sum(of_key), dim) : 1.0f;
    const float query_factor = normalize ? factor_of(sum(of_query), dim) : 1.0f;
    const float s = score ? sum(products) * query_factor : 1.0f;
    for (int c = 0; c < channels; c += lanes) {
      const Vec query = load(key_query + channels + c) * all(query_factor);
      store_kept(to + c, load(key_query + c) * all(key_factor));
      store_kept(to + channels + c, query);
      store(sums + c, multiply_add(query, all(s), load(sums + c)));
    }
    sums[channels] += s * s;
  }
}

template <class Op>
void modulate(const void* kept, int rows, int channels, int dim, const float* global, uint32_t* operand,
              int operand_stride) {
  const typename Op::Kept* row = static_cast<const typename Op::Kept*>(kept);
  for (int r = 0; r < rows; ++r, row += 2 * channels, operand += operand_stride) {
    // Not all of the last lanes may be written below: what is left there would widen the range of levels.
    if (Op::levels) Op::put(operand, filled(2 * dim) - lanes, all(0.0f));
    put_each<Op>(operand, 0, channels, [&](int c) { return load_kept(row + c) * load(global + c); });
    // Behind it, over the zeros that fill the keys up: the filling of the queries is zero in turn.
    const int query = swiftformer::joined(dim, Op::parts);
    put_each<Op>(operand, query, channels, [&](int c) { return load_kept(row + channels + c); });
  }
}

}  // namespace
