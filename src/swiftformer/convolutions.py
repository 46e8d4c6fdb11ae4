"""The network's depth-wise and 1x1 convolutions: on a CPU they learn faster than torch's, depth-wise ones by a kernel
where it serves (see benchmarks/training_kernels.py), both from maps of a few pixels (see benchmarks/small_maps.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer.derivatives import is_transformed
from swiftformer.training_kernels import is_watched, serves_depth_wise
from swiftformer.training_operators import depth_wise

LEAST = 3  # pixels each way, below which oneDNN is slow at the gradient of depth-wise weights
MOST = 16  # pixels of a map, up to which matrix products are faster than oneDNN's 1x1 convolutions


class DepthWiseConv2d(nn.Conv2d):
    """3x3 with a padding of 1: `(B, dim, H, W)` to the same shape. Nothing but a convolution, except in training on a
    CPU: there by a kernel, if it serves, and otherwise with maps of one or two pixels in height or width, as pictures
    of up to 64 pixels have in the last stage, by a sum for each tap."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, input: Tensor) -> Tensor:
        learns = self.training and self.weight.requires_grad and torch.is_grad_enabled() and not torch.jit.is_tracing()
        if learns and serves_depth_wise(input, self):
            return depth_wise(input, self.weight, self.bias)
        small = input.ndim == 4 and min(input.shape[2:]) < LEAST
        if not (learns and small) or input.device.type != "cpu" or self.bias is None or is_transformed(input):
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight, bias = (tensor.to(dtype) for tensor in (input, weight, bias))
        return _SmallMaps.apply(input, weight, bias)


class PointWiseConv2d(nn.Conv2d):
    """1x1: `(B, in_channels, H, W)` to `(B, out_channels, H, W)`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, input: Tensor) -> Tensor:
        return point_wise(input, self.weight, self.bias, self.training)


def point_wise(x: Tensor, weight: Tensor, bias: Tensor | None, training: bool) -> Tensor:
    """A 1x1 convolution; a matrix product in training on a CPU with maps of up to 16 pixels, channels last."""
    learns = training and weight.requires_grad and torch.is_grad_enabled() and not torch.jit.is_tracing()
    if learns and x.device.type == "cpu" and x.ndim == 4 and x.shape[2] * x.shape[3] <= MOST:
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        if pixels.is_contiguous():
            # The gradient is to have the weight's strides, which DistributedDataParallel would copy it to otherwise.
            matrix = weight.flatten(1) if weight.stride(2) == 1 else weight.permute(0, 2, 3, 1).flatten(1)
            return F.linear(pixels, matrix, bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


class _SmallMaps(torch.autograd.Function):
    """The convolution, with the gradient of its weights summed up a tap at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            shape = ([1, 1], [1, 1], [1, 1], False, [0, 0], len(weight), [True, False, False])
            of_x = torch.ops.aten.convolution_backward(gradient, x, weight, None, *shape)[0]
        of_weight, exact = torch.empty_like(weight), torch.promote_types(x.dtype, torch.float32)
        for row, column in ((row, column) for row in range(3) for column in range(3)):
            seen = _shifted(x, row - 1, column - 1)
            total = (seen * _shifted(gradient, 1 - row, 1 - column)).sum((0, 2, 3), dtype=exact)
            of_weight[:, 0, row, column] = total
        return of_x, of_weight, gradient.sum((0, 2, 3))


def _shifted(x: Tensor, rows: int, columns: int) -> Tensor:
    """The part of a map `(B, C, H, W)` that is still inside when it is moved up and left by so many pixels."""
    height, width = x.shape[-2:]
    return x[..., max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)]


def scaled(layer: Any, x: Tensor, scale: Tensor | None) -> Tensor:
    """`scale * layer(x)` of a 1x1 convolution and `(C, 1, 1)`, or of a linear layer and `(C,)`.

    In full precision the weights are scaled, which are far fewer numbers than what they give. In half precision they
    are not: scales begin at 1e-5, where weights vanish in float16, and sums with what is scaled have to stay float32.
    Layers with hooks, or that something else took the place of, such as an adapter, are called as they are.
    """
    if scale is None:
        return layer(x)
    if not autocasts(x) and is_plain_layer(layer):
        weight = scale.view(-1, *(1,) * (layer.weight.ndim - 1)) * layer.weight
        bias = scale.flatten() * layer.bias
        return point_wise(x, weight, bias, layer.training) if weight.ndim == 4 else F.linear(x, weight, bias)
    return scale * layer(x)


def autocasts(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)  # which raises for the meta device


def in_autocast(x: Tensor) -> Tensor:
    """`x` as autocast gives it to layers with weights, each of which would round it again."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if autocasts(x) and x.dtype == torch.float32 else x


def is_plain_layer(layer: Any) -> bool:
    """A layer in full precision that does what its weights say and nothing else."""
    return (
        type(layer) in (PointWiseConv2d, nn.Conv2d, nn.Linear)
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype in (torch.float32, torch.float64)
        and layer.bias is not None
        and not is_watched(layer)
    )
