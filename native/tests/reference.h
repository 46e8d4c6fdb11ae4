// Small networks with random weights, and what they compute: the same layers in double precision, in plain loops.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "network/network.h"

namespace reference {

using swiftformer::Network;
using swiftformer::Weight;

struct Tensor {
  std::vector<float> values;
  std::vector<int> shape;
  operator Weight() const { return {values.data(), shape}; }
};

struct Map {
  int channels, height, width;
  std::vector<double> values;  // (channels, height, width)

  Map(int channels, int height, int width)
      : channels(channels), height(height), width(width), values(static_cast<size_t>(channels) * height * width) {}
  int tokens() const { return height * width; }
  double& at(int channel, int token) { return values[static_cast<size_t>(channel) * tokens() + token]; }
  double at(int channel, int token) const { return values[static_cast<size_t>(channel) * tokens() + token]; }
};

inline double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

// 3x3 with padding 1; the weight is (outputs, inputs, 3, 3), or (channels, 1, 3, 3) of each channel for itself.
inline Map convolved(const Map& in, const Tensor& weight, const Tensor& bias, int stride) {
  const int outputs = weight.shape[0], inputs = weight.shape[1];
  const bool depth_wise = inputs != in.channels;
  Map out(outputs, (in.height - 1) / stride + 1, (in.width - 1) / stride + 1);
  for (int o = 0; o < outputs; ++o) {
    for (int token = 0; token < out.tokens(); ++token) {
      const int y = token / out.width * stride - 1, x = token % out.width * stride - 1;
      double sum = bias.values[o];
      for (int i = 0; i < inputs; ++i) {
        const float* taps = weight.values.data() + (static_cast<size_t>(o) * inputs + i) * 9;
        for (int tap = 0; tap < 9; ++tap) {
          const int row = y + tap / 3, column = x + tap % 3;
          if (row < 0 || row >= in.height || column < 0 || column >= in.width) continue;
          sum += taps[tap] * in.at(depth_wise ? o : i, row * in.width + column);
        }
      }
      out.at(o, token) = sum;
    }
  }
  return out;
}

// (outputs, inputs) times the channels of every pixel.
inline Map product(const Map& in, const Tensor& weight, const Tensor& bias) {
  Map out(weight.shape[0], in.height, in.width);
  for (int o = 0; o < out.channels; ++o) {
    for (int token = 0; token < in.tokens(); ++token) out.at(o, token) = bias.values[o];
    for (int i = 0; i < in.channels; ++i) {
      const double factor = weight.values[static_cast<size_t>(o) * in.channels + i];
      for (int token = 0; token < in.tokens(); ++token) out.at(o, token) += factor * in.at(i, token);
    }
  }
  return out;
}

inline void add(Map& to, const Map& other) {
  for (size_t i = 0; i < to.values.size(); ++i) to.values[i] += other.values[i];
}

// project(gelu(expand(in)))
inline Map perceptron(const Map& in, const Tensor* weights) {
  Map hidden = product(in, weights[0], weights[1]);
  for (double& value : hidden.values) value = gelu(value);
  return product(hidden, weights[2], weights[3]);
}

// What is left once keys and queries, the halves of `key_query`, met: [global * key, query].
inline Map modulated(Map key_query, const Tensor& score, bool normalize, double pooled_scale) {
  const int dim = key_query.channels / 2, tokens = key_query.tokens();
  std::vector<double> global(dim);
  double squared_scores = 0;
  for (int token = 0; token < tokens; ++token) {
    for (int first : {0, dim}) {
      double squares = 0;
      for (int c = 0; c < dim; ++c) squares += std::pow(key_query.at(first + c, token), 2);
      const double size = normalize ? std::sqrt(std::max(squares / dim, 1e-24)) : 1.0;
      for (int c = 0; c < dim; ++c) key_query.at(first + c, token) /= size;
    }
    double s = score.values.empty() ? 1.0 : 0.0;
    for (size_t c = 0; c < score.values.size(); ++c) s += key_query.at(dim + c, token) * score.values[c];
    for (int c = 0; c < dim; ++c) global[c] += s * key_query.at(dim + c, token);
    squared_scores += s * s;
  }
  const double scale = score.values.empty() ? pooled_scale : pooled_scale / std::sqrt(std::max(squared_scores, 1e-24));
  for (int c = 0; c < dim; ++c) {
    for (int token = 0; token < tokens; ++token) key_query.at(c, token) *= global[c] * scale;
  }
  return key_query;
}

// The value at a pixel of a map that is made `height` by `width` pixels: the nearest one, or bilinear between centres.
inline double enlarged(const Map& in, int channel, int y, int x, int height, int width, bool bilinear) {
  const auto value = [&](int row, int column) { return in.at(channel, row * in.width + column); };
  if (!bilinear) return value(y * in.height / height, x * in.width / width);
  const double row = std::max((y + 0.5) * in.height / height - 0.5, 0.0);
  const double column = std::max((x + 0.5) * in.width / width - 0.5, 0.0);
  const int top = static_cast<int>(row), left = static_cast<int>(column);
  const int bottom = std::min(top + 1, in.height - 1), right = std::min(left + 1, in.width - 1);
  const double down = row - top, along = column - left;
  return (1 - down) * ((1 - along) * value(top, left) + along * value(top, right)) +
         down * ((1 - along) * value(bottom, left) + along * value(bottom, right));
}

inline Map enlarged(const Map& in, const Map& like, bool bilinear) {
  Map out(in.channels, like.height, like.width);
  for (int c = 0; c < out.channels; ++c) {
    for (int t = 0; t < out.tokens(); ++t) {
      out.at(c, t) = enlarged(in, c, t / out.width, t % out.width, out.height, out.width, bilinear);
    }
  }
  return out;
}

enum class Kind {
  stem,
  downsampling,
  branch,
  encoder,
  output,
  head,
  lateral,
  level,
  convolution,
  enlarging,
  scores,
  sum
};

struct Layer {
  Kind kind;
  std::vector<Tensor> weights;
  Tensor score = {};  // without values: none
  bool normalize = false;
  float pooled_scale = 0;
  int level = 0;
  bool relu = false;
};

// Layers are added in their order, as to a `Network`.
class Model {
 public:
  explicit Model(int seed, int inputs) : inputs(inputs), random_(seed), channels_(inputs) {}

  Model& stem(int between, int outputs) {
    Layer layer{Kind::stem, {weight({between, inputs, 3, 3}), bias(between)}};
    for (Tensor tensor : {weight({outputs, between, 3, 3}), bias(outputs)}) layer.weights.push_back(std::move(tensor));
    return add(std::move(layer), outputs);
  }
  Model& downsampling(int outputs) {
    return add({Kind::downsampling, {weight({outputs, channels_, 3, 3}), bias(outputs)}}, outputs);
  }
  Model& branch(int hidden) { return add({Kind::branch, branch_weights(hidden)}, channels_); }
  Model& encoder(int local_hidden, int hidden, bool score, bool normalize) {
    Layer layer{Kind::encoder, branch_weights(local_hidden)};
    for (Tensor tensor : {weight({2 * channels_, channels_}), bias(2 * channels_), weight({channels_, 2 * channels_}),
                          bias(channels_)}) {
      layer.weights.push_back(std::move(tensor));
    }
    for (Tensor& tensor : perceptron_weights(hidden)) layer.weights.push_back(std::move(tensor));
    if (score) layer.score = tensor({channels_}, 1 / std::sqrt(static_cast<float>(channels_)));
    layer.normalize = normalize;
    layer.pooled_scale = score ? 0.3f : 0.02f;
    return add(std::move(layer), channels_);
  }
  Model& output(bool factor) {
    Layer layer{Kind::output, {}};
    if (factor) layer.weights = {tensor({channels_}, 1), bias(channels_)};
    return add(std::move(layer), channels_);
  }
  Model& lateral(int channels) {
    level_channels_ = channels;
    return add({Kind::lateral, {weight({channels, channels_}), bias(channels)}}, channels_);
  }
  Model& level(int index) { return add({Kind::level, {}, {}, false, 0, index}, level_channels_); }
  Model& convolution(int outputs, bool relu) {
    return add({Kind::convolution, {weight({outputs, channels_, 3, 3}), bias(outputs)}, {}, false, 0, 0, relu},
               outputs);
  }
  Model& enlarging(int level) { return add({Kind::enlarging, {}, {}, false, 0, level}, channels_); }
  Model& scores(int classes) { return add({Kind::scores, {weight({classes, channels_}), bias(classes)}}, channels_); }
  Model& sum() { return add({Kind::sum, {}}, channels_); }
  Model& head(int classes) { return add({Kind::head, {weight({classes, channels_}), bias(classes)}}, channels_); }

  void add_to(Network& network) const {
    const auto some = [](const std::vector<Tensor>& from, int first, int end) {
      return std::vector<Weight>(from.begin() + first, from.begin() + end);
    };
    for (const Layer& layer : layers_) {
      const std::vector<Tensor>& w = layer.weights;
      const Weight score = layer.score;
      const Weight first = w.empty() ? Weight{} : Weight(w[0]), second = w.empty() ? Weight{} : Weight(w[1]);
      switch (layer.kind) {
        case Kind::stem:
          network.stem(first, second, w[2], w[3], mean(), std());
          break;
        case Kind::downsampling:
          network.downsampling(first, second);
          break;
        case Kind::branch:
          network.branch(some(w, 0, 6));
          break;
        case Kind::encoder:
          network.encoder(some(w, 0, 6), some(w, 6, 10), score.shape.empty() ? nullptr : &score, layer.normalize,
                          layer.pooled_scale, some(w, 10, 14));
          break;
        case Kind::output:
          network.output(w.empty() ? nullptr : &first, w.empty() ? nullptr : &second);
          break;
        case Kind::head:
          network.head(first, second);
          break;
        case Kind::lateral:
          network.lateral(first, second);
          break;
        case Kind::level:
          network.pyramid_level(layer.level);
          break;
        case Kind::convolution:
          network.convolution(first, second, layer.relu);
          break;
        case Kind::enlarging:
          network.enlarging(layer.level);
          break;
        case Kind::scores:
          network.scores(first, second);
          break;
        case Kind::sum:
          network.scores_output();
          break;
      }
    }
  }

  // The outputs of one picture (channels, height, width).
  std::vector<std::vector<double>> run(Map x) const {
    std::vector<std::vector<double>> outputs;
    std::vector<Map> levels, scores;
    for (const Layer& layer : layers_) {
      const Tensor* w = layer.weights.data();
      if (layer.kind == Kind::stem) {
        for (int i : {0, 2}) {
          x = convolved(x, w[i], w[i + 1], 2);
          for (double& value : x.values) value = std::max(value, 0.0);
        }
      } else if (layer.kind == Kind::downsampling) {
        x = convolved(x, w[0], w[1], 2);
      } else if (layer.kind == Kind::branch || layer.kind == Kind::encoder) {
        reference::add(x, perceptron(convolved(x, w[0], w[1], 1), w + 2));
        if (layer.kind == Kind::branch) continue;
        const Map key_query = product(x, w[6], w[7]);
        reference::add(x, product(modulated(key_query, layer.score, layer.normalize, layer.pooled_scale), w[8], w[9]));
        reference::add(x, perceptron(x, w + 10));
      } else if (layer.kind == Kind::output) {
        Map map = x;
        for (int c = 0; c < map.channels && !layer.weights.empty(); ++c) {
          for (int t = 0; t < map.tokens(); ++t) map.at(c, t) = map.at(c, t) * w[0].values[c] + w[1].values[c];
        }
        outputs.push_back(std::move(map.values));
      } else if (layer.kind == Kind::lateral) {
        levels.push_back(product(x, w[0], w[1]));
      } else if (layer.kind == Kind::level) {
        Map& level = levels[layer.level];
        if (layer.level + 1 < static_cast<int>(levels.size())) {
          reference::add(level, enlarged(levels[layer.level + 1], level, false));
        }
        x = level;
      } else if (layer.kind == Kind::convolution) {
        x = convolved(x, w[0], w[1], 1);
        for (double& value : x.values) value = layer.relu ? std::max(value, 0.0) : value;
      } else if (layer.kind == Kind::enlarging) {
        x = enlarged(x, levels[layer.level], true);
      } else if (layer.kind == Kind::scores) {
        scores.push_back(enlarged(product(x, w[0], w[1]), levels[0], true));
        if (scores.size() > 1) reference::add(scores[0], scores.back());
      } else if (layer.kind == Kind::sum) {
        outputs.push_back(scores[0].values);
      } else {
        Map means(x.channels, 1, 1);
        for (int c = 0; c < x.channels; ++c) {
          for (int t = 0; t < x.tokens(); ++t) means.at(c, 0) += x.at(c, t) / x.tokens();
        }
        outputs.push_back(product(means, w[0], w[1]).values);
      }
    }
    return outputs;
  }

  std::vector<float> mean() const { return std::vector<float>(inputs, 0.45f); }
  std::vector<float> std() const { return std::vector<float>(inputs, 0.25f); }

  const int inputs;

 private:
  Model& add(Layer layer, int channels) {
    layers_.push_back(std::move(layer));
    channels_ = channels;
    return *this;
  }

  // Uniform, of standard deviation `size`.
  Tensor tensor(std::vector<int> shape, float size) {
    size_t count = 1;
    for (int side : shape) count *= side;
    Tensor made{std::vector<float>(count), std::move(shape)};
    for (float& value : made.values) value = (random_() / 4294967296.0f - 0.5f) * 3.4641f * size;
    return made;
  }
  Tensor weight(const std::vector<int>& shape) {
    float depth = 1;
    for (size_t i = 1; i < shape.size(); ++i) depth *= shape[i];
    return tensor(shape, 1 / std::sqrt(depth));
  }
  Tensor bias(int channels) { return tensor({channels}, 0.2f); }
  std::vector<Tensor> perceptron_weights(int hidden) {
    return {weight({hidden, channels_}), bias(hidden), weight({channels_, hidden}), bias(channels_)};
  }
  std::vector<Tensor> branch_weights(int hidden) {
    std::vector<Tensor> weights{weight({channels_, 1, 3, 3}), bias(channels_)};
    for (Tensor& tensor : perceptron_weights(hidden)) weights.push_back(std::move(tensor));
    return weights;
  }

  std::mt19937 random_;
  int channels_, level_channels_ = 0;
  std::vector<Layer> layers_;
};

// Pictures of one size as bytes (images, height, width, channels) and normalised, and what a model makes of them.
struct Example {
  const Model& model;
  int images, height, width;
  std::vector<uint8_t> bytes;
  std::vector<float> planes;
  std::vector<std::vector<std::vector<double>>> expected;  // [image][output]
  std::vector<double> largest;                             // of each output

  Example(const Model& model, int images, int height, int width)
      : model(model), images(images), height(height), width(width) {
    std::mt19937 random(height * 1000 + width);
    const int channels = model.inputs, plane = height * width;
    for (int i = 0; i < images * plane * channels; ++i) bytes.push_back(random() >> 24);
    planes.resize(bytes.size());
    for (int image = 0; image < images; ++image) {
      Map picture(channels, height, width);
      for (int c = 0; c < channels; ++c) {
        for (int at = 0; at < plane; ++at) {
          const float level = bytes[(static_cast<size_t>(image) * plane + at) * channels + c];
          const float value = (level / 255.0f - model.mean()[c]) / model.std()[c];
          planes[(static_cast<size_t>(image) * channels + c) * plane + at] = value;
          picture.at(c, at) = value;
        }
      }
      expected.push_back(model.run(picture));
      largest.resize(expected[0].size());
      for (size_t o = 0; o < largest.size(); ++o) {
        for (double value : expected.back()[o]) largest[o] = std::max(largest[o], std::fabs(value));
      }
    }
  }

  swiftformer::Pixels pixels(int batch, bool as_bytes) const {
    return {as_bytes ? nullptr : planes.data(), as_bytes ? bytes.data() : nullptr, batch, height, width};
  }

  double difference(const std::vector<std::vector<float>>& found, int batch) const {
    double most = 0;
    for (size_t o = 0; o < found.size(); ++o) {
      const size_t size = expected[0][o].size();
      if (found.size() != largest.size() || found[o].size() != size * batch) return HUGE_VAL;
      for (size_t i = 0; i < found[o].size(); ++i) {
        const double difference = std::fabs(found[o][i] - expected[i / size][o][i % size]) / largest[o];
        if (!(difference <= most)) most = difference == difference ? difference : HUGE_VAL;
      }
    }
    return most;
  }
};

}  // namespace reference
