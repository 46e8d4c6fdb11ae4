// Each panel of columns is packed by one thread, a step of the products after the other.

#include "network/packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace swiftformer {

namespace {

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// To the nearest bfloat16, of which `value` keeps what is left.
uint16_t part_of(float& value) {
  const uint16_t half = to_bf16(value);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float part;
  std::memcpy(&part, &bits, sizeof part);
  value -= part;
  return half;
}

// To the nearest of -127 to 127, halves to even, as 1.5 * 2^23 leaves no bits for a fraction.
int level(float value, float step) {
  constexpr float far = 3 << 22;
  return static_cast<int>(value / step + far - far);
}

// The step of the levels of a column's weights.
float step_of(const std::vector<float>& column, const Kernels& kernels) {
  float most = 1e-30f, most_of_half = 0.0f;
  for (float value : column) most = std::max(most, std::fabs(value));
  for (size_t i = 0; kernels.short_sums && i < column.size(); i += i % 4 == 0 ? 2 : 6) {
    float above = 0.0f, below = 0.0f;
    for (size_t input : {i, i + 1, i + 4, i + 5}) {
      const float value = input < column.size() ? column[input] : 0.0f;
      above += std::max(value, 0.0f);
      below -= std::min(value, 0.0f);
    }
    most_of_half = std::max({most_of_half, above, below});
  }
  // Four weights may be two levels more by rounding; 255 times 128 is an int16.
  return std::max(most / 127.0f, most_of_half / 126.0f);
}

class Packing {
 public:
  Packing(Product& product, const float* weights, int width, const std::vector<int>& source)
      : product_(product), kernels_(*product.kernels), weights_(weights), width_(width), source_(source) {}

  // The step of a column, and what its levels' offset comes to. `values` is room for its inputs.
  void quantize_column(int column, Operand operand, std::vector<float>& values) {
    for (int input = 0; input < inputs(); ++input) {
      values[input] = source_[input] == nowhere ? 0.0f : row_of(column)[source_[input]];
    }
    const float step = product_.step[column] = step_of(values, kernels_);
    int sum = 0;
    for (float value : values) sum += level(value, step);
    if (operand == Operand::behind_gelu) {
      product_.bias[column] += gelu_floor * step * sum;
    } else {
      product_.start[column] = -128 * sum;
    }
    if (kernels_.signed_levels) product_.start[column] += 128 * sum;
  }

  // `columns` columns from `first` on, that lie together.
  void put_panel(int first, int columns) {
    const int step = kernels_.depth_step;
    uint32_t* words = product_.words.get() + static_cast<size_t>(first) * product_.matrix.depth;
    for (int k = 0; k < product_.matrix.depth; k += step, words += step * columns) {
      for (int column = 0; column < columns; column += lanes) put(first + column, k, words + column, columns);
    }
  }

 private:
  static constexpr int most_inputs = 4 * lanes;  // of a step: sixteen words, each of up to four values

  int inputs() const { return static_cast<int>(source_.size()); }
  const float* row_of(int column) const { return weights_ + static_cast<size_t>(column) * width_; }

  // Sixteen columns of the step that begins with word `k`; words of a row are `stride` after the one before.
  void put(int first, int k, uint32_t* words, int stride) const {
    const int of_part = kernels_.depth_step / kernels_.parts, per_word = kernels_.values_per_word;
    const int begin = k / kernels_.parts * per_word, count = std::min(of_part * per_word, inputs() - begin);
    const int columns = std::min(lanes, product_.outputs - first);
    float values[most_inputs][lanes] = {};
    for (int column = 0; column < columns; ++column) {
      const float* row = row_of(first + column);
      for (int input = 0; input < count; ++input) {
        const int from = source_[begin + input];
        if (from != nowhere) values[input][column] = row[from];
      }
    }
    for (int row = 0; row < of_part; ++row, words += stride) {
      for (int i = 0; i < per_word; ++i) {
        float* of_row = values[kernels_.parts == 1 ? row * per_word + i : row + i * of_part];
        if (per_word == 1) std::memcpy(words, of_row, sizeof *values);
        if (per_word == 2) put_parts(of_row, i, words, of_part * stride);
        if (per_word == 4) put_levels(of_row, product_.step.get() + first, i, words);
      }
    }
  }

  void put_parts(float* values, int i, uint32_t* words, int apart) const {
    for (int part = 0; part < kernels_.parts; ++part, words += apart) {
      uint32_t halves[lanes];
      for (int column = 0; column < lanes; ++column) halves[column] = part_of(values[column]);
      for (int column = 0; column < lanes; ++column) words[column] |= halves[column] << 16 * i;
    }
  }

  static void put_levels(const float* values, const float* steps, int i, uint32_t* words) {
    for (int column = 0; column < lanes; ++column) {
      const float step = steps[column] > 0.0f ? steps[column] : 1.0f;  // of columns that fill up
      words[column] |= static_cast<uint32_t>(static_cast<uint8_t>(level(values[column], step))) << 8 * i;
    }
  }

  Product& product_;
  const Kernels& kernels_;
  const float* weights_;
  int width_;
  const std::vector<int>& source_;
};

}  // namespace

// Levels cannot say what is infinite or no number.
void expect_finite(const Weight& weight) {
  size_t count = 1;
  for (int side : weight.shape) count *= static_cast<size_t>(side);
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(weight.values[i])) throw std::invalid_argument("expected finite weights in int8, found others");
  }
}

Product packed(const Kernels& kernels, const Weight& weight, const Weight& bias, const std::vector<int>& source,
               Operand operand, Threads& threads) {
  if (kernels.levels) {
    expect_finite(weight);
    expect_finite(bias);
  }
  const int outputs = weight.shape[0], columns = filled(outputs), per_word = kernels.values_per_word;
  const int inputs = static_cast<int>(source.size()), used = (inputs + per_word - 1) / per_word;
  const int depth = (kernels.parts * used + kernels.depth_step - 1) / kernels.depth_step * kernels.depth_step;
  int width = 1;
  for (size_t i = 1; i < weight.shape.size(); ++i) width *= weight.shape[i];
  Product product{&kernels,
                  Memory<uint32_t>(static_cast<size_t>(depth) * columns),
                  Memory<float>(columns),
                  Memory<float>(kernels.levels ? columns : 0),
                  Memory<int32_t>(kernels.levels ? columns : 0),
                  outputs,
                  {}};
  product.matrix = {product.words.get(),
                    product.bias.get(),
                    product.step.get(),
                    product.start.get(),
                    depth,
                    columns,
                    kernels.parts > 1 ? depth : used};
  std::copy_n(bias.values, outputs, product.bias.get());
  std::vector<int> panels;  // where each begins, and where the last one ends
  for (int first = 0; first < columns; first += lanes * panel_of((columns - first) / lanes, kernels.widest)) {
    panels.push_back(first);
  }
  panels.push_back(columns);
  std::vector<std::vector<float>> values(threads.count(), std::vector<float>(kernels.levels ? inputs : 0));
  Packing packing(product, weight.values, width, source);
  threads.run(static_cast<int>(panels.size()) - 1, [&](int panel, int thread) {
    const int first = panels[panel], end = panels[panel + 1];
    for (int column = first; kernels.levels && column < std::min(end, outputs); ++column) {
      packing.quantize_column(column, operand, values[thread]);
    }
    packing.put_panel(first, end - first);
  });
  return product;
}

}  // namespace swiftformer
