#include "threads/threads.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "threads/processors.h"

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

// How many threads of the process work in shares, below its id: a forked process begins with none.
std::atomic<uint64_t> in_use{0};
constexpr uint64_t count_in_use = 0xffffffff;

int take_share(int most, int processors) {
  const uint64_t process = static_cast<uint64_t>(getpid()) << 32;
  uint64_t seen = in_use.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t used = (seen & ~count_in_use) == process ? seen & count_in_use : 0;
    const int taken = std::clamp(std::max(processors, most) - static_cast<int>(used), 1, most);
    if (in_use.compare_exchange_weak(seen, process | (used + taken), std::memory_order_relaxed)) return taken;
  }
}

}  // namespace

Threads::Threads(int count, bool pin)
    : tickets_(new Ticket[std::max(1, count)]),
      working_(std::max(1, count)),
      count_(std::max(1, count)),
      processors_(processors()) {
  try {
    for (int thread = 1; thread < count; ++thread) {
      threads_.emplace_back([this, thread, pin] {
        if (pin) pin_to(thread);
        attend(thread);
      });
    }
  } catch (const std::exception&) {
    const size_t started = threads_.size() + 1;
    stop();
    throw std::runtime_error("expected " + std::to_string(count) + " threads, found room for " +
                             std::to_string(started));
  }
}

Threads::~Threads() { stop(); }

void Threads::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  let_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Threads::Share::Share(Threads& threads) : taken_(take_share(threads.count_, threads.processors_)) {
  threads.let_work(taken_);
}

Threads::Share::~Share() { in_use.fetch_sub(taken_, std::memory_order_relaxed); }

void Threads::let_work(int count) {
  if (count == working()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    working_ = count;
  }
  let_.notify_all();
}

void Threads::run_all(int tasks, Call call, void* context) {
  if (working() == 1 || tasks <= 1) {
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
      std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
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
    if (thread >= working()) {
      std::unique_lock<std::mutex> lock(mutex_);
      let_.wait(lock, [&] { return stop_ || thread < working(); });
      since = std::chrono::steady_clock::now();
    }
    const uint64_t job = ticket.load(std::memory_order_acquire) >> 32;
    if (job != seen) {
      seen = job;
      work(thread);
      since = std::chrono::steady_clock::now();
      continue;
    }
    pause();
    if (turns % 64 != 0 || std::chrono::steady_clock::now() - since < patience) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    wake_.wait(lock, [&] { return stop_ || thread >= working() || ticket.load() >> 32 != seen; });
    --asleep_;
    since = std::chrono::steady_clock::now();
  }
}

}  // namespace swiftformer
