#include "kernels/vec_avx2.h"

#define WIDEST_PANEL 1
#define PREFETCH_PANELS             // float32 weights of large variants come from memory
#define ROWS_OF_A_BLOCK(vectors) 6  // 12 of the 16 registers

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels avx2_fp32 = table<Fp32>("avx2");
}
