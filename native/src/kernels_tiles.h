// Matrix products in tiles of AMX: sixteen columns of up to 64 rows at once. Behind kernels_impl.h, whose other kernels
// go with them.

#pragma once

#include "kernels_impl.h"
#include "tiles.h"

namespace {

struct Bf16InTiles : Bf16 {
  static constexpr bool cleared = true;  // a NaN that is left in the filling would stay one
  static const float* start_of(const Matrix& matrix) { return matrix.bias; }
  static Vec sum_of(const uint32_t* words) { return load(reinterpret_cast<const float*>(words)); }
  template <int sums, int operand>
  static void dot_tiles() {
    dot_bf16_tiles<sums, operand, matrix_tile>();
  }
};

struct Int8InTiles : Int8 {
  static constexpr bool cleared = false;
  static const int32_t* start_of(const Matrix& matrix) { return matrix.start; }
  static Levels sum_of(const uint32_t* words) { return load(reinterpret_cast<const int32_t*>(words)); }
  template <int sums, int operand>
  static void dot_tiles() {
    dot_int8_tiles<sums, operand, matrix_tile>();
  }
};

constexpr int most_row_tiles = swiftformer::most_tile_rows / tile_words;
static_assert(most_row_tiles == 4);

// Words of a matrix that are fetched into the second-level cache before they are needed.
constexpr int ahead = 8 * tile_words * lanes;

// Where rows of a product come from and go to.
struct RowsInTiles {
  const uint32_t* operand;
  const float* residual;
  void* out;
  int operand_stride, residual_stride, out_stride, count;

  // Tiles of `rows` rows; the last one overlaps the one before rather than reaching behind the operand.
  int tiles, rows;
  int first_of(int tile) const { return tile < tiles - 1 ? tile * rows : count - rows; }
};

// The sums of sixteen columns, rows `stride` words apart.
template <class Op, int tiles>
void sums_of_column(const Matrix& matrix, const RowsInTiles& rows, int column, uint32_t* sums, int stride) {
  const auto* start = Op::start_of(matrix) + column;
  load_tile<0>(start, 0);
  if constexpr (tiles > 1) load_tile<1>(start, 0);
  if constexpr (tiles > 2) load_tile<2>(start, 0);
  if constexpr (tiles > 3) load_tile<3>(start, 0);
  const uint32_t* operands[tiles];
  for (int tile = 0; tile < tiles; ++tile) operands[tile] = rows.operand + rows.first_of(tile) * rows.operand_stride;
  const uint32_t* words = matrix.words + static_cast<size_t>(column) * matrix.depth;
  for (int k = 0; k < matrix.depth; k += tile_words, words += tile_words * lanes) {
#pragma GCC unroll 16
    for (int line = 0; line < tile_words; ++line) __builtin_prefetch(words + ahead + line * lanes, 0, 2);
    load_tile<matrix_tile>(words, lanes);
    load_tile<4>(operands[0] + k, rows.operand_stride);
    if constexpr (tiles > 1) load_tile<5>(operands[1] + k, rows.operand_stride);
    if constexpr (tiles > 2) load_tile<6>(operands[2] + k, rows.operand_stride);
    Op::template dot_tiles<0, 4>();
    if constexpr (tiles > 1) Op::template dot_tiles<1, 5>();
    if constexpr (tiles > 2) Op::template dot_tiles<2, 6>();
    if constexpr (tiles > 3) {
      load_tile<4>(operands[3] + k, rows.operand_stride);
      Op::template dot_tiles<3, 4>();
    }
  }
  store_tile<0>(sums, stride);
  if constexpr (tiles > 1) store_tile<1>(sums + rows.first_of(1) * stride, stride);
  if constexpr (tiles > 2) store_tile<2>(sums + rows.first_of(2) * stride, stride);
  if constexpr (tiles > 3) store_tile<3>(sums + rows.first_of(3) * stride, stride);
}

template <class Op, Then then>
void finish_column(const Matrix& matrix, const RowsInTiles& rows, int column, const uint32_t* sums) {
  const uint32_t* operand = rows.operand;
  const float* residual = rows.residual + column;
  for (int row = 0; row < rows.count; ++row, sums += lanes, operand += rows.operand_stride) {
    Vec value = Op::finish(Op::sum_of(sums), operand, rows.operand_stride, matrix, column);
    if constexpr (then == Then::gelu) {
      Op::put(static_cast<uint16_t*>(rows.out) + row * rows.out_stride, column, Op::activated(value));
    } else {
      if (then == Then::relu) value = max(all(0.0f), value);  // in this order NaN stays NaN
      if (then == Then::add) value = value + load(residual + row * rows.residual_stride);
      store(static_cast<float*>(rows.out) + row * rows.out_stride + column, value);
    }
  }
}

// Sixteen columns are multiplied while those before are finished; sums alone are finished where they are stored.
template <class Op, int tiles, Then then>
void columns_in_tiles(const Matrix& matrix, const RowsInTiles& rows) {
  if constexpr (then == Then::store && !Op::levels) {
    for (int column = 0; column < matrix.columns; column += lanes) {
      sums_of_column<Op, tiles>(matrix, rows, column, static_cast<uint32_t*>(rows.out) + column, rows.out_stride);
    }
  } else {
    alignas(64) uint32_t sums[2][most_row_tiles * tile_words * lanes];
    for (int column = 0, place = 0; column < matrix.columns + lanes; column += lanes, place ^= 1) {
      if (column < matrix.columns) sums_of_column<Op, tiles>(matrix, rows, column, sums[place], lanes);
      if (column > 0) finish_column<Op, then>(matrix, rows, column - lanes, sums[place ^ 1]);
    }
  }
}

template <class Op, int tiles>
void rows_in_tiles(const Matrix& matrix, const RowsInTiles& rows, Then then) {
  if (then == Then::store) columns_in_tiles<Op, tiles, Then::store>(matrix, rows);
  if (then == Then::relu) columns_in_tiles<Op, tiles, Then::relu>(matrix, rows);
  if (then == Then::add) columns_in_tiles<Op, tiles, Then::add>(matrix, rows);
  if constexpr (!Op::levels) {
    if (then == Then::gelu) columns_in_tiles<Op, tiles, Then::gelu>(matrix, rows);
  }
}

template <class Op>
void product_in_tiles(const Matrix& matrix, uint32_t* operand, int operand_stride, int rows, Then then, void* out,
                      int out_stride, const float* residual, int residual_stride) {
  if (Op::cleared && matrix.used < matrix.depth) {
    float* filling = reinterpret_cast<float*>(operand) + matrix.used;
    for (int r = 0; r < rows; ++r) store_some(filling + r * operand_stride, all(0.0f), matrix.depth - matrix.used);
  }
  constexpr int most = most_row_tiles * tile_words;
  const int out_bytes = then == Then::gelu ? sizeof(uint16_t) : sizeof(float);
  for (int done = 0; done < rows; done += most) {
    const int count = rows - done < most ? rows - done : most, tiles = (count + tile_words - 1) / tile_words;
    const RowsInTiles some{operand + done * operand_stride,
                           residual + done * residual_stride,
                           static_cast<char*>(out) + out_bytes * done * out_stride,
                           operand_stride,
                           residual_stride,
                           out_stride,
                           count,
                           tiles,
                           (count + tiles - 1) / tiles};
    begin_tiles(some.rows);
    if (tiles == 1) rows_in_tiles<Op, 1>(matrix, some, then);
    if (tiles == 2) rows_in_tiles<Op, 2>(matrix, some, then);
    if (tiles == 3) rows_in_tiles<Op, 3>(matrix, some, then);
    if (tiles == 4) rows_in_tiles<Op, 4>(matrix, some, then);
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

template <class Op>
constexpr Kernels table_of_tiles(const char* name) {
  Kernels kernels = table<Op, 1>(name);
  kernels.depth_step = tile_words;
  kernels.tile_rows = swiftformer::most_tile_rows;
  if (Op::levels) kernels.pictures = 1;  // their levels and float32 fill the caches
  kernels.product = product_in_tiles<Op>;
  kernels.release = end_tiles;
  if constexpr (!Op::levels) {
    kernels.close_taps = true;
    kernels.first_convolution = first_convolution_in_tiles<Op>;
  }
  return kernels;
}

}  // namespace
