// The kernels of training.h, written on top of the sixteen-lane `Vec` of an instruction set that knows bfloat16; like
// kernels_impl.h included once in a file for each set.

#pragma once

#include "gelu_impl.h"
#include "training.h"

namespace {

using swiftformer::Bf16;
using swiftformer::lanes;
using swiftformer::TrainingKernels;

// Phi(x) + x phi(x), by the symmetry of 1/2: the part below is that of -|x|.
template <class Precision>
inline Vec gelu_slope(Vec x) {
  const Vec size = min(all(1e18f), abs(x));  // NaN stays
  const Vec power = max(size * size * all(-0.72134752f), all(-1000.0f));
  const Vec whole = nearest(power);
  const Vec fraction = polynomial(Precision::power_of_2, power - whole);
  const Vec t = Precision::inverse(multiply_add(all(Precision::p), size, all(1.0f)));
  const Vec density = size * all(0.39894228f);
  const Vec below = times_power_of_2(fraction * (polynomial(Precision::tail, t) - density), whole);
  return all(0.5f) + with_sign(all(0.5f) - below, x);
}

inline Vec load_values(const float* from) { return load(from); }
inline Vec load_values(const Bf16* from) { return load_bf16(&from->bits); }

inline Vec load_some_values(const float* from, int count) { return load_some(from, count); }
inline Vec load_some_values(const Bf16* from, int count) { return load_some_bf16(&from->bits, count); }

void gelu_of_bf16(const Bf16* x, int64_t count, Bf16* y) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store_bf16(&y[i].bits, gelu<Rough>(load_bf16(&x[i].bits)));
  if (i < count) store_some_bf16(&y[i].bits, gelu<Rough>(load_some_bf16(&x[i].bits, count - i)), count - i);
}

void gelu_gradient_of_bf16(const Bf16* gradient, const Bf16* x, int64_t count, Bf16* to) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store_bf16(&to[i].bits, load_bf16(&gradient[i].bits) * gelu_slope<Exact>(load_bf16(&x[i].bits)));
  }
  if (i < count) {
    const int left = count - i;
    const Vec slope = gelu_slope<Exact>(load_some_bf16(&x[i].bits, left));
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

void scaled_gradient(const float* gradient, const float* scale, const Bf16* branch, int64_t rows, int channels,
                     Bf16* to, float* scale_gradient) {
  for (int64_t at = 0; at < rows * channels; at += channels) {
    int c = 0;
    for (; c + lanes <= channels; c += lanes) {
      const Vec g = load(gradient + at + c);
      store_bf16(&to[at + c].bits, g * load(scale + c));
      store(scale_gradient + c, multiply_add(g, load_bf16(&branch[at + c].bits), load(scale_gradient + c)));
    }
    if (c < channels) {
      const int left = channels - c;
      const Vec g = load_some(gradient + at + c, left);
      store_some_bf16(&to[at + c].bits, g * load_some(scale + c, left), left);
      const Vec sum = multiply_add(g, load_some_bf16(&branch[at + c].bits, left), load_some(scale_gradient + c, left));
      store_some(scale_gradient + c, sum, left);
    }
  }
}

constexpr TrainingKernels training_table(const char* name) {
  return {name, gelu_of_bf16, gelu_gradient_of_bf16, add_scaled<float>, add_scaled<Bf16>, scaled_gradient};
}

}  // namespace
