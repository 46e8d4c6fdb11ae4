// What all checks have in common.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "reference.h"

namespace checks {

using reference::Example;
using reference::Model;
using swiftformer::Kernels;
using swiftformer::Network;
using swiftformer::Pixels;
using Outputs = std::vector<std::vector<float>>;

inline bool failed = false;

struct Mode {
  std::string isa, precision;
  const Kernels* kernels;
  std::string name() const { return isa + " " + precision; }
};

// Largest difference allowed, relative to the largest value of an output: about twice what is found.
// Weights have larger steps where sums are short.
inline double allowed(const Mode& mode) {
  if (mode.precision == "fp32") return 1e-5;
  return mode.precision == "bf16" ? 5e-2 : mode.kernels->short_sums ? 12e-2 : 8e-2;
}

inline void report(const std::string& group, double found, double most, const std::string& where) {
  const bool ok = found <= most;
  std::printf("%-34s %s: expected at most %.3g, found %.3g%s\n", group.c_str(), ok ? "ok" : "FAILED", most, found,
              ok || where.empty() ? "" : (" at " + where).c_str());
  std::fflush(stdout);
  failed |= !ok;
}

struct Worst {
  double found = 0;
  std::string where;
  void see(double difference, const std::string& place) {
    if (difference <= found) return;
    found = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
    where = place;
  }
};

// Below the smallest normal number instructions may give zero.
constexpr int smallest = 0x80;

// To the nearest bfloat16, its bits.
inline uint32_t rounded(double exact) {
  const float value = static_cast<float>(exact);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
// The place of a bfloat16 in their order; both zeros are 0.
inline int ordered(uint32_t bits) {
  const int size = static_cast<int>(bits & 0x7fff);
  return bits & 0x8000 ? -size : size;
}

// What tells levels that are stored less 128 from others, in the four of a word.
inline uint32_t sign_of(const Kernels& kernels) { return kernels.signed_levels ? 0x80808080u : 0; }

inline std::unique_ptr<Network> network_of(const Mode& mode, const Model& model, int threads) {
  auto network = std::make_unique<Network>(mode.isa, mode.precision, threads, false);
  model.add_to(*network);
  return network;
}

inline Outputs room_for(const Network& network, const Pixels& pixels) {
  Outputs outputs;
  for (const std::vector<size_t>& shape : network.outputs(pixels)) {
    size_t size = 1;
    for (size_t side : shape) size *= side;
    outputs.emplace_back(size, std::nanf(""));
  }
  return outputs;
}

inline std::vector<float*> places_of(Outputs& outputs) {
  std::vector<float*> places;
  for (std::vector<float>& output : outputs) places.push_back(output.data());
  return places;
}

inline Outputs run(Network& network, const Pixels& pixels) {
  Outputs outputs = room_for(network, pixels);
  network.run(pixels, places_of(outputs));
  return outputs;
}

}  // namespace checks
