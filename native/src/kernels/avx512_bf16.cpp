#include "kernels/vec_avx512.h"

#define SWIFTFORMER_BF16
#define WIDEST_PANEL 3
#define ROWS_OF_A_BLOCK(vectors) (vectors == 3 ? 8 : 12)  // 24 of the 32 registers

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels avx512_bf16 = table<Bf16>("avx512");
}
