"""Division by the L2 norm, with a gradient that takes few passes over memory, or one where a kernel serves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftformer.derivatives import is_transformed
from swiftformer.training_kernels import serves_l2_normalize
from swiftformer.training_operators import call_kernel, check_types


class _L2Normalization(torch.autograd.Function):
    """`l2_normalize` for training: the gradient `(g - y (y . g)) / |x|` in four passes over the tokens, or in one by a
    kernel.

    `1 / |x|` is a result as well, so that the gradient can itself be differentiated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if serves_l2_normalize(x, dim):
            normalized, inverse = _by_kernel(x)
        else:
            exact = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
            inverse = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=exact).clamp_min_(1e-12).reciprocal_()
            normalized = torch.mul(x, inverse, out=torch.empty_like(x))
        ctx.save_for_backward(normalized, inverse)
        ctx.dim = dim
        ctx.set_materialize_grads(False)
        return normalized, inverse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, of_inverse: Tensor | None) -> tuple[Tensor | None, None]:
        normalized, inverse = ctx.saved_tensors
        of_x = None
        if gradient is not None and not torch.is_grad_enabled() and serves_l2_normalize(gradient, ctx.dim):
            of_x = _gradient_by_kernel(gradient, normalized, inverse)
        elif gradient is not None:
            along = (gradient * normalized).sum(ctx.dim, keepdim=True)
            of_x = torch.addcmul(gradient, normalized, along, value=-1)
            of_x = of_x * inverse if torch.is_grad_enabled() else of_x.mul_(inverse)
        if of_inverse is not None:
            besides = -normalized * (of_inverse * inverse.square())
            of_x = besides if of_x is None else of_x + besides
        return of_x, None


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Divide `x` by its L2 norm along `dim`; a zero vector stays zero.

    Half precision is computed in float32, because the epsilon of 1e-12 that keeps a zero vector finite is itself
    zero in float16.
    """
    # None of which takes autograd functions of our own.
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed(x)
    if x.requires_grad and torch.is_grad_enabled() and not recorded:
        return _L2Normalization.apply(x, dim)[0]
    if x.dtype in (torch.float16, torch.bfloat16):
        return F.normalize(x.float(), dim=dim).to(x.dtype)
    return F.normalize(x, dim=dim)


def _by_kernel(x: Tensor) -> tuple[Tensor, Tensor]:
    """`(..., D)` bfloat16 divided by its norms, and what it is multiplied by, `(..., 1)` float32."""
    check_types(torch.bfloat16, x)
    x = x.contiguous()
    y, inverse = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    call_kernel("l2_normalize", x, inverse.numel(), x.shape[-1], y, inverse)
    return y, inverse


def _gradient_by_kernel(gradient: Tensor, y: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of x in `_by_kernel`, from that of y.

    Raises:
        ValueError: of other shapes or types, of which a kernel would read behind the end.
    """
    check_types(torch.bfloat16, gradient, y)
    check_types(torch.float32, inverse)
    if gradient.shape != y.shape or inverse.shape != (*y.shape[:-1], 1):
        raise ValueError(f"expected a gradient of shape {tuple(y.shape)}, found {tuple(gradient.shape)}")
    gradient, y = gradient.contiguous(), y.contiguous()
    to = torch.empty_like(y)
    call_kernel("l2_normalize_gradient", gradient, y, inverse.contiguous(), inverse.numel(), y.shape[-1], to)
    return to
