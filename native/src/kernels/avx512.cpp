#include "kernels/vec_avx512.h"

#define WIDEST_PANEL 3
#define PREFETCH_PANELS                                   // float32 weights of large variants come from memory
#define ROWS_OF_A_BLOCK(vectors) (vectors == 3 ? 8 : 12)  // 24 of the 32 registers

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels avx512_fp32 = table<Fp32>("avx512");
}
