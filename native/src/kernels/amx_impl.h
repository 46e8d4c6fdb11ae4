// Matrix products in tiles of AMX: blocks of two tiles of rows by two of columns. Behind kernels_impl.h, whose other
// kernels go with them.

#pragma once

#include <type_traits>

#include "kernels/amx_tiles.h"
#include "kernels/kernels_impl.h"

namespace {

// `Column` makes values of the sums of sixteen columns; a row of levels ends with its step.
struct Bf16InTiles : Bf16 {
  static constexpr bool cleared = true;  // a NaN that is left in the filling would stay one
  using Bf16::put;
  static void put(void* row, int at, Vec low, Vec high) {
    put(row, at, low);
    put(row, at + lanes, high);
  }
  struct Column {
    Vec bias;
    Column(const Matrix& matrix, int column) : bias(load(matrix.bias + column)) {}
    Vec operator()(const uint32_t* sums, const uint32_t*) const {
      return load(reinterpret_cast<const float*>(sums)) + bias;
    }
  };
  template <int sums, int operand, int matrix>
  static void dot_tiles() {
    dot_bf16_tiles<sums, operand, matrix>();
  }
};

// float32 in three parts each. The operand's are cut off rather than rounded, so that huge values stay finite.
struct Fp32InTiles : Bf16InTiles {
  using Kept = float;
  static constexpr int parts = 3;
  // Thirty-two values, from a multiple of so many on.
  static void put(void* row, int at, Vec low, Vec high) {
    uint32_t* to = static_cast<uint32_t*>(row) + at / 2 * parts;
    const Vec low_rest = low - upper_half(low), high_rest = high - upper_half(high);
    store_upper_halves(to, low, high);
    store_upper_halves(to + tile_words, low_rest, high_rest);
    store_upper_halves(to + 2 * tile_words, low_rest - upper_half(low_rest), high_rest - upper_half(high_rest));
  }
  // Sixteen, of which the first ones are put before the second, with zeros in their place.
  static void put(void* row, int at, Vec v) {
    if (at % (2 * lanes) == 0) return put(row, at, v, all(0.0f));
    uint32_t* to = static_cast<uint32_t*>(row) + (at - lanes) / 2 * parts;
    for (int part = 0; part < parts; ++part, to += tile_words) {
      store_upper_halves(to, load_lower_half(to), v);
      v = v - upper_half(v);
    }
  }
  static Vec activated(Vec x) { return gelu(x); }
};

struct Int8InTiles : Int8 {
  using Kept = uint16_t;
  static constexpr bool cleared = false;
  struct Column {
    Levels start;
    Vec step, bias;
    Column(const Matrix& matrix, int column)
        : start(load(matrix.start + column)), step(load(matrix.step + column)), bias(load(matrix.bias + column)) {}
    Vec operator()(const uint32_t* sums, const uint32_t* step_of_row) const {
      const Levels sum = load(reinterpret_cast<const int32_t*>(sums)) + start;
      return multiply_add(to_float(sum) * Fp32::input(step_of_row), step, bias);
    }
  };
  template <int sums, int operand, int matrix>
  static void dot_tiles() {
    dot_int8_tiles<sums, operand, matrix>();
  }
};

constexpr int sum_stride = 2 * lanes;  // words between rows of a block's sums

template <class Op>
constexpr int products_of = Op::parts == 1 ? 1 : 6;  // of parts, in a step
template <class Op>
constexpr int lines_of = tile_words * Op::parts / products_of<Op>;  // of a column's words, for each

// Words of the next pair of vectors that a block fetches into the second-level cache (none, if null): all blocks of a
// pair fetch some, from line `first` up to `end` of those of every product.
struct Ahead {
  const uint32_t* words;
  int first, end;
};

// Where the words of a step begin in a row of the operand. `k` is the step's first word in a column of the matrix: the
// same place, or it has one of its own.
struct InOrder {
  int operator()(int k) const { return k; }
};
struct AtPlaces {
  const int* places;
  int operator()(int k) const { return places[k / tile_words]; }
};

// The products of one part of the operand with one of the matrix. What the tiles have from those before is not loaded
// again.
template <class Op, int rows, int columns, bool load_operand = true, bool load_matrix = true>
void dot_parts(const uint32_t* operand, const uint32_t* below, int operand_stride, const uint32_t* words,
               const uint32_t* beside) {
  if constexpr (load_matrix) load_tile<6>(words, lanes);
  if constexpr (load_operand) load_tile<4>(operand, operand_stride);
  Op::template dot_tiles<0, 4, 6>();
  if constexpr (rows > 1) {
    if constexpr (load_operand) load_tile<5>(below, operand_stride);
    Op::template dot_tiles<2, 5, 6>();
  }
  if constexpr (columns > 1) {
    if constexpr (load_matrix) load_tile<7>(beside, lanes);
    Op::template dot_tiles<1, 4, 7>();
    if constexpr (rows > 1) Op::template dot_tiles<3, 5, 7>();
  }
}

// The sums of one or two tiles of rows, the second from row `second` on, by one or two tiles of columns. For every
// product of parts `meanwhile` is called.
template <class Op, int rows, int columns, class Place, class Meanwhile>
void sums_of_block(const uint32_t* words, int depth, const uint32_t* operand, int operand_stride, int second,
                   Ahead ahead, uint32_t* sums, const Place& place, const Meanwhile& meanwhile) {
  const uint32_t* below = operand + second * operand_stride;
  zero_tile<0>();
  if constexpr (columns > 1) zero_tile<1>();
  if constexpr (rows > 1) zero_tile<2>();
  if constexpr (rows > 1 && columns > 1) zero_tile<3>();
  constexpr int part = tile_words * lanes;  // words of a matrix
  for (int k = 0; k < depth; k += Op::parts * tile_words, words += Op::parts * part) {
    const auto dot = [&](auto of_parts, int of_operand, int of_matrix) {
      if (columns > 1 && ahead.words) {
        for (int line = ahead.first; line < ahead.end; ++line) {
          __builtin_prefetch(ahead.words + line * lanes, 0, 2);
          __builtin_prefetch(ahead.words + (depth + line) * lanes, 0, 2);
        }
        ahead.words += lines_of<Op> * lanes;
      }
      const int at = place(k) + of_operand * tile_words;
      const uint32_t* words_of_part = words + of_matrix * part;
      of_parts(operand + at, below + at, operand_stride, words_of_part, words_of_part + depth * lanes);
      meanwhile();
    };
    if constexpr (Op::parts == 1) {
      dot(dot_parts<Op, rows, columns>, 0, 0);
    } else {
      // The three that are missing are as small as what float32 rounds off. In this order each loads one part alone.
      dot(dot_parts<Op, rows, columns>, 2, 0);
      dot(dot_parts<Op, rows, columns, true, false>, 1, 0);
      dot(dot_parts<Op, rows, columns, false, true>, 1, 1);
      dot(dot_parts<Op, rows, columns, true, false>, 0, 1);
      dot(dot_parts<Op, rows, columns, false, true>, 0, 2);
      dot(dot_parts<Op, rows, columns, false, true>, 0, 0);
    }
  }
  store_tile<0>(sums, sum_stride);
  if constexpr (columns > 1) store_tile<1>(sums + lanes, sum_stride);
  if constexpr (rows > 1) store_tile<2>(sums + second * sum_stride, sum_stride);
  if constexpr (rows > 1 && columns > 1) store_tile<3>(sums + second * sum_stride + lanes, sum_stride);
}

// Where rows of a product come from and go to.
struct RowsInTiles {
  const uint32_t* operand;
  const float* residual;
  void* out;
  int operand_stride, residual_stride, out_stride;

  RowsInTiles from(int row, int out_bytes) const {
    return {operand + row * operand_stride,
            residual + row * residual_stride,
            static_cast<char*>(out) + out_bytes * row * out_stride,
            operand_stride,
            residual_stride,
            out_stride};
  }
};

template <class Op, Then then, int columns>
void finish_rows(const Matrix& matrix, int column, const RowsInTiles& rows, int count, const uint32_t* sums) {
  const typename Op::Column made[] = {{matrix, column}, {matrix, column + (columns - 1) * lanes}};
  // Copies, as what is written might be the rows' own members.
  const int operand_stride = rows.operand_stride, residual_stride = rows.residual_stride, out_stride = rows.out_stride;
  const uint32_t* step = rows.operand + operand_stride - 1;
  const float* residual = rows.residual + column;
  using Out = std::conditional_t<then == Then::gelu, uint16_t, float>;
  Out* out = static_cast<Out*>(rows.out);
  for (int row = 0; row < count; ++row) {
    Vec values[columns];
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) {
      Vec value = made[c](sums + c * lanes, step);
      if constexpr (then == Then::gelu) {
        values[c] = Op::activated(value);
      } else {
        if (then == Then::relu) value = max(all(0.0f), value);  // in this order NaN stays NaN
        if (then == Then::add) value = value + load(residual + c * lanes);
        store(out + column + c * lanes, value);
      }
    }
    if constexpr (then == Then::gelu && columns == 2) Op::put(out, column, values[0], values[1]);
    if constexpr (then == Then::gelu && columns == 1) Op::put(out, column, values[0]);
    sums += sum_stride;
    step += operand_stride;
    if (then == Then::add) residual += residual_stride;
    out += out_stride;
  }
}

// Sums of rows from `first` on, by one or two vectors of columns, of which `done` rows are finished.
struct BlockInTiles {
  const uint32_t* sums;
  int column, columns, first, rows, done;
};

// Each block is multiplied while that before is finished. `tiles` of `rows_of_tile` rows each; the last one overlaps
// the one before rather than reaching behind the operand.
template <class Op, Then then, class Place = InOrder>
void rows_in_tiles(const Matrix& matrix, const RowsInTiles& rows, int count, int tiles, int rows_of_tile,
                   const Place& at = {}) {
  alignas(64) uint32_t sums[2][2 * tile_words * sum_stride];
  constexpr int out_bytes = then == Then::gelu ? sizeof(uint16_t) : sizeof(float);
  const int steps = matrix.depth / (Op::parts * tile_words) * products_of<Op>;
  BlockInTiles before{};
  const auto finish = [&](int most) {
    const int some = before.rows - before.done < most ? before.rows - before.done : most;
    if (some <= 0) return;
    const RowsInTiles from = rows.from(before.first + before.done, out_bytes);
    const uint32_t* of_rows = before.sums + before.done * sum_stride;
    if (before.columns == 1) finish_rows<Op, then, 1>(matrix, before.column, from, some, of_rows);
    if (before.columns == 2) finish_rows<Op, then, 2>(matrix, before.column, from, some, of_rows);
    before.done += some;
  };
  // So many that the last step finishes the last; with GELU no fewer than sixteen, as its constants are loaded for
  // them, but for exact GELU, which is to be spread.
  constexpr int least = then == Then::gelu && Op::parts == 1 ? tile_words : 1;
  const int even = (2 * rows_of_tile + steps - 1) / steps, in_step = even < least ? least : even;
  const auto meanwhile = [&] { finish(in_step); };
  const int pairs = (tiles + 1) / 2;
  int place = 0;
  for (int column = 0; column < matrix.columns; column += 2 * lanes) {
    const int columns = matrix.columns - column > lanes ? 2 : 1, columns_ahead = matrix.columns - column - 2 * lanes;
    const uint32_t* words = matrix.words + static_cast<size_t>(column) * matrix.depth;
    for (int tile = 0; tile < tiles; tile += 2, place ^= 1) {
      const bool two = tile + 1 < tiles;
      const int begin = tile * rows_of_tile, end = tile + 2 < tiles ? begin + 2 * rows_of_tile : count;
      const int first = two ? begin : end - rows_of_tile, second = end - first - rows_of_tile;
      const uint32_t* operand = rows.operand + first * rows.operand_stride;
      // A last vector alone is fetched as it comes.
      const Ahead ahead{columns_ahead > lanes ? words + 2 * matrix.depth * lanes : nullptr,
                        lines_of<Op> * (tile / 2) / pairs, lines_of<Op> * (tile / 2 + 1) / pairs};
      const auto sum = [&](auto of_block) {
        of_block(words, matrix.depth, operand, rows.operand_stride, second, ahead, sums[place], at, meanwhile);
      };
      if (two && columns == 2) sum(sums_of_block<Op, 2, 2, Place, decltype(meanwhile)>);
      if (two && columns == 1) sum(sums_of_block<Op, 2, 1, Place, decltype(meanwhile)>);
      if (!two && columns == 2) sum(sums_of_block<Op, 1, 2, Place, decltype(meanwhile)>);
      if (!two && columns == 1) sum(sums_of_block<Op, 1, 1, Place, decltype(meanwhile)>);
      finish(before.rows);
      // Rows that two tiles share are finished once: they may be their own residual.
      before = {sums[place] + (begin - first) * sum_stride, column, columns, begin, end - begin, 0};
    }
  }
  finish(before.rows);
}

template <class Op>
void product_in_tiles(const Matrix& matrix, uint32_t* operand, int operand_stride, int rows, Then then, void* out,
                      int out_stride, const float* residual, int residual_stride) {
  if (Op::cleared && matrix.used < matrix.depth) {
    float* filling = reinterpret_cast<float*>(operand) + matrix.used;
    for (int r = 0; r < rows; ++r) store_some(filling + r * operand_stride, all(0.0f), matrix.depth - matrix.used);
  }
  const int tiles = (rows + tile_words - 1) / tile_words, rows_of_tile = (rows + tiles - 1) / tiles;
  const RowsInTiles all{operand, residual, out, operand_stride, residual_stride, out_stride};
  begin_tiles(rows_of_tile);
  if (then == Then::store) rows_in_tiles<Op, Then::store>(matrix, all, rows, tiles, rows_of_tile);
  if (then == Then::relu) rows_in_tiles<Op, Then::relu>(matrix, all, rows, tiles, rows_of_tile);
  if (then == Then::add) rows_in_tiles<Op, Then::add>(matrix, all, rows, tiles, rows_of_tile);
  if constexpr (!Op::levels) {
    if (then == Then::gelu) rows_in_tiles<Op, Then::gelu>(matrix, all, rows, tiles, rows_of_tile);
  }
}

// Of bfloat16: taps of a pixel are gathered to a row of an operand.
template <class Op>
void first_convolution_in_tiles(const Matrix& matrix, const uint32_t* lines, int line_stride, int count, float* out,
                                int out_stride) {
  constexpr int room = 4096, bytes_of_line = 3 * sizeof(uint16_t);
  static_assert(room >= 9 * swiftformer::most_channels / 2 + 2 * tile_words);  // words of a pixel
  alignas(64) uint32_t operand[room];
  const int stride = matrix.depth + tile_words, lines_of_pixel = 2 * matrix.used / 9 * 3, most = room / stride;
  for (int done = 0; done < count; done += most) {
    const int some = count - done < most ? count - done : most;
    for (int line = 0; line < lines_of_pixel; ++line) {
      const uint32_t* taps = lines + line * line_stride + done;
      char* to = reinterpret_cast<char*>(operand) + line * bytes_of_line;
      for (int pixel = 0; pixel < some; ++pixel, to += sizeof(uint32_t) * stride) {
        std::memcpy(to, taps + pixel, 2 * sizeof(uint32_t));  // four values, the last of which the next line overwrites
      }
    }
    product_in_tiles<Op>(matrix, operand, stride, some, Then::relu, out + done * out_stride, out_stride, out, 0);
  }
}

// A row of the operand is two pixels behind the one before; the steps of a product go through its taps.
template <class Op>
void convolution_of_bf16(const Matrix& matrix, const uint16_t* taps, int line_stride, int channels, int count,
                         float* out, int out_stride) {
  constexpr int most_steps = 9 * swiftformer::most_bf16_channels / (2 * tile_words);
  const int words_of_pixel = channels / 2, steps = matrix.depth / tile_words;
  int places[most_steps];
  for (int step = 0; step < steps; ++step) {
    const int tap = step * tile_words / words_of_pixel, within = step * tile_words % words_of_pixel;
    places[step] = tap / 3 * (line_stride / 2) + tap % 3 * words_of_pixel + within;
  }
  const int tiles = (count + tile_words - 1) / tile_words, rows_of_tile = (count + tiles - 1) / tiles;
  const RowsInTiles rows{reinterpret_cast<const uint32_t*>(taps), out, out, 2 * words_of_pixel, out_stride, out_stride};
  begin_tiles(rows_of_tile);
  rows_in_tiles<Op, Then::relu>(matrix, rows, count, tiles, rows_of_tile, AtPlaces{places});
}

template <class Op>
constexpr Kernels table_of_tiles(const char* name, const Kernels* outer = nullptr) {
  Kernels kernels = table<Op, 1>(name);
  kernels.depth_step = Op::parts * tile_words;
  kernels.tile_rows = kernels.tile_rows_alone = 64;
  if (Op::levels) {
    kernels.pictures = 1;  // their levels and float32 fill the caches
  } else {
    kernels.tile_rows_alone = swiftformer::most_tile_rows;
  }
  kernels.product = product_in_tiles<Op>;
  kernels.release = end_tiles;
  kernels.outer = outer;
  if constexpr (Op::parts > 1) {
    kernels.first_convolution = nullptr;
    kernels.gelu = gelu_of_values<Fp32>;
    kernels.gelu_gradient = gelu_gradient_of_values;
  } else if constexpr (!Op::levels) {
    kernels.close_taps = true;
    kernels.first_convolution = first_convolution_in_tiles<Op>;
    kernels.convolution_of_bf16 = convolution_of_bf16<Op>;
  }
  return kernels;
}

}  // namespace
