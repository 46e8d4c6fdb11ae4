// Sizes that people use, at which sanitizers may watch: a few channels, but all kinds of layers, and batches that
// threads divide in every way. Four callers take turns at two networks.

#pragma once

#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "checks.h"

namespace checks {

class Promised {
 public:
  // `quick`: of the larger pictures one alone.
  explicit Promised(bool quick) {
    model_.stem(18, 6).branch(9).lateral(8).downsampling(9).encoder(7, 20, true, true).output(true).lateral(8);
    model_.downsampling(12).branch(5).encoder(3, 6, false, false).output(false).lateral(8).head(11);
    model_.level(2).convolution(8, false).enlarging(1).convolution(6, true).scores(5);
    model_.level(1).scores(5).level(0).scores(5).sum();
    std::vector<int> all;
    for (int batch = 1; batch <= 17; ++batch) all.push_back(batch);
    const std::vector<int> some{1, 2, 17}, one{1};
    sizes_ = {{33, 47, all}, {65, 97, all}, {224, 224, quick ? one : some}, {512, 384, quick ? one : some}};
    for (const Size& size : sizes_) examples_.emplace_back(model_, different, size.height, size.width);
  }

  void check(const Mode& mode) const {
    const std::unique_ptr<Network> networks[] = {network_of(mode, model_, 2), network_of(mode, model_, 3)};
    std::vector<std::pair<size_t, int>> runs;  // size, batch
    for (size_t size = 0; size < sizes_.size(); ++size) {
      for (int batch : sizes_[size].batches) {
        if (is_worth_it(mode, sizes_[size], batch)) runs.emplace_back(size, batch);
      }
    }
    std::atomic<size_t> next{0};
    std::mutex mutex;
    Worst worst;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
      callers.emplace_back([&] {
        for (size_t place; (place = next++) < runs.size();) {
          const auto [size, batch] = runs[place];
          const double difference = run_one(*networks[place % 2], examples_[size], batch, place / 2 % 2 == 1);
          const std::lock_guard<std::mutex> lock(mutex);
          worst.see(difference, std::to_string(batch) + "x" + std::to_string(sizes_[size].height) + "x" +
                                    std::to_string(sizes_[size].width));
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    // Global queries that are not normalised grow with the pictures, and so do errors of weights with large steps.
    const double more = mode.kernels->short_sums ? 2 : 1;
    report("promised sizes " + mode.name(), worst.found, more * allowed(mode), worst.where);
  }

 private:
  struct Size {
    int height, width;
    std::vector<int> batches;
  };
  static constexpr int different = 2;  // pictures, which a batch repeats

  // Slow kernels share with others all that depends on the number of pictures.
  static bool is_worth_it(const Mode& mode, const Size& size, int batch) {
    const bool small = size.height < 100, some = batch < 3 || batch == 17;
    if (mode.isa == "plain") return small || batch < 3;
    return mode.isa.rfind("emulated", 0) != 0 || (small ? some : batch == 1);
  }

  // The pictures of a batch lie in memory that ends where they do.
  template <class Value>
  static std::vector<Value> repeated(const std::vector<Value>& pictures, int batch) {
    const size_t size = pictures.size() / different;
    std::vector<Value> all;
    for (int image = 0; image < batch; ++image) {
      const auto from = pictures.begin() + image % different * size;
      all.insert(all.end(), from, from + size);
    }
    all.shrink_to_fit();
    return all;
  }

  static double run_one(Network& network, const Example& example, int batch, bool as_bytes) {
    const std::vector<float> planes = repeated(example.planes, as_bytes ? 0 : batch);
    const std::vector<uint8_t> bytes = repeated(example.bytes, as_bytes ? batch : 0);
    const Outputs found = run(network, {as_bytes ? nullptr : planes.data(), as_bytes ? bytes.data() : nullptr, batch,
                                        example.height, example.width});
    Worst worst;
    for (size_t o = 0; o < found.size(); ++o) {
      const size_t size = example.expected[0][o].size();
      for (size_t i = 0; i < found[o].size(); ++i) {
        const double expected = example.expected[i / size % different][o][i % size];
        worst.see(std::fabs(found[o][i] - expected) / example.largest[o], "");
      }
    }
    return worst.found;
  }

  Model model_{11, 3};
  std::vector<Size> sizes_;
  std::vector<Example> examples_;
};

}  // namespace checks
