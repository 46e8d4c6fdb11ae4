// Work in the threads of GNU OpenMP that PyTorch brings into the process.

#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace swiftformer {

// GNU OpenMP's entry, which compilers call for a parallel region. Threads of our own would have to wake up for every
// call, beside PyTorch's, which wait busily for their next.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

inline Parallel parallel() { return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

// An exception, such as of memory that is not there, would end the process in OpenMP's threads: the first is kept.
template <class Part>
struct Region {
  const Part& part;
  int parts;
  std::atomic<int> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  static void body(void* data) {
    Region& region = *static_cast<Region*>(data);
    try {
      for (int i = region.next++; i < region.parts; i = region.next++) region.part(i);
    } catch (...) {
      if (!region.failed.exchange(true)) region.error = std::current_exception();
    }
  }
};

// Calls `part(i)` for every i below `parts`. What part i is does not depend on the thread that takes it.
template <class Part>
void in_threads(int parts, const Part& part) {
  Region<Part> region{part, parts, {0}, {false}, nullptr};
  const Parallel run = parts > 1 ? parallel() : nullptr;
  if (run) {
    run(Region<Part>::body, &region, static_cast<unsigned>(parts), 0);
  } else {
    Region<Part>::body(&region);
  }
  if (region.error) std::rethrow_exception(region.error);
}

constexpr int64_t worth_a_thread = 16384;  // values

// Parts of equal size, but for the last, of `count` things with `values` each; `part(i, first, count)`.
template <class Part>
int split(int64_t count, int64_t values, int threads, const Part& part) {
  const int64_t useful = std::max<int64_t>(1, count * values / worth_a_thread);
  const int64_t parts = std::min<int64_t>({useful, std::max(threads, 1), std::max<int64_t>(count, 1)});
  const int64_t size = (count + parts - 1) / parts;
  in_threads(static_cast<int>(parts), [&](int i) {
    const int64_t first = std::min(i * size, count);
    part(i, first, std::min(size, count - first));
  });
  return static_cast<int>(parts);
}

}  // namespace swiftformer
