// What training gets from here: operations between the matrix products, and MLPs with theirs, on the bfloat16 maps of
// PyTorch, in PyTorch's own threads.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace swiftformer {

struct Bf16 {
  uint16_t bits;
};

// Of dense values; rows have `channels` values each. Nothing is aligned, and outputs may not overlap inputs.
struct TrainingKernels {
  const char* name;

  void (*gelu)(const Bf16* x, int64_t count, Bf16* y);

  // The gradient of x from that of GELU(x).
  void (*gelu_gradient)(const Bf16* gradient, const Bf16* x, int64_t count, Bf16* to);

  // x + scale * branch, with a scale for each channel.
  void (*add_scaled)(const float* x, const float* scale, const Bf16* branch, int64_t rows, int channels, float* to);
  void (*add_scaled_to_bf16)(const Bf16* x, const float* scale, const Bf16* branch, int64_t rows, int channels,
                             float* to);

  // The gradient of `branch` there, from that of the sum; adds that of `scale` to `sums`.
  void (*scaled_gradient)(const float* gradient, const float* scale, const Bf16* branch, int64_t rows, int channels,
                          Bf16* to, double* sums);

  // Of each channel: adds the sum of x - shift to `sums`, and that of its squares behind them.
  void (*moments)(const Bf16* x, int64_t rows, int channels, const float* shift, double* sums);

  // (x - mean) * factor + bias
  void (*normalize)(const Bf16* x, int64_t rows, int channels, const float* mean, const float* factor,
                    const float* bias, Bf16* y);

  // Of each channel: adds the sum of the gradient to `sums`, and that of gradient * (x - mean) behind them.
  void (*normalize_sums)(const Bf16* gradient, const Bf16* x, int64_t rows, int channels, const float* mean,
                         double* sums);

  // gradient * factor + (x - mean) * slope + offset
  void (*normalize_gradient)(const Bf16* gradient, const Bf16* x, int64_t rows, int channels, const float* mean,
                             const float* factor, const float* slope, const float* offset, Bf16* to);

  // Rows divided by their L2 norms, and `inverse`, what they were multiplied by, of each; zeros stay zeros.
  void (*l2_normalize)(const Bf16* x, int64_t rows, int channels, Bf16* y, float* inverse);

  // (gradient - y * (y . gradient)) * inverse
  void (*l2_normalize_gradient)(const Bf16* gradient, const Bf16* y, const float* inverse, int64_t rows, int channels,
                                Bf16* to);

  // 3x3 depth-wise convolution of one row of a map of `width` pixels. `lines` are the rows above, at and below; a
  // missing one points to zeros. Weights are `(9, channels)`, then the bias, with `channels` filled up to `lanes`.
  void (*depth_wise)(const float* const lines[3], int width, int channels, const float* weights, Bf16* y);
  void (*depth_wise_of_bf16)(const Bf16* const lines[3], int width, int channels, const float* weights, Bf16* y);

  // The gradient of the row `x`, from those of the rows above, at and below in the result; weights are those of the
  // taps in reverse. Adds the gradients of weights and bias to `sums`, which are laid out alike.
  void (*depth_wise_gradient)(const Bf16* const lines[3], const float* x, int width, int channels, const float* weights,
                              float* to, float* sums);
  void (*depth_wise_gradient_of_bf16)(const Bf16* const lines[3], const Bf16* x, int width, int channels,
                                      const float* weights, Bf16* to, float* sums);

  // Dense rows of float32, `stride` apart, to dense ones of bfloat16.
  void (*to_bf16)(const float* from, int stride, int64_t rows, int channels, Bf16* to);

  // Of `lanes` columns of `rows` rows, an even number, `stride` apart: GELU of the values, and the gradient of these
  // from that of GELU; both as words of two rows below each other, `words_apart` apart, and the gradient as rows as
  // well. Gives its sums.
  void (*gelu_in_pairs)(const float* values, const float* gradient, int stride, int rows, uint32_t* activated,
                        uint32_t* slopes, int words_apart, Bf16* to, int to_stride, float* sums);

  // Rows of bfloat16, an even number, to one row for each channel, of words of two of these rows below each other.
  void (*turn_in_pairs)(const Bf16* from, int stride, int rows, int channels, uint32_t* to, int to_stride);
};

extern const TrainingKernels plain_training;
#if defined(SWIFTFORMER_HAS_AVX512_BF16)
extern const TrainingKernels avx512_training;
#endif

// Names of the instruction sets, better ones last; `plain` is a reference.
std::vector<std::string> training_supported();

// Throws std::invalid_argument where this processor or this build lacks the instruction set.
const TrainingKernels& training_kernels_for(const std::string& isa);

// Whether the process has threads of GNU OpenMP, as PyTorch brings them: without, there is one thread for all.
bool has_openmp();

// The same for values in memory, in `threads` threads of OpenMP. `x_is_bf16`: else it is float32.
void gelu(const TrainingKernels& kernels, const Bf16* x, int64_t count, Bf16* y, int threads);
void gelu_gradient(const TrainingKernels& kernels, const Bf16* gradient, const Bf16* x, int64_t count, Bf16* to,
                   int threads);

// The same in float32, with kernels of that precision.
void gelu(const Kernels& kernels, const float* x, int64_t count, float* y, int threads);
void gelu_gradient(const Kernels& kernels, const float* gradient, const float* x, int64_t count, float* to,
                   int threads);

void add_scaled(const TrainingKernels& kernels, const void* x, bool x_is_bf16, const float* scale, const Bf16* branch,
                int64_t rows, int channels, float* to, int threads);
// Overwrites `scale_gradient`.
void scaled_gradient(const TrainingKernels& kernels, const float* gradient, const float* scale, const Bf16* branch,
                     int64_t rows, int channels, Bf16* to, float* scale_gradient, int threads);

// BatchNorm over all rows, in training. Of each channel `mean` and `inverse`, 1 / sqrt(variance + eps), are outputs of
// the first and inputs of the second; weights and biases are float32.
void batch_norm(const TrainingKernels& kernels, const Bf16* x, int64_t rows, int channels, const float* weight,
                const float* bias, float eps, Bf16* y, float* mean, float* inverse, int threads);
void batch_norm_gradient(const TrainingKernels& kernels, const Bf16* gradient, const Bf16* x, int64_t rows,
                         int channels, const float* weight, const float* mean, const float* inverse, Bf16* to,
                         float* weight_gradient, float* bias_gradient, int threads);

// Each of the rows divided by its L2 norm; `inverse` is an output of the first and an input of the second.
void l2_normalize(const TrainingKernels& kernels, const Bf16* x, int64_t rows, int channels, Bf16* y, float* inverse,
                  int threads);
void l2_normalize_gradient(const TrainingKernels& kernels, const Bf16* gradient, const Bf16* y, const float* inverse,
                           int64_t rows, int channels, Bf16* to, int threads);

// 3x3 depth-wise convolution with zeros around it, of maps `(pictures, height, width, channels)`; weights are float32,
// `(channels, 3, 3)`.
struct Maps {
  int64_t pictures;
  int height, width, channels;
};
void depth_wise(const TrainingKernels& kernels, const void* x, bool x_is_bf16, const Maps& maps, const float* weight,
                const float* bias, Bf16* y, int threads);
// `to`, the gradient of x, is of x's type. Overwrites the other two.
void depth_wise_gradient(const TrainingKernels& kernels, const Bf16* gradient, const void* x, bool x_is_bf16,
                         const Maps& maps, const float* weight, void* to, float* weight_gradient, float* bias_gradient,
                         int threads);

// y = project(gelu(expand(x))) of rows of `channels` values, with `hidden` ones between; both even numbers. Weights are
// float32: (hidden, channels) and (channels, hidden). What lies between is nowhere stored whole: the gradient computes
// it again. `products` are kernels of bfloat16.
struct Mlp {
  int channels, hidden;
  const float *expand, *expand_bias, *project, *project_bias;
};
void mlp(const Kernels& products, const TrainingKernels& kernels, const Mlp& layer, const Bf16* x, int64_t rows,
         Bf16* y, int threads);
// Overwrites the gradients of weights and biases, which are laid out as these.
struct MlpGradients {
  float *expand, *expand_bias, *project, *project_bias;
};
void mlp_gradient(const Kernels& products, const TrainingKernels& kernels, const Mlp& layer, const Bf16* gradient,
                  const Bf16* x, int64_t rows, Bf16* to, const MlpGradients& of, int threads);

}  // namespace swiftformer
