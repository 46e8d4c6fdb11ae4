#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <climits>
#include <optional>
#include <stdexcept>

#include "kernels/cpu.h"
#include "network/network.h"
#include "training/training.h"

namespace nb = nanobind;
using namespace nb::literals;
using swiftformer::Network;
using swiftformer::Pixels;
using swiftformer::Weight;

namespace {

using Array = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Planes = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Packed = nb::ndarray<const uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float>;
using Release = nb::call_guard<nb::gil_scoped_release>;

int side_of(size_t size) {
  if (size > INT_MAX) throw std::invalid_argument("expected sides below 2^31, found " + std::to_string(size));
  return static_cast<int>(size);
}

Weight weight_of(const Array& array) {
  Weight weight{array.data(), {}};
  for (size_t i = 0; i < array.ndim(); ++i) weight.shape.push_back(side_of(array.shape(i)));
  return weight;
}

std::vector<Weight> weights_of(std::initializer_list<const Array*> arrays) {
  std::vector<Weight> weights;
  for (const Array* array : arrays) weights.push_back(weight_of(*array));
  return weights;
}

void check(const Network& network, const Pixels& pixels, size_t channels) {
  if (pixels.packed && !network.takes_uint8()) {
    throw nb::value_error("expected a stem with mean and std for uint8 pictures");
  }
  if (static_cast<int>(channels) != network.input_channels()) {
    throw nb::value_error(("expected pictures of " + std::to_string(network.input_channels()) + " channels, found " +
                           std::to_string(channels))
                              .c_str());
  }
  if (pixels.images < 1 || pixels.height < 1 || pixels.width < 1)
    throw nb::value_error("expected pictures, found none");
  const std::string size = std::to_string(pixels.height) + "x" + std::to_string(pixels.width);
  if (static_cast<int64_t>(pixels.height) * pixels.width > INT_MAX) {
    throw nb::value_error(("expected pictures of less than 2^31 pixels, found " + size).c_str());
  }
  if (std::max(pixels.height, pixels.width) > 1 << 20) {  // a side times channels is an int in many places
    throw nb::value_error(("expected sides of at most 2^20, found " + size).c_str());
  }
}

std::vector<Result> run(Network& network, const Pixels& pixels, size_t channels) {
  if (network.frozen()) {
    check(network, pixels, channels);
  } else {
    nb::gil_scoped_release release;  // a layer that another thread adds may take its time
    network.freeze([&] { check(network, pixels, channels); });
  }
  std::vector<Result> results;
  std::vector<float*> places;
  for (const std::vector<size_t>& shape : network.outputs(pixels)) {
    size_t size = 1;
    for (size_t side : shape) size *= side;
    float* values = new float[size];
    nb::capsule owner(values, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
    results.emplace_back(values, shape.size(), shape.data(), owner);
    places.push_back(values);
  }
  {
    nb::gil_scoped_release release;
    network.run(pixels, places);
  }
  return results;
}

// Addresses of dense values: a tensor of PyTorch has them, and numpy has no bfloat16.
template <class Value>
Value* at(uintptr_t address) {
  return reinterpret_cast<Value*>(address);
}

// Of bfloat16: the best ones, but for the reference.
const swiftformer::Kernels& products_for(const std::string& isa) {
  return swiftformer::kernels_for(isa == "plain" ? isa : "auto", "bf16");
}

void add_training(nb::module_ m) {
  using namespace swiftformer;
  m.def("supported", &training_supported, "Names of this processor's instruction sets, the best last.");
  m.def("has_openmp", &has_openmp, "Whether GNU OpenMP's threads are there to be used, as PyTorch brings them.");
  m.def(
      "gelu",
      [](uintptr_t x, int64_t count, uintptr_t y, int threads, const std::string& isa) {
        gelu(training_kernels_for(isa), at<const Bf16>(x), count, at<Bf16>(y), threads);
      },
      "x"_a, "count"_a, "y"_a, "threads"_a, "isa"_a, Release(), "GELU of bfloat16.");
  m.def(
      "gelu_gradient",
      [](uintptr_t gradient, uintptr_t x, int64_t count, uintptr_t to, int threads, const std::string& isa) {
        gelu_gradient(training_kernels_for(isa), at<const Bf16>(gradient), at<const Bf16>(x), count, at<Bf16>(to),
                      threads);
      },
      "gradient"_a, "x"_a, "count"_a, "to"_a, "threads"_a, "isa"_a, Release(),
      "The gradient of x from that of GELU(x), all bfloat16.");
  m.def(
      "gelu_float32",
      [](uintptr_t x, int64_t count, uintptr_t y, int threads, const std::string& isa) {
        gelu(kernels_for(isa, "fp32"), at<const float>(x), count, at<float>(y), threads);
      },
      "x"_a, "count"_a, "y"_a, "threads"_a, "isa"_a, Release(), "GELU of float32; any instruction set, or `auto`.");
  m.def(
      "gelu_gradient_float32",
      [](uintptr_t gradient, uintptr_t x, int64_t count, uintptr_t to, int threads, const std::string& isa) {
        gelu_gradient(kernels_for(isa, "fp32"), at<const float>(gradient), at<const float>(x), count, at<float>(to),
                      threads);
      },
      "gradient"_a, "x"_a, "count"_a, "to"_a, "threads"_a, "isa"_a, Release(),
      "The gradient of x from that of GELU(x), all float32.");
  m.def(
      "add_scaled",
      [](uintptr_t x, bool x_is_bf16, uintptr_t scale, uintptr_t branch, int64_t rows, int channels, uintptr_t to,
         int threads, const std::string& isa) {
        add_scaled(training_kernels_for(isa), at<const void>(x), x_is_bf16, at<const float>(scale),
                   at<const Bf16>(branch), rows, channels, at<float>(to), threads);
      },
      "x"_a, "x_is_bf16"_a, "scale"_a, "branch"_a, "rows"_a, "channels"_a, "to"_a, "threads"_a, "isa"_a, Release(),
      "x + scale * branch, float32, of x in float32 or bfloat16 and a branch in bfloat16; a scale for each channel.");
  m.def(
      "scaled_gradient",
      [](uintptr_t gradient, uintptr_t scale, uintptr_t branch, int64_t rows, int channels, uintptr_t to,
         uintptr_t scale_gradient, int threads, const std::string& isa) {
        swiftformer::scaled_gradient(training_kernels_for(isa), at<const float>(gradient), at<const float>(scale),
                                     at<const Bf16>(branch), rows, channels, at<Bf16>(to), at<float>(scale_gradient),
                                     threads);
      },
      "gradient"_a, "scale"_a, "branch"_a, "rows"_a, "channels"_a, "to"_a, "scale_gradient"_a, "threads"_a, "isa"_a,
      Release(), "The gradients of branch and of scale in add_scaled, from that of its result.");
  m.def(
      "batch_norm",
      [](uintptr_t x, int64_t rows, int channels, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
         uintptr_t mean, uintptr_t inverse, int threads, const std::string& isa) {
        batch_norm(training_kernels_for(isa), at<const Bf16>(x), rows, channels, at<const float>(weight),
                   at<const float>(bias), eps, at<Bf16>(y), at<float>(mean), at<float>(inverse), threads);
      },
      "x"_a, "rows"_a, "channels"_a, "weight"_a, "bias"_a, "eps"_a, "y"_a, "mean"_a, "inverse"_a, "threads"_a, "isa"_a,
      Release(), "BatchNorm of bfloat16 in training; also gives the means and 1 / sqrt(variance + eps), in float32.");
  m.def(
      "batch_norm_gradient",
      [](uintptr_t gradient, uintptr_t x, int64_t rows, int channels, uintptr_t weight, uintptr_t mean,
         uintptr_t inverse, uintptr_t to, uintptr_t weight_gradient, uintptr_t bias_gradient, int threads,
         const std::string& isa) {
        batch_norm_gradient(training_kernels_for(isa), at<const Bf16>(gradient), at<const Bf16>(x), rows, channels,
                            at<const float>(weight), at<const float>(mean), at<const float>(inverse), at<Bf16>(to),
                            at<float>(weight_gradient), at<float>(bias_gradient), threads);
      },
      "gradient"_a, "x"_a, "rows"_a, "channels"_a, "weight"_a, "mean"_a, "inverse"_a, "to"_a, "weight_gradient"_a,
      "bias_gradient"_a, "threads"_a, "isa"_a, Release(),
      "The gradients of x, weight and bias in batch_norm, from that of its result.");
  m.def(
      "l2_normalize",
      [](uintptr_t x, int64_t rows, int channels, uintptr_t y, uintptr_t inverse, int threads, const std::string& isa) {
        l2_normalize(training_kernels_for(isa), at<const Bf16>(x), rows, channels, at<Bf16>(y), at<float>(inverse),
                     threads);
      },
      "x"_a, "rows"_a, "channels"_a, "y"_a, "inverse"_a, "threads"_a, "isa"_a, Release(),
      "Rows of bfloat16 divided by their L2 norms; also gives what they were multiplied by, in float32.");
  m.def(
      "l2_normalize_gradient",
      [](uintptr_t gradient, uintptr_t y, uintptr_t inverse, int64_t rows, int channels, uintptr_t to, int threads,
         const std::string& isa) {
        l2_normalize_gradient(training_kernels_for(isa), at<const Bf16>(gradient), at<const Bf16>(y),
                              at<const float>(inverse), rows, channels, at<Bf16>(to), threads);
      },
      "gradient"_a, "y"_a, "inverse"_a, "rows"_a, "channels"_a, "to"_a, "threads"_a, "isa"_a, Release(),
      "The gradient of x in l2_normalize, from that of its result.");
  m.def(
      "depth_wise",
      [](uintptr_t x, bool x_is_bf16, int64_t pictures, int height, int width, int channels, uintptr_t weight,
         uintptr_t bias, uintptr_t y, int threads, const std::string& isa) {
        depth_wise(training_kernels_for(isa), at<const void>(x), x_is_bf16, {pictures, height, width, channels},
                   at<const float>(weight), at<const float>(bias), at<Bf16>(y), threads);
      },
      "x"_a, "x_is_bf16"_a, "pictures"_a, "height"_a, "width"_a, "channels"_a, "weight"_a, "bias"_a, "y"_a, "threads"_a,
      "isa"_a, Release(),
      "3x3 depth-wise convolution of (pictures, height, width, channels), float32 or bfloat16, with zeros around it; "
      "gives bfloat16. Weights (channels, 3, 3) and biases are float32.");
  m.def(
      "depth_wise_gradient",
      [](uintptr_t gradient, uintptr_t x, bool x_is_bf16, int64_t pictures, int height, int width, int channels,
         uintptr_t weight, uintptr_t to, uintptr_t weight_gradient, uintptr_t bias_gradient, int threads,
         const std::string& isa) {
        depth_wise_gradient(training_kernels_for(isa), at<const Bf16>(gradient), at<const void>(x), x_is_bf16,
                            {pictures, height, width, channels}, at<const float>(weight), at<void>(to),
                            at<float>(weight_gradient), at<float>(bias_gradient), threads);
      },
      "gradient"_a, "x"_a, "x_is_bf16"_a, "pictures"_a, "height"_a, "width"_a, "channels"_a, "weight"_a, "to"_a,
      "weight_gradient"_a, "bias_gradient"_a, "threads"_a, "isa"_a, Release(),
      "The gradients of x, of x's type, and of weight and bias in depth_wise, from that of its result.");
  m.def(
      "mlp",
      [](uintptr_t x, int64_t rows, int channels, int hidden, uintptr_t expand, uintptr_t expand_bias,
         uintptr_t project, uintptr_t project_bias, uintptr_t y, int threads, const std::string& isa) {
        mlp(products_for(isa), training_kernels_for(isa),
            {channels, hidden, at<const float>(expand), at<const float>(expand_bias), at<const float>(project),
             at<const float>(project_bias)},
            at<const Bf16>(x), rows, at<Bf16>(y), threads);
      },
      "x"_a, "rows"_a, "channels"_a, "hidden"_a, "expand"_a, "expand_bias"_a, "project"_a, "project_bias"_a, "y"_a,
      "threads"_a, "isa"_a, Release(),
      "project(gelu(expand(x))) of rows of bfloat16; weights (hidden, channels) and (channels, hidden) and biases are "
      "float32, channels and hidden even numbers.");
  m.def(
      "mlp_gradient",
      [](uintptr_t gradient, uintptr_t x, int64_t rows, int channels, int hidden, uintptr_t expand,
         uintptr_t expand_bias, uintptr_t project, uintptr_t to, uintptr_t of_expand, uintptr_t of_expand_bias,
         uintptr_t of_project, uintptr_t of_project_bias, int threads, const std::string& isa) {
        mlp_gradient(
            products_for(isa), training_kernels_for(isa),
            {channels, hidden, at<const float>(expand), at<const float>(expand_bias), at<const float>(project),
             nullptr},
            at<const Bf16>(gradient), at<const Bf16>(x), rows, at<Bf16>(to),
            {at<float>(of_expand), at<float>(of_expand_bias), at<float>(of_project), at<float>(of_project_bias)},
            threads);
      },
      "gradient"_a, "x"_a, "rows"_a, "channels"_a, "hidden"_a, "expand"_a, "expand_bias"_a, "project"_a, "to"_a,
      "of_expand"_a, "of_expand_bias"_a, "of_project"_a, "of_project_bias"_a, "threads"_a, "isa"_a, Release(),
      "The gradients of x and of all weights and biases in mlp, from that of its result.");
}

}  // namespace

NB_MODULE(_core, m) {
  add_training(m.def_submodule("training", "For PyTorch on a CPU; all arguments are addresses of dense values."));

  m.def("supported", &swiftformer::supported,
        "Names of the instruction sets of this processor that there are kernels for, the best last.");
  m.def("built", &swiftformer::built,
        "Names of all instruction sets that there are kernels for, the best last: those that the compiler knew.");

  m.def(
      "product_limit",
      [](const std::string& isa, const std::string& precision) {
        return swiftformer::product_limit(swiftformer::kernels_for(isa, precision));
      },
      "isa"_a = "auto", "precision"_a = "fp32",
      "Multiply-adds per second of one thread at best, in products whose operands stay in its caches.");

  nb::class_<Network>(
      m, "Network",
      "A fused SwiftFormer. Its layers are added in their order; then it is called with pictures, from any thread,\n"
      "in a forked process as well.\n\n"
      "Weights are contiguous float32 arrays in torch's layout, with BatchNorms and layer scales folded.")
      .def(
          nb::init<const std::string&, const std::string&, int, bool>(), "isa"_a = "auto", "precision"_a = "fp32",
          "threads"_a = 0, "pin"_a = false,
          "isa: auto, or one of supported(). precision: fp32, bf16 or int8. threads: the most that work, 0 for one on\n"
          "each processor; less where calls of other networks at the same time have some of the processors. pin: keep\n"
          "each thread but the caller's on a processor of its own.")
      .def_prop_ro("isa", &Network::isa)
      .def_prop_ro("precision", &Network::precision)
      .def_prop_ro("threads", &Network::threads)
      .def_prop_ro("layer_seconds", &Network::layer_seconds, Release(),
                   "Of each layer in the last call; the stem counts as two.")
      .def(
          "stem",
          [](Network& network, const Array& weight1, const Array& bias1, const Array& weight2, const Array& bias2,
             const std::optional<std::vector<float>>& mean, const std::optional<std::vector<float>>& std) {
            network.stem(weight_of(weight1), weight_of(bias1), weight_of(weight2), weight_of(bias2),
                         mean.value_or(std::vector<float>()), std.value_or(std::vector<float>()));
          },
          "weight1"_a, "bias1"_a, "weight2"_a, "bias2"_a, "mean"_a = nb::none(), "std"_a = nb::none(), Release(),
          "Two 3x3 convolutions of stride 2, each with a ReLU. mean and std, fractions of 1, are for uint8 pictures.")
      .def(
          "downsampling",
          [](Network& network, const Array& weight, const Array& bias) {
            network.downsampling(weight_of(weight), weight_of(bias));
          },
          "weight"_a, "bias"_a, Release(), "A 3x3 convolution of stride 2.")
      .def(
          "branch",
          [](Network& network, const Array& depth_wise, const Array& depth_wise_bias, const Array& expand,
             const Array& expand_bias, const Array& project, const Array& project_bias) {
            network.branch(weights_of({&depth_wise, &depth_wise_bias, &expand, &expand_bias, &project, &project_bias}));
          },
          "depth_wise"_a, "depth_wise_bias"_a, "expand"_a, "expand_bias"_a, "project"_a, "project_bias"_a, Release(),
          "x + project(gelu(expand(depth_wise(x))))")
      .def(
          "encoder",
          [](Network& network, const Array& depth_wise, const Array& depth_wise_bias, const Array& local_expand,
             const Array& local_expand_bias, const Array& local_project, const Array& local_project_bias,
             const Array& key_query, const Array& key_query_bias, const std::optional<Array>& score,
             const Array& output, const Array& output_bias, bool normalize, float pooled_scale, const Array& expand,
             const Array& expand_bias, const Array& project, const Array& project_bias) {
            std::optional<Weight> scores;
            if (score) scores = weight_of(*score);
            network.encoder(weights_of({&depth_wise, &depth_wise_bias, &local_expand, &local_expand_bias,
                                        &local_project, &local_project_bias}),
                            weights_of({&key_query, &key_query_bias, &output, &output_bias}),
                            scores ? &*scores : nullptr, normalize, pooled_scale,
                            weights_of({&expand, &expand_bias, &project, &project_bias}));
          },
          "depth_wise"_a, "depth_wise_bias"_a, "local_expand"_a, "local_expand_bias"_a, "local_project"_a,
          "local_project_bias"_a, "key_query"_a, "key_query_bias"_a, "score"_a.none(), "output"_a, "output_bias"_a,
          "normalize"_a, "pooled_scale"_a, "expand"_a, "expand_bias"_a, "project"_a, "project_bias"_a, Release(),
          "A branch, then attention and an MLP, each added to its input.")
      .def(
          "output",
          [](Network& network, const std::optional<Array>& factor, const std::optional<Array>& shift) {
            std::optional<Weight> factors, shifts;
            if (factor) factors = weight_of(*factor);
            if (shift) shifts = weight_of(*shift);
            network.output(factors ? &*factors : nullptr, shifts ? &*shifts : nullptr);
          },
          "factor"_a = nb::none(), "shift"_a = nb::none(), Release(),
          "The map at this place is an output, times factor plus shift.")
      .def(
          "head",
          [](Network& network, const Array& weight, const Array& bias) {
            network.head(weight_of(weight), weight_of(bias));
          },
          "weight"_a, "bias"_a, Release(), "The mean over the pixels and a linear layer.")
      .def(
          "lateral",
          [](Network& network, const Array& weight, const Array& bias) {
            network.lateral(weight_of(weight), weight_of(bias));
          },
          "weight"_a, "bias"_a, Release(),
          "A product of the map at this place is the next level of a pyramid, the finest first.")
      .def("pyramid_level", &Network::pyramid_level, "index"_a, Release(),
           "Go on with a level and what the coarser ones add to it; each level once, the coarsest first.")
      .def(
          "convolution",
          [](Network& network, const Array& weight, const Array& bias, bool relu) {
            network.convolution(weight_of(weight), weight_of(bias), relu);
          },
          "weight"_a, "bias"_a, Release(), "relu"_a, "A 3x3 convolution of stride 1.")
      .def("enlarging", &Network::enlarging, "level"_a, Release(), "To the size of a level, bilinear.")
      .def(
          "scores",
          [](Network& network, const Array& weight, const Array& bias) {
            network.scores(weight_of(weight), weight_of(bias));
          },
          "weight"_a, "bias"_a, Release(), "Scores of every pixel, enlarged to the finest level and added up.")
      .def("scores_output", &Network::scores_output, Release(), "The sum of the scores is an output.")
      .def(
          "__call__",
          [](Network& network, const Planes& pixels) {
            const Pixels pictures{pixels.data(), nullptr, side_of(pixels.shape(0)), side_of(pixels.shape(2)),
                                  side_of(pixels.shape(3))};
            return run(network, pictures, pixels.shape(1));
          },
          "pixels"_a.noconvert())
      .def(
          "__call__",
          [](Network& network, const Packed& pixels) {
            const Pixels pictures{nullptr, pixels.data(), side_of(pixels.shape(0)), side_of(pixels.shape(1)),
                                  side_of(pixels.shape(2))};
            return run(network, pictures, pixels.shape(3));
          },
          "pixels"_a.noconvert(),
          "Logits (N, classes), maps or scores (N, C, h, w), of normalised pictures (N, C, H, W) or of uint8 (N, H, W, "
          "C).")
      .def(
          "__call__",
          [](Network&, const nb::object& pixels) -> std::vector<Result> {
            std::string found = nb::type_name(pixels.type()).c_str();
            if (nb::hasattr(pixels, "dtype") && nb::hasattr(pixels, "shape")) {
              found =
                  nb::cast<std::string>(nb::str("{} {}").attr("format")(pixels.attr("dtype"), pixels.attr("shape")));
            }
            const std::string message =
                "expected a contiguous array (N, C, H, W) of float32 or (N, H, W, C) of uint8, found " + found;
            throw nb::type_error(message.c_str());
          },
          "pixels"_a.none());
}
