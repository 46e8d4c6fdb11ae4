#include "kernels/vec_plain.h"
//
#include "training/impl.h"

namespace swiftformer {
constexpr TrainingKernels plain_training = training_table("plain");
}
