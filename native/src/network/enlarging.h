// Maps brought to the size of finer ones, as torch's interpolate does it.

#pragma once

#include <algorithm>
#include <cstddef>

namespace swiftformer {

namespace {

// The pixel of a coarse line that a pixel of a finer one takes its value from.
int nearest(int at, int size, int coarse) {
  return std::min(static_cast<int>(at * (static_cast<float>(coarse) / size)), coarse - 1);
}

// Two neighbouring pixels of a coarse line, and what the second counts for; no `align_corners`.
struct Between {
  int first, second;
  float share;
};

Between between(int at, int size, int coarse) {
  const float place = std::max((at + 0.5f) * (static_cast<float>(coarse) / size) - 0.5f, 0.0f);
  const int first = std::min(static_cast<int>(place), coarse - 1);
  return {first, std::min(first + 1, coarse - 1), place - first};
}

// Line `at` of a map that is made `height` by `width` pixels, bilinear; stored or added. A pixel has `channels` values.
void enlarged_line(const float* map, int in_height, int in_width, int channels, int at, int height, int width,
                   float* line, bool add) {
  const Between y = between(at, height, in_height);
  const float* above = map + static_cast<size_t>(y.first) * in_width * channels;
  const float* below = map + static_cast<size_t>(y.second) * in_width * channels;
  for (int i = 0; i < width; ++i, line += channels) {
    const Between x = between(i, width, in_width);
    const int left = x.first * channels, right = x.second * channels;
    const float to_right = x.share, to_left = 1.0f - to_right, down = y.share, up = 1.0f - down;
    for (int c = 0; c < channels; ++c) {
      const float value = up * (to_left * above[left + c] + to_right * above[right + c]) +
                          down * (to_left * below[left + c] + to_right * below[right + c]);
      line[c] = add ? line[c] + value : value;
    }
  }
}

}  // namespace

}  // namespace swiftformer
