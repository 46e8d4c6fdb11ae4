"""The operators of Core ML's ML Programs that SwiftFormer uses, in NumPy, from their published definitions.

Every function takes the operator's inputs by their names, activations as float32, and gives its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Sequence[int] = (1, 1),
    pad_type: str = "valid",
    pad: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """`(B, C, H, W)` with `(O, C / groups, kH, kW)`; `pad` is top, bottom, left, right.

    Raises:
        NotImplementedError: padding that depends on the size.
    """
    if pad_type not in ("valid", "custom"):
        raise NotImplementedError(f"conv: expected padding valid or custom, found {pad_type}")
    if pad_type == "custom":
        x = np.pad(x, ((0, 0), (0, 0), tuple(pad[:2]), tuple(pad[2:])))
    (batch, channels, *size), groups = x.shape, int(groups)
    kernel = weight.shape[2:]
    height, width = (
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    )
    x = x.reshape(batch, groups, channels // groups, *size)
    taps = weight.reshape(groups, len(weight) // groups, channels // groups, *kernel)
    found = np.zeros((batch, groups, taps.shape[1], height * width), np.float32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilations[0], j * dilations[1]
            rows = slice(top, top + (height - 1) * strides[0] + 1, strides[0])
            columns = slice(left, left + (width - 1) * strides[1] + 1, strides[1])
            found += taps[..., i, j] @ x[..., rows, columns].reshape(batch, groups, -1, height * width)
    found = found.reshape(batch, -1, height, width)
    return found if bias is None else found + bias[:, None, None]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """`(..., in)` with `(out, in)`."""
    found = x @ weight.T
    return found if bias is None else found + bias


def erf(x: Array) -> Array:
    """The error function to 1.5e-7 (Abramowitz and Stegun, formula 7.1.26)."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-x * x))


def gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return 0.5 * x * (1 + erf(x * 0.5**0.5))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return x * sigmoid(1.702 * x)


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return powers / powers.sum(axis=int(axis), keepdims=True)


def reduced(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(x: Array, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Array:
        return function(x, axis=None if axes is None else tuple(int(a) for a in axes), keepdims=bool(keep_dims))

    return reduce


def split(x: Array, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None) -> list[Array]:
    if split_sizes is None:
        return np.split(x, int(num_splits or 1), axis=int(axis))
    return np.split(x, np.cumsum(split_sizes)[:-1], axis=int(axis))


def concat(values: Sequence[Array], axis: int, interleave: bool = False) -> Array:
    if interleave:
        raise NotImplementedError("concat: expected values one behind the other, found them interleaved")
    return np.concatenate(values, axis=int(axis))


def affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: int) -> Array:
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    scale, zero_point = (v.reshape(shape).astype(np.float32) if v.ndim else v for v in (scale, zero_point))
    return (quantized_data.astype(np.float32) - zero_point) * scale


def lut_to_dense(indices: Array, lut: Array, shape: Array) -> Array:
    """Indices of as many bits as the palette needs, packed from the lowest bit of the first byte upwards."""
    bits, count = int(np.log2(len(lut))), int(np.prod(shape))
    unpacked = np.unpackbits(indices, bitorder="little")[: count * bits].reshape(count, bits)
    return lut[unpacked @ (1 << np.arange(bits))].reshape([int(n) for n in shape])


def upsample_bilinear(
    x: Array, scale_factor_height: float = 1, scale_factor_width: float = 1, align_corners: bool = True
) -> Array:
    """`(..., H, W)`, linear between the centres of pixels.

    Raises:
        NotImplementedError: linear between the corners.
    """
    if align_corners:
        raise NotImplementedError("upsample_bilinear: expected aligned centres, found aligned corners")
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        count, size = x.shape[axis], int(x.shape[axis] * float(factor))
        spacing = count / size
        place = np.clip((np.arange(size) + 0.5) * spacing - 0.5, 0, count - 1)
        before = place.astype(int)
        share = (place - before).astype(np.float32)
        share = share[:, None] if axis == -2 else share
        behind = np.minimum(before + 1, count - 1)
        x = np.take(x, before, axis=axis) * (1 - share) + np.take(x, behind, axis=axis) * share
    return x


def upsample_nearest_neighbor(x: Array, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Array:
    """`(..., H, W)`, every value repeated.

    Raises:
        NotImplementedError: a factor that is no whole number.
    """
    for axis, factor in ((-2, float(scale_factor_height)), (-1, float(scale_factor_width))):
        if not factor.is_integer():
            raise NotImplementedError(f"upsample_nearest_neighbor: expected a whole factor, found {factor}")
        x = np.repeat(x, int(factor), axis=axis)
    return x


OPS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,  # the output's type does it
    "classify": lambda probabilities, classes: [None, probabilities],
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "concat": concat,
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_lut_to_dense": lut_to_dense,
    "conv": conv,
    "gelu": gelu,
    "linear": linear,
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "reduce_mean": reduced(np.mean),
    "reduce_sum": reduced(np.sum),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "rsqrt": lambda x, epsilon=1e-12: 1 / np.sqrt(x + epsilon),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "softmax": softmax,
    "split": split,
    "sub": lambda x, y: x - y,
    "tanh": np.tanh,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
