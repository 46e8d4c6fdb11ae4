"""GELU and the sum with a scaled branch, for training on a CPU with autocast to bfloat16.

PyTorch computes GELU of bfloat16 five times as slowly as memory allows, and a scaled sum in four passes. Where
`swiftformer_native` is installed and the processor has AVX-512 BF16, both are one pass each, in PyTorch's own threads.
Everywhere else nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import util
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INSTRUCTIONS = "avx512_bf16"


def _find() -> Any:
    """`swiftformer_native.training`, or None where it has nothing faster than PyTorch."""
    if util.find_spec("swiftformer_native") is None:
        return None
    import swiftformer_native

    found = getattr(swiftformer_native, "training", None)  # older versions lack it
    return found if found and found.has_openmp() and INSTRUCTIONS in found.supported() else None


KERNELS = _find()


class GELU(nn.GELU):
    """The exact GELU, `x Phi(x)`."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input) if _serves(input) else F.gelu(input)


def add_scaled(
    x: Tensor, branch: Callable[[Tensor, Tensor | None], Tensor], scale: Tensor | None, drop: nn.Module
) -> Tensor:
    """`x + drop(branch(x, scale))`, maps `(B, C, H, W)`.

    Args:
        branch: gives its result times the scale, `(C, 1, 1)`, that it gets, or without one as it is.
    """
    autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    if scale is None or KERNELS is None or not autocast or torch.jit.is_tracing():
        return x + drop(branch(x, scale))
    result = branch(x, None)
    idle = not drop.training or getattr(drop, "p", getattr(drop, "drop_prob", 0.0)) == 0.0
    rows = all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, result))
    types = x.dtype in (torch.float32, torch.bfloat16) and scale.dtype == torch.float32
    if idle and rows and types and _serves(result):
        return sum_with_scaled(x, scale, result)
    return x + drop(scale * result)


def _serves(x: Tensor) -> bool:
    """Whether a kernel takes this tensor: one that is learned from."""
    learned = x.requires_grad and torch.is_grad_enabled() and not torch.jit.is_tracing()
    return learned and x.dtype == torch.bfloat16 and x.device.type == "cpu" and KERNELS is not None


@torch.library.custom_op("swiftformer::gelu", mutates_args=(), device_types="cpu")
def gelu(x: Tensor) -> Tensor:
    """Of bfloat16, in any layout; so are the gradients."""
    y = torch.empty_like(x)
    x = _in_layout_of(y, x)
    KERNELS.gelu(x.data_ptr(), x.numel(), y.data_ptr(), torch.get_num_threads(), INSTRUCTIONS)
    return y


@torch.library.custom_op("swiftformer::gelu_gradient", mutates_args=(), device_types="cpu")
def gelu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    to = torch.empty_like(x)
    gradient, x = _in_layout_of(to, gradient), _in_layout_of(to, x)
    addresses = gradient.data_ptr(), x.data_ptr(), x.numel(), to.data_ptr()
    KERNELS.gelu_gradient(*addresses, torch.get_num_threads(), INSTRUCTIONS)
    return to


@torch.library.custom_op("swiftformer::sum_with_scaled", mutates_args=(), device_types="cpu")
def sum_with_scaled(x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
    """`x + scale * branch`: maps of float32 or bfloat16, `(C, 1, 1)` of float32, maps of bfloat16; gives float32."""
    x, branch, scale = _channels_last(x), _channels_last(branch), scale.contiguous()
    to = torch.empty_like(x, dtype=torch.float32)
    count, channels = x.numel() // x.shape[1], x.shape[1]
    addresses = x.data_ptr(), x.dtype == torch.bfloat16, scale.data_ptr(), branch.data_ptr()
    KERNELS.add_scaled(*addresses, count, channels, to.data_ptr(), torch.get_num_threads(), INSTRUCTIONS)
    return to


@torch.library.custom_op("swiftformer::scaled_gradient", mutates_args=(), device_types="cpu")
def scaled_gradient(gradient: Tensor, scale: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    gradient, branch, scale = _channels_last(gradient), _channels_last(branch), scale.contiguous()
    of_branch, of_scale = torch.empty_like(branch), torch.empty_like(scale)
    count, channels = branch.numel() // branch.shape[1], branch.shape[1]
    addresses = gradient.data_ptr(), scale.data_ptr(), branch.data_ptr()
    places = of_branch.data_ptr(), of_scale.data_ptr()
    KERNELS.scaled_gradient(*addresses, count, channels, *places, torch.get_num_threads(), INSTRUCTIONS)
    return of_branch, of_scale


def _in_layout_of(like: Tensor, x: Tensor) -> Tensor:
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@gelu_gradient.register_fake
def _(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


@sum_with_scaled.register_fake
def _(x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32, memory_format=torch.channels_last)


@scaled_gradient.register_fake
def _(gradient: Tensor, scale: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(branch, memory_format=torch.channels_last), torch.empty_like(scale)


def _keep_gelu(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx: Any, gradient: Tensor) -> Tensor:
    return gelu_gradient(gradient, *ctx.saved_tensors)


def _keep_sum(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, scale, branch = inputs
    ctx.save_for_backward(scale, branch)
    ctx.dtype = x.dtype


def _sum_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_branch, of_scale = scaled_gradient(gradient, *ctx.saved_tensors)
    return gradient.to(ctx.dtype), of_scale, of_branch


gelu.register_autograd(_gelu_backward, setup_context=_keep_gelu)
sum_with_scaled.register_autograd(_sum_backward, setup_context=_keep_sum)
