// Convolutions of 3x3 taps: more of pass.h.

#pragma once

#include <algorithm>
#include <cstring>

#include "network/pass.h"

namespace swiftformer {

// Copies `bytes`, in the end over what was copied already.
inline void copy_some(uint8_t* to, const uint8_t* from, int bytes) {
  constexpr int chunk = 16;
  if (bytes < chunk) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (int at = 0; at < bytes - chunk; at += chunk) std::memcpy(to + at, from + at, chunk);
  std::memcpy(to + bytes - chunk, from + bytes - chunk, chunk);
}

// The operand of a convolution: the pixels around each of its output pixels, one behind the other, from `source` on,
// where the first of the tile's images begins.
inline Network::Pass::Rows Network::Pass::gather(const Convolution& layer, const float* source, int in_height,
                                                 int in_width, int first, int rows, int thread) const {
  const Kernels& of_layer = *layer.product.kernels;
  const int step = filled(layer.inputs), apart = joined(layer.inputs, of_layer.parts);
  const Rows to{work.operand[thread].get(), operand_stride(of_layer, convolution_width(layer))};
  uint32_t* row_of_taps = to.at;
  for (int r = 0; r < rows; ++r, row_of_taps += to.stride) {
    const int line = (first + r) / width, y = layer.stride * (line % height) - 1;
    const int x = layer.stride * ((first + r) % width) - 1;
    const float* in = source + static_cast<size_t>(line / height) * in_height * in_width * step;
    for (int tap = 0; tap < 9; ++tap) {
      const int row = y + tap / 3, column = x + tap % 3;
      const bool inside = row >= 0 && row < in_height && column >= 0 && column < in_width;
      const float* from = inside ? in + (static_cast<size_t>(row) * in_width + column) * step : work.zeros.get();
      of_layer.convert(from, step, row_of_taps, tap * apart);
    }
  }
  return to;
}

// Pixels of an output line whose operands share a step. Where blocks begin does not depend on tiles.
constexpr int block_of_pixels = 16;

// The same of levels, of which each line is quantised once for a block of output pixels.
inline Network::Pass::Rows Network::Pass::gather_levels(const Convolution& layer, const float* source, int in_height,
                                                        int in_width, int first, int rows, int thread) const {
  const Kernels& of_layer = *layer.product.kernels;
  const int inputs = layer.inputs, step = filled(inputs), stride = layer.stride;
  const Rows to{work.operand[thread].get(), operand_stride(of_layer, convolution_width(layer))};
  // Calls task(first pixel within the map, pixels left of that one, pixels within, pixels) for each of the three lines
  // around `count` output pixels.
  const auto each_input_line = [&](int y, int x, int count, const auto& task) {
    const int left = stride * x - 1, of_line = stride * (count - 1) + 3;
    const int begin = std::max(left, 0), end = std::min(left + of_line, in_width);
    const float* in = source + static_cast<size_t>(y / height) * in_height * in_width * step;
    for (int tap = -1; tap < 2; ++tap) {
      const int row = stride * (y % height) + tap;
      const bool inside = row >= 0 && row < in_height;
      const float* from = in + (static_cast<size_t>(inside ? row : 0) * in_width + begin) * step;
      task(from, begin - left, inside ? end - begin : 0, of_line);
    }
  };
  uint8_t* levels = reinterpret_cast<uint8_t*>(work.rows[thread].get());
  const auto gather_block = [&](int y, int x, int count, uint32_t* row) {
    const int block = x / block_of_pixels * block_of_pixels;
    float most = 0.0f;
    each_input_line(y, block, std::min(block_of_pixels, width - block), [&](const float* from, int, int within, int) {
      most = std::max(most, of_layer.largest(from, within * step));
    });
    const float level_step = std::max(most / 127.0f, 1e-30f);
    uint8_t* pixel = levels;
    each_input_line(y, x, count, [&](const float* from, int before, int within, int of_line) {
      for (int i = 0; i < of_line; ++i, pixel += inputs) {
        const bool inside = i >= before && i < before + within;
        of_layer.quantize_pixel(inside ? from + static_cast<size_t>(i - before) * step : work.zeros.get(), step,
                                level_step, pixel);
      }
    });
    const int of_line = (stride * (count - 1) + 3) * inputs;
    for (int i = 0; i < count; ++i, row += to.stride) {
      for (int line = 0; line < 3; ++line) {
        copy_some(reinterpret_cast<uint8_t*>(row) + 3 * inputs * line, levels + line * of_line + i * stride * inputs,
                  3 * inputs);
      }
      std::memcpy(row + to.stride - 1, &level_step, sizeof level_step);
    }
  };
  each_line(first, rows, [&](int y, int x, int count, int done) {
    for (int end = x + count, some; x < end; x += some, done += some) {
      some = std::min(end, (x / block_of_pixels + 1) * block_of_pixels) - x;
      gather_block(y, x, some, to.at + done * to.stride);
    }
  });
  return to;
}

// The pixels around `count` neighbouring pixels of a row of the first convolution's output: three lines for each
// channel, `tap_stride` words apart.
inline void Network::Pass::gather_pixels(int image, int in_height, int in_width, int y, int x, int count,
                                         uint32_t* lines) const {
  const Kernels& of_layer = network.outer_;
  const int channels_in = network.input_channels_, taps = 2 * count + 1;
  const size_t plane = static_cast<size_t>(in_height) * in_width, picture = plane * channels_in * image;
  const int before = x == 0 ? 1 : 0, inside = std::min(taps, in_width - (2 * x - 1)) - before;
  for (int c = 0; c < channels_in; ++c) {
    const float factor = pixels.planes ? 1.0f : network.pixel_factor_[c];
    const float shift = pixels.planes ? 0.0f : network.pixel_shift_[c];
    for (int line = 2 * y - 1; line <= 2 * y + 1; ++line, lines += tap_stride) {
      float* to = reinterpret_cast<float*>(lines);
      const size_t first = static_cast<size_t>(line) * in_width + 2 * x - 1 + before;
      to[0] = to[taps - 1] = to[taps] = 0.0f;  // the last one shares a word with the one before
      if (line < 0 || line >= in_height) {
        std::fill_n(to, taps, 0.0f);
      } else if (pixels.planes) {
        std::copy_n(pixels.planes + picture + c * plane + first, inside, to + before);
      } else {
        const uint8_t* from = pixels.packed + picture + first * channels_in + c;
        for (int i = 0; i < inside; ++i) to[before + i] = from[i * channels_in] * factor + shift;
      }
      if (of_layer.values_per_word > 1) of_layer.convert(to, filled(taps + 1), lines, 0);  // in place, from the front
    }
  }
}

inline uint16_t* Network::Pass::bf16_pixel(float* maps, int of_channels, int of_height, int of_width, int image, int y,
                                           int x) const {
  const size_t line = static_cast<size_t>(image) * (of_height + 2) + y + 1;
  return reinterpret_cast<uint16_t*>(maps) + (line * (of_width + 2) + x + 1) * filled(of_channels);
}

inline void Network::Pass::operator()(const FirstConvolution& layer) {
  const int in_height = height, in_width = width, outputs_of_layer = layer.product.outputs;
  const int stride = filled(outputs_of_layer);
  height = halved(height);
  width = halved(width);
  const auto convolve = [&](int image, int y, int x, int count, int thread, float* out) {
    uint32_t* lines = work.operand[thread].get();
    gather_pixels(image, in_height, in_width, y, x, count, lines);
    network.outer_.first_convolution(layer.product.matrix, lines, tap_stride, count, out, stride);
  };
  if (layer.to_bf16) {
    each_part_of_line([&](int image, int y, int x, int count, int thread) {
      float* part = reinterpret_cast<float*>(work.hidden[thread].get());
      convolve(image, y, x, count, thread, part);
      const auto pixel = [&](int at_y, int at_x) {
        return bf16_pixel(other, outputs_of_layer, height, width, image, at_y, at_x);
      };
      network.outer_.convert(part, count * stride, reinterpret_cast<uint32_t*>(pixel(y, x)), 0);
      if (x > 0) return;
      const auto clear = [&](int at_y, int at_x, int how_many) {
        std::fill_n(pixel(at_y, at_x), static_cast<size_t>(how_many) * stride, uint16_t{0});
      };
      clear(y, -1, 1);
      clear(y, width, 1);
      if (y == 0) clear(-1, -1, width + 2);
      if (y == height - 1) clear(height, -1, width + 2);
    });
  } else {
    each_part_of_line([&](int image, int y, int x, int count, int thread) {
      float* out = image_of(other, image, outputs_of_layer) + (static_cast<size_t>(y) * width + x) * stride;
      convolve(image, y, x, count, thread, out);
    });
  }
  channels = outputs_of_layer;
  std::swap(map, other);
}

inline void Network::Pass::operator()(const StemConvolution& layer) {
  const int in_height = height, in_width = width, values = filled(layer.inputs);
  const int outputs_of_layer = layer.product.outputs, stride = filled(outputs_of_layer);
  height = halved(height);
  width = halved(width);
  each_part_of_line([&](int image, int y, int x, int count, int) {
    const uint16_t* taps = bf16_pixel(map, layer.inputs, in_height, in_width, image, 2 * y - 1, 2 * x - 1);
    float* out = image_of(other, image, outputs_of_layer) + (static_cast<size_t>(y) * width + x) * stride;
    layer.product.kernels->convolution_of_bf16(layer.product.matrix, taps, (in_width + 2) * values, values, count, out,
                                               stride);
  });
  channels = outputs_of_layer;
  std::swap(map, other);
}

inline void Network::Pass::operator()(const Convolution& layer) {
  const int in_height = height, in_width = width;
  height = strided(height, layer.stride);
  width = strided(width, layer.stride);
  const int outputs_of_layer = filled(layer.product.outputs);
  const size_t in_size = static_cast<size_t>(in_height) * in_width * filled(layer.inputs);
  each_tile([&](int image, int first, int rows, int, int thread) {
    const float* in = map + image * in_size;
    const Rows taps = layer.product.kernels->levels ? gather_levels(layer, in, in_height, in_width, first, rows, thread)
                                                    : gather(layer, in, in_height, in_width, first, rows, thread);
    float* out = image_of(other, image, layer.product.outputs) + static_cast<size_t>(first) * outputs_of_layer;
    multiply(layer.product, taps, rows, layer.relu ? Then::relu : Then::store, out, outputs_of_layer);
  });
  channels = layer.product.outputs;
  std::swap(map, other);
}

}  // namespace swiftformer
