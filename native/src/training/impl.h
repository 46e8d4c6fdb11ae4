// The kernels of training.h, written on top of the sixteen-lane `Vec` of an instruction set that knows bfloat16; like
// kernels_impl.h included once in a file for each set.

#pragma once

#include "kernels/gelu_impl.h"
#include "training/training.h"

namespace {

using swiftformer::Bf16;
using swiftformer::filled;
using swiftformer::lanes;
using swiftformer::TrainingKernels;

inline Vec load_values(const float* from) { return load(from); }
inline Vec load_values(const Bf16* from) { return load_bf16(&from->bits); }

inline Vec load_some_values(const float* from, int count) { return load_some(from, count); }
inline Vec load_some_values(const Bf16* from, int count) { return load_some_bf16(&from->bits, count); }

void gelu_of_bf16(const Bf16* x, int64_t count, Bf16* y) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store_bf16(&y[i].bits, rough_gelu(load_bf16(&x[i].bits)));
  if (i < count) store_some_bf16(&y[i].bits, rough_gelu(load_some_bf16(&x[i].bits, count - i)), count - i);
}

void gelu_gradient_of_bf16(const Bf16* gradient, const Bf16* x, int64_t count, Bf16* to) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store_bf16(&to[i].bits, load_bf16(&gradient[i].bits) * rough_gelu_slope(load_bf16(&x[i].bits)));
  }
  if (i < count) {
    const int left = count - i;
    const Vec slope = rough_gelu_slope(load_some_bf16(&x[i].bits, left));
    store_some_bf16(&to[i].bits, load_some_bf16(&gradient[i].bits, left) * slope, left);
  }
}

template <class Value>
void add_scaled_row(const Value* x, const float* scale, const Bf16* branch, int channels, float* to) {
  int c = 0;
  for (; c + lanes <= channels; c += lanes) {
    store(to + c, multiply_add(load(scale + c), load_bf16(&branch[c].bits), load_values(x + c)));
  }
  if (c < channels) {
    const int left = channels - c;
    const Vec scaled = load_some(scale + c, left) * load_some_bf16(&branch[c].bits, left);
    store_some(to + c, scaled + load_some_values(x + c, left), left);
  }
}

template <class Value>
void add_scaled(const Value* x, const float* scale, const Bf16* branch, int64_t rows, int channels, float* to) {
  for (int64_t at = 0; at < rows * channels; at += channels) {
    add_scaled_row(x + at, scale, branch + at, channels, to + at);
  }
}

// Rows that are summed up in float32 before the sums go on in double, and that stay in the first-level cache meanwhile.
inline int64_t rows_at_once(int channels) { return channels < 1024 ? 8192 / channels : 8; }

// Adds to `sums`, as many for each channel as `kinds`, what `add(first, c, count, totals)` finds in `count` rows from
// `first` on: vectors for the channels from c on, of which only the existing ones count.
template <int kinds, class Add>
void sum_by_channel(int64_t rows, int channels, double* sums, const Add& add) {
  const int64_t step = rows_at_once(channels);
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = rows - first < step ? rows - first : step;
    for (int c = 0; c < channels; c += lanes) {
      Vec totals[kinds];
      for (Vec& total : totals) total = all(0.0f);
      add(first, c, count, totals);
      for (int kind = 0; kind < kinds; ++kind) {
        float some[lanes];
        store(some, totals[kind]);
        for (int i = 0; i < lanes && c + i < channels; ++i) sums[kind * channels + c + i] += some[i];
      }
    }
  }
}

inline Vec channels_of(const Bf16* row, int c, int channels) {
  return c + lanes <= channels ? load_bf16(&row[c].bits) : load_some_bf16(&row[c].bits, channels - c);
}
inline Vec channels_of(const float* row, int c, int channels) {
  return c + lanes <= channels ? load(row + c) : load_some(row + c, channels - c);
}
inline void store_channels(Bf16* row, int c, int channels, Vec v) {
  if (c + lanes <= channels) {
    store_bf16(&row[c].bits, v);
  } else {
    store_some_bf16(&row[c].bits, v, channels - c);
  }
}

void scaled_gradient(const float* gradient, const float* scale, const Bf16* branch, int64_t rows, int channels,
                     Bf16* to, double* sums) {
  sum_by_channel<1>(rows, channels, sums, [&](int64_t first, int c, int64_t count, Vec(&totals)[1]) {
    const Vec factor = channels_of(scale, c, channels);
    Vec total = totals[0];
    for (int64_t at = first * channels; count > 0; --count, at += channels) {
      const Vec g = channels_of(gradient + at, c, channels);
      store_channels(to + at, c, channels, g * factor);
      total = multiply_add(g, channels_of(branch + at, c, channels), total);
    }
    totals[0] = total;
  });
}

void moments(const Bf16* x, int64_t rows, int channels, const float* shift, double* sums) {
  sum_by_channel<2>(rows, channels, sums, [&](int64_t first, int c, int64_t count, Vec(&totals)[2]) {
    const Vec least = channels_of(shift, c, channels);
    Vec total = totals[0], squares = totals[1];
    for (const Bf16* row = x + first * channels; count > 0; --count, row += channels) {
      const Vec value = channels_of(row, c, channels) - least;
      total = total + value;
      squares = multiply_add(value, value, squares);
    }
    totals[0] = total;
    totals[1] = squares;
  });
}

void normalize(const Bf16* x, int64_t rows, int channels, const float* mean, const float* factor, const float* bias,
               Bf16* y) {
  for (int64_t at = 0; at < rows * channels; at += channels) {
    for (int c = 0; c < channels; c += lanes) {
      const Vec value = channels_of(x + at, c, channels) - channels_of(mean, c, channels);
      const Vec normal = multiply_add(value, channels_of(factor, c, channels), channels_of(bias, c, channels));
      store_channels(y + at, c, channels, normal);
    }
  }
}

void normalize_sums(const Bf16* gradient, const Bf16* x, int64_t rows, int channels, const float* mean, double* sums) {
  sum_by_channel<2>(rows, channels, sums, [&](int64_t first, int c, int64_t count, Vec(&totals)[2]) {
    const Vec middle = channels_of(mean, c, channels);
    Vec total = totals[0], products = totals[1];
    const Bf16* row = x + first * channels;
    for (const Bf16* g = gradient + first * channels; count > 0; --count, g += channels, row += channels) {
      const Vec value = channels_of(g, c, channels);
      total = total + value;
      products = multiply_add(value, channels_of(row, c, channels) - middle, products);
    }
    totals[0] = total;
    totals[1] = products;
  });
}

void normalize_gradient(const Bf16* gradient, const Bf16* x, int64_t rows, int channels, const float* mean,
                        const float* factor, const float* slope, const float* offset, Bf16* to) {
  for (int64_t at = 0; at < rows * channels; at += channels) {
    for (int c = 0; c < channels; c += lanes) {
      const Vec value = channels_of(x + at, c, channels) - channels_of(mean, c, channels);
      const Vec rest = multiply_add(value, channels_of(slope, c, channels), channels_of(offset, c, channels));
      const Vec g = channels_of(gradient + at, c, channels);
      store_channels(to + at, c, channels, multiply_add(g, channels_of(factor, c, channels), rest));
    }
  }
}

void l2_normalize(const Bf16* x, int64_t rows, int channels, Bf16* y, float* inverse) {
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    Vec squares = all(0.0f);
    for (int c = 0; c < channels; c += lanes) {
      const Vec value = channels_of(x, c, channels);
      squares = multiply_add(value, value, squares);
    }
    const float norm = __builtin_sqrtf(sum(squares));    // a function of cmath would be compiled for these instructions
    inverse[row] = 1 / (norm < 1e-12f ? 1e-12f : norm);  // NaN stays NaN
    const Vec factor = all(inverse[row]);
    for (int c = 0; c < channels; c += lanes) store_channels(y, c, channels, channels_of(x, c, channels) * factor);
  }
}

void l2_normalize_gradient(const Bf16* gradient, const Bf16* y, const float* inverse, int64_t rows, int channels,
                           Bf16* to) {
  for (int64_t row = 0; row < rows; ++row, gradient += channels, y += channels, to += channels) {
    Vec products = all(0.0f);
    for (int c = 0; c < channels; c += lanes) {
      products = multiply_add(channels_of(gradient, c, channels), channels_of(y, c, channels), products);
    }
    const Vec along = all(-sum(products)), factor = all(inverse[row]);
    for (int c = 0; c < channels; c += lanes) {
      const Vec across = multiply_add(channels_of(y, c, channels), along, channels_of(gradient, c, channels));
      store_channels(to, c, channels, across * factor);
    }
  }
}

inline void store_channels(float* row, int c, int channels, Vec v) {
  if (c + lanes <= channels) {
    store(row + c, v);
  } else {
    store_some(row + c, v, channels - c);
  }
}

// Three values below each other, and what they add to the outputs they are the left, the middle or the right of.
struct Three {
  Vec line[3];
};
template <class Value>
Three three_at(const Value* const lines[3], int at, int c, int channels) {
  return {{channels_of(lines[0] + at, c, channels), channels_of(lines[1] + at, c, channels),
           channels_of(lines[2] + at, c, channels)}};
}
inline Vec added(const Three& of, const Vec (&weight)[9], int column, Vec sum) {
#pragma GCC unroll 3
  for (int line = 0; line < 3; ++line) sum = multiply_add(of.line[line], weight[3 * line + column], sum);
  return sum;
}

template <class Value>
void depth_wise(const Value* const lines[3], int width, int channels, const float* weights, Bf16* y) {
  const int stride = filled(channels), end = width * channels;
  for (int c = 0; c < channels; c += lanes) {
    Vec weight[9];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) weight[tap] = load(weights + tap * stride + c);
    const Vec bias = load(weights + 9 * stride + c);
    const Three first = three_at(lines, 0, c, channels);
    Vec sum = added(first, weight, 1, bias), next = added(first, weight, 0, bias);
    for (int right = channels; right < end; right += channels) {
      const Three three = three_at(lines, right, c, channels);
      store_channels(y + right - channels, c, channels, added(three, weight, 2, sum));
      sum = added(three, weight, 1, next);
      next = added(three, weight, 0, bias);
    }
    store_channels(y + end - channels, c, channels, sum);
  }
}

template <class Value>
void depth_wise_gradient(const Bf16* const lines[3], const Value* x, int width, int channels, const float* weights,
                         Value* to, float* sums) {
  const int stride = filled(channels), end = width * channels;
  for (int c = 0; c < channels; c += lanes) {
    Vec weight[9], total[10];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) weight[tap] = load(weights + tap * stride + c);
#pragma GCC unroll 10
    for (int tap = 0; tap < 10; ++tap) total[tap] = load(sums + tap * stride + c);
    const Vec zero = all(0.0f);
    // Values of x left of, at and right of the gradients in hand.
    Vec left = zero, middle = channels_of(x, c, channels), sum = zero, next = zero;
    for (int at = 0; at < end; at += channels) {
      const Three three = three_at(lines, at, c, channels);
      const Vec right = at + channels < end ? channels_of(x + at + channels, c, channels) : zero;
      if (at > 0) store_channels(to + at - channels, c, channels, added(three, weight, 2, sum));
      sum = added(three, weight, 1, next);
      next = added(three, weight, 0, zero);
#pragma GCC unroll 3
      for (int line = 0; line < 3; ++line) {
        total[3 * line] = multiply_add(three.line[line], right, total[3 * line]);
        total[3 * line + 1] = multiply_add(three.line[line], middle, total[3 * line + 1]);
        total[3 * line + 2] = multiply_add(three.line[line], left, total[3 * line + 2]);
      }
      total[9] = total[9] + three.line[1];
      left = middle;
      middle = right;
    }
    store_channels(to + end - channels, c, channels, sum);
#pragma GCC unroll 10
    for (int tap = 0; tap < 10; ++tap) store(sums + tap * stride + c, total[tap]);
  }
}

void rows_to_bf16(const float* from, int stride, int64_t rows, int channels, Bf16* to) {
  for (; rows > 0; --rows, from += stride, to += channels) {
    for (int c = 0; c < channels; c += lanes) store_channels(to, c, channels, load(from + c));
  }
}

void gelu_in_pairs(const float* values, const float* gradient, int stride, int rows, uint32_t* activated,
                   uint32_t* slopes, int words_apart, Bf16* to, int to_stride, float* sums) {
  Vec total = all(0.0f);
  for (int row = 0; row < rows; row += 2) {
    Vec of_upper, of_lower;
    const Vec upper = gelu_with_slope(load(values), of_upper), lower = gelu_with_slope(load(values + stride), of_lower);
    store_pairs(activated, upper, lower);
    of_upper = load(gradient) * of_upper;
    of_lower = load(gradient + stride) * of_lower;
    store_pairs(slopes, of_upper, of_lower);
    store_bf16(&to->bits, of_upper);
    store_bf16(&to[to_stride].bits, of_lower);
    total = total + of_upper + of_lower;
    values += 2 * stride;
    gradient += 2 * stride;
    activated += words_apart;
    slopes += words_apart;
    to += 2 * to_stride;
  }
  store(sums, total);
}

void turn_in_pairs(const Bf16* from, int stride, int rows, int channels, uint32_t* to, int to_stride) {
  for (int row = 0; row < rows; row += 2, from += 2 * stride, ++to) {
    const Bf16 *upper = from, *lower = from + stride;
    for (int c = 0; c < channels; ++c) to[c * to_stride] = upper[c].bits | static_cast<uint32_t>(lower[c].bits) << 16;
  }
}

constexpr TrainingKernels training_table(const char* name) {
  return {name,
          gelu_of_bf16,
          gelu_gradient_of_bf16,
          add_scaled<float>,
          add_scaled<Bf16>,
          scaled_gradient,
          moments,
          normalize,
          normalize_sums,
          normalize_gradient,
          l2_normalize,
          l2_normalize_gradient,
          depth_wise<float>,
          depth_wise<Bf16>,
          depth_wise_gradient<float>,
          depth_wise_gradient<Bf16>,
          rows_to_bf16,
          gelu_in_pairs,
          turn_in_pairs};
}

}  // namespace
