// Which kernels this processor runs.

#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace swiftformer {

// Names of the instruction sets that this build has kernels for, better ones last; `neon_dot` stands for int8 in NEON,
// `avx_vnni` stands for int8 in AVX2 with an instruction for it, `avx512_bf16` for bfloat16 in AVX-512, `avx512_vnni`
// for int8 and `avx512_vbmi` for int8 with faster look-ups.
std::vector<std::string> built();

// Those of them that this processor has.
std::vector<std::string> supported();

// The kernels of an instruction set, or `auto` for the best one, in precision `fp32`, `bf16` or `int8`. Throws
// std::invalid_argument where this processor or this build lacks them.
const Kernels& kernels_for(const std::string& isa, const std::string& precision);

// Four int8 from -32 to 31: weights of which all kernels can multiply any.
uint32_t small_weights(uint32_t bits);

// Whether products are those of other kernels of the same precision, of more rows than a tile has and some that leave
// one half empty.
bool multiplies_like(const Kernels& kernels, const Kernels& other);

}  // namespace swiftformer
