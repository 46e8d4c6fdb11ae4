#include "kernels/vec_avx512.h"

#define SWIFTFORMER_BF16
#define SWIFTFORMER_INT8
#define WIDEST_PANEL 3
#define ROWS_OF_A_BLOCK(vectors) (vectors == 3 ? 8 : 12)  // 24 of the 32 registers

#include "kernels/amx_impl.h"

namespace swiftformer {
constexpr Kernels amx_fp32 = table_of_tiles<Fp32InTiles>("amx", &avx512_fp32);
constexpr Kernels amx_bf16 = table_of_tiles<Bf16InTiles>("amx");
constexpr Kernels amx_int8 = table_of_tiles<Int8InTiles>("amx");
}  // namespace swiftformer
