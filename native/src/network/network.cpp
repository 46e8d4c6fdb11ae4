// How a network is made: shapes are checked, and what inputs of weights meet which of operands.

#include "network/network.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/cpu.h"
#include "network/turn.h"
#include "threads/processors.h"

namespace swiftformer {

namespace {

std::string text(const std::vector<int>& shape) {
  std::string joined;
  for (int side : shape) joined += (joined.empty() ? "" : ", ") + std::to_string(side);
  return "(" + joined + (shape.size() == 1 ? ",)" : ")");
}

Memory<float> copied(const Weight& weight) {
  Memory<float> memory(filled(weight.shape[0]));
  std::copy_n(weight.values, weight.shape[0], memory.get());
  return memory;
}

std::vector<int> counted(int count) {
  std::vector<int> places(count);
  for (int i = 0; i < count; ++i) places[i] = i;
  return places;
}

// Columns of a 3x3 convolution's weights (channels, 9) tap by tap, each with its channels, filled up.
std::vector<int> taps_first(int channels, int filled_channels) {
  std::vector<int> places;
  for (int tap = 0; tap < 9; ++tap) {
    for (int c = 0; c < filled_channels; ++c) places.push_back(c < channels ? c * 9 + tap : nowhere);
  }
  return places;
}

std::vector<int> keys_and_queries(int dim, int joined_dim) {
  std::vector<int> places = counted(dim);
  places.resize(joined_dim, nowhere);
  for (int c = 0; c < dim; ++c) places.push_back(dim + c);
  return places;
}

// The same of the first convolution: three lines of taps for each channel, each filled up to whole words if need be.
std::vector<int> lines_of_taps(int channels, const Kernels& kernels) {
  std::vector<int> places;
  for (int line = 0; line < 3 * channels; ++line) {
    for (int tap = 0; tap < 3; ++tap) places.push_back(3 * line + tap);
    if (kernels.values_per_word == 2 && !kernels.close_taps) places.push_back(nowhere);
  }
  return places;
}

}  // namespace

Network::Network(const std::string& isa, const std::string& precision, int threads, bool pin)
    : kernels_(kernels_for(isa, precision)),
      outer_(kernels_.outer    ? *kernels_.outer
             : kernels_.levels ? kernels_for(kernels_.name, "bf16")
                               : kernels_),
      precision_(kernels_.values_per_word == 1 ? "fp32" : precision),
      thread_count_(threads > 0 ? threads : processors()),
      pin_(pin),
      work_(new Work(thread_count_, pin)) {}

void Network::expect(const Weight& weight, const std::vector<int>& shape, const char* name) const {
  if (*std::min_element(shape.begin(), shape.end()) < 1) {
    throw std::invalid_argument(std::string(name) + ": expected sides of at least 1, found " + text(weight.shape));
  }
  if (weight.shape != shape) {
    throw std::invalid_argument(std::string(name) + ": expected shape " + text(shape) + ", found " +
                                text(weight.shape));
  }
}

void Network::expect_stem() const {
  if (layers_.empty()) throw std::invalid_argument("expected the stem as the first layer");
}

void Network::stem(const Weight& weight1, const Weight& bias1, const Weight& weight2, const Weight& bias2,
                   const std::vector<float>& mean, const std::vector<float>& std) {
  const Adding adding(*this);
  if (!layers_.empty()) throw std::invalid_argument("expected the stem as the first layer");
  if (weight1.shape.size() != 4 || weight2.shape.size() != 4) {
    throw std::invalid_argument("expected weights of 4 dimensions in the stem");
  }
  const int inputs = weight1.shape[1], between = weight1.shape[0], outputs = weight2.shape[0];
  if (inputs < 1 || inputs > most_channels) {
    throw std::invalid_argument("expected 1 to " + std::to_string(most_channels) + " channels, found " +
                                std::to_string(inputs));
  }
  expect(weight1, {between, inputs, 3, 3}, "weight1");
  expect(bias1, {between}, "bias1");
  expect(weight2, {outputs, between, 3, 3}, "weight2");
  expect(bias2, {outputs}, "bias2");
  if (mean.size() != std.size() || (!mean.empty() && static_cast<int>(mean.size()) != inputs)) {
    throw std::invalid_argument("expected a mean and a std for each of " + std::to_string(inputs) + " channels");
  }
  const bool in_bf16 = outer_.convolution_of_bf16 && filled(between) % 32 == 0 && between <= most_bf16_channels;
  Product first = packed(outer_, weight1, bias1, lines_of_taps(inputs, outer_));
  const int apart = in_bf16 ? filled(between) : joined(between, kernels_.parts);
  Product second = packed(in_bf16 ? outer_ : kernels_, weight2, bias2, taps_first(between, apart));
  std::vector<float> factor, shift;
  for (size_t c = 0; c < mean.size(); ++c) {
    factor.push_back(1.0f / (255.0f * std[c]));
    shift.push_back(-mean[c] / std[c]);
  }
  layers_.reserve(2);  // what may fail has been done: a stem is there as a whole or not at all
  layers_.push_back(FirstConvolution{std::move(first), inputs, in_bf16});
  if (in_bf16) {
    layers_.push_back(StemConvolution{std::move(second), between});
  } else {
    layers_.push_back(Convolution{std::move(second), true, between, 2});
  }
  pixel_factor_ = std::move(factor);
  pixel_shift_ = std::move(shift);
  input_channels_ = inputs;
  channels_ = outputs;
}

void Network::add_convolution(const Weight& weight, const Weight& bias, bool relu, int stride, const char* name) {
  expect_stem();
  const int outputs = weight.shape.empty() ? 0 : weight.shape[0];
  expect(weight, {outputs, channels_, 3, 3}, name);
  expect(bias, {outputs}, name);
  Product product = packed(kernels_, weight, bias, taps_first(channels_, joined(channels_, kernels_.parts)));
  layers_.push_back(Convolution{std::move(product), relu, channels_, stride});
  channels_ = outputs;
}

void Network::downsampling(const Weight& weight, const Weight& bias) {
  const Adding adding(*this);
  add_convolution(weight, bias, false, 2, "downsampling");
}

void Network::convolution(const Weight& weight, const Weight& bias, bool relu) {
  const Adding adding(*this);
  add_convolution(weight, bias, relu, 1, "convolution");
}

Branch Network::packed_branch(const std::vector<Weight>& weights) {
  const Weight &depth_wise = weights[0], &depth_wise_bias = weights[1], &expand = weights[2], &project = weights[4];
  const int hidden = expand.shape.empty() ? 0 : expand.shape[0], stride = filled(channels_);
  expect(depth_wise, {channels_, 1, 3, 3}, "depth_wise");
  expect(depth_wise_bias, {channels_}, "depth_wise_bias");
  expect(expand, {hidden, channels_}, "expand");
  expect(weights[3], {hidden}, "expand_bias");
  expect(project, {channels_, hidden}, "project");
  expect(weights[5], {channels_}, "project_bias");
  Branch branch{Memory<float>(10 * stride), packed(kernels_, expand, weights[3], counted(channels_)),
                packed(kernels_, project, weights[5], counted(hidden), Operand::behind_gelu)};
  for (int c = 0; c < channels_; ++c) {
    for (int tap = 0; tap < 9; ++tap) branch.depth_wise[tap * stride + c] = depth_wise.values[c * 9 + tap];
    branch.depth_wise[9 * stride + c] = depth_wise_bias.values[c];
  }
  return branch;
}

void Network::branch(const std::vector<Weight>& weights) {
  const Adding adding(*this);
  expect_stem();
  layers_.push_back(packed_branch(weights));
}

void Network::encoder(const std::vector<Weight>& local, const std::vector<Weight>& attention, const Weight* score,
                      bool normalize, float pooled_scale, const std::vector<Weight>& mlp) {
  const Adding adding(*this);
  expect_stem();
  const int dim = channels_, stride = filled(dim), hidden = mlp[0].shape.empty() ? 0 : mlp[0].shape[0];
  expect(attention[0], {2 * dim, dim}, "key_query");
  expect(attention[1], {2 * dim}, "key_query_bias");
  expect(attention[2], {dim, 2 * dim}, "output");
  expect(attention[3], {dim}, "output_bias");
  if (score) expect(*score, {dim}, "score");
  expect(mlp[0], {hidden, dim}, "expand");
  expect(mlp[1], {hidden}, "expand_bias");
  expect(mlp[2], {dim, hidden}, "project");
  expect(mlp[3], {dim}, "project_bias");
  // Queries begin behind the filled-up keys.
  std::vector<float> weight(static_cast<size_t>(2) * stride * dim), bias(2 * stride);
  for (int half = 0; half < 2; ++half) {
    std::copy_n(attention[0].values + half * dim * dim, dim * dim, weight.data() + half * stride * dim);
    std::copy_n(attention[1].values + half * dim, dim, bias.data() + half * stride);
  }
  layers_.push_back(Encoder{
      packed_branch(local),
      packed(kernels_, {weight.data(), {2 * stride, dim}}, {bias.data(), {2 * stride}}, counted(dim)),
      packed(kernels_, attention[2], attention[3], keys_and_queries(dim, joined(dim, kernels_.parts))),
      score ? copied(*score) : Memory<float>(), normalize, pooled_scale, packed(kernels_, mlp[0], mlp[1], counted(dim)),
      packed(kernels_, mlp[2], mlp[3], counted(hidden), Operand::behind_gelu)});
}

void Network::output(const Weight* factor, const Weight* shift) {
  const Adding adding(*this);
  expect_stem();
  if (!factor != !shift) throw std::invalid_argument("expected both factor and shift, or neither");
  MapOutput output{{}, {}, channels_};
  if (factor) {
    expect(*factor, {channels_}, "factor");
    expect(*shift, {channels_}, "shift");
    output.factor = copied(*factor);
    output.shift = copied(*shift);
  }
  layers_.push_back(std::move(output));
}

void Network::head(const Weight& weight, const Weight& bias) {
  const Adding adding(*this);
  expect_stem();
  const int classes = weight.shape.empty() ? 0 : weight.shape[0];
  expect(weight, {classes, channels_}, "head weight");
  expect(bias, {classes}, "head bias");
  layers_.push_back(Head{packed(outer_, weight, bias, counted(channels_))});
}

void Network::lateral(const Weight& weight, const Weight& bias) {
  const Adding adding(*this);
  expect_stem();
  if (pyramid_left_ < pyramid_levels_ || pyramid_levels_ == most_pyramid_levels) {
    throw std::invalid_argument("expected at most " + std::to_string(most_pyramid_levels) +
                                " laterals, in front of all levels");
  }
  const int outputs = pyramid_levels_ > 0 ? pyramid_channels_ : weight.shape.empty() ? 0 : weight.shape[0];
  expect(weight, {outputs, channels_}, "lateral weight");
  expect(bias, {outputs}, "lateral bias");
  layers_.push_back(Lateral{packed(kernels_, weight, bias, counted(channels_))});
  pyramid_channels_ = outputs;
  pyramid_left_ = ++pyramid_levels_;
}

void Network::pyramid_level(int index) {
  const Adding adding(*this);
  if (pyramid_left_ == 0 || index != pyramid_left_ - 1) {
    throw std::invalid_argument("expected each lateral's level once, that of the last lateral first, found level " +
                                std::to_string(index));
  }
  layers_.push_back(PyramidLevel{index});
  channels_ = pyramid_channels_;
  --pyramid_left_;
}

void Network::expect_level(int index) const {
  if (index < 0 || index >= pyramid_levels_) {
    throw std::invalid_argument("expected one of " + std::to_string(pyramid_levels_) + " levels, found " +
                                std::to_string(index));
  }
}

void Network::enlarging(int level) {
  const Adding adding(*this);
  expect_level(level);
  layers_.push_back(Enlarging{level});
}

void Network::scores(const Weight& weight, const Weight& bias) {
  const Adding adding(*this);
  expect_level(0);
  const bool first = classes_ == 0;
  const int classes = !first ? classes_ : weight.shape.empty() ? 0 : weight.shape[0];
  expect(weight, {classes, channels_}, "scores weight");
  expect(bias, {classes}, "scores bias");
  layers_.push_back(Scores{packed(outer_, weight, bias, counted(channels_)), first});
  classes_ = classes;
}

void Network::scores_output() {
  const Adding adding(*this);
  if (classes_ == 0) throw std::invalid_argument("expected scores in front of their output");
  layers_.push_back(ScoresOutput{classes_});
}

}  // namespace swiftformer
