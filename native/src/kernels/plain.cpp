#include "kernels/vec_plain.h"

#define SWIFTFORMER_BF16
#define SWIFTFORMER_INT8
#define WIDEST_PANEL 1
#define ROWS_OF_A_BLOCK(vectors) 4

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels plain_fp32 = table<Fp32>("plain");
constexpr Kernels plain_bf16 = table<Bf16>("plain");
constexpr Kernels plain_int8 = table<Int8>("plain");
}  // namespace swiftformer
