// Who may change what of a network: part of network.cpp and run.cpp.

#pragma once

#include <stdexcept>

#include "network/network.h"

namespace swiftformer {

// Calls take turns, each with its share of the processors.
struct Network::Turn {
  explicit Turn(Network& network) : work(network.work()), lock(work.mutex), share(work.threads) {}

  Work& work;
  const std::lock_guard<std::mutex> lock;
  const Threads::Share share;
};

// A turn in which a layer is added.
struct Network::Adding : Turn {
  explicit Adding(Network& network) : Turn(network), network(network) {
    if (network.frozen()) throw std::invalid_argument("expected all layers before the first call, found one behind it");
    network.adding_ = true;
  }
  ~Adding() { network.adding_ = false; }

  Network& network;
};

}  // namespace swiftformer
