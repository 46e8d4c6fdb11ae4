#include "kernels/vec_avx2.h"

namespace {

// `sum` and, for each of eight columns, the products of four levels with four weights.
inline __m256i dot_of_eight(__m256i levels, __m256i weights, __m256i sum) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(levels), "x"(weights));
  return sum;
}

}  // namespace

#define SWIFTFORMER_INT8
#define SWIFTFORMER_AVX_VNNI
#define WIDEST_PANEL 1
#define ROWS_OF_A_BLOCK(vectors) 6  // 12 of the 16 registers

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels avx_vnni_int8 = table<Int8>("avx2");
}
