#include "kernels/gelu_table.h"

#include <cmath>
#include <cstring>

namespace swiftformer {

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

// For values from `left` to `left + range`.
void make(float left, float range, GeluTable& table) {
  const double step_before = range / 255.0;
  table.factor_before = static_cast<float>(1.0 / step_before);
  table.zero_before = static_cast<float>(-left / step_before);
  table.step = static_cast<float>((gelu(left + static_cast<double>(range)) - gelu_floor) / 255.0);
  for (int level = 0; level < 256; ++level) {
    const double exact = gelu(left + step_before * level);
    const double found = std::nearbyint((exact - gelu_floor) / table.step);
    table.levels[level] = static_cast<uint8_t>(found < 255.0 ? found : 255.0);
  }
  if (left == gelu_left) {
    table.levels[0] = static_cast<uint8_t>(std::nearbyint((0.5 * gelu(left) - gelu_floor) / table.step));
  }
}

// Numbers of three binary places, eight for each power of two, by their place behind the first.
constexpr int places = 20;  // of 23 binary ones, that are rounded away

float number(float first, int place) {
  const uint32_t bits = bits_of(first) + (static_cast<uint32_t>(place) << places);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Of the first that is not below `value`.
int place_of(float value, float first) {
  if (!(value > first)) return 0;
  return static_cast<int>((bits_of(value) - bits_of(first) + (1u << places) - 1) >> places);
}

// From minus a number to the number: of what is closer to zero than the first, no level of the result would be left.
constexpr float first_end = 1.0f / 512;
constexpr int ends = 84;  // the last is 2.75
// From `gelu_left` on, over ranges up to a thousand.
constexpr float first_range = 3.0f;
constexpr int ranges = 68;

struct Tables {
  GeluTable around_zero[ends], from_left[ranges];
  Tables() {
    for (int i = 0; i < ends; ++i) make(-number(first_end, i), 2 * number(first_end, i), around_zero[i]);
    for (int i = 0; i < ranges; ++i) make(gelu_left, number(first_range, i), from_left[i]);
  }
};
const Tables tables;

}  // namespace

const GeluTable& gelu_table(float least, float most, GeluTable& made) {
  const float end = most > -least ? most : -least;
  if (end < -gelu_left) return tables.around_zero[place_of(end, first_end)];
  const int place = place_of(most - gelu_left, first_range);
  if (place < ranges) return tables.from_left[place];
  make(gelu_left, most - gelu_left, made);
  return made;
}

}  // namespace swiftformer
