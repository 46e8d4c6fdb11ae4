"""What a fresh wheel must do: a tiny network of random weights gives finite logits."""

import numpy as np
import swiftformer_native

random = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return (0.3 * random.standard_normal(shape)).astype(np.float32)


print("instruction sets:", *swiftformer_native.supported())
network = swiftformer_native.Network(precision="fp32", threads=2)
network.stem(weight(8, 3, 3, 3), weight(8), weight(16, 8, 3, 3), weight(16))
network.branch(weight(16, 1, 3, 3), weight(16), weight(64, 16), weight(64), weight(16, 64), weight(16))
network.head(weight(10, 16), weight(10))
(logits,) = network(weight(2, 3, 32, 32))
assert logits.shape == (2, 10) and np.isfinite(logits).all(), logits
print("logits:", logits.shape, "computed with", network.isa)
