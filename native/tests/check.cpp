// Compares the engine with the same networks in double precision, without Python: run_checks.sh runs it with sanitizers
// and on emulated processors. Prints a line for each group; the exit code is 1 if something differs.
//
//     check [--quick] [--isa NAME] [--real] [--sizes promised]
//
// --real: without the kernels that emulate instructions. --sizes promised: nothing but promised.h.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "checks.h"
#include "gelus.h"
#include "groups.h"
#include "in_training.h"
#include "kernels/cpu.h"
#include "promised.h"

static std::atomic<long> allocations{0};

void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  ++allocations;
  const std::size_t step = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(step, (size + step - 1) / step * step)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace checks;
using swiftformer::filled;
using swiftformer::lanes;
using swiftformer::Then;

// Widths of released networks beside odd ones, of panels of one to seven vectors, and weights that threads share by
// columns.
std::vector<Model> models(bool quick) {
  Model usual(1, 3), odd(2, 3), maps(3, 4), pyramid(4, 3), gray(5, 1), many(6, 32), most(7, 64), heavy(8, 3);
  usual.stem(24, 48).branch(112).output(false).encoder(72, 96, true, true);
  usual.downsampling(56).branch(50).encoder(48, 60, false, true).output(true);
  usual.downsampling(28).encoder(33, 5, true, false).head(19);
  odd.stem(5, 18).branch(18).encoder(50, 17, true, true);
  odd.downsampling(50).encoder(20, 3, true, false).output(true);
  odd.downsampling(13).branch(16).encoder(13, 52, true, true).head(5);
  maps.stem(3, 5).encoder(7, 10, false, false).output(false).downsampling(3).branch(9).output(true);
  pyramid.stem(60, 18).lateral(20).downsampling(24).branch(30).lateral(20).downsampling(33).output(false).lateral(20);
  pyramid.level(2).convolution(20, false).convolution(17, true).enlarging(1).convolution(19, true).scores(7);
  pyramid.level(1).convolution(35, true).scores(7).convolution(21, true).output(true);
  pyramid.level(0).convolution(16, false).scores(7).encoder(9, 12, true, true).sum().output(false);
  // Where there is time, in bfloat16 as well, and a branch, which `nothing_left` has in any case.
  const int hidden = quick ? 1800 : 3600;
  heavy.stem(8, 10).downsampling(12).downsampling(300);
  if (!quick) heavy.branch(hidden);
  heavy.encoder(5, hidden, true, true).head(9);
  for (Model* model : {&gray, &many, &most}) model->stem(18, 7).output(true);
  return {usual, odd, maps, pyramid, gray, many, most, heavy};
}

struct Size {
  int height, width;
  std::vector<int> batches;
};

// Batches of which the pictures go through the layers all at once, a few at a time, and in unequal parts.
std::vector<Size> sizes(bool quick) {
  if (quick)
    return {{1, 1, {1, 3}}, {7, 5, {1, 2, 5}}, {13, 21, {11}}, {32, 96, {1}}, {2, 280, {1}}};  // the fourth fills tiles
  std::vector<int> all;
  for (int batch = 1; batch <= 17; ++batch) all.push_back(batch);
  return {{1, 1, all},      {7, 5, all},  {33, 47, {1, 2, 3, 17}}, {64, 48, {1, 5}}, {65, 97, {1, 2, 4}},
          {5, 270, {1, 2}}, {3, 235, {1}}};
}

struct Suite {
  bool quick;
  std::vector<Mode> modes;
  std::vector<Model> models = ::models(quick);
  std::vector<Example> examples = {};

  void prepare() {
    for (const Model& model : models) {
      for (const Size& size : sizes(quick)) {
        examples.emplace_back(model, size.batches.back(), size.height, size.width);
      }
    }
  }

  // Calls see(example, batch, as bytes, threads, outputs) for everything that a mode is to compute.
  template <class See>
  void each_run(const Mode& mode, See&& see) const {
    for (int threads : {1, 2, 5}) {
      if (quick && threads == 2 && mode.precision == "fp32") continue;
      if (quick && threads == 5 && mode.precision != "fp32") continue;
      size_t place = 0;
      for (const Model& model : models) {
        const auto network = network_of(mode, model, threads);
        for (const Size& size : sizes(quick)) {
          const Example& example = examples[place++];
          for (int batch : size.batches) {
            for (bool as_bytes : {false, true}) {
              if (as_bytes && batch > 3) continue;
              const std::string where = "network " + std::to_string(&model - models.data() + 1) + ", " +
                                        std::to_string(batch) + "x" + std::to_string(size.height) + "x" +
                                        std::to_string(size.width) + (as_bytes ? " bytes, " : " floats, ") +
                                        std::to_string(threads) + " threads";
              see(example, batch, where, run(*network, example.pixels(batch, as_bytes)));
            }
          }
        }
      }
    }
  }

  void networks(const Mode& mode) const {
    Worst worst;
    each_run(mode, [&](const Example& example, int batch, const std::string& where, const Outputs& found) {
      worst.see(example.difference(found, batch), where);
    });
    report("networks " + mode.name(), worst.found, allowed(mode), worst.where);
  }

  // What the library asks before it uses tiles, of kernels that are right and of some that are not.
  void asked_products(const Mode& mode) const {
    const Kernels& plain = swiftformer::kernels_for("plain", mode.precision);
    Kernels wrong = *mode.kernels;
    wrong.product = [](const swiftformer::Matrix& matrix, uint32_t*, int, int rows, Then, void* out, int out_stride,
                       const float*, int) {
      for (int r = 0; r < rows; ++r)
        std::copy_n(matrix.bias, matrix.columns, static_cast<float*>(out) + r * out_stride);
    };
    const bool right = swiftformer::multiplies_like(*mode.kernels, plain);
    report("asked products " + mode.name(), !right + swiftformer::multiplies_like(wrong, plain), 0, "");
  }

  // Words of a column as these kernels take them, of levels with their step.
  static std::vector<uint32_t> words_of(const Kernels& kernels, std::vector<float> column, float step = 1.0f) {
    const int per_word = kernels.values_per_word, of_part = kernels.depth_step / kernels.parts;
    const size_t of_step = of_part * per_word;
    column.resize((column.size() + of_step - 1) / of_step * of_step);
    std::vector<uint32_t> words(column.size() / per_word * kernels.parts);
    for (size_t i = 0; i < column.size(); ++i) {
      float left = column[i];
      if (per_word == 1) std::memcpy(&words[i], &left, sizeof left);
      if (per_word == 4) {
        const int level = static_cast<int>(std::nearbyint(left / step));
        words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(level)) << 8 * (i % 4);
      }
      for (int part = 0; per_word == 2 && part < kernels.parts; ++part) {
        const uint32_t half = rounded(left), bits = half << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        left -= value;
        if (kernels.parts == 1) {
          words[i / 2] |= half << 16 * (i % 2);
        } else {
          words[i / 32 * kernels.depth_step + part * lanes + i % lanes] |= half << (i % 32 < lanes ? 0 : 16);
        }
      }
    }
    return words;
  }

  // The step of a column: no sum of two times two neighbouring levels overflows an int16 where that is asked for.
  static float step_of(const Kernels& kernels, const std::vector<float>& column) {
    float step = 1e-30f / 127.0f;
    for (float value : column) step = std::max(step, std::fabs(value) / 127.0f);
    for (size_t half = 0; kernels.short_sums && half < column.size(); half += half % 4 == 0 ? 2 : 6) {
      float above = 0.0f, below = 0.0f;
      for (size_t i : {half, half + 1, half + 4, half + 5}) {
        if (i < column.size()) (column[i] > 0.0f ? above : below) += std::fabs(column[i]);
      }
      step = std::max(step, std::max(above, below) / 126.0f);
    }
    return step;
  }

  // Whether products of a uint8 with the levels of two words could leave an int16.
  static bool overflows(const std::vector<float>& column, float step) {
    for (size_t i = 0; i < column.size(); i += i % 4 == 0 ? 2 : 6) {
      int above = 0, below = 0;
      for (size_t input : {i, i + 1, i + 4, i + 5}) {
        if (input >= column.size()) continue;
        const int level = static_cast<int>(std::nearbyint(column[input] / step));
        (level > 0 ? above : below) += level;
      }
      if (255 * above > 32767 || 255 * below < -32768) return true;
    }
    return false;
  }

  // Weights are packed as kernels take them, by however many threads.
  void packing(const Mode& mode) const {
    const Kernels& kernels = *mode.kernels;
    constexpr int inputs = 77, width = 60;
    std::vector<int> source;
    for (int i = 0; i < inputs; ++i) source.push_back(i % 7 == 3 ? swiftformer::nowhere : i * 13 % width);
    std::mt19937 random(7);
    int wrong = 0;
    for (int outputs : {3, 70, 100}) {
      std::vector<float> weights(outputs * width), bias(outputs);
      for (float& value : weights) value = random() / 4294967296.0f - 0.5f;
      for (float& value : bias) value = random() / 4294967296.0f;
      for (int i = 0; i < width; ++i) {
        weights[i] = std::fabs(weights[i]);                   // of one sign
        weights[width + i] = i == 0 ? 127.0f : i % 9 + 0.5f;  // halfway between levels
        weights[2 * width + i] = 0.0f;
      }
      for (auto operand : {swiftformer::Operand::map, swiftformer::Operand::behind_gelu}) {
        for (int count : {1, 5}) {
          swiftformer::Threads threads(count, false);
          const swiftformer::Product product = swiftformer::packed(kernels, {weights.data(), {outputs, width}},
                                                                   {bias.data(), {outputs}}, source, operand, threads);
          const int columns = product.matrix.columns, depth = product.matrix.depth;
          wrong += columns != filled(outputs);
          for (int first = 0, of_panel; first < columns; first += of_panel) {
            of_panel = lanes * swiftformer::panel_of((columns - first) / lanes, kernels.widest);
            for (int column = first; column < first + of_panel; ++column) {
              std::vector<float> values(inputs);
              for (int i = 0; i < inputs && column < outputs; ++i) {
                if (source[i] != swiftformer::nowhere) values[i] = weights[column * width + source[i]];
              }
              const float step = kernels.levels ? step_of(kernels, values) : 1.0f;
              const std::vector<uint32_t> words = words_of(kernels, values, step);
              wrong += words.size() != static_cast<size_t>(depth);
              for (int k = 0; k < depth; ++k) {
                wrong += product.matrix.words[first * depth + k * of_panel + column - first] != words[k];
              }
              float expected_bias = column < outputs ? bias[column] : 0.0f;
              if (kernels.levels && column < outputs) {
                int sum = 0;
                for (float value : values) sum += static_cast<int>(std::nearbyint(value / step));
                const bool map = operand == swiftformer::Operand::map;
                const int start = sum * ((map ? -128 : 0) + (kernels.signed_levels ? 128 : 0));
                wrong += kernels.short_sums && overflows(values, step);
                wrong += product.matrix.step[column] != step || product.matrix.start[column] != start;
                if (!map) expected_bias += swiftformer::gelu_floor * step * sum;
              }
              wrong += product.matrix.bias[column] != expected_bias;
            }
          }
        }
      }
    }
    report("packing " + mode.name(), wrong, 0, "wrong words, steps, starts or biases");
  }

  // Of values of very different sizes, relative to the sum of the magnitudes: two parts of three would err by 3e-5.
  void exact_products(const Mode& mode) const {
    const Kernels& kernels = *mode.kernels;
    constexpr int values = 96, stride = 3 * values / 2 + lanes, outputs = 3 * lanes;
    std::mt19937 random(3);
    const auto some = [&](int powers) {
      return std::ldexp(random() / 4294967296.0f - 0.5f, static_cast<int>(random() % (2 * powers + 1)) - powers);
    };
    std::vector<std::vector<float>> columns(outputs);
    std::vector<float> weights;
    std::vector<int> source;
    for (std::vector<float>& column : columns) {
      for (int i = 0; i < values; ++i) column.push_back(some(12));
      weights.insert(weights.end(), column.begin(), column.end());
    }
    for (int i = 0; i < values; ++i) source.push_back(i);
    const std::vector<float> no_bias(outputs);
    swiftformer::Threads threads(1, false);
    const swiftformer::Product product =
        swiftformer::packed(kernels, {weights.data(), {outputs, values}}, {no_bias.data(), {outputs}}, source,
                            swiftformer::Operand::map, threads);
    std::vector<float> from(35 * values), sums(35 * outputs);
    for (float& value : from) value = some(12);
    for (int i = 0; i < values; ++i) from[i] = std::ldexp(from[i], 90);  // huge, and close to nothing
    for (int i = 0; i < values; ++i) from[values + i] = std::ldexp(from[values + i], -80);
    Worst worst;
    for (int rows = 1; rows <= 35; ++rows) {
      std::vector<uint32_t> operand(rows * stride);
      // In parts, as taps of pixels are.
      for (int r = 0; r < rows; ++r) {
        for (int first : {0, 16, 64}) {
          const int count = first == 0 ? 16 : first == 16 ? 48 : 32;
          kernels.convert(&from[r * values + first], count, &operand[r * stride], first);
        }
      }
      kernels.product(product.matrix, operand.data(), stride, rows, Then::store, sums.data(), outputs, sums.data(),
                      outputs);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < outputs; ++c) {
          double exact = 0, size = 0;
          for (int i = 0; i < values; ++i) {
            const double term = static_cast<double>(from[r * values + i]) * columns[c][i];
            exact += term;
            size += std::fabs(term);
          }
          worst.see(std::fabs(sums[r * outputs + c] - exact) / size, std::to_string(rows) + " rows");
        }
      }
    }
    if (kernels.release) kernels.release();
    report("products of float32 " + mode.name(), worst.found, 1e-6, worst.where);
  }

  // Rows become the same levels, but for one where a value lies between two, and the same levels the same sums.
  void levels(const Mode& mode) const {
    const Kernels& plain = swiftformer::kernels_for("plain", "int8");
    constexpr int used = 37, values = 4 * used + 12, depth = 48, stride = depth + 4;  // of any `depth_step`
    std::mt19937 random(5);
    std::vector<float> from(35 * values), bias(lanes), step(lanes);
    std::vector<int32_t> start(lanes);
    for (int c = 0; c < lanes; ++c) bias[c] = 0.5f - c, step[c] = 0.01f + 0.01f * c, start[c] = 300 * c - 1234;
    std::vector<uint32_t> words(depth * lanes);
    for (int i = 0; i < used * lanes; ++i) words[i] = random();
    for (uint32_t& word : words) word = mode.kernels->short_sums ? swiftformer::small_weights(word) : word;
    for (size_t i = 0; i < from.size(); ++i) from[i] = (1 + i / values % 5) * (random() / 4294967296.0f - 0.17f);
    std::vector<int32_t> own_start = start;
    for (int i = 0; i < used * lanes && mode.kernels->signed_levels; ++i) {
      for (int shift = 0; shift < 32; shift += 8) {
        own_start[i % lanes] += 128 * static_cast<int8_t>(words[i] >> shift & 0xff);
      }
    }
    Worst level, product;
    for (int rows = 1; rows <= 35; ++rows) {
      for (bool behind_gelu : {false, true}) {
        std::vector<uint32_t> operand(rows * stride), expected(rows * stride);
        const auto quantize = behind_gelu ? &Kernels::quantize_gelu : &Kernels::quantize;
        (mode.kernels->*quantize)(from.data(), values, rows, values, operand.data(), stride);
        (plain.*quantize)(from.data(), values, rows, values, expected.data(), stride);
        const std::string where = std::to_string(rows) + " rows";
        for (int i = 0; i < rows * stride; ++i) {
          const auto byte = [&](uint32_t word, int shift) { return static_cast<int>(word >> shift & 0xff); };
          if (i % stride < stride - 1) operand[i] ^= sign_of(*mode.kernels);
          for (int shift = 0; shift < 32 && i % stride < values / 4; shift += 8) {
            level.see(std::abs(byte(operand[i], shift) - byte(expected[i], shift)), where);
          }
        }
        std::vector<float> sums(rows * lanes), exact(rows * lanes);
        const auto multiply = [&](const Kernels& kernels, const std::vector<int32_t>& begin, float* to) {
          const swiftformer::Matrix matrix{words.data(), bias.data(), step.data(), begin.data(), depth, lanes, used};
          std::vector<uint32_t> rows_of = expected;
          for (int i = 0; i < rows * stride; ++i) rows_of[i] ^= i % stride < stride - 1 ? sign_of(kernels) : 0;
          kernels.product(matrix, rows_of.data(), stride, rows, Then::store, to, lanes, to, lanes);
        };
        multiply(*mode.kernels, own_start, sums.data());
        multiply(plain, start, exact.data());
        for (size_t i = 0; i < sums.size(); ++i) {
          product.see(std::fabs(sums[i] - exact[i]) / (1 + std::fabs(exact[i])), where);
        }
      }
    }
    report("levels like plain " + mode.name(), level.found, 1, level.where);
    report("products like plain " + mode.name(), product.found, 1e-6, product.where);
  }

  // Where a level differs by one, what comes behind it differs by a little.
  void like_plain(const Mode& mode) const {
    const Mode plain{"plain", mode.precision, nullptr};
    std::vector<Outputs> expected;
    each_run(plain, [&](const Example&, int, const std::string&, const Outputs& found) { expected.push_back(found); });
    Worst worst;
    size_t place = 0;
    each_run(mode, [&](const Example& example, int, const std::string& where, const Outputs& found) {
      const Outputs& other = expected[place++];
      for (size_t o = 0; o < found.size(); ++o) {
        for (size_t i = 0; i < found[o].size(); ++i) {
          worst.see(std::fabs(found[o][i] - other[o][i]) / example.largest[o], where);
        }
      }
    });
    report("networks like plain " + mode.name(), worst.found, mode.kernels->short_sums ? 11e-2 : 7e-2, worst.where);
  }

  // Four threads call one network at once, then two networks. Every result is the same to the last bit as that of a
  // network that did nothing else.
  void four_callers(const Mode& mode) const {
    const size_t per_model = sizes(quick).size();
    std::vector<std::unique_ptr<Network>> networks;
    std::vector<Outputs> expected[2];
    const auto pixels = [&](int model, int caller) {
      return examples[model * per_model + 1 + caller % 2].pixels(caller % 2 ? 1 : 1 + caller, caller > 1);
    };
    for (int model : {0, 1}) {
      networks.push_back(network_of(mode, models[model], 2));
      for (int caller = 0; caller < 4; ++caller) {
        expected[model].push_back(run(*network_of(mode, models[model], 2), pixels(model, caller)));
      }
    }
    std::atomic<int> different{0};
    for (int count : {1, 2}) {
      std::vector<std::thread> callers;
      for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&, caller] {
          for (int turn = 0; turn < (quick ? 3 : 20); ++turn) {
            const int model = (caller / 2 + turn) % count;
            if (run(*networks[model], pixels(model, caller)) != expected[model][caller]) ++different;
          }
        });
      }
      for (std::thread& caller : callers) caller.join();
    }
    report("four callers " + mode.name(), different, 0, "results that differ");
  }

  // Threads share columns of matrices of two depths: a picture that is not a number leaves nothing behind.
  void nothing_left(const Mode& mode) const {
    Model model(9, 3);
    model.stem(8, 10).downsampling(300).branch(3600).output(false).downsampling(332).branch(3600).output(false);
    const Example example(model, 1, 32, 32);
    const std::vector<float> odd(example.planes.size(), NAN);
    const auto network = network_of(mode, model, 2);
    run(*network, {odd.data(), nullptr, 1, 32, 32});
    const bool same =
        run(*network, example.pixels(1, false)) == run(*network_of(mode, model, 2), example.pixels(1, false));
    report("nothing left behind " + mode.name(), !same, 0, "");
  }

  void no_allocation(const Mode& mode) const {
    long found = 0;
    for (size_t i = 1; i < examples.size(); i += sizes(quick).size()) {
      const Pixels pixels = examples[i].pixels(std::min(3, examples[i].images), false);  // two threads share the third
      const auto network = network_of(mode, examples[i].model, 2);
      Outputs outputs = room_for(*network, pixels);
      const std::vector<float*> places = places_of(outputs);
      network->run(pixels, places);
      const long before = allocations;
      network->run(pixels, places);
      found += allocations - before;
    }
    report("allocations " + mode.name(), found, 0, "second runs");
  }
};

// Each table of kernels once. Where there are none, `error` is the library's.
std::vector<Mode> modes_of(const std::vector<std::string>& names, std::string& error) {
  std::vector<Mode> modes;
  for (const std::string& isa : names) {
    for (const char* precision : {"fp32", "bf16", "int8"}) {
      try {
        const Kernels* kernels = &swiftformer::kernels_for(isa, precision);
        bool known = false;
        for (const Mode& mode : modes) known |= mode.kernels == kernels;
        if (!known) modes.push_back({isa, precision, kernels});
      } catch (const std::invalid_argument& found) {
        if (error.empty()) error = found.what();
      }
    }
  }
  return modes;
}

}  // namespace

int main(int count, char** arguments) {
  bool quick = false, real = false, promised = false;
  std::vector<std::string> names = swiftformer::supported();
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--quick") {
      quick = true;
    } else if (argument == "--isa" && i + 1 < count) {
      names = {arguments[++i]};
    } else if (argument == "--real") {
      real = true;
    } else if (argument == "--sizes" && i + 1 < count && std::string(arguments[i + 1]) == "promised") {
      promised = true;
      ++i;
    } else {
      std::fprintf(stderr, "expected --quick, --isa NAME, --real or --sizes promised, found %s\n", argument.c_str());
      return 2;
    }
  }
  const auto emulated = [](const std::string& name) { return name.rfind("emulated", 0) == 0; };
  if (real && names.size() > 1) names.erase(std::remove_if(names.begin(), names.end(), emulated), names.end());
  std::string error;
  Suite suite{quick, modes_of(names, error)};
  if (suite.modes.empty()) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 2;
  }
  if (promised) {
    const Promised sizes(quick);
    for (const Mode& mode : suite.modes) sizes.check(mode);
    return failed ? 1 : 0;
  }
  quotas_of_groups();
  shares_of_processors();
  suite.prepare();
  for (const Mode& mode : suite.modes) suite.networks(mode);
  for (const Mode& mode : suite.modes) suite.packing(mode);
  for (const Mode& mode : suite.modes) {
    if (mode.precision != "int8" || mode.isa == "plain") continue;
    suite.levels(mode);
    suite.like_plain(mode);
  }
  for (const Mode& mode : suite.modes) {
    if (mode.precision != "fp32" && !mode.kernels->signed_levels) suite.asked_products(mode);
  }
  for (const Mode& mode : suite.modes) {
    if (mode.precision == "fp32") suite.exact_products(mode);
  }
  for (const Mode& mode : suite.modes) gelu(mode, quick);
  for (const Mode& mode : suite.modes) {
    if (mode.precision == "fp32") gelu_in_training(mode);
  }
  for (const std::string& isa : swiftformer::training_supported()) training(isa, suite.modes);
  for (const Mode& mode : suite.modes) suite.four_callers(mode);
  for (const Mode& mode : suite.modes) suite.nothing_left(mode);
  for (const Mode& mode : suite.modes) suite.no_allocation(mode);
  return failed ? 1 : 0;
}
