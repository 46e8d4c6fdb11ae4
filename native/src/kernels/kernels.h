// What the engine computes on one tile of pixels. There is a table of these functions for every instruction set and
// precision; everything else is written once, on top of them.
//
// Maps, but for the stem's with tiles in bfloat16, are float32, pixels one behind the other, each with its channels,
// filled up with zeros to a multiple of `lanes`. Operands, the left sides of matrix products, are rows of 32-bit words:
// a float32, two bfloat16, or four levels, which are uint8, or int8 where they are `signed_levels`. A row of levels
// ends with a word that holds its step, a float32: the level u stands for step * (u - 128), and behind GELU, which is
// never below -0.17, for step * u - 0.17. GELU itself is looked up there, in a table from level to level.
//
// Where bfloat16 has several `parts`, it stands for float32: three bfloat16 whose sum is the value, as their 24 bits
// are those of a float32 (arXiv 1904.06376). Sixteen words of the first parts of 32 values come before those of the
// second parts, and these before the third, then the next 32 values. A word has two values that are sixteen apart.

#pragma once

#include <cstdint>

#include "kernels/gelu_table.h"

namespace swiftformer {

constexpr int lanes = 16;
constexpr int most_channels = 64;        // of pictures
constexpr int most_tile_rows = 112;      // of any kernels' tiles
constexpr int most_pixels_of_line = 64;  // that are taken through a first convolution together
constexpr int most_bf16_channels = 256;  // of a map that is kept in bfloat16

static constexpr int filled(int channels) { return (channels + lanes - 1) / lanes * lanes; }

// What becomes of a product: stored as float32, the same behind ReLU, stored as an operand behind GELU (not where
// operands are levels), or stored as float32 after a residual was added.
enum class Then { store, relu, gelu, add };

// A matrix and a bias. Columns lie in panels of up to `Kernels::widest` vectors; in a panel, the words of a row of
// columns one behind the other. Of int8 each column has a step, and its sums begin at `start`; the levels' offset is
// taken off there or in the bias.
struct Matrix {
  const uint32_t* words;
  const float* bias;
  const float* step;
  const int32_t* start;
  int depth;    // words of a column, a multiple of `Kernels::depth_step`
  int columns;  // a multiple of `lanes`
  int used;     // words of a column that are not filling; all, where operands' fillings are put as zeros
};

// Vectors of the next panel, of `left` ones: no panel is left with one vector if that can be avoided, as wide panels
// need fewer loads for each product.
static constexpr int panel_of(int left, int widest) {
  return left <= widest ? left : left == widest + 1 && widest > 2 ? 2 : widest;
}

struct Kernels {
  const char* name;
  int values_per_word;
  int parts;            // bfloat16 of a value
  int widest;           // vectors of `lanes` columns in a panel
  int tile_rows;        // pixels that are best taken through a block together,
  int tile_rows_alone;  // and where threads need not be kept equally busy, as each has pictures of its own
  int pictures;         // whole pictures of 224x224 that a thread best takes through a layer together
  int depth_step;       // words that are multiplied at once; what fills a row of an operand up to it may be overwritten
  bool levels;          // operands are levels: rows are made as float32, and `quantize` makes an operand of them
  bool signed_levels;   // they are stored less 128, as int8
  bool short_sums;  // of levels: where two words are multiplied at once, the products of both lower halves have to sum
                    // up to an int16, and so those of both upper halves

  bool close_taps;  // of the first convolution: see there
  int kept_bytes;   // of a key's or query's value between the two passes of an encoder: a float32, or a bfloat16

  // `rows` rows of an operand, `operand_stride` words apart, times a matrix. `out` has a stride in values.
  void (*product)(const Matrix& matrix, uint32_t* operand, int operand_stride, int rows, Then then, void* out,
                  int out_stride, const float* residual, int residual_stride);

  // 3x3 convolution of stride 2 with ReLU, over up to `tile_rows` neighbouring pixels of a row of its output. `lines`
  // are three lines of taps for each channel, `line_stride` words apart, that begin left of the first pixel; their taps
  // of a pixel are three words of the matrix, or two where a word has two values, or one and a half with `close_taps`.
  // Null where there are levels or parts.
  void (*first_convolution)(const Matrix& matrix, const uint32_t* lines, int line_stride, int count, float* out,
                            int out_stride);

  // 3x3 convolution of stride 2 with ReLU straight from a map of bfloat16, over up to `tile_rows` neighbouring pixels
  // of a row of its output. `taps` are the first of the first pixel; lines are `line_stride` values apart, and pixels
  // have `channels`, a multiple of 32, as many as the matrix has for each tap. Null where there are no tiles of
  // bfloat16 alone.
  void (*convolution_of_bf16)(const Matrix& matrix, const uint16_t* taps, int line_stride, int channels, int count,
                              float* out, int out_stride);

  // `rows` rows of float32, `stride` apart, of `count` values each, to rows of levels; the second by way of GELU. Null
  // without levels.
  void (*quantize)(const float* values, int stride, int rows, int count, uint32_t* operand, int operand_stride);
  void (*quantize_gelu)(const float* values, int stride, int rows, int count, uint32_t* operand, int operand_stride);

  // The largest magnitude of `count` values, a multiple of `lanes`, and these values as levels of a step. Null without
  // levels.
  float (*largest)(const float* values, int count);
  void (*quantize_pixel)(const float* values, int count, float step, uint8_t* levels);

  // What follows writes rows of float32 where operands are levels.

  // float32 to operand: `count` values, a multiple of `lanes`, to the place `at` (in values) of a row, a multiple too
  // where there are parts.
  void (*convert)(const float* values, int count, uint32_t* row, int at);

  // 3x3 depth-wise convolution of `count` neighbouring pixels of one row of a map, beginning at column `x`, into rows
  // of an operand. `lines` are the rows above, at and below; a missing one points to zeros. Weights are
  // `(9, channels)`, then the bias; `channels` is filled up.
  void (*depth_wise)(const float* const lines[3], int width, int x, int count, int channels, const float* weights,
                     uint32_t* operand, int operand_stride);

  // Divides keys and queries, rows of `2 * channels`, by their root mean square over `dim` values, writes them to
  // `kept`, and adds to `sums`: `channels` sums of the queries times their scores, then the sum of the squared scores.
  // No `score`: 1. Float32 may be kept in place.
  void (*pool)(const float* key_query, int rows, int channels, int dim, bool normalize, const float* score, float* sums,
               void* kept);

  // The operand `[global * key, query]` of rows that `pool` kept: queries begin at `joined(dim, parts)`.
  void (*modulate)(const void* kept, int rows, int channels, int dim, const float* global, uint32_t* operand,
                   int operand_stride);

  // GELU alone, of `count` values, a multiple of `lanes`, to float32 where there are parts. Null with levels.
  void (*gelu)(const float* values, int count, uint32_t* row);

  // The gradient of `values` from that of GELU, likewise: for training in float32. Null in other precisions.
  void (*gelu_gradient)(const float* gradient, const float* values, int count, float* to);

  // Gives back what products have left set in the thread that calls it, for others who compute there: threads of this
  // engine's own keep it. Null where there is nothing.
  void (*release)();

  // For layers that take no part in this: the first one, the head and scores of pixels. Null: these kernels, or with
  // levels those of bfloat16.
  const Kernels* outer;
};

// Channels after which the next ones follow where an operand joins several pixels' or maps'.
static constexpr int joined(int channels, int parts) { return parts > 1 ? filled(channels) : channels; }

extern const Kernels plain_fp32, plain_bf16, plain_int8;
#if defined(SWIFTFORMER_X86)
extern const Kernels avx2_fp32, avx2_int8, avx_vnni_int8, avx512_fp32, avx512_bf16, avx512_int8, avx512_vbmi_int8,
    amx_fp32, amx_bf16, amx_int8;
#elif defined(SWIFTFORMER_ARM)
extern const Kernels neon_fp32, neon_int8;
#endif
#if defined(SWIFTFORMER_CHECK)
extern const Kernels emulated_amx_fp32, emulated_amx_bf16, emulated_amx_int8, emulated_avx_vnni_int8;
#endif

}  // namespace swiftformer
