// How a network is run: memory made ready, and pictures taken through the layers, a few at a time.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <variant>

#include "network/pass_columns.h"
#include "network/pass_convolution.h"
#include "network/pass_pyramid.h"
#include "network/turn.h"

namespace swiftformer {

namespace {

// The size of the map behind each layer, and those of a pyramid's levels.
struct Extent {
  int height, width;
  int heights[Network::most_pyramid_levels] = {}, widths[Network::most_pyramid_levels] = {}, levels = 0;

  void pass(const Layer& layer) {
    const auto take = [&](int level) {
      height = heights[level];
      width = widths[level];
    };
    if (auto* level = std::get_if<PyramidLevel>(&layer)) return take(level->index);
    if (auto* enlarging = std::get_if<Enlarging>(&layer)) return take(enlarging->level);
    if (std::holds_alternative<Lateral>(layer)) {
      heights[levels] = height;
      widths[levels++] = width;
    }
    auto* convolution = std::get_if<Convolution>(&layer);
    const bool of_stem =
        std::holds_alternative<FirstConvolution>(layer) || std::holds_alternative<StemConvolution>(layer);
    const int stride = convolution ? convolution->stride : of_stem ? 2 : 1;
    height = strided(height, stride);
    width = strided(width, stride);
  }
};

// Of a thread's `count` pictures, those that it takes through each layer together: as many small ones as come to the
// pixels of `pictures` at 224x224, but of more than that half at most, so that another thread can help with the rest.
// Of pictures below 32x32 the last maps are as large as of those.
int pictures_together(const Kernels& kernels, const Pixels& pixels, int count) {
  const int64_t usual = 224 * 224, of_one = std::max<int64_t>(32 * 32, int64_t{pixels.height} * pixels.width);
  const int small = static_cast<int>(std::max<int64_t>(1, usual / of_one));
  return std::min({kernels.pictures * small, std::max(kernels.pictures, (count + 1) / 2), count});
}

}  // namespace

std::vector<std::vector<size_t>> Network::outputs(const Pixels& pixels) const {
  std::vector<std::vector<size_t>> shapes;
  const auto add = [&](int channels, int height, int width) {
    shapes.emplace_back();
    for (int side : {pixels.images, channels, height, width}) shapes.back().push_back(static_cast<size_t>(side));
  };
  Extent extent{pixels.height, pixels.width};
  for (const Layer& layer : layers_) {
    extent.pass(layer);
    if (auto* output = std::get_if<MapOutput>(&layer)) {
      add(output->channels, extent.height, extent.width);
    } else if (auto* scores = std::get_if<ScoresOutput>(&layer)) {
      add(scores->classes, extent.heights[0], extent.widths[0]);
    } else if (auto* head = std::get_if<Head>(&layer)) {
      shapes.push_back({static_cast<size_t>(pixels.images), static_cast<size_t>(head->product.outputs)});
    }
  }
  return shapes;
}

Network::Room Network::room_for(int images, int height, int width, bool alone) const {
  Room room;
  const auto widen = [&](size_t& size, size_t needed) { size = std::max(size, needed); };
  const auto make_room = [&](const Product& product, int values) {
    widen(room.operand, operand_stride(*product.kernels, values));
    if (product.kernels->levels) widen(room.rows, filled(values));
  };
  int channels = 0, pyramid_channels = 0;
  Extent extent{height, width};
  const auto pixels = [&] { return static_cast<size_t>(images) * extent.height * extent.width; };
  const auto in_columns = [&](const Product& expand, const Product& project) {
    if (!columns_are_shared(expand, project, pixels())) return;
    widen(room.operand_of_all, pixels() * operand_stride(kernels_, channels));
    widen(room.hidden_of_all, pixels() * operand_stride(kernels_, expand.outputs));
  };
  const auto branch = [&](const Branch& layer) {
    make_room(layer.expand, channels);
    in_columns(layer.expand, layer.project);
    widen(room.hidden, operand_stride(kernels_, layer.expand.outputs));
    widen(room.rows, filled(layer.expand.outputs));
    widen(room.zeros, static_cast<size_t>(extent.width) * filled(channels));
  };
  for (const Layer& layer : layers_) {
    extent.pass(layer);
    const size_t tokens = static_cast<size_t>(extent.height) * extent.width;
    const size_t rows = alone ? kernels_.tile_rows_alone : kernels_.tile_rows;
    const size_t most_tiles = (tokens + rows - 1) / rows + (alone ? 0 : 4 * thread_count_);
    const auto convolve = [&](const Product& product) {
      channels = product.outputs;
      widen(room.map, pixels() * filled(channels));
    };
    if (auto* first = std::get_if<FirstConvolution>(&layer)) {
      convolve(first->product);
      widen(room.hidden, filled(channels));  // of a part of a line, before it is bfloat16
      const size_t padded = static_cast<size_t>(extent.height + 2) * (extent.width + 2);
      if (first->to_bf16) widen(room.map, images * padded * filled(channels) / 2);
      widen(room.operand, (3 * first->inputs * tap_stride + kernels_.tile_rows - 1) / kernels_.tile_rows);
    } else if (auto* of_stem = std::get_if<StemConvolution>(&layer)) {
      convolve(of_stem->product);
    } else if (auto* convolution = std::get_if<Convolution>(&layer)) {
      convolve(convolution->product);
      make_room(convolution->product, Pass::convolution_width(*convolution));
      widen(room.zeros, filled(convolution->inputs));
    } else if (auto* plain = std::get_if<Branch>(&layer)) {
      branch(*plain);
    } else if (auto* encoder = std::get_if<Encoder>(&layer)) {
      branch(encoder->local);
      in_columns(encoder->expand, encoder->project);
      make_room(encoder->output, channels + filled(channels));
      widen(room.hidden, operand_stride(kernels_, encoder->expand.outputs));
      widen(room.rows, filled(encoder->expand.outputs));
      widen(room.hidden, 2 * filled(channels));  // of keys and queries, before they are bfloat16
      widen(room.key_query, pixels() * 2 * filled(channels) * kernels_.kept_bytes / sizeof(float));
      widen(room.sums, images * most_tiles * (filled(channels) + lanes));
    } else if (auto* head = std::get_if<Head>(&layer)) {
      make_room(head->product, channels);
      widen(room.sums, kernels_.tile_rows * filled(channels));
      widen(room.key_query, kernels_.tile_rows * head->product.matrix.columns);
    } else if (auto* lateral = std::get_if<Lateral>(&layer)) {
      make_room(lateral->product, channels);
      pyramid_channels = lateral->product.outputs;
      room.kept += pixels() * filled(pyramid_channels);
    } else if (std::holds_alternative<PyramidLevel>(layer)) {
      channels = pyramid_channels;
      widen(room.map, pixels() * filled(channels));
    } else if (std::holds_alternative<Enlarging>(layer)) {
      widen(room.map, pixels() * filled(channels));
    } else if (auto* scores = std::get_if<Scores>(&layer)) {
      const size_t classes = filled(scores->product.outputs);
      make_room(scores->product, channels);
      widen(room.map, pixels() * classes);
      if (scores->first) room.kept += static_cast<size_t>(images) * extent.heights[0] * extent.widths[0] * classes;
    }
  }
  return room;
}

Network::Work::Work(int threads, bool pin)
    : process(getpid()), threads(threads, pin), operand(threads), hidden(threads), rows(threads) {}

void Network::Work::reserve(const Kernels& kernels, const Room& of_thread, const Room& of_all) {
  const size_t count = threads.count();
  const auto grow = [&](auto& memory, size_t Room::* size) {
    memory.grow(std::max(count * of_thread.*size, of_all.*size));
  };
  const auto grow_of_threads = [&](std::vector<Memory<uint32_t>>& memories, size_t Room::* size) {
    for (Memory<uint32_t>& memory : memories)
      memory.grow(kernels.tile_rows_alone * std::max(of_thread.*size, of_all.*size));
  };
  for (Memory<float>& memory : maps) grow(memory, &Room::map);
  grow(kept, &Room::kept);
  grow(key_query, &Room::key_query);
  grow(sums, &Room::sums);
  operand_of_all.grow(of_all.operand_of_all);
  hidden_of_all.grow(of_all.hidden_of_all);
  zeros.grow_in_zeros(std::max(of_thread.zeros, of_all.zeros));
  grow_of_threads(operand, &Room::operand);
  grow_of_threads(hidden, &Room::hidden);
  if (kernels.levels) grow_of_threads(rows, &Room::rows);
}

// A forked process has none of the threads, one of which may have been at work, or may have had the mutex. It leaves
// all that alone, and begins with its own.
Network::Work& Network::work() {
  Work* found = work_.load(std::memory_order_acquire);
  if (const int process = getpid(); found->process != process) {
    if (adding_) throw std::runtime_error("expected a network that had all its layers when the process was forked");
    auto fresh = std::make_unique<Work>(thread_count_, pin_);
    if (work_.compare_exchange_strong(found, fresh.get())) found = fresh.release();
  }
  return *found;
}

Network::~Network() {
  Work* work = work_;
  if (work->process == getpid()) delete work;
}

void Network::freeze(const std::function<void()>& check) {
  if (frozen()) return;
  const std::lock_guard<std::mutex> lock(work().mutex);
  check();
  frozen_.store(true, std::memory_order_release);
}

// As many pictures as every thread can get the same number of go through the network in threads that never wait for
// each other; all threads share what is left.
void Network::run(const Pixels& pixels, const std::vector<float*>& outputs) {
  freeze();
  const Turn turn(*this);
  Work& work = turn.work;
  const int threads = thread_count_;
  const int of_thread = pixels.images / threads, left = pixels.images % threads;
  const int together = pictures_together(kernels_, pixels, of_thread);
  const int groups = of_thread > 0 ? threads * ((of_thread + together - 1) / together) : 0;
  Room room, room_of_all;
  if (of_thread > 0) room = room_for(together, pixels.height, pixels.width, true);
  if (left > 0) room_of_all = room_for(left, pixels.height, pixels.width, false);
  work.reserve(kernels_, room, room_of_all);
  work.layer_seconds.assign(threads * layers_.size(), 0.0);
  const auto pass = [&](int first, int end, int alone) {
    const size_t picture = static_cast<size_t>(input_channels_) * pixels.height * pixels.width;
    const size_t part = std::max(alone, 0);
    Pixels some = pixels;
    some.images = end - first;
    if (some.planes) some.planes += picture * first;
    if (some.packed) some.packed += picture * first;
    Pass pass{*this, work, kernels_, some, outputs, first, alone, pixels.height, pixels.width};
    pass.map = work.maps[0].get() + part * room.map;
    pass.other = work.maps[1].get() + part * room.map;
    pass.kept = work.kept.get() + part * room.kept;
    pass.key_query = work.key_query.get() + part * room.key_query;
    pass.sums = work.sums.get() + part * room.sums;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      std::visit(pass, layers_[i]);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      work.layer_seconds[part * layers_.size() + i] += alone < 0 ? work.threads.working() * seconds : seconds;
    }
  };
  const int even = threads * of_thread;
  work.threads.run(groups, [&](int group, int thread) {
    pass(static_cast<int>(static_cast<int64_t>(even) * group / groups),
         static_cast<int>(static_cast<int64_t>(even) * (group + 1) / groups), thread);
  });
  if (left > 0) pass(even, pixels.images, -1);
  if (kernels_.release) kernels_.release();
}

std::vector<double> Network::layer_seconds() {
  Work& of_calls = work();
  const std::lock_guard<std::mutex> lock(of_calls.mutex);
  std::vector<double> seconds(layers_.size());
  for (size_t i = 0; i < of_calls.layer_seconds.size(); ++i)
    seconds[i % layers_.size()] += of_calls.layer_seconds[i] / of_calls.threads.working();
  return seconds;
}

namespace {

double product_rate(const Kernels& kernels, int least) {  // words of a column
  const int at_once = kernels.depth_step, depth = (least + at_once - 1) / at_once * at_once, stride = depth + lanes;
  constexpr int columns = 3 * lanes, repeats = 100;
  const int rows = kernels.tile_rows;
  Memory<uint32_t> words(depth * columns), operand(rows * stride);
  Memory<float> bias(columns), step(columns), out(rows * columns);
  Memory<int32_t> start(columns);
  const Matrix matrix{words.get(), bias.get(), step.get(), start.get(), depth, columns, depth};
  double best = 1e9;
  for (int attempt = 0; attempt < 50; ++attempt) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) {
      kernels.product(matrix, operand.get(), stride, rows, Then::store, out.get(), columns, out.get(), columns);
    }
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return static_cast<double>(rows) * depth * kernels.values_per_word / kernels.parts * columns * repeats / best;
}

}  // namespace

double product_limit(const Kernels& kernels) {
  double best = 0;
  for (const int words : {64, 128, 192}) best = std::max(best, product_rate(kernels, words));
  if (kernels.release) kernels.release();
  return best;
}

}  // namespace swiftformer
