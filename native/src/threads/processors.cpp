#include "threads/processors.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace swiftformer {

namespace {

// Of one group. Without a quota there is "max" in version 2, which is not read as a number, and -1 in version 1.
double quota_of(const std::string& group, bool version_2) {
  double quota = 0, period = 0;
  if (version_2) {
    std::ifstream(group + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(group + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(group + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : HUGE_VAL;
}

}  // namespace

double quota_of_groups(const std::string& root) {
  const std::string mounted = root + "/sys/fs/cgroup";
  double least = quota_of(mounted, true);
  std::ifstream groups(root + "/proc/self/cgroup");
  // number:controllers:path; version 2 names no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_2 = controllers.empty();
    if (!version_2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    // A container may see its own group as the top one, under the path that it has outside: that path is not there.
    for (const std::string& top :
         {version_2 ? mounted : mounted + "/" + controllers, mounted + (version_2 ? "/unified" : "/cpu")}) {
      std::string path = line.substr(second + 1);
      for (size_t end = path.size(); end != std::string::npos; end = path.rfind('/')) {
        path.resize(end);
        least = std::min(least, quota_of(top + path, version_2));
      }
    }
  }
  return least;
}

int processors() {
  int count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) count = std::min(count, CPU_COUNT(&allowed));
  count = static_cast<int>(std::min<double>(count, std::ceil(quota_of_groups(""))));
#endif
  return std::max(1, count);
}

}  // namespace swiftformer
