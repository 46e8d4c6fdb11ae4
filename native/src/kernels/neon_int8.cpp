#include "kernels/vec_neon.h"

#define SWIFTFORMER_INT8
#define WIDEST_PANEL 1
#define ROWS_OF_A_BLOCK(vectors) 6  // 24 of the 32 registers

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels neon_int8 = table<Int8>("neon");
}
