#include "cpu.h"

#include <algorithm>
#include <stdexcept>

#if defined(SWIFTFORMER_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace swiftformer {

namespace {

#if defined(SWIFTFORMER_AMX)
// Tiles with products of both types, which the system saves for this process.
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
  if ((d & (bf16 | tile | int8)) != (bf16 | tile | int8)) return false;
  constexpr int ask_for_state = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
}
#endif

struct Entry {
  std::string isa, precision;
  const Kernels* kernels;
};

// The best last.
std::vector<Entry> entries() {
  std::vector<Entry> found{
      {"plain", "fp32", &plain_fp32}, {"plain", "bf16", &plain_bf16}, {"plain", "int8", &plain_int8}};
#if defined(SWIFTFORMER_CHECK)
  found.push_back({"emulated_amx", "bf16", &emulated_amx_bf16});
  found.push_back({"emulated_amx", "int8", &emulated_amx_int8});
#endif
#if defined(SWIFTFORMER_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"avx2", "fp32", &avx2_fp32});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back({"avx512", "fp32", &avx512_fp32});
    if (__builtin_cpu_supports("avx512bf16")) {
      found.push_back({"avx512", "bf16", &avx512_bf16});
      found.push_back({"avx512_bf16", "bf16", &avx512_bf16});
    }
    if (__builtin_cpu_supports("avx512vnni")) {
      found.push_back({"avx512", "int8", &avx512_int8});
      found.push_back({"avx512_vnni", "int8", &avx512_int8});
    }
#if defined(SWIFTFORMER_AMX)
    static const bool amx = has_amx();
    if (amx && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
      found.push_back({"amx", "bf16", &amx_bf16});
      found.push_back({"amx", "int8", &amx_int8});
    }
#endif
  }
#elif defined(SWIFTFORMER_ARM)
  found.push_back({"neon", "fp32", &neon_fp32});
#endif
  return found;
}

}  // namespace

std::vector<std::string> supported() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    if (std::find(names.begin(), names.end(), entry.isa) == names.end()) names.push_back(entry.isa);
  }
  return names;
}

const Kernels& kernels_for(const std::string& isa, const std::string& precision) {
  if (precision != "fp32" && precision != "bf16" && precision != "int8") {
    throw std::invalid_argument("precision: expected fp32, bf16 or int8, found " + precision);
  }
  const Kernels* best = nullptr;
  for (const Entry& entry : entries()) {
    // The plain kernels of half and less precision are a reference: chosen by name only.
    const bool asked = isa == "auto" ? precision == "fp32" || entry.isa != "plain" : isa == entry.isa;
    if (asked && precision == entry.precision) best = entry.kernels;
  }
  if (best) return *best;
  std::string names;
  for (const Entry& entry : entries()) {
    if (entry.precision == precision) names += (names.empty() ? "" : ", ") + entry.isa;
  }
  throw std::invalid_argument("expected an instruction set of this processor for " + precision + " (" + names +
                              "), or another precision, found " + isa);
}

}  // namespace swiftformer
