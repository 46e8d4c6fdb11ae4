// Feature pyramids and the scores of pixels: more of pass.h.

#pragma once

#include "network/enlarging.h"
#include "network/pass.h"

namespace swiftformer {

// A product of the map, without a change of its size.
inline void Network::Pass::multiply_map(const Product& product, float* to) {
  const int stride = filled(channels), out_stride = filled(product.outputs);
  each_tile([&](int image, int first, int rows, int, int thread) {
    const float* in = image_of(map, image, channels) + static_cast<size_t>(first) * stride;
    float* out = image_of(to, image, product.outputs) + static_cast<size_t>(first) * out_stride;
    multiply(product, operand_of_map(product, in, rows, thread), rows, Then::store, out, out_stride);
  });
}

inline void Network::Pass::operator()(const Lateral& layer) {
  pyramid_channels = layer.product.outputs;
  pyramid[pyramid_levels] = {kept, height, width};
  multiply_map(layer.product, pyramid[pyramid_levels++].map);
  kept += static_cast<size_t>(images()) * tokens() * filled(pyramid_channels);
}

inline void Network::Pass::operator()(const PyramidLevel& layer) {
  const Kept& level = pyramid[layer.index];
  const Kept* coarser = layer.index + 1 < pyramid_levels ? &pyramid[layer.index + 1] : nullptr;
  height = level.height;
  width = level.width;
  channels = pyramid_channels;
  const int stride = filled(channels);
  each(images() * height, [&](int index, int) {
    const int y = index % height;
    const size_t line = static_cast<size_t>(index) * width * stride;
    if (!coarser) {
      std::copy_n(level.map + line, width * stride, map + line);
      return;
    }
    const float* from =
        coarser->map + (static_cast<size_t>(index / height) * coarser->height + nearest(y, height, coarser->height)) *
                           coarser->width * stride;
    for (int x = 0; x < width; ++x) {
      float* at = level.map + line + x * stride;
      const float* more = from + nearest(x, width, coarser->width) * stride;
      for (int c = 0; c < stride; ++c) at[c] += more[c];
      std::copy_n(at, stride, map + line + x * stride);
    }
  });
}

// Values of the map's size to that of a level; stored or added.
inline void Network::Pass::enlarge(const float* from, int values, const Kept& level, float* to, bool add) {
  const int stride = filled(values);
  each(images() * level.height, [&](int index, int) {
    const float* image = from + static_cast<size_t>(index / level.height) * tokens() * stride;
    float* line = to + static_cast<size_t>(index) * level.width * stride;
    enlarged_line(image, height, width, stride, index % level.height, level.height, level.width, line, add);
  });
}

inline void Network::Pass::operator()(const Enlarging& layer) {
  const Kept& level = pyramid[layer.level];
  enlarge(map, channels, level, other, false);
  height = level.height;
  width = level.width;
  std::swap(map, other);
}

// The map stays as it is.
inline void Network::Pass::operator()(const Scores& layer) {
  multiply_map(layer.product, other);
  if (layer.first) {
    scores = kept;
    kept += static_cast<size_t>(images()) * pyramid[0].height * pyramid[0].width * filled(layer.product.outputs);
  }
  enlarge(other, layer.product.outputs, pyramid[0], scores, !layer.first);
}

inline void Network::Pass::operator()(const ScoresOutput& layer) {
  write(scores, layer.classes, pyramid[0].height * pyramid[0].width, nullptr, nullptr);
}

}  // namespace swiftformer
