#include "network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "cpu.h"

namespace swiftformer {

namespace {

// Pixels of a tile. What a tile needs stays in a core's second-level cache between the products.
constexpr int tile_rows = 48;

// Pictures that go through a layer together, for each thread: more use of a weight, less of the caches for maps.
constexpr int pictures_per_thread = 2;

constexpr int most_channels = 64;  // of pictures

int halved(int size) { return (size + 1) / 2; }

std::string text(const std::vector<int>& shape) {
  std::string joined;
  for (int side : shape) joined += (joined.empty() ? "" : ", ") + std::to_string(side);
  return "(" + joined + (shape.size() == 1 ? ",)" : ")");
}

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

int level(float value, float step) { return static_cast<int>(std::nearbyintf(value / step)); }

// Words between rows of an operand of `values`. Not a multiple of 512 bytes: rows of a block would share cache sets.
int operand_stride(const Kernels& kernels, int values) {
  const int words = filled(values) / kernels.values_per_word + (kernels.levels ? 4 : 0);
  return words % 128 == 0 ? words + (kernels.levels ? 4 : lanes) : words;
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

}  // namespace

// A matrix (outputs, inputs), of which input i of the operand is column source[i].
Product Network::packed(const Kernels& kernels, const Weight& weight, const Weight& bias, const std::vector<int>& source,
                        Operand operand) const {
  const int outputs = weight.shape[0], columns = filled(outputs), per_word = kernels.values_per_word;
  const int inputs = static_cast<int>(source.size()), depth = (inputs + per_word - 1) / per_word;
  int width = 1;
  for (size_t i = 1; i < weight.shape.size(); ++i) width *= weight.shape[i];
  Product product{&kernels,
                  Memory<uint32_t>(static_cast<size_t>(depth) * columns),
                  Memory<float>(columns),
                  Memory<float>(kernels.levels ? columns : 0),
                  Memory<int32_t>(kernels.levels ? columns : 0),
                  outputs,
                  {}};
  std::copy_n(bias.values, outputs, product.bias.get());
  const auto value_at = [&](int column, int input) {
    return weight.values[static_cast<size_t>(column) * width + source[input]];
  };
  for (int column = 0; column < outputs && kernels.levels; ++column) {
    float most = 1e-30f;
    for (int input = 0; input < inputs; ++input) most = std::max(most, std::fabs(value_at(column, input)));
    const float step = product.step[column] = most / 127.0f;
    int sum = 0;
    for (int input = 0; input < inputs; ++input) sum += level(value_at(column, input), step);
    if (operand == Operand::behind_gelu) {
      product.bias[column] += gelu_floor * step * sum;
    } else {
      product.start[column] = -128 * sum;
    }
  }
  uint32_t* word = product.words.get();
  for (int first = 0; first < columns;) {
    const int vectors = panel_of((columns - first) / lanes, kernels.widest);
    for (int k = 0; k < depth; ++k) {
      for (int column = first; column < first + vectors * lanes; ++column, ++word) {
        for (int i = 0; i < per_word; ++i) {
          const int input = k * per_word + i;
          if (column >= outputs || input >= inputs) continue;
          const float value = value_at(column, input);
          if (per_word == 1) {
            std::memcpy(word, &value, sizeof value);
          } else if (per_word == 2) {
            *word |= static_cast<uint32_t>(to_bf16(value)) << 16 * i;
          } else {
            *word |= static_cast<uint32_t>(static_cast<uint8_t>(level(value, product.step[column]))) << 8 * i;
          }
        }
      }
    }
    first += vectors * lanes;
  }
  product.matrix = {product.words.get(), product.bias.get(), product.step.get(), product.start.get(), depth, columns};
  return product;
}

Network::Network(const std::string& isa, const std::string& precision, int threads, bool pin)
    : kernels_(kernels_for(isa, precision)),
      exact_(kernels_.levels ? kernels_for(kernels_.name, "fp32") : kernels_),
      precision_(precision),
      threads_(threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency()), pin),
      operand_(threads_.count()),
      hidden_(threads_.count()),
      rows_(threads_.count()) {}

void Network::expect(const Weight& weight, const std::vector<int>& shape, const char* name) const {
  if (weight.shape != shape) {
    throw std::invalid_argument(std::string(name) + ": expected shape " + text(shape) + ", found " + text(weight.shape));
  }
}

void Network::stem(const Weight& weight1, const Weight& bias1, const Weight& weight2, const Weight& bias2,
                   const std::vector<float>& mean, const std::vector<float>& std) {
  if (channels_ != 0) throw std::invalid_argument("expected the stem as the first layer");
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
  for (size_t c = 0; c < mean.size(); ++c) {
    pixel_factor_.push_back(1.0f / (255.0f * std[c]));
    pixel_shift_.push_back(-mean[c] / std[c]);
  }
  input_channels_ = inputs;
  for (bool first : {true, false}) {
    const Weight& weight = first ? weight1 : weight2;
    std::vector<int> source;  // pixel by pixel, each with its channels
    for (int tap = 0; tap < 9; ++tap) {
      for (int c = 0; c < weight.shape[1]; ++c) source.push_back(c * 9 + tap);
    }
    layers_.push_back(Convolution{packed(first ? exact_ : kernels_, weight, first ? bias1 : bias2, source, Operand::map), first, true,
                                  weight.shape[1]});
  }
  channels_ = outputs;
}

void Network::downsampling(const Weight& weight, const Weight& bias) {
  const int outputs = weight.shape.empty() ? 0 : weight.shape[0];
  expect(weight, {outputs, channels_, 3, 3}, "downsampling weight");
  expect(bias, {outputs}, "downsampling bias");
  std::vector<int> source;
  for (int tap = 0; tap < 9; ++tap) {
    for (int c = 0; c < channels_; ++c) source.push_back(c * 9 + tap);
  }
  layers_.push_back(Convolution{packed(kernels_, weight, bias, source, Operand::map), false, false, channels_});
  channels_ = outputs;
}

Branch Network::packed_branch(const std::vector<Weight>& weights) const {
  const Weight &depth_wise = weights[0], &depth_wise_bias = weights[1], &expand = weights[2], &project = weights[4];
  const int hidden = expand.shape.empty() ? 0 : expand.shape[0], stride = filled(channels_);
  expect(depth_wise, {channels_, 1, 3, 3}, "depth_wise");
  expect(depth_wise_bias, {channels_}, "depth_wise_bias");
  expect(expand, {hidden, channels_}, "expand");
  expect(weights[3], {hidden}, "expand_bias");
  expect(project, {channels_, hidden}, "project");
  expect(weights[5], {channels_}, "project_bias");
  Branch branch{Memory<float>(10 * stride), packed(kernels_, expand, weights[3], counted(channels_), Operand::map),
                packed(kernels_, project, weights[5], counted(hidden), Operand::behind_gelu)};
  for (int c = 0; c < channels_; ++c) {
    for (int tap = 0; tap < 9; ++tap) branch.depth_wise[tap * stride + c] = depth_wise.values[c * 9 + tap];
    branch.depth_wise[9 * stride + c] = depth_wise_bias.values[c];
  }
  return branch;
}

void Network::branch(const std::vector<Weight>& weights) { layers_.push_back(packed_branch(weights)); }

void Network::encoder(const std::vector<Weight>& local, const std::vector<Weight>& attention, const Weight* score,
                      bool normalize, float pooled_scale, const std::vector<Weight>& mlp) {
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
  layers_.push_back(Encoder{packed_branch(local),
                            packed(kernels_, {weight.data(), {2 * stride, dim}}, {bias.data(), {2 * stride}}, counted(dim),
                                   Operand::map),
                            packed(kernels_, attention[2], attention[3], counted(2 * dim), Operand::map),
                            score ? copied(*score) : Memory<float>(), normalize, pooled_scale,
                            packed(kernels_, mlp[0], mlp[1], counted(dim), Operand::map),
                            packed(kernels_, mlp[2], mlp[3], counted(hidden), Operand::behind_gelu)});
}

void Network::output(const Weight* factor, const Weight* shift) {
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
  const int classes = weight.shape.empty() ? 0 : weight.shape[0];
  expect(weight, {classes, channels_}, "head weight");
  expect(bias, {classes}, "head bias");
  layers_.push_back(Head{packed(exact_, weight, bias, counted(channels_), Operand::map)});
}

std::vector<std::vector<size_t>> Network::outputs(const Pixels& pixels) const {
  std::vector<std::vector<size_t>> shapes;
  size_t height = pixels.height, width = pixels.width;
  for (const Layer& layer : layers_) {
    if (std::holds_alternative<Convolution>(layer)) {
      height = halved(height);
      width = halved(width);
    } else if (auto* output = std::get_if<MapOutput>(&layer)) {
      shapes.push_back({static_cast<size_t>(pixels.images), static_cast<size_t>(output->channels), height, width});
    } else if (auto* head = std::get_if<Head>(&layer)) {
      shapes.push_back({static_cast<size_t>(pixels.images), static_cast<size_t>(head->product.outputs)});
    }
  }
  return shapes;
}

// One run of some pictures through the layers.
struct Network::Pass {
  Network& network;
  const Kernels& kernels;
  Pixels pixels;
  std::vector<float*> outputs;
  int place;  // of the first of these pictures among all
  int height, width;
  float *map, *other;
  int channels = 0;  // of `map`
  size_t next_output = 0;

  int images() const { return pixels.images; }
  int tokens() const { return height * width; }
  float* image_of(float* maps, int image, int of_channels) const {
    return maps + static_cast<size_t>(image) * tokens() * filled(of_channels);
  }

  // Calls task(image, first pixel, pixels, tile of all, thread) for tiles of about equal size, so many that every
  // thread gets the same number.
  template <class Task>
  void each_tile(Task&& task) {
    int tiles = tiles_of(tokens());
    network.threads_.run(images() * tiles, [&](int index, int thread) {
      const int image = index / tiles, tile = index % tiles;
      const int first = static_cast<int>(static_cast<int64_t>(tokens()) * tile / tiles);
      const int end = static_cast<int>(static_cast<int64_t>(tokens()) * (tile + 1) / tiles);
      if (end > first) task(image, first, end - first, index, thread);
    });
  }

  int tiles_of(int count) const {
    const int threads = network.threads_.count();
    int tiles = (count + tile_rows - 1) / tile_rows;
    while (images() * tiles % threads != 0 && images() * tiles < 4 * threads) ++tiles;
    return tiles;
  }

  // Rows that are to become the operand of a product: its words, or float32 where the words are levels.
  struct Rows {
    uint32_t* at;
    int stride;
  };

  Rows rows_for(const Product& product, int values, int thread) const {
    if (product.kernels->levels) return {network.rows_[thread].get(), filled(values)};
    return {network.operand_[thread].get(), operand_stride(*product.kernels, values)};
  }

  Rows operand_of(const Product& product, Rows from, int values, int rows, int thread) const {
    if (!product.kernels->levels) return from;
    return levels_of(product, reinterpret_cast<const float*>(from.at), from.stride, values, rows, false,
                     network.operand_[thread].get());
  }

  Rows levels_of(const Product& product, const float* from, int stride, int values, int rows, bool behind_gelu,
                 uint32_t* to) const {
    const int to_stride = operand_stride(*product.kernels, values);
    product.kernels->quantize(from, stride, rows, filled(values), behind_gelu, to, to_stride);
    return {to, to_stride};
  }

  // The operand of a product with pixels of a map.
  Rows operand_of_map(const Product& product, const float* from, int rows, int thread) const {
    const int stride = filled(channels);
    uint32_t* to = network.operand_[thread].get();
    if (product.kernels->levels) return levels_of(product, from, stride, channels, rows, false, to);
    const int to_stride = operand_stride(*product.kernels, channels);
    for (int r = 0; r < rows; ++r) product.kernels->convert(from + r * stride, stride, to + r * to_stride, 0);
    return {to, to_stride};
  }

  void multiply(const Product& product, Rows operand, int rows, Then then, void* out, int out_stride,
                const float* residual = nullptr) const {
    product.kernels->product(product.matrix, operand.at, operand.stride, rows, then, out, out_stride,
                             residual ? residual : static_cast<const float*>(out), out_stride);
  }

  // The pixels around an output pixel of a convolution, one behind the other. `zeros` are channels outside of the map.
  void gather(const Convolution& layer, const float* source, int in_height, int in_width, int first, int rows,
              Rows to) const {
    const int step = filled(layer.inputs), behind = 8 * layer.inputs + step;
    uint32_t* row_of_taps = to.at;
    for (int r = 0; r < rows; ++r, row_of_taps += to.stride) {
      const int y = 2 * ((first + r) / width) - 1, x = 2 * ((first + r) % width) - 1;
      for (int tap = 0; tap < 9; ++tap) {
        const int row = y + tap / 3, column = x + tap % 3;
        const bool inside = row >= 0 && row < in_height && column >= 0 && column < in_width;
        const float* from = inside ? source + (static_cast<size_t>(row) * in_width + column) * step
                                   : network.zeros_.get();
        layer.product.kernels->convert(from, step, row_of_taps, tap * layer.inputs);
      }
      if (behind % lanes != 0) {  // what was there before must not widen the range of levels
        layer.product.kernels->convert(network.zeros_.get(), lanes, row_of_taps, behind);
      }
    }
  }

  void gather_pixels(const Convolution& layer, int image, int in_height, int in_width, int first, int rows,
                     Rows to) const {
    const int channels_in = layer.inputs;
    const size_t plane = static_cast<size_t>(in_height) * in_width, picture = plane * channels_in * image;
    const int count = filled(9 * channels_in);
    float values[filled(9 * most_channels)];
    std::fill_n(values, count, 0.0f);
    for (int r = 0; r < rows; ++r) {
      const int y = 2 * ((first + r) / width) - 1, x = 2 * ((first + r) % width) - 1;
      float* value = values;
      for (int row = y; row < y + 3; ++row) {
        for (int column = x; column < x + 3; ++column, value += channels_in) {
          const size_t at = static_cast<size_t>(row) * in_width + column;
          if (row < 0 || row >= in_height || column < 0 || column >= in_width) {
            std::fill_n(value, channels_in, 0.0f);
          } else if (pixels.planes) {
            for (int c = 0; c < channels_in; ++c) value[c] = pixels.planes[picture + c * plane + at];
          } else {
            for (int c = 0; c < channels_in; ++c) {
              const float level = pixels.packed[picture + at * channels_in + c];
              value[c] = level * network.pixel_factor_[c] + network.pixel_shift_[c];
            }
          }
        }
      }
      layer.product.kernels->convert(values, count, to.at + r * to.stride, 0);
    }
  }

  void operator()(const Convolution& layer) {
    const int in_height = height, in_width = width;
    height = halved(height);
    width = halved(width);
    const int outputs_of_layer = filled(layer.product.outputs), values = convolution_width(layer);
    const size_t in_size = static_cast<size_t>(in_height) * in_width * filled(layer.inputs);
    each_tile([&](int image, int first, int rows, int, int thread) {
      const Rows taps = rows_for(layer.product, values, thread);
      if (layer.on_pixels) {
        gather_pixels(layer, image, in_height, in_width, first, rows, taps);
      } else {
        gather(layer, map + image * in_size, in_height, in_width, first, rows, taps);
      }
      float* out = image_of(other, image, layer.product.outputs) + static_cast<size_t>(first) * outputs_of_layer;
      multiply(layer.product, operand_of(layer.product, taps, values, rows, thread), rows,
               layer.relu ? Then::relu : Then::store, out, outputs_of_layer);
    });
    channels = layer.product.outputs;
    std::swap(map, other);
  }

  void branch_of_tile(const Branch& layer, int image, int first, int rows, int thread) {
    const int stride = filled(channels);
    const float* in = image_of(map, image, channels);
    const Rows filtered = rows_for(layer.expand, channels, thread);
    for (int done = 0; done < rows;) {
      const int y = (first + done) / width, x = (first + done) % width, count = std::min(rows - done, width - x);
      const size_t line = static_cast<size_t>(width) * stride;
      const float* at = in + y * line;
      const float* lines[3] = {y > 0 ? at - line : network.zeros_.get(), at,
                               y + 1 < height ? at + line : network.zeros_.get()};
      kernels.depth_wise(lines, width, x, count, stride, layer.depth_wise.get(),
                         filtered.at + done * filtered.stride, filtered.stride);
      done += count;
    }
    const size_t place_of_tile = static_cast<size_t>(first) * stride;
    expand_and_project(layer.expand, layer.project, operand_of(layer.expand, filtered, channels, rows, thread), rows,
                       thread, image_of(other, image, channels) + place_of_tile, in + place_of_tile);
  }

  void expand_and_project(const Product& expand, const Product& project, Rows operand, int rows, int thread, float* out,
                          const float* residual) const {
    uint32_t* to = network.hidden_[thread].get();
    Rows hidden{to, operand_stride(kernels, expand.outputs)};
    if (kernels.levels) {
      float* activations = reinterpret_cast<float*>(network.rows_[thread].get());
      multiply(expand, operand, rows, Then::gelu, activations, expand.matrix.columns);
      hidden = levels_of(project, activations, expand.matrix.columns, expand.outputs, rows, true, to);
    } else {
      multiply(expand, operand, rows, Then::gelu, to, hidden.stride * kernels.values_per_word);
    }
    multiply(project, hidden, rows, Then::add, out, filled(channels), residual);
  }

  void operator()(const Branch& layer) {
    each_tile([&](int image, int first, int rows, int, int thread) {
      branch_of_tile(layer, image, first, rows, thread);
    });
    std::swap(map, other);
  }

  void operator()(const Encoder& layer) {
    const int stride = filled(channels), sum_size = stride + lanes, tiles = tiles_of(tokens());
    float* sums = network.sums_.get();
    std::fill_n(sums, static_cast<size_t>(images()) * tiles * sum_size, 0.0f);
    each_tile([&](int image, int first, int rows, int tile, int thread) {
      branch_of_tile(layer.local, image, first, rows, thread);
      const float* out = image_of(other, image, channels) + static_cast<size_t>(first) * stride;
      float* key_query = key_query_of(image, first);
      multiply(layer.key_query, operand_of_map(layer.key_query, out, rows, thread), rows, Then::store, key_query,
               2 * stride);
      kernels.pool(key_query, rows, stride, channels, layer.normalize, layer.score.get(), sums + tile * sum_size);
    });
    for (int image = 0; image < images(); ++image) {
      float* global = sums + static_cast<size_t>(image) * tiles * sum_size;
      for (int tile = 1; tile < tiles; ++tile) {
        for (int c = 0; c <= stride; ++c) global[c] += global[tile * sum_size + c];
      }
      float scale = layer.pooled_scale;
      if (layer.score.get()) scale /= std::sqrt(std::max(global[stride], 1e-24f));
      for (int c = 0; c < stride; ++c) global[c] *= scale;
    }
    std::swap(map, other);
    each_tile([&](int image, int first, int rows, int, int thread) {
      float* out = image_of(map, image, channels) + static_cast<size_t>(first) * stride;
      const Rows modulated = rows_for(layer.output, channels + stride, thread);
      kernels.modulate(key_query_of(image, first), rows, stride, channels,
                       sums + static_cast<size_t>(image) * tiles * sum_size, modulated.at, modulated.stride);
      multiply(layer.output, operand_of(layer.output, modulated, 2 * channels, rows, thread), rows, Then::add, out,
               stride, out);
      expand_and_project(layer.expand, layer.project, operand_of_map(layer.expand, out, rows, thread), rows, thread, out,
                         out);
    });
  }

  float* key_query_of(int image, int first) const {
    return network.key_query_.get() + (static_cast<size_t>(image) * tokens() + first) * 2 * filled(channels);
  }

  void operator()(const MapOutput& layer) {
    const int stride = filled(channels);
    float* output = outputs[next_output++] + static_cast<size_t>(place) * channels * tokens();
    network.threads_.run(images() * (stride / lanes), [&](int index, int) {
      const int image = index / (stride / lanes), first = index % (stride / lanes) * lanes;
      const float* in = image_of(map, image, channels);
      for (int c = first; c < std::min(first + lanes, channels); ++c) {
        const float factor = layer.factor.get() ? layer.factor.get()[c] : 1.0f;
        const float shift = layer.shift.get() ? layer.shift.get()[c] : 0.0f;
        float* out = output + (static_cast<size_t>(image) * channels + c) * tokens();
        for (int pixel = 0; pixel < tokens(); ++pixel) out[pixel] = in[pixel * stride + c] * factor + shift;
      }
    });
  }

  void operator()(const Head& layer) {
    const int stride = filled(channels), columns = layer.product.matrix.columns;
    const Rows operand{network.operand_[0].get(), operand_stride(*layer.product.kernels, channels)};
    float* means = network.sums_.get();
    float* logits = network.key_query_.get();
    for (int image = 0; image < images(); ++image) {
      const float* in = image_of(map, image, channels);
      std::fill_n(means, stride, 0.0f);
      for (int pixel = 0; pixel < tokens(); ++pixel) {
        for (int c = 0; c < stride; ++c) means[c] += in[pixel * stride + c];
      }
      for (int c = 0; c < stride; ++c) means[c] /= static_cast<float>(tokens());
      layer.product.kernels->convert(means, stride, operand.at, 0);
      multiply(layer.product, operand, 1, Then::store, logits, columns);
      const int classes = layer.product.outputs;
      std::copy_n(logits, classes, outputs[next_output] + static_cast<size_t>(place + image) * classes);
    }
    ++next_output;
  }

  // Values of an operand's row of a convolution, with what the last tap's filling spills over.
  static int convolution_width(const Convolution& layer) {
    return layer.on_pixels ? 9 * layer.inputs : 8 * layer.inputs + filled(layer.inputs);
  }
};

void Network::reserve(int images, int height, int width) {
  size_t map = 0, key_query = 0, sums = 0, operand = 0, hidden = 0, zeros = lanes, rows = 0;
  const auto widen = [&](size_t& size, size_t needed) { size = std::max(size, needed); };
  const auto make_room = [&](const Product& product, int values) {
    widen(operand, operand_stride(*product.kernels, values));
    if (product.kernels->levels) widen(rows, filled(values));
  };
  int channels = 0;
  const auto branch = [&](const Branch& layer) {
    make_room(layer.expand, channels);
    widen(hidden, operand_stride(kernels_, layer.expand.outputs));
    widen(rows, filled(layer.expand.outputs));
    widen(zeros, static_cast<size_t>(width) * filled(channels));
  };
  for (const Layer& layer : layers_) {
    const size_t most_tiles = 4 * threads_.count() + (static_cast<size_t>(height) * width + tile_rows - 1) / tile_rows;
    if (auto* convolution = std::get_if<Convolution>(&layer)) {
      height = halved(height);
      width = halved(width);
      channels = convolution->product.outputs;
      widen(map, static_cast<size_t>(images) * height * width * filled(channels));
      make_room(convolution->product, Pass::convolution_width(*convolution));
      widen(zeros, filled(convolution->inputs));
    } else if (auto* plain = std::get_if<Branch>(&layer)) {
      branch(*plain);
    } else if (auto* encoder = std::get_if<Encoder>(&layer)) {
      branch(encoder->local);
      make_room(encoder->output, channels + filled(channels));
      widen(hidden, operand_stride(kernels_, encoder->expand.outputs));
      widen(rows, filled(encoder->expand.outputs));
      widen(key_query, static_cast<size_t>(images) * height * width * 2 * filled(channels));
      widen(sums, images * most_tiles * (filled(channels) + lanes));
    } else if (auto* head = std::get_if<Head>(&layer)) {
      make_room(head->product, channels);
      widen(sums, filled(channels));
      widen(key_query, head->product.matrix.columns);
    }
  }
  for (Memory<float>& memory : maps_) memory.grow(map);
  key_query_.grow(key_query);
  sums_.grow(sums);
  zeros_.grow(zeros);
  for (Memory<uint32_t>& memory : operand_) memory.grow(operand * tile_rows);
  for (Memory<uint32_t>& memory : hidden_) memory.grow(hidden * tile_rows);
  if (kernels_.levels) {
    for (Memory<uint32_t>& memory : rows_) memory.grow(rows * tile_rows);
  }
}

void Network::run(const Pixels& pixels, const std::vector<float*>& outputs) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int together = pictures_per_thread * threads_.count();
  reserve(std::min(pixels.images, together), pixels.height, pixels.width);
  const size_t picture = static_cast<size_t>(input_channels_) * pixels.height * pixels.width;
  for (int place = 0; place < pixels.images; place += together) {
    Pixels some = pixels;
    some.images = std::min(together, pixels.images - place);
    if (some.planes) some.planes += picture * place;
    if (some.packed) some.packed += picture * place;
    Pass pass{*this, kernels_, some, outputs, place, pixels.height, pixels.width, maps_[0].get(), maps_[1].get()};
    for (const Layer& layer : layers_) std::visit(pass, layer);
  }
}

}  // namespace swiftformer
