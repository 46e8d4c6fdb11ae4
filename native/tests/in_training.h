// What training uses, against double precision, on arrays that end where their values do and in parts of several
// threads.

#pragma once

#include <algorithm>
#include <random>
#include <type_traits>

#include "checks.h"
#include "training/training.h"

namespace checks {

using swiftformer::Bf16;
using swiftformer::TrainingKernels;

inline void gelu_in_training(const Mode& mode) {
  Worst values, slopes;
  std::mt19937 random(9);
  for (int count : {1, 15, 16, 17, 1000, 100003}) {
    std::vector<float> x(count), gradient(count), y(count), to(count);
    for (int i = 0; i < count; ++i) {
      x[i] = (random() / 4294967296.0f - 0.5f) * 28.0f;
      gradient[i] = random() / 4294967296.0f - 0.5f;
    }
    for (int threads : {1, 3}) {
      swiftformer::gelu(*mode.kernels, x.data(), count, y.data(), threads);
      swiftformer::gelu_gradient(*mode.kernels, gradient.data(), x.data(), count, to.data(), threads);
      for (int i = 0; i < count; ++i) {
        const double a = x[i], below = 0.5 * std::erfc(-a / std::sqrt(2.0));
        const double slope = below + a * 0.3989422804014327 * std::exp(-a * a / 2);
        values.see(std::fabs(y[i] - a * below), std::to_string(a));
        slopes.see(std::fabs(to[i] - gradient[i] * slope), std::to_string(a));
      }
    }
  }
  report("GELU in training " + mode.name(), values.found, 1e-6, values.where);
  report("gradient of GELU in training " + mode.name(), slopes.found, 2e-6, slopes.where);
}

// The same numbers in every run.
struct Some {
  std::mt19937 random{9};
  float operator()() { return (random() / 4294967296.0f - 0.5f) * 16.0f; }
  std::vector<float> floats(int64_t count) {
    std::vector<float> values(count);
    for (float& each : values) each = (*this)();
    return values;
  }
  std::vector<Bf16> halves(int64_t count) {
    std::vector<Bf16> values;
    for (int64_t i = 0; i < count; ++i) values.push_back({static_cast<uint16_t>(rounded((*this)()))});
    return values;
  }
};

inline double value(Bf16 half) {
  const uint32_t bits = static_cast<uint32_t>(half.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Units in the last place between the result and the rounded exact one.
inline int apart(Bf16 found, double exact) {
  const int place = ordered(found.bits), expected = ordered(rounded(exact));
  return std::abs(place) <= smallest && std::abs(expected) <= smallest ? 0 : std::abs(place - expected);
}

inline void gelu_of_halves(const std::string& isa, const TrainingKernels& kernels) {
  Some some;
  Worst gelus, slopes;
  for (int64_t count : {1, 15, 16, 17, 1000, 100003}) {
    for (int threads : {1, 3}) {
      const std::vector<Bf16> x = some.halves(count), gradient = some.halves(count);
      std::vector<Bf16> y(count), to(count);
      swiftformer::gelu(kernels, x.data(), count, y.data(), threads);
      swiftformer::gelu_gradient(kernels, gradient.data(), x.data(), count, to.data(), threads);
      for (int64_t i = 0; i < count; ++i) {
        const double a = value(x[i]), below = 0.5 * std::erfc(-a / std::sqrt(2.0));
        const double slope = below + a * 0.3989422804014327 * std::exp(-a * a / 2);
        gelus.see(apart(y[i], a * below), std::to_string(a));
        slopes.see(std::fabs(value(to[i]) - value(gradient[i]) * slope), std::to_string(a));
      }
    }
  }
  report("training " + isa + ", GELU", gelus.found, 1, gelus.where);
  // half a unit of up to 8 * 1.13
  report("training " + isa + ", gradient of GELU", slopes.found, 0.04, slopes.where);
}

inline void scaled_sums(const std::string& isa, const TrainingKernels& kernels) {
  Some some;
  Worst sums, branches, scales;
  for (int channels : {1, 16, 24, 56, 220}) {
    for (int64_t rows : {1, 7, 1500}) {
      const int64_t count = rows * channels;
      const std::vector<Bf16> halved = some.halves(count), branch = some.halves(count);
      const std::vector<float> x = some.floats(count), scale = some.floats(channels), gradient = some.floats(count);
      std::vector<float> out(count), out2(count), of_scale(channels);
      std::vector<Bf16> of_branch(count);
      swiftformer::add_scaled(kernels, x.data(), false, scale.data(), branch.data(), rows, channels, out.data(), 3);
      swiftformer::add_scaled(kernels, halved.data(), true, scale.data(), branch.data(), rows, channels, out2.data(),
                              3);
      swiftformer::scaled_gradient(kernels, gradient.data(), scale.data(), branch.data(), rows, channels,
                                   of_branch.data(), of_scale.data(), 3);
      std::vector<double> total(channels);
      for (int64_t i = 0; i < count; ++i) {
        const double scaled = static_cast<double>(scale[i % channels]) * value(branch[i]);
        sums.see(std::fabs(out[i] - x[i] - scaled), std::to_string(channels));
        sums.see(std::fabs(out2[i] - value(halved[i]) - scaled), std::to_string(channels));
        branches.see(apart(of_branch[i], static_cast<double>(gradient[i]) * scale[i % channels]),
                     std::to_string(channels));
        total[i % channels] += gradient[i] * value(branch[i]);
      }
      for (int c = 0; c < channels; ++c) scales.see(std::fabs(of_scale[c] - total[c]), std::to_string(channels));
    }
  }
  report("training " + isa + ", scaled sums", sums.found, 1e-5, sums.where);
  report("training " + isa + ", gradient of branches", branches.found, 1, branches.where);
  report("training " + isa + ", gradient of scales", scales.found, 0.02, scales.where);
}

inline void batch_norms(const std::string& isa, const TrainingKernels& kernels) {
  Some some;
  Worst normals, statistics, normal_gradients, weights;
  for (int channels : {1, 24, 56, 220}) {
    for (int64_t rows : {2, 7, 1500}) {
      const int64_t count = rows * channels;
      const std::vector<Bf16> x = some.halves(count), gradient = some.halves(count);
      const std::vector<float> weight = some.floats(channels), bias = some.floats(channels);
      std::vector<float> mean(channels), inverse(channels), of[] = {mean, mean};
      std::vector<Bf16> y(count), to(count);
      swiftformer::batch_norm(kernels, x.data(), rows, channels, weight.data(), bias.data(), 1e-5f, y.data(),
                              mean.data(), inverse.data(), 3);
      swiftformer::batch_norm_gradient(kernels, gradient.data(), x.data(), rows, channels, weight.data(), mean.data(),
                                       inverse.data(), to.data(), of[0].data(), of[1].data(), 3);
      for (int c = 0; c < channels; ++c) {
        double middle = 0, spread = 0, total = 0, products = 0;
        for (int64_t i = c; i < count; i += channels) middle += value(x[i]) / rows;
        for (int64_t i = c; i < count; i += channels) spread += std::pow(value(x[i]) - middle, 2) / rows;
        const double factor = 1 / std::sqrt(spread + 1e-5);
        for (int64_t i = c; i < count; i += channels) {
          total += value(gradient[i]);
          products += value(gradient[i]) * (value(x[i]) - middle) * factor;
        }
        const double size = std::fabs(weight[c]) + 1;
        for (int64_t i = c; i < count; i += channels) {
          const double normal = (value(x[i]) - middle) * factor;
          normals.see(std::fabs(value(y[i]) - normal * weight[c] - bias[c]) / (size + std::fabs(bias[c])),
                      std::to_string(channels));
          const double exact = weight[c] * factor * (value(gradient[i]) - total / rows - normal * products / rows);
          normal_gradients.see(std::fabs(value(to[i]) - exact) / (size * factor), std::to_string(rows));
        }
        statistics.see(std::fabs(mean[c] - middle) + std::fabs(inverse[c] / factor - 1), std::to_string(rows));
        weights.see((std::fabs(of[0][c] - products) + std::fabs(of[1][c] - total)) / rows, std::to_string(rows));
      }
    }
  }
  report("training " + isa + ", BatchNorm", normals.found, 0.04, normals.where);
  report("training " + isa + ", statistics of BatchNorm", statistics.found, 1e-5, statistics.where);
  report("training " + isa + ", gradient of BatchNorm", normal_gradients.found, 0.06, normal_gradients.where);
  report("training " + isa + ", gradient of its weights", weights.found, 1e-4, weights.where);
}

// With rows of zeros, and rows whose squares are smaller than float32 knows.
inline void l2_normalizations(const std::string& isa, const TrainingKernels& kernels) {
  Some some;
  Worst normals, inverses, gradients;
  for (int channels : {1, 15, 16, 48, 56, 220}) {
    for (int64_t rows : {1, 7, 1500}) {
      const int64_t count = rows * channels;
      const std::vector<Bf16> gradient = some.halves(count);
      std::vector<Bf16> x = some.halves(count), y(count), to(count);
      std::vector<float> inverse(rows);
      if (rows > 2) std::fill_n(x.begin() + channels, channels, Bf16{0});
      if (rows > 2) std::fill_n(x.begin() + 2 * channels, channels, Bf16{static_cast<uint16_t>(rounded(1e-30))});
      swiftformer::l2_normalize(kernels, x.data(), rows, channels, y.data(), inverse.data(), 3);
      swiftformer::l2_normalize_gradient(kernels, gradient.data(), y.data(), inverse.data(), rows, channels, to.data(),
                                         3);
      for (int64_t row = 0; row < rows; ++row) {
        double squares = 0, along = 0, size = 0;
        for (int64_t i = row * channels; i < (row + 1) * channels; ++i) {
          squares += value(x[i]) * value(x[i]);
          along += value(y[i]) * value(gradient[i]);
          size += value(gradient[i]) * value(gradient[i]);
        }
        const double factor = 1 / std::max(std::sqrt(squares), 1e-12);
        inverses.see(std::fabs(inverse[row] / factor - 1), std::to_string(channels));
        for (int64_t i = row * channels; i < (row + 1) * channels; ++i) {
          normals.see(apart(y[i], value(x[i]) * factor), std::to_string(channels));
          const double exact = (value(gradient[i]) - along * value(y[i])) * factor;
          gradients.see(std::fabs(value(to[i]) - exact) / (std::sqrt(size) * factor), std::to_string(channels));
        }
      }
    }
  }
  report("training " + isa + ", L2 normalisation", normals.found, 1, normals.where);
  report("training " + isa + ", its factors", inverses.found, 1e-6, inverses.where);
  report("training " + isa + ", its gradient", gradients.found, 0.004, gradients.where);
}

// Of a value that is float32 or bfloat16.
inline double value(float number) { return number; }

template <class Value>
void depth_wise_of(const TrainingKernels& kernels, const swiftformer::Maps& maps, const std::vector<Value>& x,
                   Some& some, int threads, Worst& outputs, Worst& gradients, Worst& weights) {
  const auto [pictures, height, width, channels] = maps;
  constexpr bool halves = std::is_same_v<Value, Bf16>;
  const std::vector<float> weight = some.floats(9 * channels), bias = some.floats(channels);
  const std::vector<Bf16> gradient = some.halves(x.size());
  std::vector<Bf16> y(x.size());
  std::vector<Value> to(x.size());
  std::vector<float> of_weight(9 * channels, NAN), of_bias(channels, NAN);
  swiftformer::depth_wise(kernels, x.data(), halves, maps, weight.data(), bias.data(), y.data(), threads);
  swiftformer::depth_wise_gradient(kernels, gradient.data(), x.data(), halves, maps, weight.data(), to.data(),
                                   of_weight.data(), of_bias.data(), threads);
  const std::string where = std::to_string(pictures) + "x" + std::to_string(height) + "x" + std::to_string(width) +
                            "x" + std::to_string(channels) + (halves ? " halves" : " floats");
  std::vector<double> of_taps(9 * channels), of_biases(channels), sizes(9 * channels);
  const auto place = [&, height = height, width = width, channels = channels](int64_t picture, int row, int column) {
    const bool inside = row >= 0 && row < height && column >= 0 && column < width;
    return inside ? ((picture * height + row) * width + column) * channels : -1;
  };
  for (int64_t picture = 0; picture < pictures; ++picture) {
    for (int pixel = 0; pixel < height * width; ++pixel) {
      const int row = pixel / width, column = pixel % width;
      for (int c = 0; c < channels; ++c) {
        const int64_t at = place(picture, row, column) + c;
        double sum = bias[c], back = 0, size = std::fabs(sum), back_size = 0;
        for (int tap = 0; tap < 9; ++tap) {
          const double factor = weight[9 * c + tap];
          const int64_t from = place(picture, row + tap / 3 - 1, column + tap % 3 - 1);
          const int64_t behind = place(picture, row - tap / 3 + 1, column - tap % 3 + 1);
          if (behind >= 0) back += factor * value(gradient[behind + c]);
          if (behind >= 0) back_size += std::fabs(factor * value(gradient[behind + c]));
          if (from < 0) continue;
          sum += factor * value(x[from + c]);
          size += std::fabs(factor * value(x[from + c]));
          of_taps[9 * c + tap] += value(gradient[at]) * value(x[from + c]);
          sizes[9 * c + tap] += std::fabs(value(gradient[at]) * value(x[from + c]));
        }
        of_biases[c] += value(gradient[at]);
        // Sums in float32 round to a neighbour where they are half way, and lose what terms of both signs had more.
        outputs.see(std::fabs(value(y[at]) - sum) / (std::fabs(sum) / 255 + 1e-6 * size), where);
        const double of_rounding = halves ? std::fabs(back) / 255 : 0;
        gradients.see(std::fabs(value(to[at]) - back) / (of_rounding + 1e-6 * (1 + back_size)), where);
      }
    }
  }
  for (int i = 0; i < 9 * channels; ++i) weights.see(std::fabs(of_weight[i] - of_taps[i]) / (1 + sizes[i]), where);
  for (int c = 0; c < channels; ++c) {
    weights.see(std::fabs(of_bias[c] - of_biases[c]) / (8.0 * pictures * height * width), where);
  }
}

// Maps of one row and of one column, rows of a picture in two threads, and sums over more pixels than float32 takes.
inline void depth_wise_convolutions(const std::string& isa, const TrainingKernels& kernels) {
  Some some;
  Worst outputs, gradients, weights;
  const swiftformer::Maps shapes[] = {{1, 1, 1, 1},  {2, 1, 5, 16},   {3, 4, 1, 15},   {2, 2, 2, 220}, {5, 7, 7, 17},
                                      {3, 9, 6, 48}, {2, 14, 13, 56}, {1, 3, 600, 20}, {2, 56, 56, 33}};
  for (const swiftformer::Maps& maps : shapes) {
    const int64_t count = maps.pictures * maps.height * maps.width * maps.channels;
    for (int threads : {1, 3}) {
      depth_wise_of(kernels, maps, some.halves(count), some, threads, outputs, gradients, weights);
      depth_wise_of(kernels, maps, some.floats(count), some, threads, outputs, gradients, weights);
    }
  }
  report("training " + isa + ", depth-wise convolution", outputs.found, 1, outputs.where);
  report("training " + isa + ", its gradient", gradients.found, 1, gradients.where);
  report("training " + isa + ", that of its weights", weights.found, 1e-6, weights.where);
}

// Of both layers, against double precision: what lies between is rounded to bfloat16, as weights are.
inline void mlps(const std::string& isa, const TrainingKernels& kernels, const Kernels& products) {
  Some some;
  Worst outputs, gradients, weights, biases;
  const int shapes[][3] = {{1, 2, 2},      {2, 16, 64},   {31, 48, 192},  {128, 34, 70},
                           {700, 56, 224}, {300, 24, 96}, {3000, 18, 20}, {400, 128, 512}};
  for (const auto& [rows, channels, hidden] : shapes) {
    const std::string where =
        std::to_string(rows) + " rows of " + std::to_string(channels) + ", " + std::to_string(hidden);
    const auto small = [&](int64_t count, double by) {
      std::vector<float> values = some.floats(count);
      for (float& each : values) each = static_cast<float>(each * by);
      return values;
    };
    const std::vector<float> expand = small(hidden * channels, 0.2 / std::sqrt(channels)),
                             expand_bias = small(hidden, 0.1);
    const std::vector<float> project = small(channels * hidden, 0.2 / std::sqrt(hidden)),
                             project_bias = small(channels, 0.1);
    const std::vector<Bf16> x = some.halves(rows * channels), gradient = some.halves(rows * channels);
    std::vector<double> y(rows * channels), to(y.size()), of_expand(expand.size()), of_project(project.size());
    std::vector<double> of_expand_bias(hidden), of_project_bias(channels), activated(hidden), slopes(hidden);
    for (int row = 0; row < rows; ++row) {
      const Bf16 *in = &x[row * channels], *back = &gradient[row * channels];
      for (int h = 0; h < hidden; ++h) {
        double sum = expand_bias[h], of_sum = 0;
        for (int c = 0; c < channels; ++c) sum += static_cast<double>(expand[h * channels + c]) * value(in[c]);
        for (int c = 0; c < channels; ++c) of_sum += static_cast<double>(project[c * hidden + h]) * value(back[c]);
        const double below = 0.5 * std::erfc(-sum / std::sqrt(2.0));
        activated[h] = sum * below;
        slopes[h] = of_sum * (below + sum * 0.3989422804014327 * std::exp(-sum * sum / 2));
        of_expand_bias[h] += slopes[h];
      }
      for (int c = 0; c < channels; ++c) {
        double sum = project_bias[c], of_sum = 0;
        for (int h = 0; h < hidden; ++h) {
          sum += project[c * hidden + h] * activated[h];
          of_sum += expand[h * channels + c] * slopes[h];
          of_expand[h * channels + c] += slopes[h] * value(in[c]);
          of_project[c * hidden + h] += activated[h] * value(back[c]);
        }
        y[row * channels + c] = sum;
        to[row * channels + c] = of_sum;
        of_project_bias[c] += value(back[c]);
      }
    }
    const auto compare = [&](Worst& worst, const auto& found, const std::vector<double>& exact) {
      double most = 0;
      for (double each : exact) most = std::max(most, std::fabs(each));
      for (size_t i = 0; i < exact.size(); ++i) worst.see(std::fabs(value(found[i]) - exact[i]) / most, where);
    };
    for (int threads : {1, 3}) {
      std::vector<Bf16> found(y.size()), found_to(y.size());
      std::vector<float> of[] = {expand, expand_bias, project, project_bias};
      for (std::vector<float>& each : of) std::fill(each.begin(), each.end(), NAN);
      const swiftformer::Mlp layer{channels,           hidden,         expand.data(),
                                   expand_bias.data(), project.data(), project_bias.data()};
      swiftformer::mlp(products, kernels, layer, x.data(), rows, found.data(), threads);
      swiftformer::mlp_gradient(products, kernels, layer, gradient.data(), x.data(), rows, found_to.data(),
                                {of[0].data(), of[1].data(), of[2].data(), of[3].data()}, threads);
      compare(outputs, found, y);
      compare(gradients, found_to, to);
      compare(weights, of[0], of_expand);
      compare(weights, of[2], of_project);
      compare(biases, of[1], of_expand_bias);
      compare(biases, of[3], of_project_bias);
    }
  }
  const std::string name = "training " + isa + " with " + products.name;
  report(name + ", MLP", outputs.found, 0.012, outputs.where);
  report(name + ", its gradient", gradients.found, 0.012, gradients.where);
  report(name + ", that of its weights", weights.found, 0.012, weights.where);
  report(name + ", that of its biases", biases.found, 0.012, biases.where);
}

// `modes` have the products of bfloat16.
inline void training(const std::string& isa, const std::vector<Mode>& modes) {
  const TrainingKernels& kernels = swiftformer::training_kernels_for(isa);
  for (const Mode& mode : modes) {
    if (mode.precision == "bf16") mlps(isa, kernels, *mode.kernels);
  }
  gelu_of_halves(isa, kernels);
  scaled_sums(isa, kernels);
  batch_norms(isa, kernels);
  l2_normalizations(isa, kernels);
  depth_wise_convolutions(isa, kernels);
}

}  // namespace checks
