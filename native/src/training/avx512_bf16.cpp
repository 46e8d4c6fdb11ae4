#include "kernels/vec_avx512.h"
//
#include "training/impl.h"

namespace swiftformer {
constexpr TrainingKernels avx512_training = training_table("avx512_bf16");
}
