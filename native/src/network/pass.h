// One run of some pictures through the layers of a network, by all threads or by one alone: each layer in one pass over
// tiles of pixels, or parts of lines, an encoder in two. Part of run.cpp.

#pragma once

#include <algorithm>
#include <cmath>

#include "network/network.h"

namespace swiftformer {

namespace {

// Pixels of a part of a line see twice as many, and one more. A multiple of a cache line.
constexpr int tap_stride = 2 * most_pixels_of_line + lanes;

int strided(int size, int stride) { return (size + stride - 1) / stride; }
int halved(int size) { return strided(size, 2); }

// Words between rows of an operand of `values`. Not a multiple of 512 bytes: rows of a block would share cache sets.
int operand_stride(const Kernels& kernels, int values) {
  const int step = kernels.depth_step, used = filled(values) / kernels.values_per_word * kernels.parts;
  const int apart = kernels.levels ? std::max(step, 4) : step > 1 ? step : lanes;
  const int words = (used + step - 1) / step * step + (kernels.levels ? apart : 0);
  return words % 128 == 0 ? words + apart : words;
}

// Whether threads share the columns of a block's matrices, not its pixels: where weights do not fit a core's caches,
// and are far more than the activations that threads then have to exchange.
bool columns_are_shared(const Product& expand, const Product& project, size_t pixels) {
  constexpr size_t words_of_cache = 3 << 18, far_more = 8;
  const auto words = [](const Product& product) {
    return static_cast<size_t>(product.matrix.depth) * product.matrix.columns;
  };
  const size_t weights = words(expand) + words(project);
  const size_t activations = pixels * operand_stride(*expand.kernels, expand.outputs);
  return !expand.kernels->levels && weights >= words_of_cache && weights >= far_more * activations;
}

}  // namespace

struct Network::Pass {
  const Network& network;
  Work& work;
  const Kernels& kernels;
  Pixels pixels;
  const std::vector<float*>& outputs;
  int place;  // of the first of these pictures among all
  int alone;  // the only thread that works, or -1
  int height, width;
  float *map = nullptr, *other = nullptr, *kept = nullptr, *scores = nullptr, *key_query = nullptr, *sums = nullptr;
  int channels = 0;  // of `map`
  size_t next_output = 0;

  struct Kept {
    float* map;
    int height, width;
  };
  Kept pyramid[most_pyramid_levels] = {};
  int pyramid_levels = 0, pyramid_channels = 0;

  int images() const { return pixels.images; }
  int tokens() const { return height * width; }
  float* image_of(float* maps, int image, int of_channels) const {
    return maps + static_cast<size_t>(image) * tokens() * filled(of_channels);
  }

  int threads() const { return alone < 0 ? network.thread_count_ : 1; }

  // Calls task(index, thread) for every index below `tasks`.
  template <class Task>
  void each(int tasks, const Task& task) {
    if (alone < 0) return work.threads.run(tasks, [&](int index, int thread) { task(index, thread); });
    for (int index = 0; index < tasks; ++index) task(index, alone);
  }

  // Whole pictures that one tile has: several where a thread has small maps of its own, so that it reads weights once
  // for all of them.
  int images_of_tile() const {
    return alone < 0 ? 1 : std::max(1, std::min(images(), kernels.tile_rows_alone / tokens()));
  }

  // Calls task(images before, count, pixels before) for the parts of a tile that lie in one image.
  template <class Task>
  void each_image_of_tile(int first, int rows, Task&& task) const {
    for (int done = 0, before = 0, count; done < rows; done += count, ++before) {
      count = std::min(rows - done, tokens() * (before + 1) - first - done);
      task(before, count, done);
    }
  }

  // Calls task(image, first pixel, pixels, tile of all, thread) for tiles of about equal size, so many that every
  // thread gets the same number. A tile of several images, which are a tile or less each, has the number of its first.
  template <class Task>
  void each_tile(Task&& task) {
    if (const int together = images_of_tile(); together > 1) {
      const int tiles = (images() + together - 1) / together;
      return each(tiles, [&](int index, int thread) {
        const int image = images() * index / tiles, end = images() * (index + 1) / tiles;
        task(image, 0, (end - image) * tokens(), image, thread);
      });
    }
    int tiles = tiles_of(tokens());
    each(images() * tiles, [&](int index, int thread) {
      const int image = index / tiles, tile = index % tiles;
      const int first = static_cast<int>(static_cast<int64_t>(tokens()) * tile / tiles);
      const int end = static_cast<int>(static_cast<int64_t>(tokens()) * (tile + 1) / tiles);
      task(image, first, end - first, index, thread);
    });
  }

  // Calls task(image, y, first x, pixels, thread) for lines of the map, in as few and equal parts as kernels take.
  template <class Task>
  void each_part_of_line(Task&& task) {
    const int most = std::min(kernels.tile_rows, most_pixels_of_line), parts = (width + most - 1) / most;
    each(images() * height * parts, [&](int index, int thread) {
      const int part = index % parts, line = index / parts;
      const int first = static_cast<int>(static_cast<int64_t>(width) * part / parts);
      const int end = static_cast<int>(static_cast<int64_t>(width) * (part + 1) / parts);
      task(line / height, line % height, first, end - first, thread);
    });
  }

  int tiles_of(int count) const {
    const int rows = alone < 0 ? kernels.tile_rows : kernels.tile_rows_alone;
    int tiles = (count + rows - 1) / rows;
    while (tiles < count && images() * tiles % threads() != 0 && images() * tiles < 4 * threads()) ++tiles;
    return tiles;
  }

  // Calls task(y, x, count, pixels before) for the parts of a tile that lie in one line; those of a next image count
  // on.
  template <class Task>
  void each_line(int first, int rows, Task&& task) const {
    for (int done = 0, count; done < rows; done += count) {
      const int y = (first + done) / width, x = (first + done) % width;
      count = std::min(rows - done, width - x);
      task(y, x, count, done);
    }
  }

  // Rows that are to become the operand of a product: its words, or float32 where the words are levels.
  struct Rows {
    uint32_t* at;
    int stride;
  };

  Rows rows_for(const Product& product, int values, int thread) const {
    if (product.kernels->levels) return {work.rows[thread].get(), filled(values)};
    return {work.operand[thread].get(), operand_stride(*product.kernels, values)};
  }

  Rows operand_of(const Product& product, Rows from, int values, int rows, int thread) const {
    if (!product.kernels->levels) return from;
    return levels_of(product, reinterpret_cast<const float*>(from.at), from.stride, values, rows,
                     work.operand[thread].get());
  }

  Rows levels_of(const Product& product, const float* from, int stride, int values, int rows, uint32_t* to) const {
    const int to_stride = operand_stride(*product.kernels, values);
    product.kernels->quantize(from, stride, rows, filled(values), to, to_stride);
    return {to, to_stride};
  }

  // The operand of a product with pixels of a map.
  Rows operand_of_map(const Product& product, const float* from, int rows, int thread) const {
    uint32_t* to = work.operand[thread].get();
    return operand_of_map(product, from, rows, Rows{to, operand_stride(*product.kernels, channels)});
  }

  Rows operand_of_map(const Product& product, const float* from, int rows, Rows to) const {
    const int stride = filled(channels);
    if (product.kernels->levels) return levels_of(product, from, stride, channels, rows, to.at);
    for (int r = 0; r < rows; ++r) product.kernels->convert(from + r * stride, stride, to.at + r * to.stride, 0);
    return to;
  }

  void multiply(const Product& product, Rows operand, int rows, Then then, void* out, int out_stride,
                const float* residual = nullptr) const {
    product.kernels->product(product.matrix, operand.at, operand.stride, rows, then, out, out_stride,
                             residual ? residual : static_cast<const float*>(out), out_stride);
  }

  // Of convolutions: in pass_convolution.h.
  Rows gather(const Convolution& layer, const float* source, int in_height, int in_width, int first, int rows,
              int thread) const;
  Rows gather_levels(const Convolution& layer, const float* source, int in_height, int in_width, int first, int rows,
                     int thread) const;
  // A pixel of a map of bfloat16, which has one more on each side.
  uint16_t* bf16_pixel(float* maps, int of_channels, int of_height, int of_width, int image, int y, int x) const;
  void gather_pixels(int image, int in_height, int in_width, int y, int x, int count, uint32_t* lines) const;
  void operator()(const FirstConvolution& layer);
  void operator()(const StemConvolution& layer);
  void operator()(const Convolution& layer);

  // The depth-wise convolution of a tile.
  void filter(const Branch& layer, int image, int first, int rows, Rows to) const {
    const int stride = filled(channels);
    const float* in = image_of(map, image, channels);
    each_line(first, rows, [&](int y, int x, int count, int done) {
      const size_t line = static_cast<size_t>(width) * stride;
      const float* at = in + y * line;
      const float* lines[3] = {y % height > 0 ? at - line : work.zeros.get(), at,
                               (y + 1) % height > 0 ? at + line : work.zeros.get()};
      kernels.depth_wise(lines, width, x, count, stride, layer.depth_wise.get(), to.at + done * to.stride, to.stride);
    });
  }

  void branch_of_tile(const Branch& layer, int image, int first, int rows, int thread) {
    const Rows filtered = rows_for(layer.expand, channels, thread);
    filter(layer, image, first, rows, filtered);
    const size_t place_of_tile = static_cast<size_t>(first) * filled(channels);
    expand_and_project(layer.expand, layer.project, operand_of(layer.expand, filtered, channels, rows, thread), rows,
                       thread, image_of(other, image, channels) + place_of_tile,
                       image_of(map, image, channels) + place_of_tile);
  }

  // Blocks whose threads share columns of matrices instead of pixels: in pass_columns.h.
  template <class Task>
  void each_columns(const Product& product, const Task& task);
  bool shares_columns(const Product& expand, const Product& project) const {
    // Of the narrower one every thread gets a part.
    const int vectors = std::min(expand.matrix.columns, project.matrix.columns) / lanes;
    return threads() > 1 && vectors >= std::max(expand.kernels->widest, 2) * threads() &&
           columns_are_shared(expand, project, static_cast<size_t>(images()) * tokens());
  }
  Rows operand_of_all(const Product& product, int image, int first) const;
  void clear_filling(const Product& product, Rows operand, int rows) const;
  void multiply_columns(const Product& product, Rows operand, Then then, void* out, int out_stride,
                        const float* residual);
  void expand_and_project_columns(const Product& expand, const Product& project, float* out, const float* residual);
  void branch_in_columns(const Branch& layer);

  void expand_and_project(const Product& expand, const Product& project, Rows operand, int rows, int thread, float* out,
                          const float* residual) const {
    uint32_t* to = work.hidden[thread].get();
    Rows hidden{to, operand_stride(kernels, expand.outputs)};
    if (kernels.levels) {
      float* activations = reinterpret_cast<float*>(work.rows[thread].get());
      multiply(expand, operand, rows, Then::store, activations, expand.matrix.columns);
      kernels.quantize_gelu(activations, expand.matrix.columns, rows, expand.matrix.columns, to, hidden.stride);
    } else {
      multiply(expand, operand, rows, Then::gelu, to, hidden.stride * kernels.values_per_word);
    }
    multiply(project, hidden, rows, Then::add, out, filled(channels), residual);
  }

  void operator()(const Branch& layer) {
    if (shares_columns(layer.expand, layer.project)) {
      branch_in_columns(layer);
    } else {
      each_tile(
          [&](int image, int first, int rows, int, int thread) { branch_of_tile(layer, image, first, rows, thread); });
    }
    std::swap(map, other);
  }

  void operator()(const Encoder& layer) {
    const int stride = filled(channels), sum_size = stride + lanes, tiles = tiles_of(tokens());
    const bool in_columns = shares_columns(layer.local.expand, layer.local.project);
    const bool mlp_in_columns = shares_columns(layer.expand, layer.project);
    if (in_columns) branch_in_columns(layer.local);
    each_tile([&](int image, int first, int rows, int tile, int thread) {
      if (!in_columns) branch_of_tile(layer.local, image, first, rows, thread);
      const float* out = image_of(other, image, channels) + static_cast<size_t>(first) * stride;
      void* kept = key_query_of(image, first);
      // float32 may stay where it is.
      float* of_tile = kernels.kept_bytes == sizeof(float) ? static_cast<float*>(kept)
                                                           : reinterpret_cast<float*>(work.hidden[thread].get());
      multiply(layer.key_query, operand_of_map(layer.key_query, out, rows, thread), rows, Then::store, of_tile,
               2 * stride);
      each_image_of_tile(first, rows, [&](int before, int count, int done) {
        float* sums_of_tile = sums + (tile + before) * sum_size;
        std::fill_n(sums_of_tile, sum_size, 0.0f);
        kernels.pool(of_tile + done * 2 * stride, count, stride, channels, layer.normalize, layer.score.get(),
                     sums_of_tile, key_query_of(image, first + done));
      });
    });
    each(images(), [&](int image, int) {
      float* global = sums + static_cast<size_t>(image) * tiles * sum_size;
      for (int tile = 1; tile < tiles; ++tile) {
        for (int c = 0; c <= stride; ++c) global[c] += global[tile * sum_size + c];
      }
      float scale = layer.pooled_scale;
      if (layer.score.get()) scale /= std::sqrt(std::max(global[stride], 1e-24f));
      for (int c = 0; c < stride; ++c) global[c] *= scale;
    });
    std::swap(map, other);
    each_tile([&](int image, int first, int rows, int, int thread) {
      float* out = image_of(map, image, channels) + static_cast<size_t>(first) * stride;
      const Rows modulated = rows_for(layer.output, channels + stride, thread);
      each_image_of_tile(first, rows, [&](int before, int count, int done) {
        kernels.modulate(key_query_of(image, first + done), count, stride, channels,
                         sums + static_cast<size_t>(image + before) * tiles * sum_size,
                         modulated.at + done * modulated.stride, modulated.stride);
      });
      multiply(layer.output, operand_of(layer.output, modulated, 2 * channels, rows, thread), rows, Then::add, out,
               stride, out);
      if (mlp_in_columns) {
        operand_of_map(layer.expand, out, rows, operand_of_all(layer.expand, image, first));
      } else {
        expand_and_project(layer.expand, layer.project, operand_of_map(layer.expand, out, rows, thread), rows, thread,
                           out, out);
      }
    });
    if (mlp_in_columns) expand_and_project_columns(layer.expand, layer.project, map, map);
  }

  void* key_query_of(int image, int first) const {
    const size_t values = (static_cast<size_t>(image) * tokens() + first) * 2 * filled(channels);
    return reinterpret_cast<char*>(key_query) + values * kernels.kept_bytes;
  }

  void operator()(const MapOutput& layer) { write(map, channels, tokens(), layer.factor.get(), layer.shift.get()); }

  // The next output: the values of pixels times factors plus shifts, which may be missing, channel by channel.
  void write(const float* from, int values, int pixels_of_image, const float* factors, const float* shifts) {
    const int stride = filled(values);
    float* output = outputs[next_output++] + static_cast<size_t>(place) * values * pixels_of_image;
    each(images() * (stride / lanes), [&](int index, int) {
      const int image = index / (stride / lanes), first = index % (stride / lanes) * lanes;
      const float* in = from + static_cast<size_t>(image) * pixels_of_image * stride;
      for (int c = first; c < std::min(first + lanes, values); ++c) {
        const float factor = factors ? factors[c] : 1.0f, shift = shifts ? shifts[c] : 0.0f;
        float* out = output + (static_cast<size_t>(image) * values + c) * pixels_of_image;
        const float* in_pixel = in + c;
        for (int pixel = 0; pixel < pixels_of_image; ++pixel, in_pixel += stride) {
          out[pixel] = *in_pixel * factor + shift;
        }
      }
    });
  }

  // Of pyramids: in pass_pyramid.h.
  void multiply_map(const Product& product, float* to);
  void enlarge(const float* from, int values, const Kept& level, float* to, bool add);
  void operator()(const Lateral& layer);
  void operator()(const PyramidLevel& layer);
  void operator()(const Enlarging& layer);
  void operator()(const Scores& layer);
  void operator()(const ScoresOutput& layer);

  void operator()(const Head& layer) {
    float* output = outputs[next_output++] + static_cast<size_t>(place) * layer.product.outputs;
    for (int first = 0; first < images(); first += kernels.tile_rows) {
      head_of_images(layer.product, first, std::min(kernels.tile_rows, images() - first),
                     output + static_cast<size_t>(first) * layer.product.outputs);
    }
  }

  void head_of_images(const Product& product, int first, int count, float* output) {
    const int stride = filled(channels), columns = product.matrix.columns;
    const Rows operand{work.operand[std::max(alone, 0)].get(), operand_stride(*product.kernels, channels)};
    each(count, [&](int image, int) {
      float* mean = sums + image * stride;
      const float* in = image_of(map, first + image, channels);
      std::fill_n(mean, stride, 0.0f);
      for (int pixel = 0; pixel < tokens(); ++pixel) {
        for (int c = 0; c < stride; ++c) mean[c] += in[pixel * stride + c];
      }
      for (int c = 0; c < stride; ++c) mean[c] /= static_cast<float>(tokens());
      product.kernels->convert(mean, stride, operand.at + image * operand.stride, 0);
    });
    clear_filling(product, operand, count);
    float* logits = key_query;
    each_columns(product, [&](const Matrix& some, int begin) {
      product.kernels->product(some, operand.at, operand.stride, count, Then::store, logits + begin, columns,
                               logits + begin, columns);
    });
    for (int image = 0; image < count; ++image) {
      std::copy_n(logits + image * columns, product.outputs, output + static_cast<size_t>(image) * product.outputs);
    }
  }

  // Values of an operand's row of a convolution, with what the last tap's filling spills over.
  static int convolution_width(const Convolution& layer) {
    return 8 * joined(layer.inputs, layer.product.kernels->parts) + filled(layer.inputs);
  }
};

}  // namespace swiftformer
