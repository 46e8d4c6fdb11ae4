// Weights in the order in which kernels take them.

#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "network/memory.h"
#include "threads/threads.h"

namespace swiftformer {

// A weight as it comes: contiguous float32 in torch's layout.
struct Weight {
  const float* values;
  std::vector<int> shape;
};

// Packed for its kernels.
struct Product {
  const Kernels* kernels;
  Memory<uint32_t> words;
  Memory<float> bias, step;
  Memory<int32_t> start;
  int outputs;  // as they were given; columns are filled up
  Matrix matrix;
};

// What a product's operand is: levels of a map stand for other values than those behind GELU.
enum class Operand { map, behind_gelu };

constexpr int nowhere = -1;

// A matrix (outputs, inputs), of which input i of the operand is column source[i], or zero where that is nowhere. By
// `threads`, which have nothing else to do meanwhile.
Product packed(const Kernels& kernels, const Weight& weight, const Weight& bias, const std::vector<int>& source,
               Operand operand, Threads& threads);

}  // namespace swiftformer
