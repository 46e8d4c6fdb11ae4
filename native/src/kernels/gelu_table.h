// GELU from uint8 to uint8.

#pragma once

#include <cstdint>

namespace swiftformer {

constexpr float gelu_floor = -0.17f;  // below all that GELU gives
// What lies below gives what this gives, half as much on average: an error of 0.004, less than a level of most rows.
constexpr float gelu_left = -2.75f;

// Level u = factor_before * x + zero_before to level v of GELU(x) = gelu_floor + step * v.
struct GeluTable {
  float factor_before, zero_before, step;
  uint8_t levels[256];
};

// The table for values from `least` to `most`: as far from zero on both sides, or from `gelu_left` on. Tables end at
// numbers of three binary places, so that a few serve all rows; for what is larger than almost any network's values,
// one is written to `made`.
const GeluTable& gelu_table(float least, float most, GeluTable& made);

}  // namespace swiftformer
