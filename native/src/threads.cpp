#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace swiftformer {

namespace {

// Passes follow each other within microseconds: longer than this, a thread rather sleeps.
constexpr auto patience = std::chrono::microseconds(100);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// No task has this number.
constexpr uint64_t closed = 0x7fffffff;

void pin_to(int place) {
#if defined(__linux__)
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed) && place-- == 0) CPU_SET(cpu, &one);
  }
  if (CPU_COUNT(&one) == 1) pthread_setaffinity_np(pthread_self(), sizeof one, &one);
#else
  (void)place;
#endif
}

}  // namespace

int processors() {
  int count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) count = std::min(count, CPU_COUNT(&allowed));
  double quota, period;  // of version 2; "max" stands for no quota
  if (std::ifstream("/sys/fs/cgroup/cpu.max") >> quota >> period && period > 0) {
    count = std::min(count, static_cast<int>(std::ceil(quota / period)));
  }
#endif
  return std::max(1, count);
}

Threads::Threads(int count, bool pin)
    : tickets_(new Ticket[std::max(1, count)]),
      sleep_(new Sleep),
      count_(std::max(1, count)),
      process_(getpid()),
      threads_(new std::vector<std::thread>) {
  try {
    for (int thread = 1; thread < count; ++thread) {
      threads_->emplace_back([this, thread, pin] {
        if (pin) pin_to(thread);
        attend(thread);
      });
    }
  } catch (const std::exception&) {
    const size_t started = threads_->size() + 1;
    stop();
    throw std::runtime_error("expected " + std::to_string(count) + " threads, found room for " +
                             std::to_string(started));
  }
}

Threads::~Threads() {
  if (process_ == getpid()) {
    stop();
  } else {
    // A forked process has no threads to wait for, and what they slept on could not be destroyed.
    static_cast<void>(threads_.release());
    static_cast<void>(sleep_.release());
  }
}

void Threads::stop() {
  {
    std::lock_guard<std::mutex> lock(sleep_->mutex);
    stop_ = true;
  }
  sleep_->wake.notify_all();
  for (std::thread& thread : *threads_) thread.join();
}

void Threads::run_all(int tasks, Call call, void* context) {
  if (threads_->empty() || tasks <= 1) {
    for (int index = 0; index < tasks; ++index) call(context, index, 0);
    return;
  }
  const uint64_t job = tickets_[0].value.load(std::memory_order_relaxed) >> 32;
  for (int part = 0; part < count(); ++part) {
    tickets_[part].value.store(job << 32 | closed, std::memory_order_relaxed);
  }
  done_.store(0, std::memory_order_relaxed);
  tasks_.store(tasks, std::memory_order_release);
  call_.store(call, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  for (int part = 0; part < count(); ++part) {
    tickets_[part].value.store((job + 1) << 32 | first_of(tasks, part), std::memory_order_release);
  }
  // A change, if by nothing: who goes to sleep after it sees the tickets, and who did before is seen.
  if (asleep_.fetch_add(0, std::memory_order_acq_rel) > 0) {
    {
      std::lock_guard<std::mutex> lock(sleep_->mutex);
    }
    sleep_->wake.notify_all();
  }
  work(0);
  for (unsigned turns = 0; done_.load(std::memory_order_acquire) != tasks; ++turns) {
    if (turns < 10000) {
      pause();
    } else {
      std::this_thread::yield();  // its processor may be needed by the thread that is waited for
    }
  }
}

void Threads::work(int thread) {
  for (int next = 0; next < count(); ++next) work_on((thread + next) % count(), thread);
}

void Threads::work_on(int part, int thread) {
  std::atomic<uint64_t>& value = tickets_[part].value;
  uint64_t ticket = value.load(std::memory_order_acquire);
  for (;;) {
    // If these belong to the next job already, the ticket is no longer the one that was read.
    const Call call = call_.load(std::memory_order_acquire);
    void* const context = context_.load(std::memory_order_acquire);
    const int index = static_cast<int>(ticket & closed);
    if (index >= first_of(tasks_.load(std::memory_order_acquire), part + 1)) return;
    if (value.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      call(context, index, thread);
      done_.fetch_add(1, std::memory_order_release);
      ++ticket;
    }
  }
}

void Threads::attend(int thread) {
  const std::atomic<uint64_t>& ticket = tickets_[thread].value;
  uint64_t seen = 0;
  auto since = std::chrono::steady_clock::now();
  for (unsigned turns = 1; !stop_.load(std::memory_order_relaxed); ++turns) {
    const uint64_t job = ticket.load(std::memory_order_acquire) >> 32;
    if (job != seen) {
      seen = job;
      work(thread);
      since = std::chrono::steady_clock::now();
      continue;
    }
    pause();
    if (turns % 64 != 0 || std::chrono::steady_clock::now() - since < patience) continue;
    std::unique_lock<std::mutex> lock(sleep_->mutex);
    ++asleep_;
    sleep_->wake.wait(lock, [&] { return stop_ || ticket.load() >> 32 != seen; });
    --asleep_;
    since = std::chrono::steady_clock::now();
  }
}

}  // namespace swiftformer
