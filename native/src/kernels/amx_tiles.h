// The eight tiles of AMX: sums in 0 to 3, rows of the operand in 4 and 5, words of the matrix in 6 and 7. A row of a
// tile is sixteen words. Emulated where SWIFTFORMER_EMULATED_TILES is defined.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int tile_words = 16, first_matrix_tile = 6;

#if !defined(SWIFTFORMER_EMULATED_TILES)

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};
};

inline void configure_tiles(int rows) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile)
    shapes.rows[tile] = static_cast<uint8_t>(tile < first_matrix_tile ? rows : tile_words);
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}
inline void release_tiles() { asm volatile("tilerelease"); }

// On a core that works for others too, as those of virtual machines may, tile instructions stall where they follow each
// other at once. A load of a tile takes eight cycles and a product sixteen, in which a core does more than these.
inline void keep_apart_loads() { asm volatile("nop; nop; nop; nop"); }
inline void keep_apart_products() { asm volatile("nop; nop; nop; nop; nop; nop; nop; nop"); }

template <int tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int tile>
inline void load_tile(const void* from, int stride_in_words) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4l * stride_in_words), "i"(tile) : "memory");
  keep_apart_loads();
}
template <int tile>
inline void store_tile(void* to, int stride_in_words) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(4l * stride_in_words), "i"(tile) : "memory");
}
template <int sums, int operand, int matrix>
inline void dot_bf16_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(operand), "i"(matrix));
  keep_apart_products();
}
// uint8 of the operand times int8 of the matrix.
template <int sums, int operand, int matrix>
inline void dot_int8_tiles() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(operand), "i"(matrix));
  keep_apart_products();
}

#else

struct Tiles {
  int rows[8] = {};
  uint32_t words[8][tile_words][tile_words];
};
thread_local Tiles tiles;

inline void configure_tiles(int rows) {
  for (int tile = 0; tile < 8; ++tile) tiles.rows[tile] = tile < first_matrix_tile ? rows : tile_words;
  std::memset(tiles.words, 0, sizeof tiles.words);
}
inline void release_tiles() { std::memset(tiles.rows, 0, sizeof tiles.rows); }

template <int tile>
void zero_tile() {
  std::memset(tiles.words[tile], 0, sizeof tiles.words[tile]);
}
template <int tile>
void load_tile(const void* from, int stride_in_words) {
  for (int row = 0; row < tiles.rows[tile]; ++row) {
    std::memcpy(tiles.words[tile][row], static_cast<const uint32_t*>(from) + row * stride_in_words, 64);
  }
}
template <int tile>
void store_tile(void* to, int stride_in_words) {
  for (int row = 0; row < tiles.rows[tile]; ++row) {
    std::memcpy(static_cast<uint32_t*>(to) + row * stride_in_words, tiles.words[tile][row], 64);
  }
}
template <int sums, int operand, int matrix, class Sum, class Dot>
void dot_tiles(const Dot& dot) {
  for (int row = 0; row < tiles.rows[sums]; ++row) {
    for (int k = 0; k < tiles.rows[matrix]; ++k) {
      for (int column = 0; column < tile_words; ++column) {
        Sum sum;
        std::memcpy(&sum, &tiles.words[sums][row][column], sizeof sum);
        sum += dot(tiles.words[operand][row][k], tiles.words[matrix][k][column]);
        std::memcpy(&tiles.words[sums][row][column], &sum, sizeof sum);
      }
    }
  }
}
template <int sums, int operand, int matrix>
void dot_bf16_tiles() {
  dot_tiles<sums, operand, matrix, float>([](uint32_t a, uint32_t b) {
    return bf16_to_float(a & 0xffff) * bf16_to_float(b & 0xffff) + bf16_to_float(a >> 16) * bf16_to_float(b >> 16);
  });
}
template <int sums, int operand, int matrix>
void dot_int8_tiles() {
  dot_tiles<sums, operand, matrix, int32_t>([](uint32_t a, uint32_t b) {
    int32_t sum = 0;
    for (int shift = 0; shift < 32; shift += 8) {
      sum += static_cast<int>(a >> shift & 0xff) * static_cast<int8_t>(b >> shift & 0xff);
    }
    return sum;
  });
}

#endif

// Configuring takes as long as some ten products of tiles: what a thread has configured stays until it releases the
// tiles, if ever.
thread_local int configured_rows = 0;

inline void begin_tiles(int rows) {
  if (configured_rows == rows) return;
  configure_tiles(rows);
  configured_rows = rows;
}
inline void end_tiles() {
  if (configured_rows > 0) release_tiles();
  configured_rows = 0;
}

}  // namespace
