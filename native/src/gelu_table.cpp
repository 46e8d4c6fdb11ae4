#include "gelu_table.h"

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

// For values `range` above `gelu_left`.
void make(float range, GeluTable& table) {
  table.step_before = range / 255.0f;
  table.step = static_cast<float>((gelu(gelu_left + static_cast<double>(range)) - gelu_floor) / 255.0);
  for (int level = 0; level < 256; ++level) {
    const double exact = gelu(gelu_left + static_cast<double>(table.step_before) * level);
    const double found = std::nearbyint((exact - gelu_floor) / table.step);
    table.levels[level] = static_cast<uint8_t>(found < 255.0 ? found : 255.0);
  }
  table.levels[0] = static_cast<uint8_t>(std::nearbyint((0.5 * gelu(gelu_left) - gelu_floor) / table.step));
}

// Ranges from `least` to a thousand, eight for each power of two.
constexpr float least = 3.0f;
constexpr int places = 20;  // of 23 binary ones, that are rounded away
constexpr int count = 68;

struct Tables {
  GeluTable all[count];
  Tables() {
    for (int i = 0; i < count; ++i) {
      const uint32_t bits = bits_of(least) + (static_cast<uint32_t>(i) << places);
      float range;
      std::memcpy(&range, &bits, sizeof range);
      make(range, all[i]);
    }
  }
};
const Tables tables;

}  // namespace

const GeluTable& gelu_table(float most, GeluTable& made) {
  const float range = most - gelu_left;
  if (!(range > least)) return tables.all[0];
  const uint32_t place = (bits_of(range) - bits_of(least) + (1u << places) - 1) >> places;
  if (place < count) return tables.all[place];
  make(range, made);
  return made;
}

}  // namespace swiftformer
