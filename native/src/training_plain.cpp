#include "vec_plain.h"
//
#include "training_impl.h"

namespace swiftformer {
const TrainingKernels plain_training = training_table("plain");
}
