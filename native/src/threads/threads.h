// The threads of a network. Whoever calls `run` works as well, and never waits for a thread that has not begun.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace swiftformer {

class Threads {
 public:
  // `count` with the caller; with `pin`, thread i, but for the caller, stays on the i-th processor that the process may
  // use. Throws std::runtime_error where the system gives fewer.
  Threads(int count, bool pin);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }

  // As long as it lives, only so many of the threads work, the caller first, as the shares of other pools leave of the
  // processors, or of `count` where that is more; at least the caller. Not several of a pool at once.
  class Share {
   public:
    explicit Share(Threads& threads);
    ~Share();
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

   private:
    const int taken_;
  };

  // All, before there was a share; then those of the last.
  int working() const { return working_.load(std::memory_order_relaxed); }

  // Calls `task(index, thread)` for every index below `tasks`, and returns when all are done. Not from several threads
  // at once. Each thread begins with a part of its own, the same part of the indices in every call, so that what it
  // left in its core's caches is there for it, and then helps the others, or does what is of threads that do not work.
  template <class Task>
  void run(int tasks, Task&& task) {
    run_all(tasks, [](void* context, int index, int thread) { (*static_cast<Task*>(context))(index, thread); }, &task);
  }

 private:
  using Call = void (*)(void* context, int index, int thread);

  void run_all(int tasks, Call call, void* context);
  void work(int thread);
  void work_on(int part, int thread);
  int first_of(int tasks, int part) const { return static_cast<int>(static_cast<int64_t>(tasks) * part / count_); }
  void attend(int thread);
  void let_work(int count);
  void stop();

  // Of each thread's part. Upper half: number of the job; lower half: its next task. Who moves it from one to the next
  // owns that task, and the three below, which belong to the job, do not change until all tasks are done.
  struct alignas(64) Ticket {
    std::atomic<uint64_t> value{0};
  };
  std::unique_ptr<Ticket[]> tickets_;
  std::atomic<int> tasks_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};

  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0}, working_;
  const int count_, processors_;
  std::mutex mutex_;  // of sleep: `working_` and `stop_` change under it
  std::condition_variable wake_, let_;
  std::vector<std::thread> threads_;
};

}  // namespace swiftformer
