// How many processors the process may use.

#pragma once

#include <string>

namespace swiftformer {

// By its affinity and the quotas of its groups.
int processors();

// The processors' worth of time that the process's control groups and those above them leave it, as Linux tells below
// `root`; infinity where there is no quota.
double quota_of_groups(const std::string& root);

}  // namespace swiftformer
