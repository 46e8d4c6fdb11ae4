"""What a fresh wheel must do: a tiny network of random weights gives the same logits in all that this processor has."""

import numpy as np
import swiftformer_native

random = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return (0.3 * random.standard_normal(shape)).astype(np.float32)


stem = weight(8, 3, 3, 3), weight(8), weight(16, 8, 3, 3), weight(16), [0.45] * 3, [0.25] * 3
branch = weight(16, 1, 3, 3), weight(16), weight(64, 16), weight(64), weight(16, 64), weight(16)
head = weight(10, 16), weight(10)
pixels = random.integers(0, 256, (5, 45, 37, 3), np.uint8)
normalised = np.ascontiguousarray(((pixels / np.float32(255) - 0.45) / 0.25).transpose(0, 3, 1, 2), np.float32)


def logits(isa: str, precision: str, images: np.ndarray) -> np.ndarray:
    network = swiftformer_native.Network(isa=isa, precision=precision, threads=2)
    network.stem(*stem)
    network.branch(*branch)
    network.head(*head)
    (found,) = network(images)
    print(f"{isa} {precision}, {images.dtype}: computed with {network.isa} in {network.precision}")
    assert found.shape == (5, 10) and np.isfinite(found).all(), found
    return found


print("instruction sets:", *swiftformer_native.supported(), "of", *swiftformer_native.built())
exact = logits("plain", "fp32", normalised)
has_int8 = not {"avx2", "avx512_vnni", "neon_dot"}.isdisjoint(swiftformer_native.supported())
for isa in ("plain", "auto"):
    for precision, most in {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}.items():
        if precision == "int8" and isa == "auto" and not has_int8:
            continue
        for images in (normalised, pixels):
            difference = np.abs(logits(isa, precision, images) - exact).max() / np.abs(exact).max()
            assert difference < most, (isa, precision, images.dtype, difference)
