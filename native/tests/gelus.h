// GELU of every precision, against that in double precision.

#pragma once

#include <algorithm>
#include <random>

#include "checks.h"

namespace checks {

using swiftformer::filled;
using swiftformer::lanes;

// Rows from several bottoms to several tops: half a level before GELU, whose slope is at most 1.13, half a level
// behind it, and what lies left of the table.
inline void gelu_of_levels(const Mode& mode) {
  constexpr int values = 16 * lanes + 48, stride = values / 4 + 4;
  Worst worst;
  const auto check_row = [&](float bottom, float top) {
    std::vector<float> row(values);
    std::vector<uint32_t> operand(stride);
    for (int i = 0; i < values; ++i) row[i] = bottom + (top - bottom) * i / (values - 1);
    mode.kernels->quantize_gelu(row.data(), values, 1, values, operand.data(), stride);
    float step;
    std::memcpy(&step, &operand[stride - 1], sizeof step);
    const double left = std::min(2.75f, std::max(top, -bottom));
    const double range = 1.125 * std::max(0.004, left < 2.75 ? 2 * left : std::max(0.25f, top) + 2.75);
    const double allowed = 1.13 * range / 510 + (range + 0.2) / 510 + (bottom < -2.75 ? 0.005 : 1e-6);
    for (int i = 0; i < values; ++i) {
      const uint32_t word = operand[i / 4] ^ sign_of(*mode.kernels);
      const double found = step * (word >> 8 * (i % 4) & 0xff) + swiftformer::gelu_floor;
      worst.see(std::fabs(found - reference::gelu(row[i])) / allowed,
                std::to_string(row[i]) + " of " + std::to_string(bottom) + " to " + std::to_string(top));
    }
  };
  for (float top : {-30.0f, -1.0f, 0.0f, 0.25f, 0.3f, 1.0f, 3.0f, 7.0f, 50.0f, 900.0f, 1100.0f, 5e4f}) {
    check_row(-40, top);
  }
  for (float end : {1e-6f, 1e-3f, 0.002f, 0.02f, 0.3f, 1.0f, 2.7f, 2.75f, 3.0f}) {
    check_row(-end, end);
    check_row(-end, 0.1f * end);
    check_row(-0.1f * end, end);
  }
  report("GELU, of what may be lost, " + mode.name(), worst.found, 1, worst.where);
  int wrong = 0;
  for (float odd : {HUGE_VALF, 1e38f, -HUGE_VALF}) {
    std::vector<float> row(values, 0.5f);
    std::vector<uint32_t> operand(stride);
    row[3] = odd;
    mode.kernels->quantize_gelu(row.data(), values, 1, values, operand.data(), stride);
    float step;
    std::memcpy(&step, &operand[stride - 1], sizeof step);
    wrong += odd > 0 ? !(step > 1e35f) : !(step > 0 && step < 1);
  }
  report("GELU of infinite and huge values " + mode.name(), wrong, 0, "wrong steps");
}

// Of bfloat16, units in the last place between the result and the rounded exact one; else the difference.
inline void gelu(const Mode& mode, bool quick) {
  if (mode.kernels->levels) return gelu_of_levels(mode);
  const int steps = quick ? 20000 : 400000;
  std::vector<float> values;
  std::mt19937 random(7);
  for (int i = 0; i <= steps; ++i) values.push_back(-14.0f + 28.0f * i / steps);
  for (int i = 0; i < steps / 2; ++i) values.push_back((random() / 4294967296.0f - 0.5f) * 28.0f);
  values.resize(filled(static_cast<int>(values.size())));
  const int count = static_cast<int>(values.size());
  std::vector<uint32_t> row(values.size());
  mode.kernels->gelu(values.data(), count, row.data());
  Worst worst;
  for (int i = 0; i < count; ++i) {
    const double exact = reference::gelu(values[i]);
    if (mode.precision == "bf16") {
      const int place = ordered(row[i / 2] >> 16 * (i % 2) & 0xffff), expected = ordered(rounded(exact));
      const bool tiny = std::abs(place) <= smallest && std::abs(expected) <= smallest;
      worst.see(tiny ? 0 : std::abs(place - expected), std::to_string(values[i]));
    } else {
      float found;
      std::memcpy(&found, &row[i], sizeof found);
      worst.see(std::fabs(found - exact), std::to_string(values[i]));
    }
  }
  report("GELU " + mode.name(), worst.found, mode.precision == "fp32" ? 1e-6 : 1, worst.where);
  std::vector<float> odd(lanes, 0x1p100f), found(lanes);
  odd[1] = -0x1p100f, odd[2] = HUGE_VALF, odd[3] = -HUGE_VALF, odd[4] = NAN;
  std::vector<uint32_t> words(lanes);
  mode.kernels->gelu(odd.data(), lanes, words.data());
  for (int i = 0; i < lanes; ++i) {
    if (mode.precision == "bf16") {
      const uint32_t bits = words[i / 2] >> 16 * (i % 2) << 16;
      std::memcpy(&found[i], &bits, sizeof bits);
    } else {
      std::memcpy(&found[i], &words[i], sizeof words[i]);
    }
  }
  const bool right = found[0] == odd[0] && std::fabs(found[1]) < 1e-6 && found[2] == odd[2] &&
                     std::fabs(found[3]) < 1e-6 && std::isnan(found[4]);
  report("GELU of infinite and huge values " + mode.name(), right ? 0 : 1, 0, "");
}

}  // namespace checks
