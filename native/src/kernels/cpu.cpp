#include "kernels/cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <stdexcept>

#if defined(SWIFTFORMER_HAS_AMX)
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

#if defined(SWIFTFORMER_HAS_AMX)
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
  const char *isa, *precision;
  const Kernels* kernels;
  bool has;  // this processor
};

// All of this build, the best last.
std::vector<Entry> entries() {
  std::vector<Entry> all;
  const auto add = [&](const char* isa, const char* precision, const Kernels& kernels, bool has) {
    all.push_back({isa, precision, &kernels, has});
  };
  add("plain", "fp32", plain_fp32, true);
  add("plain", "bf16", plain_bf16, true);
  add("plain", "int8", plain_int8, true);
#if defined(SWIFTFORMER_CHECK)
  add("emulated_amx", "fp32", emulated_amx_fp32, true);
  add("emulated_amx", "bf16", emulated_amx_bf16, true);
  add("emulated_amx", "int8", emulated_amx_int8, true);
#endif
#if defined(SWIFTFORMER_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(SWIFTFORMER_CHECK)
  add("emulated_avx_vnni", "int8", emulated_avx_vnni_int8, avx2);
#endif
  add("avx2", "fp32", avx2_fp32, avx2);
  add("avx2", "bf16", avx2_fp32, avx2);  // without instructions for it, bfloat16 gains nothing
  add("avx2", "int8", avx2_int8, avx2);
#if defined(SWIFTFORMER_HAS_AVX_VNNI)
  // Few such processors were at hand: one that disagrees must not be trusted silently.
  static const bool avx_vnni = avx2 && __builtin_cpu_supports("avxvnni") && multiplies_like(avx_vnni_int8, plain_int8);
  add("avx2", "int8", avx_vnni_int8, avx_vnni);
  add("avx_vnni", "int8", avx_vnni_int8, avx_vnni);
#endif
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool vbmi = vnni && __builtin_cpu_supports("avx512vbmi");
  add("avx512", "fp32", avx512_fp32, avx512);
  add("avx512", "bf16", avx512_fp32, avx512);
#if defined(SWIFTFORMER_HAS_AVX512_BF16)
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  add("avx512", "bf16", avx512_bf16, bf16);
  add("avx512_bf16", "bf16", avx512_bf16, bf16);
#endif
  add("avx512", "int8", avx512_int8, vnni);
  add("avx512_vnni", "int8", avx512_int8, vnni);
  add("avx512", "int8", avx512_vbmi_int8, vbmi);
  add("avx512_vbmi", "int8", avx512_vbmi_int8, vbmi);
#if defined(SWIFTFORMER_HAS_AMX)
  static const bool amx =  // as for AVX-VNNI; float32 takes the instructions of bf16
      bf16 && vbmi && has_amx() && multiplies_like(amx_bf16, avx512_bf16) && multiplies_like(amx_int8, avx512_int8);
  add("amx", "fp32", amx_fp32, amx);
  add("amx", "bf16", amx_bf16, amx);
  add("amx", "int8", amx_int8, amx);
#endif
#elif defined(SWIFTFORMER_ARM)
  const bool dot_products = has_dot_products();
  add("neon", "fp32", neon_fp32, true);
  add("neon", "bf16", neon_fp32, true);
  add("neon", "int8", neon_int8, dot_products);
  add("neon_dot", "int8", neon_int8, dot_products);
#endif
  return all;
}

std::vector<Entry> supported_entries() {
  std::vector<Entry> all = entries();
  all.erase(std::remove_if(all.begin(), all.end(), [](const Entry& entry) { return !entry.has; }), all.end());
  return all;
}

std::vector<std::string> names_of(const std::vector<Entry>& some) {
  std::vector<std::string> names;
  for (const Entry& entry : some) {
    if (std::find(names.begin(), names.end(), entry.isa) == names.end()) names.push_back(entry.isa);
  }
  return names;
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

std::vector<std::string> built() { return names_of(entries()); }

std::vector<std::string> supported() { return names_of(supported_entries()); }

const Kernels& kernels_for(const std::string& isa, const std::string& precision) {
  if (precision != "fp32" && precision != "bf16" && precision != "int8") {
    throw std::invalid_argument("precision: expected fp32, bf16 or int8, found " + precision);
  }
  const std::vector<Entry> all = supported_entries();
  const Kernels* best = nullptr;
  for (const Entry& entry : all) {
    // The plain kernels of half and less precision are a reference: chosen by name only.
    const bool asked = isa == "auto" ? precision == "fp32" || entry.isa != std::string("plain") : isa == entry.isa;
    if (asked && precision == entry.precision) best = entry.kernels;
  }
  if (best) return *best;
  if (isa == "auto" && precision == "bf16") return kernels_for(isa, "fp32");
  std::vector<Entry> with_it;
  std::copy_if(all.begin(), all.end(), std::back_inserter(with_it),
               [&](const Entry& entry) { return precision == entry.precision; });
  std::string names;
  for (const std::string& name : names_of(with_it)) names += (names.empty() ? "" : ", ") + name;
  throw std::invalid_argument(precision + ": expected an instruction set of this processor that has it (" + names +
                              "), or another precision, found " + isa);
}

}  // namespace swiftformer
