"""GELU, BatchNorm, L2 normalisation, depth-wise convolutions, MLPs and the sum with a scaled branch, for training on a
CPU with autocast to bfloat16; GELU in float32 as well.

Where `swiftformer_native` is installed its kernels are called, in PyTorch's own threads: those of bfloat16 where the
processor has AVX-512 BF16, that of float32 on every one with AVX2 or NEON. Everywhere else nothing changes. What they
gain: `benchmarks/training_kernels.py` and `benchmarks/training_speed.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer import training_operators
from swiftformer.derivatives import is_transformed
from swiftformer.training_operators import batch_norm, gelu, gelu_float32, is_plain, is_run, sum_with_scaled

LARGE = 2**18  # values of a map, from which BatchNorm gains more than another call costs
# Of an MLP: sums of more weights' gradients do not stay in a core's caches, and where not much lies between the layers
# not much is gained. See benchmarks/training_kernels.py.
MOST_CHANNELS, MOST_HIDDEN = 128, 512


class GELU(nn.GELU):
    """The exact GELU, `x Phi(x)`."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and _serves(input):
            return gelu(input)
        return gelu_float32(input) if self.training and _serves_float32(input) else F.gelu(input)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, of maps `(B, num_features, H, W)`; large ones in training by a kernel."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and _serves(input) and self._fits(input)):
            return super().forward(input)
        y, mean, inverse = batch_norm(input, self.weight, self.bias, self.eps)
        count = input.numel() // input.shape[1]
        with torch.no_grad():
            variance = (inverse.pow(-2) - self.eps).clamp_min_(0) * (count / (count - 1))
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance, self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return y

    def _fits(self, x: Tensor) -> bool:
        counted = self.running_mean is not None and self.momentum is not None
        float32 = all(values is not None and values.dtype == torch.float32 for values in (self.weight, self.bias))
        large = x.numel() >= LARGE and x.is_contiguous(memory_format=torch.channels_last)
        return counted and float32 and x.ndim == 4 and x.shape[1] == self.num_features and large


def add_scaled(
    x: Tensor, branch: Callable[[Tensor, Tensor | None], Tensor], scale: Tensor | None, drop: nn.Module
) -> Tensor:
    """`x + drop(branch(x, scale))`, maps `(B, C, H, W)`.

    Args:
        branch: gives its result times the scale, `(C, 1, 1)`, that it gets, or without one as it is.
    """
    autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if scale is None or training_operators.KERNELS is None or not (autocast and drop.training):
        return x + drop(branch(x, scale))
    result = branch(x, None)
    shapes = x.ndim == 4 and x.shape == result.shape and scale.shape == (x.shape[1], 1, 1)
    rows = all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, result))
    types = x.dtype in (torch.float32, torch.bfloat16) and scale.dtype == torch.float32
    if _serves(result) and is_idle(drop) and shapes and rows and types:
        return sum_with_scaled(x, scale, result)
    return x + drop(scale * result)


def serves_depth_wise(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `training_operators.depth_wise` computes what a 3x3 convolution is to give, in a step that learns."""
    if training_operators.KERNELS is None or not _autocasts(x) or is_transformed(x):
        return False
    places = conv.stride, conv.padding, conv.dilation, conv.padding_mode
    if places != ((1, 1), (1, 1), (1, 1), "zeros") or conv.weight.shape[1:] != (1, 3, 3) or x.numel() == 0:
        return False
    weights = all(each is not None and each.dtype == torch.float32 for each in (conv.weight, conv.bias))
    types = weights and x.dtype in (torch.float32, torch.bfloat16)
    return (
        types and x.ndim == 4 and x.shape[1] == len(conv.weight) and x.is_contiguous(memory_format=torch.channels_last)
    )


def serves_mlp(x: Tensor, expand: nn.Conv2d, activation: nn.Module, project: nn.Conv2d) -> bool:
    """Whether `training_operators.mlp` computes what these modules, two convolutions of 1x1, are to give."""
    if training_operators.KERNELS is None or not (_autocasts(x) and _is_learned_from(x)):
        return False
    if type(activation) is not GELU or activation.approximate != "none" or is_watched(activation) or x.ndim != 4:
        return False
    if any((conv.stride, conv.padding, conv.groups) != ((1, 1), (0, 0), 1) for conv in (expand, project)):
        return False
    weights = expand.weight, expand.bias, project.weight, project.bias
    learned = all(each is not None and each.dtype == torch.float32 and each.requires_grad for each in weights)
    channels, hidden = x.shape[1], len(expand.weight)
    shapes = expand.weight.shape == (hidden, channels, 1, 1) and project.weight.shape == (channels, hidden, 1, 1)
    fits = channels <= MOST_CHANNELS and 2 * channels <= hidden <= MOST_HIDDEN and channels % 2 == hidden % 2 == 0
    types = x.dtype in (torch.float32, torch.bfloat16)
    return learned and shapes and fits and types and x.is_contiguous(memory_format=torch.channels_last)


def _autocasts(x: Tensor) -> bool:
    cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return cpu and torch.get_autocast_dtype("cpu") == torch.bfloat16


def serves_l2_normalize(x: Tensor, dim: int) -> bool:
    """Whether kernels compute the L2 normalisation of this tensor, and its gradient."""
    rows = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.ndim > 0 and dim in (-1, x.ndim - 1)
    return training_operators.KERNELS is not None and rows and x.numel() > 0 and is_run(x) and not is_transformed(x)


def is_idle(drop: nn.Module) -> bool:
    """Whether dropout or drop path does nothing and nobody looks at it."""
    rate = drop.p if type(drop) is nn.Dropout else getattr(drop, "drop_prob", None)
    return rate == 0 and not is_watched(drop)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody looks at what it takes or gives, or has put something in place of its function."""
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    everywhere = any(getattr(torch.nn.modules.module, f"_global{name}") for name in hooks)
    return everywhere or any(getattr(module, name) for name in hooks) or "forward" in vars(module)


def _serves(x: Tensor) -> bool:
    """Whether a kernel takes this tensor: one that is learned from."""
    return training_operators.KERNELS is not None and x.dtype == torch.bfloat16 and _is_learned_from(x)


def _serves_float32(x: Tensor) -> bool:
    """Not where torch compiles: that computes GELU together with its neighbours."""
    return training_operators.FLOAT_KERNELS is not None and is_plain(x) and _is_learned_from(x)


def _is_learned_from(x: Tensor) -> bool:
    learned = x.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu"
    return learned and not torch.jit.is_tracing() and not is_transformed(x)
