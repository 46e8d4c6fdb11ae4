// The kernels for AMX in plain C++, for processors without.

#include "kernels/vec_plain.h"

#define SWIFTFORMER_EMULATED_TILES
#define SWIFTFORMER_BF16
#define SWIFTFORMER_INT8
#define WIDEST_PANEL 1
#define ROWS_OF_A_BLOCK(vectors) 4

#include "kernels/amx_impl.h"

namespace swiftformer {
constexpr Kernels emulated_amx_fp32 = table_of_tiles<Fp32InTiles>("emulated_amx", &plain_fp32);
constexpr Kernels emulated_amx_bf16 = table_of_tiles<Bf16InTiles>("emulated_amx");
constexpr Kernels emulated_amx_int8 = table_of_tiles<Int8InTiles>("emulated_amx");
}  // namespace swiftformer
