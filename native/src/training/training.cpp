#include "training/training.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "kernels/cpu.h"
#include "training/parallel.h"

namespace swiftformer {

namespace {

float to_float(Bf16 half) {
  const uint32_t bits = static_cast<uint32_t>(half.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

bool has_openmp() { return parallel() != nullptr; }

std::vector<std::string> training_supported() {
  std::vector<std::string> names{"plain"};
#if defined(SWIFTFORMER_HAS_AVX512_BF16)
  const std::vector<std::string> all = supported();
  if (std::find(all.begin(), all.end(), "avx512_bf16") != all.end()) names.push_back("avx512_bf16");
#endif
  return names;
}

const TrainingKernels& training_kernels_for(const std::string& isa) {
  static const std::vector<std::string> names = training_supported();
  if (std::find(names.begin(), names.end(), isa) == names.end()) {
    throw std::invalid_argument("expected an instruction set of this processor for training, found " + isa);
  }
#if defined(SWIFTFORMER_HAS_AVX512_BF16)
  if (isa != "plain") return avx512_training;
#endif
  return plain_training;
}

void gelu(const TrainingKernels& kernels, const Bf16* x, int64_t count, Bf16* y, int threads) {
  split(count, 1, threads, [&](int, int64_t first, int64_t size) { kernels.gelu(x + first, size, y + first); });
}

void gelu_gradient(const TrainingKernels& kernels, const Bf16* gradient, const Bf16* x, int64_t count, Bf16* to,
                   int threads) {
  split(count, 1, threads, [&](int, int64_t first, int64_t size) {
    kernels.gelu_gradient(gradient + first, x + first, size, to + first);
  });
}

namespace {

// Calls `some(from, count)` for values at `from` on, multiples of `lanes`, and `rest(from, count)` for what is left.
template <class Some, class Rest>
void in_lanes(int64_t first, int64_t size, const Some& some, const Rest& rest) {
  constexpr int64_t most = 1 << 20;
  int64_t whole = size / lanes * lanes;
  for (int64_t done = 0; done < whole; done += most) some(first + done, static_cast<int>(std::min(most, whole - done)));
  if (whole < size) rest(first + whole, static_cast<int>(size - whole));
}

}  // namespace

void gelu(const Kernels& kernels, const float* x, int64_t count, float* y, int threads) {
  const auto some = [&](int64_t from, int size) {
    kernels.gelu(x + from, size, reinterpret_cast<uint32_t*>(y + from));
  };
  const auto rest = [&](int64_t from, int size) {
    float in[lanes] = {}, out[lanes];
    std::copy_n(x + from, size, in);
    kernels.gelu(in, lanes, reinterpret_cast<uint32_t*>(out));
    std::copy_n(out, size, y + from);
  };
  split(count, 1, threads, [&](int, int64_t first, int64_t size) { in_lanes(first, size, some, rest); });
}

void gelu_gradient(const Kernels& kernels, const float* gradient, const float* x, int64_t count, float* to,
                   int threads) {
  const auto some = [&](int64_t from, int size) { kernels.gelu_gradient(gradient + from, x + from, size, to + from); };
  const auto rest = [&](int64_t from, int size) {
    float of_y[lanes] = {}, in[lanes] = {}, out[lanes];
    std::copy_n(gradient + from, size, of_y);
    std::copy_n(x + from, size, in);
    kernels.gelu_gradient(of_y, in, lanes, out);
    std::copy_n(out, size, to + from);
  };
  split(count, 1, threads, [&](int, int64_t first, int64_t size) { in_lanes(first, size, some, rest); });
}

void add_scaled(const TrainingKernels& kernels, const void* x, bool x_is_bf16, const float* scale, const Bf16* branch,
                int64_t rows, int channels, float* to, int threads) {
  split(rows, channels, threads, [&](int, int64_t first, int64_t size) {
    const int64_t at = first * channels;
    if (x_is_bf16) {
      kernels.add_scaled_to_bf16(static_cast<const Bf16*>(x) + at, scale, branch + at, size, channels, to + at);
    } else {
      kernels.add_scaled(static_cast<const float*>(x) + at, scale, branch + at, size, channels, to + at);
    }
  });
}

void scaled_gradient(const TrainingKernels& kernels, const float* gradient, const float* scale, const Bf16* branch,
                     int64_t rows, int channels, Bf16* to, float* scale_gradient, int threads) {
  std::vector<double> sums(static_cast<size_t>(std::max(threads, 1)) * channels);
  const int parts = split(rows, channels, threads, [&](int i, int64_t first, int64_t size) {
    const int64_t at = first * channels;
    kernels.scaled_gradient(gradient + at, scale, branch + at, size, channels, to + at, &sums[i * channels]);
  });
  for (int c = 0; c < channels; ++c) {
    double total = 0;
    for (int i = 0; i < parts; ++i) total += sums[i * channels + c];
    scale_gradient[c] = static_cast<float>(total);
  }
}

void batch_norm(const TrainingKernels& kernels, const Bf16* x, int64_t rows, int channels, const float* weight,
                const float* bias, float eps, Bf16* y, float* mean, float* inverse, int threads) {
  std::vector<double> sums(static_cast<size_t>(std::max(threads, 1)) * 2 * channels);
  std::vector<float> shift(channels), factor(channels);
  // About the means, so that sums of squares lose nothing: those of some rows.
  const int64_t seen = std::min<int64_t>(rows, 32);
  for (int64_t i = 0; i < seen; ++i) {
    const Bf16* row = x + rows * i / seen * channels;
    for (int c = 0; c < channels; ++c) shift[c] += to_float(row[c]) / seen;
  }
  const int parts = split(rows, channels, threads, [&](int i, int64_t first, int64_t size) {
    kernels.moments(x + first * channels, size, channels, shift.data(), &sums[2 * i * channels]);
  });
  for (int c = 0; c < channels; ++c) {
    double total = 0, squares = 0;
    for (int i = 0; i < parts; ++i) {
      total += sums[2 * i * channels + c];
      squares += sums[(2 * i + 1) * channels + c];
    }
    const double moved = total / rows;
    mean[c] = static_cast<float>(shift[c] + moved);
    inverse[c] = static_cast<float>(1 / std::sqrt(std::max(squares / rows - moved * moved, 0.0) + eps));
    factor[c] = weight[c] * inverse[c];
  }
  split(rows, channels, threads, [&](int, int64_t first, int64_t size) {
    kernels.normalize(x + first * channels, size, channels, mean, factor.data(), bias, y + first * channels);
  });
}

void batch_norm_gradient(const TrainingKernels& kernels, const Bf16* gradient, const Bf16* x, int64_t rows,
                         int channels, const float* weight, const float* mean, const float* inverse, Bf16* to,
                         float* weight_gradient, float* bias_gradient, int threads) {
  std::vector<double> sums(static_cast<size_t>(std::max(threads, 1)) * 2 * channels);
  std::vector<float> factor(channels), slope(channels), offset(channels);
  const int parts = split(rows, channels, threads, [&](int i, int64_t first, int64_t size) {
    const int64_t at = first * channels;
    kernels.normalize_sums(gradient + at, x + at, size, channels, mean, &sums[2 * i * channels]);
  });
  for (int c = 0; c < channels; ++c) {
    double total = 0, products = 0;
    for (int i = 0; i < parts; ++i) {
      total += sums[2 * i * channels + c];
      products += sums[(2 * i + 1) * channels + c];
    }
    bias_gradient[c] = static_cast<float>(total);
    weight_gradient[c] = static_cast<float>(products * inverse[c]);
    factor[c] = weight[c] * inverse[c];
    slope[c] = static_cast<float>(-factor[c] * products / rows * inverse[c] * inverse[c]);
    offset[c] = static_cast<float>(-factor[c] * total / rows);
  }
  split(rows, channels, threads, [&](int, int64_t first, int64_t size) {
    const int64_t at = first * channels;
    kernels.normalize_gradient(gradient + at, x + at, size, channels, mean, factor.data(), slope.data(), offset.data(),
                               to + at);
  });
}

void l2_normalize(const TrainingKernels& kernels, const Bf16* x, int64_t rows, int channels, Bf16* y, float* inverse,
                  int threads) {
  split(rows, channels, threads, [&](int, int64_t first, int64_t size) {
    kernels.l2_normalize(x + first * channels, size, channels, y + first * channels, inverse + first);
  });
}

void l2_normalize_gradient(const TrainingKernels& kernels, const Bf16* gradient, const Bf16* y, const float* inverse,
                           int64_t rows, int channels, Bf16* to, int threads) {
  split(rows, channels, threads, [&](int, int64_t first, int64_t size) {
    const int64_t at = first * channels;
    kernels.l2_normalize_gradient(gradient + at, y + at, inverse + first, size, channels, to + at);
  });
}

namespace {

constexpr int most_pixels_summed = 512;  // in float32, before the sums go on in double

// `(10, channels)`, filled up: the taps, in reverse for the gradient, and the bias.
std::vector<float> packed(const float* weight, const float* bias, int channels, bool reverse) {
  const int stride = filled(channels);
  std::vector<float> to(10 * stride);
  for (int c = 0; c < channels; ++c) {
    for (int tap = 0; tap < 9; ++tap) to[(reverse ? 8 - tap : tap) * stride + c] = weight[9 * c + tap];
    if (bias) to[9 * stride + c] = bias[c];
  }
  return to;
}

// Calls `of(row, lines)` for `count` rows of all maps from `first` on, with those above, at and below in `maps`.
template <class Value, class OfRow>
void each_row(const Value* values, const Maps& maps, int64_t first, int64_t count, const OfRow& of) {
  const int64_t size = static_cast<int64_t>(maps.width) * maps.channels;
  const std::vector<Value> zeros(size);
  for (int64_t row = first; row < first + count; ++row) {
    const Value* at = values + row * size;
    const int64_t y = row % maps.height;
    const Value* const lines[] = {y > 0 ? at - size : zeros.data(), at, y + 1 < maps.height ? at + size : zeros.data()};
    of(row, lines);
  }
}

template <class Value, class Kernel>
void gradient_of_rows(const Kernel& kernel, const Bf16* gradient, const Value* x, const Maps& maps,
                      const std::vector<float>& weights, Value* to, double* totals, int64_t first, int64_t count) {
  const int64_t size = static_cast<int64_t>(maps.width) * maps.channels;
  std::vector<float> sums(weights.size());
  int pixels = 0;
  const auto add_up = [&] {
    for (size_t i = 0; i < sums.size(); ++i) totals[i] += sums[i];
    std::fill(sums.begin(), sums.end(), 0.0f);
    pixels = 0;
  };
  each_row(gradient, maps, first, count, [&](int64_t row, const Bf16* const lines[3]) {
    if (pixels + maps.width > most_pixels_summed) add_up();
    pixels += maps.width;
    kernel(lines, x + row * size, maps.width, maps.channels, weights.data(), to + row * size, sums.data());
  });
  add_up();
}

}  // namespace

void depth_wise(const TrainingKernels& kernels, const void* x, bool x_is_bf16, const Maps& maps, const float* weight,
                const float* bias, Bf16* y, int threads) {
  const std::vector<float> weights = packed(weight, bias, maps.channels, false);
  const int64_t size = static_cast<int64_t>(maps.width) * maps.channels;
  const auto convolve = [&](const auto* values, const auto& kernel) {
    split(maps.pictures * maps.height, size, threads, [&](int, int64_t first, int64_t count) {
      each_row(values, maps, first, count, [&](int64_t row, const auto* lines) {
        kernel(lines, maps.width, maps.channels, weights.data(), y + row * size);
      });
    });
  };
  if (x_is_bf16) {
    convolve(static_cast<const Bf16*>(x), kernels.depth_wise_of_bf16);
  } else {
    convolve(static_cast<const float*>(x), kernels.depth_wise);
  }
}

void depth_wise_gradient(const TrainingKernels& kernels, const Bf16* gradient, const void* x, bool x_is_bf16,
                         const Maps& maps, const float* weight, void* to, float* weight_gradient, float* bias_gradient,
                         int threads) {
  const std::vector<float> weights = packed(weight, nullptr, maps.channels, true);
  const size_t size = weights.size();
  std::vector<double> totals(std::max(threads, 1) * size);
  const int parts =
      split(maps.pictures * maps.height, static_cast<int64_t>(maps.width) * maps.channels, threads,
            [&](int i, int64_t first, int64_t count) {
              double* const sums = &totals[i * size];
              if (x_is_bf16) {
                gradient_of_rows(kernels.depth_wise_gradient_of_bf16, gradient, static_cast<const Bf16*>(x), maps,
                                 weights, static_cast<Bf16*>(to), sums, first, count);
              } else {
                gradient_of_rows(kernels.depth_wise_gradient, gradient, static_cast<const float*>(x), maps, weights,
                                 static_cast<float*>(to), sums, first, count);
              }
            });
  for (int i = 1; i < parts; ++i) {
    for (size_t at = 0; at < size; ++at) totals[at] += totals[i * size + at];
  }
  const int stride = filled(maps.channels);
  for (int c = 0; c < maps.channels; ++c) {
    for (int tap = 0; tap < 9; ++tap) weight_gradient[9 * c + tap] = static_cast<float>(totals[(8 - tap) * stride + c]);
    bias_gradient[c] = static_cast<float>(totals[9 * stride + c]);
  }
}

}  // namespace swiftformer
