#include "vec_plain.h"
//
#include "training_impl.h"

namespace swiftformer {
constexpr TrainingKernels plain_training = training_table("plain");
}
