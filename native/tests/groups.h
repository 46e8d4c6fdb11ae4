// The processors that a process may use, and how pools of threads share them.

#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "checks.h"
#include "threads/processors.h"
#include "threads/threads.h"

namespace checks {

// What the files of a system, by their paths, say.
inline double quota_by(const std::map<std::string, std::string>& files) {
  std::string folder = (std::filesystem::temp_directory_path() / "check-XXXXXX").string();
  if (!mkdtemp(folder.data())) return NAN;
  for (const auto& [path, text] : files) {
    std::filesystem::create_directories(std::filesystem::path(folder + path).parent_path());
    std::ofstream(folder + path) << text << "\n";
  }
  const double quota = swiftformer::quota_of_groups(folder);
  std::filesystem::remove_all(folder);
  return quota;
}

inline void quotas_of_groups() {
  const std::string own = "/proc/self/cgroup", top = "/sys/fs/cgroup", v1 = top + "/cpu,cpuacct";
  const std::string file = "/cpu.max", quota = "/cpu.cfs_quota_us", period = "/cpu.cfs_period_us";
  int wrong = 0;
  const auto expect = [&](double expected, const std::map<std::string, std::string>& files) {
    wrong += quota_by(files) != expected;
  };
  expect(HUGE_VAL, {});
  expect(HUGE_VAL, {{own, "0::/"}, {top + file, "max 100000"}});
  expect(1.5, {{own, "0::/"}, {top + file, "150000 100000"}});
  expect(1.5, {{top + file, "150000 100000"}});
  // The smallest of a group and those above it.
  expect(2, {{own, "0::/a/b.slice/c"}, {top + "/a/b.slice/c" + file, "200000 100000"}, {top + "/a" + file, "3 1"}});
  expect(3, {{own, "0::/a/b.slice/c"}, {top + "/a/b.slice/c" + file, "max 100000"}, {top + "/a" + file, "3 1"}});
  expect(4, {{own, "0::/a"}, {top + "/a/b" + file, "1 1"}, {top + "/a" + file, "4 1"}, {top + "/c" + file, "2 1"}});
  // Of a container, which does not see the path of its group.
  expect(2, {{own, "0::/docker/1234"}, {top + file, "200000 100000"}});
  // Version 1, alone and beside version 2.
  const std::string groups = "12:memory:/m\n3:cpu,cpuacct:/docker/7\n0::/elsewhere";
  expect(HUGE_VAL, {{own, groups}, {v1 + quota, "-1"}, {v1 + period, "100000"}});
  expect(0.5, {{own, groups}, {v1 + quota, "50000"}, {v1 + period, "100000"}});
  expect(2, {{own, groups}, {v1 + "/docker/7" + quota, "20"}, {v1 + "/docker/7" + period, "10"}});
  expect(2, {{own, "3:cpuacct,cpu:/a"}, {top + "/cpu/a" + quota, "20"}, {top + "/cpu/a" + period, "10"}});
  expect(1, {{own, groups}, {top + "/unified/elsewhere" + file, "1 1"}, {v1 + quota, "20"}, {v1 + period, "10"}});
  expect(HUGE_VAL, {{own, "3:cpuset:/a\nnonsense\n"}, {top + "/cpuset/a" + quota, "20"}});
  report("quotas of control groups", wrong, 0, "");
}

// Pools that work at once leave each other processors; all tasks are done, by fewer threads.
inline void shares_of_processors() {
  using swiftformer::Threads;
  const int most = swiftformer::processors() + 2;
  Threads first(most, false), second(most, false), small(1, false);
  int wrong = 0;
  const auto run = [&](Threads& threads, int expected) {
    std::mutex mutex;
    std::set<int> found, done;
    for (int turn = 0; turn < 50; ++turn) {
      if (turn == 1) found.clear();  // a thread of the share before may still have been at the first tasks
      done.clear();
      threads.run(100, [&](int index, int thread) {
        const std::lock_guard<std::mutex> lock(mutex);
        found.insert(thread);
        done.insert(index);
      });
      wrong += done.size() != 100;
    }
    wrong += threads.working() != expected || static_cast<int>(found.size()) > expected;
  };
  run(first, most);
  for (int turn = 0; turn < 50; ++turn) {
    std::optional<Threads::Share> of_small(small), of_first(first);
    run(first, most - 1);
    Threads::Share of_second(second);
    run(second, 1);
    of_first.reset();
    of_small.reset();
    of_first.emplace(first);
    run(first, most - 1);
  }
  const Threads::Share again(second);
  run(second, most);
  report("shares of the processors", wrong, 0, "");
}

}  // namespace checks
