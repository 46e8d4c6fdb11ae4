// The kernels of kernels.h, written on top of the sixteen-lane `Vec` of an instruction set. Included once in a file for
// each set, which is compiled with the flags of that set: hence no inline function with a name that other files see,
// and nothing of the standard library that would leave code of this set in functions that all share.
//
// Such a file includes the `Vec` of its set and defines before this one:
//   WIDEST_PANEL                  most vectors of columns in a panel of a matrix
//   ROWS_OF_A_BLOCK(vectors)      rows that are multiplied by so many vectors at once, as its registers allow
//   SWIFTFORMER_BF16, _INT8       that it has kernels of these precisions
// The header of a `Vec` defines VEC_AVX512, VEC_AVX2 or VEC_NEON: the compiler's own macros may tell of more than this
// file is written for, as a person may build for a newer processor. A `Vec` may define:
//   LOOKS_UP_32                   it looks up one of 32 floats for each lane
//   LARGEST_OF_EACH               it has the largest value of each of sixteen rows at once

#pragma once

#include <cstring>

#include "kernels/gelu_impl.h"
#include "kernels/kernels.h"

namespace {

using swiftformer::filled;
using swiftformer::Kernels;
using swiftformer::lanes;
using swiftformer::Matrix;
using swiftformer::Then;

// A precision says of what type the sums of products are, how they start, and what becomes of them in the end.
struct Floats {
  using Sum = Vec;
  using Kept = float;
  static constexpr bool levels = false, signed_levels = false;
  static constexpr int words_at_once = 1, parts = 1;
  static constexpr decltype(Kernels::quantize) quantize = nullptr, quantize_gelu = nullptr;
  static constexpr decltype(Kernels::largest) largest = nullptr;
  static constexpr decltype(Kernels::quantize_pixel) quantize_pixel = nullptr;
  static Sum start(const Matrix& matrix, int column) { return load(matrix.bias + column); }
  static Vec finish(Sum sum, const uint32_t*, int, const Matrix&, int) { return sum; }
};

struct Fp32 : Floats {
  using Input = Vec;
  static constexpr int values_per_word = 1;
  static Vec weights(const uint32_t* words) { return load(reinterpret_cast<const float*>(words)); }
  static Input input(const uint32_t* word) {
    float value;
    std::memcpy(&value, word, sizeof value);
    return all(value);
  }
  static Vec dot(Input input, Vec weights, Vec sum) { return multiply_add(input, weights, sum); }
  static void put(void* row, int at, Vec v) { store(static_cast<float*>(row) + at, v); }
  static Vec activated(Vec x) { return gelu(x); }
};

#if defined(SWIFTFORMER_BF16)
struct Bf16 : Floats {
  using Kept = uint16_t;
  static constexpr int values_per_word = 2;
#if defined(VEC_AVX512)
  using Input = __m512bh;
  static __m512bh weights(const uint32_t* words) { return (__m512bh)_mm512_loadu_si512(words); }
  static Input input(const uint32_t* word) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(*word)); }
  static Vec dot(Input input, __m512bh weights, Vec sum) { return {_mm512_dpbf16_ps(sum.all, input, weights)}; }
#else
  using Input = uint32_t;
  static const uint32_t* weights(const uint32_t* words) { return words; }
  static Input input(const uint32_t* word) { return *word; }
  static Vec dot(Input input, const uint32_t* weights, Vec sum) { return dot_bf16(input, weights, sum); }
#endif
  static void put(void* row, int at, Vec v) { store_bf16(static_cast<uint16_t*>(row) + at, v); }
  static Vec activated(Vec x) { return rough_gelu(x); }
};
#endif

}  // namespace

#if defined(SWIFTFORMER_INT8)
#include "kernels/precision_int8.h"
#endif

namespace {

// Rows of a block by vectors of its panel: as many sums as there are registers for, besides weights and an input.
template <int vectors>
constexpr int block_rows = ROWS_OF_A_BLOCK(vectors);

struct Block {
  const Matrix& matrix;
  const uint32_t *words, *operand;
  const float* residual;
  void* out;
  int operand_stride, out_stride, residual_stride, column;
};

template <class Op, int rows, int vectors>
void product_of_block(const Block& block, Then then) {
  typename Op::Sum sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[r][v] = Op::start(block.matrix, block.column + v * lanes);
  const uint32_t* words = block.words;
  const uint32_t* operand = block.operand;
  const int depth = block.matrix.depth;
  constexpr int step = Op::words_at_once;
#if defined(PREFETCH_PANELS)
  const int panel = depth * vectors * lanes;
#endif
  for (int k = 0; k < depth; k += step, operand += step, words += step * vectors * lanes) {
#if defined(PREFETCH_PANELS)
#pragma GCC unroll 4
    for (int line = 0; line < step * vectors; ++line) __builtin_prefetch(words + panel + line * lanes, 0, 2);
#endif
    decltype(Op::weights(words)) weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weights[v] = Op::weights(words + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const typename Op::Input input = Op::input(operand + r * block.operand_stride);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] = Op::dot(input, weights[v], sums[r][v]);
    }
  }
  const auto finished = [&](int r, int v) {
    return Op::finish(sums[r][v], block.operand + r * block.operand_stride, block.operand_stride, block.matrix,
                      block.column + v * lanes);
  };
  if constexpr (!Op::levels) {
    if (then == Then::gelu) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        char* row = static_cast<char*>(block.out) + sizeof(uint32_t) / Op::values_per_word * r * block.out_stride;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) Op::put(row, block.column + v * lanes, Op::activated(finished(r, v)));
      }
      return;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    float* row = static_cast<float*>(block.out) + r * block.out_stride + block.column;
    const float* residual = block.residual + r * block.residual_stride + block.column;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      Vec value = finished(r, v);
      if (then == Then::relu) value = max(all(0.0f), value);  // in this order NaN stays NaN
      if (then == Then::add) value = value + load(residual + v * lanes);
      store(row + v * lanes, value);
    }
  }
}

template <class Op, int vectors, int rows = block_rows<vectors>>
void product_of_rows(int count, const Block& block, Then then) {
  if constexpr (rows > 0) {
    if (count == rows) return product_of_block<Op, rows, vectors>(block, then);
    return product_of_rows<Op, vectors, rows - 1>(count, block, then);
  }
}

template <class Op, int vectors>
void product_of_panel(Block block, int rows, Then then) {
  const int blocks = (rows + block_rows<vectors> - 1) / block_rows<vectors>;
  const int out_bytes = then == Then::gelu ? sizeof(uint32_t) / Op::values_per_word : sizeof(float);
  for (int i = 0; i < blocks; ++i) {
    const int count = (rows + blocks - 1 - i) / blocks;  // as equal as they can be
    product_of_rows<Op, vectors>(count, block, then);
    block.operand += count * block.operand_stride;
    block.out = static_cast<char*>(block.out) + out_bytes * count * block.out_stride;
    if (then == Then::add) block.residual += count * block.residual_stride;
  }
}

template <class Op>
void product(const Matrix& matrix, uint32_t* operand, int operand_stride, int rows, Then then, void* out,
             int out_stride, const float* residual, int residual_stride) {
  Block block{matrix, matrix.words, operand, residual, out, operand_stride, out_stride, residual_stride, 0};
  int left = matrix.columns / lanes;
  while (left > 0) {
    const int vectors = swiftformer::panel_of(left, WIDEST_PANEL);
    if (vectors == 1) product_of_panel<Op, 1>(block, rows, then);
#if WIDEST_PANEL > 1
    if (vectors == 2) product_of_panel<Op, 2>(block, rows, then);
    if (vectors == 3) product_of_panel<Op, 3>(block, rows, then);
#endif
    block.words += matrix.depth * vectors * lanes;
    block.column += vectors * lanes;
    left -= vectors;
  }
}

// Of a pixel's taps in a line, 0, 1 and 2, the words are (0), (1), (2) in float32 and (0, 1), (2, next pixel's) in
// bfloat16. Two taps lie between pixels.
template <class Op>
constexpr int words_of_taps = Op::values_per_word == 1 ? 3 : 2;
template <class Op>
constexpr int words_between_pixels = 2 / Op::values_per_word;

template <class Op, int vectors, int pixels = block_rows<vectors>>
void first_convolution_of_pixels(const Matrix& matrix, const uint32_t* words, const uint32_t* lines, int line_stride,
                                 int count, int column, float* out, int out_stride) {
  if constexpr (pixels > 1) {
    if (count < pixels) {
      return first_convolution_of_pixels<Op, vectors, pixels - 1>(matrix, words, lines, line_stride, count, column, out,
                                                                  out_stride);
    }
  }
  Vec sums[pixels][vectors];
#pragma GCC unroll 16
  for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[p][v] = Op::start(matrix, column + v * lanes);
  for (int k = 0; k < matrix.used; k += words_of_taps<Op>, lines += line_stride) {
#pragma GCC unroll 3
    for (int word = 0; word < words_of_taps<Op>; ++word, words += vectors * lanes) {
      decltype(Op::weights(words)) weights[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) weights[v] = Op::weights(words + v * lanes);
#pragma GCC unroll 16
      for (int p = 0; p < pixels; ++p) {
        const typename Op::Input input = Op::input(lines + words_between_pixels<Op> * p + word);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[p][v] = Op::dot(input, weights[v], sums[p][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      store(out + p * out_stride + column + v * lanes, max(all(0.0f), sums[p][v]));  // in this order NaN stays NaN
    }
}

template <class Op, int vectors>
void first_convolution_of_panel(const Matrix& matrix, const uint32_t* words, const uint32_t* lines, int line_stride,
                                int count, int column, float* out, int out_stride) {
  const int blocks = (count + block_rows<vectors> - 1) / block_rows<vectors>;
  for (int i = 0, done = 0; i < blocks; ++i) {
    const int some = (count - done + blocks - 1 - i) / (blocks - i);
    first_convolution_of_pixels<Op, vectors>(matrix, words, lines + words_between_pixels<Op> * done, line_stride, some,
                                             column, out + done * out_stride, out_stride);
    done += some;
  }
}

template <class Op, int widest>
void first_convolution(const Matrix& matrix, const uint32_t* lines, int line_stride, int count, float* out,
                       int out_stride) {
  const uint32_t* words = matrix.words;
  for (int column = 0; column < matrix.columns;) {
    const int vectors = swiftformer::panel_of((matrix.columns - column) / lanes, widest);
    auto of_panel = first_convolution_of_panel<Op, 1>;
    if constexpr (widest > 1) of_panel = vectors == 2 ? first_convolution_of_panel<Op, 2> : of_panel;
    if constexpr (widest > 2) of_panel = vectors == 3 ? first_convolution_of_panel<Op, 3> : of_panel;
    of_panel(matrix, words, lines, line_stride, count, column, out, out_stride);
    words += matrix.depth * vectors * lanes;
    column += vectors * lanes;
  }
}

// Puts value(c) for each c below `count`, a multiple of `lanes`, where pairs are put at once if operands have parts.
template <class Op, class Value>
void put_each(uint32_t* row, int at, int count, const Value& value) {
  int c = 0;
  if constexpr (Op::parts > 1) {
    if (at % (2 * lanes) > 0 && count > 0) {
      Op::put(row, at, value(0));
      c = lanes;
    }
    for (; c + lanes < count; c += 2 * lanes) Op::put(row, at + c, value(c), value(c + lanes));
  }
  for (; c < count; c += lanes) Op::put(row, at + c, value(c));
}

template <class Op>
void convert(const float* values, int count, uint32_t* row, int at) {
  put_each<Op>(row, at, count, [&](int c) { return load(values + c); });
}

template <class Op>
void depth_wise(const float* const lines[3], int width, int x, int count, int channels, const float* weights,
                uint32_t* operand, int operand_stride) {
  for (int c = 0; c < channels; c += lanes) {
    Vec weight[9];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) weight[tap] = load(weights + tap * channels + c);
    const Vec bias = load(weights + 9 * channels + c);
    // Three pixels below each other are loaded once, for the outputs of which it is the right, the middle and the left.
    struct Three {
      Vec line[3];
    };
    const auto three_at = [&](int at) {
      const int place = at * channels + c;
      return Three{{load(lines[0] + place), load(lines[1] + place), load(lines[2] + place)}};
    };
    const auto added = [&](const Three& of, int tap, Vec sum) {
#pragma GCC unroll 3
      for (int line = 0; line < 3; ++line) sum = multiply_add(of.line[line], weight[3 * line + tap], sum);
      return sum;
    };
    const Three first = three_at(x);
    Vec sum = added(first, 1, x > 0 ? added(three_at(x - 1), 0, bias) : bias), next = added(first, 0, bias);
    for (int i = 0; i < count; ++i) {
      if (x + i + 1 < width) {
        const Three right = three_at(x + i + 1);
        Op::put(operand + i * operand_stride, c, added(right, 2, sum));
        sum = added(right, 1, next);
        next = added(right, 0, bias);
      } else {
        Op::put(operand + i * operand_stride, c, sum);
      }
    }
  }
}

}  // namespace

#include "kernels/attention_impl.h"

namespace {

template <class Op>
void gelu_of_values(const float* values, int count, uint32_t* row) {
  if constexpr (!Op::levels) put_each<Op>(row, 0, count, [&](int c) { return Op::activated(load(values + c)); });
}

void gelu_gradient_of_values(const float* gradient, const float* values, int count, float* to) {
  for (int c = 0; c < count; c += lanes) store(to + c, load(gradient + c) * gelu_slope(load(values + c)));
}

// Null with levels.
template <class Op, int widest>
constexpr decltype(Kernels::first_convolution) first_convolution_of() {
  if constexpr (Op::levels) {
    return nullptr;
  } else {
    return first_convolution<Op, widest>;
  }
}

template <class Op, int widest = WIDEST_PANEL>
constexpr Kernels table(const char* name) {
  Kernels kernels{};
  kernels.name = name;
  kernels.values_per_word = Op::values_per_word;
  kernels.parts = Op::parts;
  kernels.widest = widest;
  kernels.tile_rows = kernels.tile_rows_alone = 48;
  kernels.pictures = 2;
  kernels.depth_step = Op::words_at_once;
  kernels.levels = Op::levels;
  kernels.signed_levels = Op::signed_levels;
  kernels.short_sums = Op::levels && Op::words_at_once == 2;
  kernels.kept_bytes = sizeof(typename Op::Kept);
  kernels.product = product<Op>;
  kernels.first_convolution = first_convolution_of<Op, widest>();
  kernels.quantize = Op::quantize;
  kernels.quantize_gelu = Op::quantize_gelu;
  kernels.largest = Op::largest;
  kernels.quantize_pixel = Op::quantize_pixel;
  kernels.convert = convert<Op>;
  kernels.depth_wise = depth_wise<Op>;
  kernels.pool = pool<Op>;
  kernels.modulate = modulate<Op>;
  kernels.gelu = Op::levels ? nullptr : gelu_of_values<Op>;
  kernels.gelu_gradient = Op::values_per_word == 1 ? gelu_gradient_of_values : nullptr;
  return kernels;
}

}  // namespace
