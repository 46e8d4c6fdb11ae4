// A fused SwiftFormer: layers with packed weights, and how maps go through them.

#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "kernels/kernels.h"
#include "network/memory.h"
#include "network/packing.h"
#include "threads/threads.h"

namespace swiftformer {

// 3x3, stride 2, padding 1, over the pixels, with ReLU,
struct FirstConvolution {
  Product product;
  int inputs;
  bool to_bf16;  // its map is kept in bfloat16, with a pixel of zeros on each side
};

// over such a map, 3x3, stride 2, padding 1, with ReLU,
struct StemConvolution {
  Product product;
  int inputs;
};

// or over any other, padding 1.
struct Convolution {
  Product product;
  bool relu;
  int inputs, stride;
};

// x + project(gelu(expand(depth_wise(x))))
struct Branch {
  Memory<float> depth_wise;  // (10, channels): nine taps and the bias
  Product expand, project;
};

// A local representation, efficient additive attention and an MLP, each of the latter added to its input.
struct Encoder {
  Branch local;
  Product key_query, output;
  Memory<float> score;  // empty: scores are 1
  bool normalize;
  float pooled_scale;
  Product expand, project;
};

struct MapOutput {
  Memory<float> factor, shift;  // both empty: the map as it is
  int channels;
};

struct Head {
  Product product;
};

// Of feature pyramids (arXiv 1612.03144): a product of the map at this place is kept as the next level, the finest
// first,
struct Lateral {
  Product product;
};

// and the map goes on as a level plus the next coarser one, whose every pixel counts for those that it covers. Levels
// are taken from the coarsest to the finest.
struct PyramidLevel {
  int index;
};

// To the size of a level, bilinear between the centres of pixels.
struct Enlarging {
  int level;
};

// Scores of each pixel, enlarged to the finest level and added to those that are there already;
struct Scores {
  Product product;
  bool first;
};

// their sum is an output.
struct ScoresOutput {
  int classes;
};

using Layer = std::variant<FirstConvolution, StemConvolution, Convolution, Branch, Encoder, MapOutput, Head, Lateral,
                           PyramidLevel, Enlarging, Scores, ScoresOutput>;

struct Pixels {
  const float* planes;    // (images, channels, height, width), or
  const uint8_t* packed;  // (images, height, width, channels)
  int images, height, width;
};

class Network {
 public:
  static constexpr int most_pyramid_levels = 8;

  Network(const std::string& isa, const std::string& precision, int threads, bool pin);
  ~Network();

  // Layers in their order, until `freeze`. Throw std::invalid_argument where shapes do not fit.
  void stem(const Weight& weight1, const Weight& bias1, const Weight& weight2, const Weight& bias2,
            const std::vector<float>& mean, const std::vector<float>& std);
  void downsampling(const Weight& weight, const Weight& bias);
  void branch(const std::vector<Weight>& weights);
  void encoder(const std::vector<Weight>& local, const std::vector<Weight>& attention, const Weight* score,
               bool normalize, float pooled_scale, const std::vector<Weight>& mlp);
  void output(const Weight* factor, const Weight* shift);
  void head(const Weight& weight, const Weight& bias);
  void lateral(const Weight& weight, const Weight& bias);
  void pyramid_level(int index);
  void convolution(const Weight& weight, const Weight& bias, bool relu);
  void enlarging(int level);
  void scores(const Weight& weight, const Weight& bias);
  void scores_output();

  // No more layers, unless `check` throws: what follows is asked of a network that stays as it is. `run` does it as
  // well.
  void freeze(const std::function<void()>& check = [] {});
  bool frozen() const { return frozen_.load(std::memory_order_acquire); }

  // Shapes of what `run` writes: (images, classes), or (images, channels, height, width) for each map and for
  // scores of pixels.
  std::vector<std::vector<size_t>> outputs(const Pixels& pixels) const;

  // From any thread; calls at once take turns. Allocates only where pictures need more memory than any before, and in
  // a forked process.
  void run(const Pixels& pixels, const std::vector<float*>& outputs);

  // Seconds of each layer in the last run, over all its pictures, of a thread on average.
  std::vector<double> layer_seconds();

  std::string isa() const { return kernels_.name; }
  // What it computes in: fp32 instead of bf16 where the instruction set has none.
  std::string precision() const { return precision_; }
  int threads() const { return thread_count_; }
  int input_channels() const { return input_channels_; }
  bool takes_uint8() const { return !pixel_factor_.empty(); }

 private:
  struct Pass;

  Product packed(const Kernels& kernels, const Weight& weight, const Weight& bias, const std::vector<int>& source,
                 Operand operand = Operand::map) {
    return swiftformer::packed(kernels, weight, bias, source, operand, work().threads);
  }
  Branch packed_branch(const std::vector<Weight>& weights);
  void expect(const Weight& weight, const std::vector<int>& shape, const char* name) const;
  void expect_stem() const;
  void expect_level(int index) const;
  void add_convolution(const Weight& weight, const Weight& bias, bool relu, int stride, const char* name);

  // Values and words that some pictures need; those of the second line for each thread.
  struct Room {
    size_t map = 0, kept = 0, key_query = 0, sums = 0, zeros = lanes;
    size_t operand = 0, hidden = 0, rows = 0;
    size_t operand_of_all = 0, hidden_of_all = 0;  // where threads share columns of matrices
  };
  Room room_for(int images, int height, int width, bool alone) const;

  // What calls change.
  struct Work {
    Work(int threads, bool pin);
    void reserve(const Kernels& kernels, const Room& of_thread, const Room& of_all);

    const int process;
    std::mutex mutex;
    Threads threads;
    std::vector<double> layer_seconds;  // (threads, layers)
    Memory<float> maps[2], kept, key_query, sums, zeros;
    std::vector<Memory<uint32_t>> operand, hidden, rows;  // of each thread
    Memory<uint32_t> operand_of_all, hidden_of_all;
  };
  Work& work();
  struct Turn;
  struct Adding;

  const Kernels& kernels_;
  const Kernels& outer_;  // of the first and the last layers, where these kernels do not serve
  std::string precision_;
  const int thread_count_;
  const bool pin_;
  std::vector<Layer> layers_;
  int input_channels_ = 0, channels_ = 0;
  int pyramid_channels_ = 0, pyramid_levels_ = 0, pyramid_left_ = 0, classes_ = 0;
  std::vector<float> pixel_factor_, pixel_shift_;
  std::atomic<bool> adding_{false}, frozen_{false};
  std::atomic<Work*> work_;
};

// Multiply-adds per second of one thread at best, in products whose operand and matrix stay in its caches.
double product_limit(const Kernels& kernels);

}  // namespace swiftformer
