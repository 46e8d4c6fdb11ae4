// How a network is run: memory made ready, and pictures taken through the layers, a few at a time.

#include <algorithm>
#include <chrono>
#include <variant>

#include "pass.h"

namespace swiftformer {

std::vector<std::vector<size_t>> Network::outputs(const Pixels& pixels) const {
  std::vector<std::vector<size_t>> shapes;
  size_t height = pixels.height, width = pixels.width;
  for (const Layer& layer : layers_) {
    if (std::holds_alternative<FirstConvolution>(layer) || std::holds_alternative<Convolution>(layer)) {
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
    const auto halve = [&](const Product& product) {
      height = halved(height);
      width = halved(width);
      channels = product.outputs;
      widen(map, static_cast<size_t>(images) * height * width * filled(channels));
    };
    if (auto* first = std::get_if<FirstConvolution>(&layer)) {
      halve(first->product);
      widen(operand, (3 * first->inputs * tap_stride + tile_rows - 1) / tile_rows);
    } else if (auto* convolution = std::get_if<Convolution>(&layer)) {
      halve(convolution->product);
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
      widen(sums, tile_rows * filled(channels));
      widen(key_query, tile_rows * head->product.matrix.columns);
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
  layer_seconds_.assign(layers_.size(), 0.0);
  const int together = pictures_per_thread * threads_.count();
  reserve(std::min(pixels.images, together), pixels.height, pixels.width);
  const size_t picture = static_cast<size_t>(input_channels_) * pixels.height * pixels.width;
  for (int place = 0; place < pixels.images; place += together) {
    Pixels some = pixels;
    some.images = std::min(together, pixels.images - place);
    if (some.planes) some.planes += picture * place;
    if (some.packed) some.packed += picture * place;
    Pass pass{*this, kernels_, some, outputs, place, pixels.height, pixels.width, maps_[0].get(), maps_[1].get()};
    for (size_t i = 0; i < layers_.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      std::visit(pass, layers_[i]);
      layer_seconds_[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  }
}

std::vector<double> Network::layer_seconds() {
  std::lock_guard<std::mutex> lock(mutex_);
  return layer_seconds_;
}

double product_limit(const Kernels& kernels) {
  constexpr int rows = 48, depth = 64, repeats = 100;
  const int columns = kernels.widest * lanes;
  Memory<uint32_t> words(depth * columns), operand(rows * (depth + 4));
  Memory<float> bias(columns), step(columns), out(rows * columns);
  Memory<int32_t> start(columns);
  const Matrix matrix{words.get(), bias.get(), step.get(), start.get(), depth, columns, depth};
  double best = 1e9;
  for (int attempt = 0; attempt < 50; ++attempt) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) {
      kernels.product(matrix, operand.get(), depth + 4, rows, Then::store, out.get(), columns, out.get(), columns);
    }
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return static_cast<double>(rows) * depth * kernels.values_per_word * columns * repeats / best;
}

}  // namespace swiftformer
