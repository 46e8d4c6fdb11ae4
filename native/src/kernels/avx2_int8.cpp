#include "kernels/vec_avx2.h"

#define SWIFTFORMER_INT8
#define WIDEST_PANEL 1
#define ROWS_OF_A_BLOCK(vectors) 6  // 12 of the 16 registers

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels avx2_int8 = table<Int8>("avx2");
}
