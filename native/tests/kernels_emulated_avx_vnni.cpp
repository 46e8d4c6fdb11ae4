// The kernels for AVX-VNNI with its one instruction made of others, for processors without.

#include "kernels/vec_avx2.h"

namespace {

inline __m256i dot_of_eight(__m256i levels, __m256i weights, __m256i sum) {
  const __m256i even = _mm256_and_si256(levels, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(levels, 8);
  const __m256i even_weights = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, even_weights));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, _mm256_srai_epi16(weights, 8)));
}

}  // namespace

#define SWIFTFORMER_INT8
#define SWIFTFORMER_AVX_VNNI
#define WIDEST_PANEL 1
#define ROWS_OF_A_BLOCK(vectors) 6

#include "kernels/kernels_impl.h"

namespace swiftformer {
constexpr Kernels emulated_avx_vnni_int8 = table<Int8>("avx2");
}
