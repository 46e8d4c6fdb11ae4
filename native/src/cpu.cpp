#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#if defined(SWIFTFORMER_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(SWIFTFORMER_ARM) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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

#if defined(SWIFTFORMER_ARM)
bool has_dot_products() {
#if defined(__APPLE__)
  return true;
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
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
  found.push_back({"emulated_amx", "fp32", &emulated_amx_fp32});
  found.push_back({"emulated_amx", "bf16", &emulated_amx_bf16});
  found.push_back({"emulated_amx", "int8", &emulated_amx_int8});
#endif
#if defined(SWIFTFORMER_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
#if defined(SWIFTFORMER_CHECK)
    found.push_back({"emulated_avx_vnni", "int8", &emulated_avx_vnni_int8});
#endif
    found.push_back({"avx2", "fp32", &avx2_fp32});
    found.push_back({"avx2", "bf16", &avx2_fp32});  // without instructions for it, bfloat16 gains nothing
    found.push_back({"avx2", "int8", &avx2_int8});
#if defined(SWIFTFORMER_HAS_AVX_VNNI)
    // Few such processors were at hand: one that disagrees must not be trusted silently.
    static const bool avx_vnni = __builtin_cpu_supports("avxvnni") && multiplies_like(avx_vnni_int8, plain_int8);
    if (avx_vnni) {
      found.push_back({"avx2", "int8", &avx_vnni_int8});
      found.push_back({"avx_vnni", "int8", &avx_vnni_int8});
    }
#endif
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back({"avx512", "fp32", &avx512_fp32});
    found.push_back({"avx512", "bf16", &avx512_fp32});
    if (__builtin_cpu_supports("avx512bf16")) {
      found.push_back({"avx512", "bf16", &avx512_bf16});
      found.push_back({"avx512_bf16", "bf16", &avx512_bf16});
    }
    if (__builtin_cpu_supports("avx512vnni")) {
      found.push_back({"avx512", "int8", &avx512_int8});
      found.push_back({"avx512_vnni", "int8", &avx512_int8});
      if (__builtin_cpu_supports("avx512vbmi")) {
        found.push_back({"avx512", "int8", &avx512_vbmi_int8});
        found.push_back({"avx512_vbmi", "int8", &avx512_vbmi_int8});
      }
    }
#if defined(SWIFTFORMER_AMX)
    static const bool amx =  // as for AVX-VNNI; float32 takes the instructions of bf16
        has_amx() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vbmi") && multiplies_like(amx_bf16, avx512_bf16) &&
        multiplies_like(amx_int8, avx512_int8);
    if (amx) {
      found.push_back({"amx", "fp32", &amx_fp32});
      found.push_back({"amx", "bf16", &amx_bf16});
      found.push_back({"amx", "int8", &amx_int8});
    }
#endif
  }
#elif defined(SWIFTFORMER_ARM)
  found.push_back({"neon", "fp32", &neon_fp32});
  found.push_back({"neon", "bf16", &neon_fp32});
  if (has_dot_products()) {
    found.push_back({"neon", "int8", &neon_int8});
    found.push_back({"neon_dot", "int8", &neon_int8});
  }
#endif
  return found;
}

}  // namespace

uint32_t small_weights(uint32_t bits) {
  const uint32_t signs = bits & 0x80808080u;
  return (bits & 0x9f9f9f9fu) | signs >> 1 | signs >> 2;
}

bool multiplies_like(const Kernels& kernels, const Kernels& other) {
  constexpr int rows = 83, depth = 32, columns = 3 * lanes, stride = 3 * lanes;
  std::vector<uint32_t> operand(rows * stride);
  std::vector<float> bias(columns), step(columns), found[2];
  std::vector<int32_t> start(columns);
  for (int c = 0; c < columns; ++c) {
    bias[c] = 0.5f - 0.3f * c;
    step[c] = 0.01f + 0.002f * c;
    start[c] = 100 * c - 77;
  }
  uint32_t bits = 1;
  const auto some = [&] {
    bits = bits * 1664525u + 1013904223u;
    return (bits ^ bits >> 16) & (kernels.levels ? 0xffffffffu : 0xbf7fbf7fu);  // pairs of bfloat16 below 1
  };
  for (uint32_t& word : operand) word = some();
  for (int r = 0; r < rows && kernels.levels; ++r) {
    const float step_of_row = 0.02f + 0.001f * r;
    std::memcpy(&operand[r * stride + stride - 1], &step_of_row, 4);
  }
  std::vector<uint32_t> by_column(depth * columns);
  const bool small = kernels.short_sums || other.short_sums;
  for (uint32_t& word : by_column) word = small ? small_weights(some()) : some();
  for (int which : {0, 1}) {
    const Kernels& each = which ? other : kernels;
    std::vector<uint32_t> words;
    for (int first = 0; first < columns;) {
      const int width = lanes * panel_of((columns - first) / lanes, each.widest);
      for (int k = 0; k < depth; ++k) {
        for (int c = first; c < first + width; ++c) words.push_back(by_column[c * depth + k]);
      }
      first += width;
    }
    const Matrix matrix{words.data(), bias.data(), step.data(), start.data(), depth, columns, depth};
    std::vector<float>& out = found[which];
    out.resize(rows * columns);
    each.product(matrix, operand.data(), stride, rows, Then::relu, out.data(), columns, out.data(), columns);
    // To that, in place, as blocks do.
    each.product(matrix, operand.data(), stride, rows, Then::add, out.data(), columns, out.data(), columns);
    if (each.release) each.release();
  }
  for (int i = 0; i < rows * columns; ++i) {
    if (!(std::fabs(found[0][i] - found[1][i]) <= 1e-3f * (1.0f + std::fabs(found[1][i])))) return false;
  }
  return true;
}

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
  if (isa == "auto" && precision == "bf16") return kernels_for(isa, "fp32");
  std::string names;
  const std::vector<Entry> all = entries();
  for (const std::string& name : supported()) {
    const auto has_it = [&](const Entry& entry) { return entry.isa == name && entry.precision == precision; };
    if (std::any_of(all.begin(), all.end(), has_it)) names += (names.empty() ? "" : ", ") + name;
  }
  throw std::invalid_argument(precision + ": expected an instruction set of this processor that has it (" + names +
                              "), or another precision, found " + isa);
}

}  // namespace swiftformer
