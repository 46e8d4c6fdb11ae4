// A block of rows goes through both layers before the next one does, so that what lies between stays in a core's cache.

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "network/packing.h"
#include "training/parallel.h"
#include "training/training.h"

namespace swiftformer {

namespace {

constexpr int block = 128;                     // rows
constexpr int words_of_block = block / 2;      // of a column: two rows each
constexpr int apart = words_of_block + lanes;  // lines of a cache in other sets than those of the column before

// A matrix (outputs, inputs).
Product packed_matrix(const Kernels& products, const float* weight, const float* bias, int outputs, int inputs) {
  thread_local Threads alone(1, false);
  std::vector<int> source(inputs);
  std::iota(source.begin(), source.end(), 0);
  return packed(products, {weight, {outputs, inputs}}, {bias, {outputs}}, source, Operand::map, alone);
}

std::vector<float> turned(const float* weight, int rows, int columns) {
  std::vector<float> to(static_cast<size_t>(rows) * columns);
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) to[column * rows + row] = weight[row * columns + column];
  }
  return to;
}

// Rows of an operand, which kernels may fill up as far as the matrix is deep, or their outputs are wide.
class Operands {
 public:
  explicit Operands(int values)
      : stride_((values + 2 * lanes - 1) / (2 * lanes) * lanes + lanes), words_(block * stride_) {}
  int stride() const { return stride_; }
  uint32_t* words() { return words_.get(); }
  Bf16* values() { return reinterpret_cast<Bf16*>(words_.get()); }
  Bf16* row(int row) { return values() + 2 * row * stride_; }

  // Zeros behind the last row, up to `end`.
  void copy(const Bf16* from, int rows, int channels, int end) {
    for (int r = 0; r < rows; ++r) std::memcpy(row(r), from + r * channels, channels * sizeof(Bf16));
    for (int r = rows; r < end; ++r) std::memset(row(r), 0, channels * sizeof(Bf16));
  }

 private:
  int stride_;
  Memory<uint32_t> words_;
};

// The columns of a block, as a matrix that something is multiplied by.
class Columns {
 public:
  Columns(const Kernels& products, int columns)
      : products_(products), words_(words_of_block * columns), bias_(columns) {
    matrix_ = {words_.get(), bias_.get(), nullptr, nullptr, words_of_block, columns, words_of_block};
  }
  void be_deep(int words) { matrix_.depth = matrix_.used = words; }
  const Matrix& matrix() const { return matrix_; }
  uint32_t* words() { return words_.get(); }

  // Calls `of(column, words, apart)` for every sixteen columns.
  template <class Of>
  void each(const Of& of) {
    for (int first = 0, panel; first < matrix_.columns; first += panel) {
      panel = lanes * panel_of((matrix_.columns - first) / lanes, products_.widest);
      for (int c = 0; c < panel; c += lanes) of(first + c, words_.get() + first * matrix_.depth + c, panel);
    }
  }

 private:
  const Kernels& products_;
  Memory<uint32_t> words_;
  Memory<float> bias_;
  Matrix matrix_;
};

void multiply(const Kernels& products, const Product& by, Operands& operand, int rows, Then then, void* out,
              int out_stride) {
  products.product(by.matrix, operand.words(), operand.stride(), rows, then, out, out_stride, static_cast<float*>(out),
                   0);
}

// Calls `of(first, count)` for the blocks of a thread's rows.
template <class Of>
void each_block(int64_t first, int64_t count, const Of& of) {
  for (int64_t done = 0; done < count; done += block) {
    of(first + done, static_cast<int>(std::min<int64_t>(block, count - done)));
  }
}

// Sums of a thread.
struct Sums {
  Memory<float> expand, project;  // (channels, hidden) both, filled up
  std::vector<double> expand_bias, project_bias;

  explicit Sums(const Mlp& layer)
      : expand(static_cast<size_t>(layer.channels) * filled(layer.hidden)),
        project(expand.size()),
        expand_bias(filled(layer.hidden)),
        project_bias(2 * layer.channels) {}  // kernels give sums of squares behind them
};

}  // namespace

void mlp(const Kernels& products, const TrainingKernels& kernels, const Mlp& layer, const Bf16* x, int64_t rows,
         Bf16* y, int threads) {
  const auto [channels, hidden, expand_weight, expand_bias, project_weight, project_bias] = layer;
  const Product expand = packed_matrix(products, expand_weight, expand_bias, hidden, channels);
  const Product project = packed_matrix(products, project_weight, project_bias, channels, hidden);
  split(rows, channels, threads, [&, channels = channels, hidden = hidden](int, int64_t first, int64_t count) {
    Operands inputs(channels), between(hidden);
    Memory<float> outputs(static_cast<size_t>(block) * filled(channels));
    each_block(first, count, [&](int64_t row, int some) {
      inputs.copy(x + row * channels, some, channels, some);
      multiply(products, expand, inputs, some, Then::gelu, between.words(), 2 * between.stride());
      multiply(products, project, between, some, Then::store, outputs.get(), filled(channels));
      kernels.to_bf16(outputs.get(), filled(channels), some, channels, y + row * channels);
    });
    if (products.release) products.release();
  });
}

void mlp_gradient(const Kernels& products, const TrainingKernels& kernels, const Mlp& layer, const Bf16* gradient,
                  const Bf16* x, int64_t rows, Bf16* to, const MlpGradients& of, int threads) {
  const int channels = layer.channels, hidden = layer.hidden, wide = filled(hidden);
  const std::vector<float> no_bias(hidden + channels);
  const Product expand = packed_matrix(products, layer.expand, layer.expand_bias, hidden, channels);
  const Product back_to_hidden =
      packed_matrix(products, turned(layer.project, channels, hidden).data(), no_bias.data(), hidden, channels);
  const Product back =
      packed_matrix(products, turned(layer.expand, hidden, channels).data(), no_bias.data(), channels, hidden);
  std::vector<std::unique_ptr<Sums>> sums(std::max(threads, 1));
  const int parts = split(rows, channels, threads, [&](int part, int64_t first, int64_t count) {
    sums[part] = std::make_unique<Sums>(layer);
    Sums& sum = *sums[part];
    Operands inputs(channels), gradients(channels), slopes(hidden);
    Memory<float> values(static_cast<size_t>(block) * wide), of_values(values.size());
    Memory<float> outputs(static_cast<size_t>(block) * filled(channels)), none(channels);
    Memory<uint32_t> turned_inputs(static_cast<size_t>(channels) * apart), turned_gradients(turned_inputs.size());
    Columns activated(products, wide), columns_of_slopes(products, wide);
    each_block(first, count, [&](int64_t row, int some) {
      const int words = (some + 2 * lanes - 1) / (2 * lanes) * lanes, end = 2 * words;  // of two rows, a multiple
      inputs.copy(x + row * channels, some, channels, end);
      gradients.copy(gradient + row * channels, some, channels, end);
      kernels.moments(gradient + row * channels, some, channels, none.get(), sum.project_bias.data());
      multiply(products, expand, inputs, some, Then::store, values.get(), wide);
      multiply(products, back_to_hidden, gradients, some, Then::store, of_values.get(), wide);
      std::memset(values.get() + some * wide, 0, sizeof(float) * (end - some) * wide);
      std::memset(of_values.get() + some * wide, 0, sizeof(float) * (end - some) * wide);
      activated.be_deep(words);
      columns_of_slopes.be_deep(words);
      activated.each([&](int column, uint32_t* to_activated, int panel) {
        uint32_t* const to_slopes = columns_of_slopes.words() + (to_activated - activated.words());
        float of_columns[lanes];
        kernels.gelu_in_pairs(values.get() + column, of_values.get() + column, wide, end, to_activated, to_slopes,
                              panel, slopes.values() + column, 2 * slopes.stride(), of_columns);
        for (int i = 0; i < lanes; ++i) sum.expand_bias[column + i] += of_columns[i];
      });
      multiply(products, back, slopes, some, Then::store, outputs.get(), filled(channels));
      kernels.to_bf16(outputs.get(), filled(channels), some, channels, to + row * channels);
      kernels.turn_in_pairs(inputs.values(), 2 * inputs.stride(), end, channels, turned_inputs.get(), apart);
      kernels.turn_in_pairs(gradients.values(), 2 * gradients.stride(), end, channels, turned_gradients.get(), apart);
      float *const of_project = sum.project.get(), *const of_expand = sum.expand.get();
      products.product(activated.matrix(), turned_gradients.get(), apart, channels, Then::add, of_project, wide,
                       of_project, wide);
      products.product(columns_of_slopes.matrix(), turned_inputs.get(), apart, channels, Then::add, of_expand, wide,
                       of_expand, wide);
    });
    if (products.release) products.release();
  });
  const auto total = [&](const auto& one) {
    double value = 0;
    for (int i = 0; i < parts; ++i) value += one(*sums[i]);
    return static_cast<float>(value);
  };
  split(channels, static_cast<int64_t>(hidden) * parts, threads, [&](int, int64_t first, int64_t count) {
    for (int64_t c = first; c < first + count; ++c) {
      of.project_bias[c] = total([&](const Sums& sum) { return sum.project_bias[c]; });
      for (int h = 0; h < hidden; ++h) {
        of.expand[h * channels + c] = total([&](const Sums& sum) { return sum.expand.get()[c * wide + h]; });
        of.project[c * hidden + h] = total([&](const Sums& sum) { return sum.project.get()[c * wide + h]; });
      }
    }
  });
  for (int h = 0; h < hidden; ++h) of.expand_bias[h] = total([&](const Sums& sum) { return sum.expand_bias[h]; });
}

}  // namespace swiftformer
