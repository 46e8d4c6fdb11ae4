// Matrix products in tiles of AMX: up to 16 rows by 16 columns, two by two of them at once. Behind kernels_impl.h,
// whose other kernels go with them.

#pragma once

#include "kernels_impl.h"
#include "tiles.h"

namespace {

struct Bf16InTiles : Bf16 {
  static constexpr bool cleared = true;  // a NaN that is left in the filling would stay one
  static const float* start_of(const Matrix& matrix) { return matrix.bias; }
  static Vec sum_of(const uint32_t* words) { return load(reinterpret_cast<const float*>(words)); }
  template <int sums, int operand, int matrix>
  static void dot_tiles() {
    dot_bf16_tiles<sums, operand, matrix>();
  }
};

struct Int8InTiles : Int8 {
  static constexpr bool cleared = false;
  static const int32_t* start_of(const Matrix& matrix) { return matrix.start; }
  static Levels sum_of(const uint32_t* words) { return load(reinterpret_cast<const int32_t*>(words)); }
  template <int sums, int operand, int matrix>
  static void dot_tiles() {
    dot_int8_tiles<sums, operand, matrix>();
  }
};

// A product, of which tiles of `rows` rows are computed. The last one overlaps the one before rather than reaching
// behind the operand; rows that were computed already are not written again.
struct Tiling {
  const Matrix& matrix;
  const uint32_t* operand;
  int operand_stride, rows, count;

  int first_row(int tile) const { return tile * rows < count - rows ? tile * rows : count - rows; }
  const uint32_t* rows_of(int tile) const { return operand + first_row(tile) * operand_stride; }
};

// Where sums go, and what becomes of them.
struct Target {
  const float* residual;
  void* out;
  int out_stride, residual_stride;
  Then then;
};

// Sums of `row_tiles` tiles from `tile` on and `vectors` tiles of columns, to `sums`.
template <class Op, int row_tiles, int vectors>
void sums_of_tiles(const Tiling& tiling, int tile, const uint32_t* words, int column, uint32_t* sums) {
  const auto* start = Op::start_of(tiling.matrix) + column;
  load_tile<0>(start, 0);
  if constexpr (vectors > 1) load_tile<1>(start + lanes, 0);
  if constexpr (row_tiles > 1) load_tile<2>(start, 0);
  if constexpr (row_tiles > 1 && vectors > 1) load_tile<3>(start + lanes, 0);
  const uint32_t* first = tiling.rows_of(tile);
  const uint32_t* second = tiling.rows_of(row_tiles > 1 ? tile + 1 : tile);
  for (int k = 0; k < tiling.matrix.depth; k += tile_words, words += tile_words * vectors * lanes) {
    load_tile<4>(first + k, tiling.operand_stride);
    load_tile<6>(words, vectors * lanes);
    Op::template dot_tiles<0, 4, 6>();
    if constexpr (vectors > 1) {
      load_tile<7>(words + lanes, vectors * lanes);
      Op::template dot_tiles<1, 4, 7>();
    }
    if constexpr (row_tiles > 1) {
      load_tile<5>(second + k, tiling.operand_stride);
      Op::template dot_tiles<2, 5, 6>();
      if constexpr (vectors > 1) Op::template dot_tiles<3, 5, 7>();
    }
  }
  constexpr int size = tile_words * lanes;
  store_tile<0>(sums);
  if constexpr (vectors > 1) store_tile<1>(sums + size);
  if constexpr (row_tiles > 1) store_tile<2>(sums + 2 * size);
  if constexpr (row_tiles > 1 && vectors > 1) store_tile<3>(sums + 3 * size);
}

template <class Op>
void finish_tile(const Tiling& tiling, int tile, const Target& target, const uint32_t* sums, int column) {
  const int first = tiling.first_row(tile);
  for (int row = tile * tiling.rows; row < first + tiling.rows; ++row) {
    const uint32_t* operand = tiling.operand + row * tiling.operand_stride;
    Vec value =
        Op::finish(Op::sum_of(sums + (row - first) * lanes), operand, tiling.operand_stride, tiling.matrix, column);
    if constexpr (!Op::levels) {
      if (target.then == Then::gelu) {
        Op::put(static_cast<uint16_t*>(target.out) + row * target.out_stride, column, Op::activated(value));
        continue;
      }
    }
    if (target.then == Then::relu) value = max(all(0.0f), value);  // in this order NaN stays NaN
    if (target.then == Then::add) value = value + load(target.residual + row * target.residual_stride + column);
    store(static_cast<float*>(target.out) + row * target.out_stride + column, value);
  }
}

template <class Op, int vectors>
void panel_in_tiles(const Tiling& tiling, const Target& target, const uint32_t* words, int column) {
  alignas(64) uint32_t sums[4 * tile_words * lanes];
  const int tiles = (tiling.count + tiling.rows - 1) / tiling.rows;
  for (int tile = 0; tile < tiles; tile += 2) {
    const int row_tiles = tiles - tile < 2 ? 1 : 2;
    if (row_tiles == 2) {
      sums_of_tiles<Op, 2, vectors>(tiling, tile, words, column, sums);
    } else {
      sums_of_tiles<Op, 1, vectors>(tiling, tile, words, column, sums);
    }
    for (int t = 0; t < row_tiles; ++t) {
      for (int v = 0; v < vectors; ++v) {
        finish_tile<Op>(tiling, tile + t, target, sums + (2 * t + v) * tile_words * lanes, column + v * lanes);
      }
    }
  }
}

template <class Op>
void product_in_tiles(const Matrix& matrix, uint32_t* operand, int operand_stride, int rows, Then then, void* out,
                      int out_stride, const float* residual, int residual_stride) {
  for (int r = 0; Op::cleared && r < rows && matrix.used < matrix.depth; ++r) {
    std::memset(operand + r * operand_stride + matrix.used, 0, sizeof(uint32_t) * (matrix.depth - matrix.used));
  }
  const int tiles = (rows + tile_words - 1) / tile_words, rows_of_a_tile = (rows + tiles - 1) / tiles;
  const Tiling tiling{matrix, operand, operand_stride, rows_of_a_tile, rows};
  const Target target{residual, out, out_stride, residual_stride, then};
  begin_tiles(rows_of_a_tile);
  const uint32_t* words = matrix.words;
  int column = 0;
  for (; column + 2 * lanes <= matrix.columns; column += 2 * lanes, words += matrix.depth * 2 * lanes) {
    panel_in_tiles<Op, 2>(tiling, target, words, column);
  }
  if (column < matrix.columns) panel_in_tiles<Op, 1>(tiling, target, words, column);
  end_tiles();
}

template <class Op>
constexpr Kernels table_of_tiles(const char* name) {
  Kernels kernels = table<Op, 2>(name);
  kernels.depth_step = tile_words;
  kernels.product = product_in_tiles<Op>;
  return kernels;
}

}  // namespace
